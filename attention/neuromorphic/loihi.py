"""Strengths as Loihi stores them: 1 to 9 bits and an exponent that a core's synapses share (Davies 2018)."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from crossbar.errors import InputError, require_whole

_EXPONENTS = (-8, 7)


class LoihiWeights(NamedTuple):
    """Whole-number strengths: a weight is ``mantissa · 2^exponent · unit``.

    Attributes:
        mantissa: int64, −2^(bits−1) to 2^(bits−1) − 1 with a sign (1 bit: 0 or 1), 0 to 2^bits − 1 without.
        exponent: shared by all.
        unit: what a step is worth, weight units; chosen by the user, since the hardware knows whole numbers only.
        error: Σ (W − stored)² over Σ W².
    """

    mantissa: Tensor
    exponent: int
    unit: float
    error: float

    @property
    def weights(self) -> Tensor:
        """What they stand for, float64."""
        return self.mantissa.double() * (2.0**self.exponent * self.unit)


def loihi_weights(weights: Tensor, bits: int = 9, *, signed: bool = True, unit: float | None = None) -> LoihiWeights:
    """The nearest strengths of so many bits, with the shared exponent that leaves the least error.

    Args:
        weights: any shape, finite.
        bits: 1 to 9, the sign among them.
        signed: whether strengths have a sign; without one, negative weights become 0.
        unit: of one step at exponent 0; None: so that the largest weight is the largest number.

    Raises:
        InputError: for values that are not finite or a number of bits that the hardware has not.
    """
    require_whole("bits", bits, least=1, most=9)
    if not bool(weights.isfinite().all()):
        raise InputError("weights are not finite: give finite numbers")
    if unit is not None and not (math.isfinite(unit) and unit > 0):
        raise InputError(f"unit {unit!r} is not usable: give a finite number above 0")
    w = weights.double()
    with_sign = signed and bits > 1
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if with_sign else (0, 2**bits - 1)
    if unit is None:
        largest = float((w.abs() if with_sign else w.clamp(min=0)).max()) if w.numel() else 0.0
        unit = largest / high if largest > 0 else 1.0
        return _stored(w, low, high, 0, unit)
    found = (_stored(w, low, high, exponent, unit) for exponent in range(_EXPONENTS[0], _EXPONENTS[1] + 1))
    return min(found, key=lambda stored: stored.error)


def _stored(w: Tensor, low: int, high: int, exponent: int, unit: float) -> LoihiWeights:
    step = 2.0**exponent * unit
    mantissa = (w / step).round().clamp(low, high)
    rest = (w - mantissa * step).square().sum()
    error = float(rest / w.square().sum().clamp(min=1e-300))
    return LoihiWeights(mantissa.to(torch.int64), exponent, unit, error)
