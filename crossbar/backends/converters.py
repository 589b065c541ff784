"""Converters at work: activations to word-line drives, column outputs to codes, and their gradients."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crossbar.hardware import Converter, Hardware

TINY = 1e-30
"""Least range, as of an all-zero input vector: any positive number gives zeros."""


class Drive(NamedTuple):
    """What the word lines carry.

    Attributes:
        codes: ``[B, I]``; whole numbers where there is a DAC.
        unit: the part of full scale that a code of 1 drives.
        full_scale: activation that full scale stands for, a number, 0-d or ``[B, 1]``.
    """

    codes: Tensor
    unit: float
    full_scale: Tensor | float


def drive(x: Tensor, dac: Converter | None, input_range: Tensor | None) -> Drive:
    """Codes of activations ``[B, I]``. Without a DAC an activation of 1 is full scale.

    Args:
        x: ``[B, I]``.
        dac: the converter.
        input_range: calibrated or learned range, 0-d or ``[B, 1]``, activation units; None: `found_range`.
    """
    if dac is None:
        return Drive(x, 1.0, 1.0)
    if input_range is None:
        input_range = found_range(x, dac)
    return Drive(convert(x * (dac.levels / input_range), dac), 1.0 / dac.levels, input_range)


def bent(codes: Tensor, hardware: Hardware) -> Tensor:
    """Codes whose pulses' heights cells of ``hardware`` weigh by their curve, those of full scale as they are."""
    cell, dac = hardware.cell, hardware.dac
    if cell is None or cell.iv == "linear" or dac is None or dac.coding != "amplitude":
        return codes
    if cell.iv == "sinh":
        steep = cell.v_read / cell.v0
        return torch.sinh(codes * (steep / dac.levels)) * (dac.levels / math.sinh(steep))
    volts = codes.new_tensor([0.0, *(volts for volts, _ in cell.table)])
    current = codes.new_tensor([0.0, *(current for _, current in cell.table)])
    full = float(np.interp(cell.v_read, volts.tolist(), current.tolist()))
    height = codes.abs() * (cell.v_read / dac.levels)
    piece = torch.searchsorted(volts, height.detach(), right=True).clamp_(1, len(volts) - 1)
    slope = (current[piece] - current[piece - 1]) / (volts[piece] - volts[piece - 1])
    return (current[piece - 1] + slope * (height - volts[piece - 1])) * codes.sign() * (dac.levels / full)


def found_range(x: Tensor, dac: Converter) -> Tensor:
    """The range of a DAC that was not calibrated: 0-d, or ``[B, 1]`` if it is found for each vector."""
    if dac.range == "static":
        return x.new_tensor(dac.full_scale).clamp_(min=TINY)
    values = x.detach()
    if dac.range == "per_token":
        # A norm of order infinity gives the same in 20 times the time.
        return torch.maximum(values.amax(-1, keepdim=True), -values.amin(-1, keepdim=True)).clamp_(min=TINY)
    return (values.abs().amax() if x.numel() else x.new_zeros(())).clamp_(min=TINY)


def bit_planes(codes: Tensor, dac: Converter) -> list[Tensor]:
    """Magnitude bits of whole codes, least significant first, each ``[B, I]`` of -1, 0 and 1; NaN stays NaN."""
    magnitude, sign = codes.detach().abs().int(), codes.detach().sign()
    sign.masked_fill_(codes.isnan(), torch.nan)
    return [((magnitude >> place) & 1).to(codes.dtype).mul_(sign) for place in range(dac.bits - 1)]


def convert(y: Tensor, converter: Converter) -> Tensor:
    """Nearest code, ties to even, clipped at the last level; overwrites ``y`` where no gradient is asked for."""
    if torch.is_grad_enabled() and y.requires_grad:
        converted: Tensor = _StraightThrough.apply(y, converter)  # type: ignore[no-untyped-call]  # torch's own
        return converted
    return _codes(y, converter)


def _codes(y: Tensor, converter: Converter) -> Tensor:
    if converter.bits == 1:
        lost = y.isnan()
        return y.ge_(0).mul_(2).sub_(1).masked_fill_(lost, torch.nan)
    return y.round_().clamp_(-converter.levels, converter.levels)


class _StraightThrough(torch.autograd.Function):
    """Rounding and clipping whose gradient is 1 inside the range and 0 outside."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, converter: Converter) -> Tensor:
        # Half a step of room: an input at its own token's abs-max rounds to just above the last level.
        ctx.save_for_backward(y.abs() <= converter.levels + 0.5)
        ctx.mark_dirty(y)
        return _codes(y, converter)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.saved_tensors[0], None
