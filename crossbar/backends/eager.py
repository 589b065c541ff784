"""The hot path: one matrix-vector product on every row tile of a layer, converters and read noise included."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from crossbar.backends.converters import Drive, bit_planes, convert, drive, found_range
from crossbar.backends.cpu import integers
from crossbar.hardware import Hardware
from crossbar.random.streams import Cursor
from crossbar.tiles.readout import Array

_VECTORS = 128  # input vectors worked on at once, at least, so that products stay efficient ...
_PARTIALS = 2**18  # ... or this many partial sums: 1 MiB of float32, so that what comes after them stays in cache


def multiply(
    x: Tensor, array: Array, hardware: Hardware, input_range: Tensor | None = None, noise: Cursor | None = None
) -> Tensor:
    """Products of a layer's row tiles with input vectors, accumulated in digital.

    DAC codes drive the word lines, each column of each row tile sums its cells, noise is added, the ADC converts, and
    the digital side scales and adds the row tiles. In integers where that can be (`crossbar.backends.cpu.integers`),
    otherwise in floating point, with the same noise. A slow transcription of the same is
    `crossbar.backends.naive.multiply`.

    Args:
        x: ``[B, I]``.
        array: the cells.
        hardware: geometry, converters and output noise.
        input_range: calibrated DAC range (0-d, activation units); None: found as ``hardware.dac.range`` says.
        noise: stream of read noise; None for quiet reads.

    Returns:
        ``[B, O]``.
    """
    if _digital(array, hardware, noise):
        # Nothing happens between a column and the digital sum: the row tiles are one product.
        driven = _drive(x, hardware, input_range, noise)
        y = driven.codes @ folded(array.weight, array.scales, hardware.tile.rows)
        return _finish(y.mul_(driven.unit), driven, array, hardware)
    if array.fixed is not None and not integers.differentiates(x, array, input_range):
        return integers.multiply(x, array.fixed(), array, hardware, input_range, noise)
    if input_range is None and hardware.dac is not None:
        input_range = found_range(x, hardware.dac)
    size = max(_VECTORS, _PARTIALS // array.scales.numel())
    parts, whole = [], None if torch.is_grad_enabled() else x.new_empty(len(x), array.weight.shape[2])
    for first in range(0, max(len(x), 1), size):
        piece = slice(first, first + size)
        spans = input_range[piece] if input_range is not None and input_range.dim() else input_range
        driven = _drive(x[piece], hardware, spans, noise)
        columns, step = _sense(driven, array, hardware, noise)
        columns = columns.mul_((array.scales * step).unsqueeze(1))
        part = columns.sum(0) if whole is None else torch.sum(columns, 0, out=whole[piece])
        parts.append(_finish(part, driven, array, hardware))
    return whole if whole is not None else parts[0] if len(parts) == 1 else torch.cat(parts)


def read_columns(
    x: Tensor, array: Array, hardware: Hardware, input_range: Tensor | None = None, noise: Cursor | None = None
) -> Tensor:
    """What the ADCs deliver, before any digital scale: ``[T, B, O]`` in unit outputs x activation units.

    Arguments as in `multiply`.
    """
    if array.fixed is not None and not integers.differentiates(x, array, input_range):
        return integers.read_columns(x, array.fixed(), array, hardware, input_range, noise)
    # Sums in float64: what their order changes is far below a step of any converter.
    offset, variance, span = map(_double, (array.offset, array.variance, array.adc_range))
    wide = replace(array, weight=array.weight.double(), offset=offset, variance=variance, adc_range=span)
    driven = _drive(x, hardware, input_range, noise)
    y, step = _sense(driven._replace(codes=driven.codes.double()), wide, hardware, noise)
    return y.mul_(step).mul_(driven.full_scale).to(x.dtype)


def ideal_columns(x: Tensor, weight: Tensor, hardware: Hardware, input_range: Tensor | None = None) -> Tensor:
    """What ideal ADCs would deliver of cells without noise, digits ``[S, I, O]``: ``[T, B, O]`` as `read_columns`.

    Codes are whole numbers. Digits are rounded to a step so small that sums are whole numbers below 2^53 of it, which
    float64 holds exactly: the bits do not depend on the order of a sum, and so not on the number of threads.
    """
    driven, rows = _drive(x, hardware, input_range, None), hardware.tile.rows
    codes, digits = driven.codes.double(), weight.double()
    step = 1.0
    if hardware.dac is not None:
        largest = math.frexp(float(digits.abs().amax()))[1]
        step = 2.0 ** (largest + (hardware.dac.levels * rows).bit_length() - 53)
        digits = (digits / step).round_()
    columns = codes.new_empty(len(weight) * -(-len(digits[0]) // rows), len(codes), weight.shape[2])
    per_slice = columns.unflatten(0, (len(weight), -1))
    for index, cells in enumerate(digits):
        _accumulate(per_slice[index], codes, cells, rows, 1.0, 0.0)
    return columns.mul_(step * driven.unit).mul_(driven.full_scale).to(x.dtype)


def folded(weight: Tensor, scales: Tensor, rows: int) -> Tensor:
    """Slices ``[S, I, O]`` shifted, added and scaled by ``[S T_in, O]``: the weight ``[I, O]``, in weight units."""
    by_row = scales.unflatten(0, (weight.shape[0], -1)).repeat_interleave(rows, 1)[:, : weight.shape[1]]
    product: Tensor = weight * by_row
    return product.sum(0) if len(weight) > 1 else product[0]


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def _digital(array: Array, hardware: Hardware, noise: Cursor | None) -> bool:
    quiet = noise is None or (hardware.output_noise == 0 and array.variance is None)
    return quiet and hardware.adc is None and array.offset is None


def _finish(y: Tensor, driven: Drive, array: Array, hardware: Hardware) -> Tensor:
    """Digital sums ``[B, O]`` in activation units, without what the ``offset`` encoding adds."""
    if array.bias_scales is not None:
        y = y.sub_(_row_sums(driven.codes, hardware.tile.rows) @ array.bias_scales, alpha=driven.unit)
    return y.mul_(driven.full_scale)


def _drive(x: Tensor, hardware: Hardware, input_range: Tensor | None, noise: Cursor | None) -> Drive:
    driven = drive(x, hardware.dac, input_range)
    return driven._replace(codes=_pulses(driven.codes, hardware, noise))


def _pulses(codes: Tensor, hardware: Hardware, noise: Cursor | None) -> Tensor:
    """Codes as the word lines carry them: with the ``rate`` coding, the pulses that happen to come."""
    dac = hardware.dac
    if dac is None or dac.coding != "rate" or noise is None:
        return codes
    counts: Tensor = noise.binomial(codes.detach().abs().nan_to_num_(0.0), dac.levels) * codes.detach().sign()
    return codes + (counts - codes).detach()  # straight through; a NaN code stays NaN


def _sense(driven: Drive, array: Array, hardware: Hardware, noise: Cursor | None) -> tuple[Tensor, float | Tensor]:
    """Converted columns ``[T, B, O]`` of word-line codes, and the unit outputs that 1 of them stands for."""
    dac = hardware.dac
    if dac is None or dac.coding != "bit_serial":
        return _read(driven.codes, driven.unit, array, hardware, noise)
    total: Tensor | None = None
    for place, plane in enumerate(bit_planes(driven.codes, dac)):
        y, step = _read(plane, 1.0, array, hardware, noise)
        y = y.mul_(step * driven.unit * 2**place)
        total = y if total is None else total.add_(y)
    assert total is not None
    if torch.is_grad_enabled() and driven.codes.requires_grad:
        fixed = array.adc_range if array.adc_range is None else array.adc_range.detach()
        cells = replace(array, weight=array.weight.detach(), adc_range=fixed)  # these have theirs from the bits
        whole, step = _read(driven.codes, driven.unit, cells, hardware, None)
        whole = whole * step
        total = total + (whole - whole.detach())  # bits of the input have no gradient: that of the whole pulse
    return total, 1.0


def _read(
    codes: Tensor, unit: float, array: Array, hardware: Hardware, noise: Cursor | None
) -> tuple[Tensor, float | Tensor]:
    adc, rows = hardware.adc, hardware.tile.rows
    fixed = adc is None or (array.adc_range is None and adc.range == "static")
    # The product adds itself onto the noise, in ADC steps at once: one pass for multiplying, adding and scaling.
    step = adc.full_scale / adc.levels if adc is not None and fixed else 1.0
    y, beta = _noise(codes, unit, step, array, hardware, noise)
    alpha = unit / step
    # A single slice is accumulated without a view, for which autograd would copy all columns.
    per_slice = [y] if len(array.weight) == 1 else _per_slice(y, array)
    for index, weight in enumerate(array.weight):
        _accumulate(per_slice[index], codes, weight, rows, alpha, beta)
    if adc is None:
        return y, step
    if fixed:
        return convert(y, adc), step
    span = adc.full_scale if array.adc_range is None else array.adc_range
    if isinstance(span, Tensor) and span.dim():
        span = span.unsqueeze(1)
    if adc.range == "active_rows":
        span = span * _active_share(codes, rows).repeat(len(array.weight), 1).unsqueeze(-1)
    steps = span / adc.levels

    return convert(y / steps, adc) * steps, 1.0


def _accumulate(y: Tensor, codes: Tensor, weight: Tensor, rows: int, alpha: float, beta: float) -> None:
    """``y = beta y + alpha (codes @ weight of each row tile)``, ``[T_in, B, O]``."""
    full = codes.shape[1] // rows
    if full:
        driven = codes[:, : full * rows].unflatten(1, (full, rows)).transpose(0, 1)
        whole = y if full == len(y) else y[:full]
        whole.baddbmm_(driven, weight[: full * rows].unflatten(0, (full, rows)), beta=beta, alpha=alpha)
    if full < len(y):
        y[full].addmm_(codes[:, full * rows :], weight[full * rows :], beta=beta, alpha=alpha)


def _noise(
    codes: Tensor, unit: float, step: float, array: Array, hardware: Hardware, noise: Cursor | None
) -> tuple[Tensor, float]:
    """What the columns hold before the cells are summed, ``[T, B, O]``, and what to multiply it with, in ADC steps."""
    shape = (len(array.scales), codes.shape[0], array.weight.shape[2])
    sigma = hardware.output_noise
    if noise is None or (sigma == 0 and array.variance is None):
        y, beta = codes.new_empty(shape), 0.0
    else:
        y, beta = noise.columns(*shape).to(codes.dtype), sigma / step
        if array.variance is not None:
            y, beta = y.mul_(_column_deviation(codes.detach() * unit, array, hardware)), 1 / step
    if array.offset is not None:
        offset = (array.offset / step).unsqueeze(1)
        y, beta = (torch.add(offset, y, alpha=beta) if beta else offset.expand(shape).clone()), 1.0
    return y, beta


def _column_deviation(drives: Tensor, array: Array, hardware: Hardware) -> Tensor:
    """Deviation of a column's noise, cells and output together, ``[T, B, O]`` or ``[T, B, 1]`` in unit outputs."""
    power, rows = drives.square(), hardware.tile.rows
    assert array.variance is not None
    if array.variance.dim() == 2:
        variance = _row_sums(power, rows).t().repeat(len(array.weight), 1).unsqueeze(2) * array.variance.unsqueeze(1)
    else:
        variance = power.new_empty(len(array.scales), len(power), array.variance.shape[2])
        per_slice = _per_slice(variance, array)
        for index, cells in enumerate(array.variance):
            _accumulate(per_slice[index], power, cells, rows, 1.0, 0.0)
    return variance.add_(hardware.output_noise**2).sqrt_()


def _per_slice(columns: Tensor, array: Array) -> Tensor:
    slices = len(array.weight)
    return columns.view(slices, len(columns) // slices, *columns.shape[1:])


def _row_sums(x: Tensor, rows: int) -> Tensor:
    """Sums of ``[B, I]`` over the word lines of each row tile, ``[B, T_in]``."""
    missing = -x.shape[1] % rows
    return F.pad(x, (0, missing)).view(len(x), -(-x.shape[1] // rows), rows).sum(2)


def _active_share(codes: Tensor, rows: int) -> Tensor:
    """Root of the part of each tile's word lines that is driven, at least one line: ``[T_in, B]``."""
    active = _row_sums((codes.detach() != 0).to(codes.dtype), rows).clamp_(min=1.0)
    lines = codes.new_full((codes.shape[1],), 1.0).unsqueeze(0)
    return (active / _row_sums(lines, rows)).sqrt_().t()
