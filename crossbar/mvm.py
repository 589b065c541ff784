"""The hot path: one matrix-vector product on every row tile of a layer, converters and read noise included."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from crossbar.hardware import Converter, Hardware
from crossbar.streams import ReadNoise

_CHUNK = 2**20  # partial sums worked on at once: 4 MiB of float32, so that the passes after the product stay in cache
_TINY = 1e-30  # range of an all-zero input vector: any positive number gives zeros


def multiply(
    x: Tensor, weight: Tensor, scales: Tensor, hardware: Hardware, input_range: Tensor | None, noise: ReadNoise | None
) -> Tensor:
    """Products of a layer's row tiles with input vectors, accumulated in digital.

    DAC codes drive the word lines, each column of each row tile sums its cells, noise is added, the ADC converts, and
    the digital side scales and adds the row tiles. A slow transcription of the same is `crossbar.reference.multiply`.

    Args:
        x: ``[B, I]``.
        weight: signed cell values ``(G⁺ - G⁻) / g_max``, ``[I, O]``.
        scales: what one unit output is worth, ``[T_in, O]``, in weight units.
        hardware: geometry, converters and output noise.
        input_range: calibrated DAC range (0-d, activation units); None: found as ``hardware.dac.range`` says.
        noise: stream of output noise; None for quiet reads.

    Returns:
        ``[B, O]``.
    """
    codes, unit_input, gain = _drive(x, hardware.dac, input_range)
    if hardware.adc is None and (noise is None or hardware.output_noise == 0):
        # Nothing happens between a column and the digital sum: the row tiles are one product.
        folded = weight * scales.repeat_interleave(hardware.tile.rows, 0)[: weight.shape[0]]
        return (codes @ folded).mul_(unit_input * gain)
    pieces = []
    for piece in codes.split(max(1, _CHUNK // scales.numel())):
        y, step = _read(piece, unit_input, weight, scales.shape[0], hardware, noise)
        pieces.append(y.mul_((scales * step).unsqueeze(1)).sum(0))
    return (pieces[0] if len(pieces) == 1 else torch.cat(pieces)).mul_(gain)


def read_columns(
    x: Tensor, weight: Tensor, row_tiles: int, hardware: Hardware, input_range: Tensor | None, noise: ReadNoise | None
) -> Tensor:
    """What the ADCs deliver, before any digital scale: ``[T_in, B, O]`` in unit outputs x activation units.

    Arguments as in `multiply`.
    """
    codes, unit_input, gain = _drive(x, hardware.dac, input_range)
    y, step = _read(codes, unit_input, weight, row_tiles, hardware, noise)
    return y.mul_(step).mul_(gain)


def _drive(x: Tensor, dac: Converter | None, input_range: Tensor | None) -> tuple[Tensor, float, Tensor | float]:
    """Word-line codes, the part of full scale that a code of 1 drives, and the activation that full scale stands for.

    The last is a scalar or ``[B, 1]``. Without a DAC an activation of 1 is full scale.
    """
    if dac is None:
        return x, 1.0, 1.0
    if input_range is None:
        if dac.range == "static":
            input_range = x.new_tensor(dac.full_scale)
        elif dac.range == "per_token":
            input_range = x.detach().abs().amax(-1, keepdim=True).clamp_(min=_TINY)
        else:
            largest = x.detach().abs().amax() if x.numel() else x.new_zeros(())
            input_range = largest.clamp_(min=_TINY)
    return _convert(x * (dac.levels / input_range), dac.levels), 1.0 / dac.levels, input_range


def _read(
    codes: Tensor, unit_input: float, weight: Tensor, row_tiles: int, hardware: Hardware, noise: ReadNoise | None
) -> tuple[Tensor, float]:
    """Column outputs ``[T_in, B, O]`` of word-line codes ``[B, I]``, and the unit outputs that 1 of them stands for."""
    adc, rows = hardware.adc, hardware.tile.rows
    step = 1.0 if adc is None else adc.full_scale / adc.levels
    alpha = unit_input / step
    shape = (row_tiles, codes.shape[0], weight.shape[1])
    if noise is None or hardware.output_noise == 0:
        y, beta = codes.new_empty(shape), 0.0
    else:
        y, beta = noise.draw(shape).to(codes.dtype), hardware.output_noise / step
    # The product adds itself onto the noise, in ADC steps at once: one pass for multiplying, adding and scaling.
    full = codes.shape[1] // rows
    if full:
        driven = codes[:, : full * rows].unflatten(1, (full, rows)).transpose(0, 1)
        y[:full].baddbmm_(driven, weight[: full * rows].unflatten(0, (full, rows)), beta=beta, alpha=alpha)
    if full < row_tiles:
        y[full].addmm_(codes[:, full * rows :], weight[full * rows :], beta=beta, alpha=alpha)
    return (y if adc is None else _convert(y, adc.levels)), step


def _convert(y: Tensor, levels: int) -> Tensor:
    """Nearest code within ± levels; overwrites ``y`` where no gradient is asked for."""
    if torch.is_grad_enabled() and y.requires_grad:
        converted: Tensor = _StraightThrough.apply(y, levels)  # type: ignore[no-untyped-call]  # torch's own
        return converted
    return y.round_().clamp_(-levels, levels)


class _StraightThrough(torch.autograd.Function):
    """Rounding and clipping whose gradient is 1 inside the range and 0 outside."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, levels: int) -> Tensor:
        # Half a step of room: an input at its own token's abs-max rounds to just above the last level.
        ctx.save_for_backward(y.abs() <= levels + 0.5)
        return y.round().clamp_(-levels, levels)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None
