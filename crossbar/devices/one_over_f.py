"""1/f noise as one path of each cell: read at any time and in any order, with nothing stored.

A 1/f band is the sum of Ornstein-Uhlenbeck processes of equal variance whose time constants are evenly spaced in their
logarithm. Here the band runs from ``t_read / π`` to ``(t + t_0 + t_read) / (2 π)``, so that the variance up to time t
is ``ln((t + t_0 + t_read) / (2 t_read))``, the one of the independent noise. Two processes a decade keep the
correlation of any two times within 0.004 of the continuous band's.

A process is drawn as a spectral line of each cell, ``R cos(ω t + φ)``: R has Rayleigh's distribution and φ an even one,
so the values at any time are standard normal; ω has Cauchy's of width 1/τ, so that over cells the correlation of two
times is ``exp(-Δt / τ)``. What is slower than any measurement of the cell is left out, what is faster than 10 ms is one
number for each time: times less than that apart have less in common than they should.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from crossbar.random.streams import Key, normal, uniform

_LINES = 2  # a decade of time constants
_FIRST = -4  # of these lines: time constants from 10^(-4 / 2) s up have one of their own


def correlated(
    shape: tuple[int, ...], seconds: float, t_0: float, t_read: float, key: Key, device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal numbers, float32, of ``shape``, that belong to one path of each cell.

    Args:
        shape: of the cells.
        seconds: time since programming.
        t_0: time of the first read after programming, s.
        t_read: duration of a read, s; less than ``t_0``.
        key: seed and name of the cells.
        device: where the numbers are made.
    """
    shortest, longest = t_read / math.pi, (seconds + t_0 + t_read) / (2 * math.pi)
    total = math.log(longest / shortest)

    def share(low: float, high: float) -> float:
        """Part of the variance from time constants between two limits, s."""
        return max(math.log(min(high, longest) / max(low, shortest)), 0.0) / total

    z = normal(shape, (*key, "1/f", seconds), device).mul_(math.sqrt(share(0.0, _edge(_FIRST))))
    for line in range(_FIRST, math.ceil(_LINES * math.log10(longest))):
        part = share(_edge(line), _edge(line + 1))
        if part > 0:
            values = _line(shape, seconds, _edge(line + 0.5), (*key, "1/f line", line), device)
            z.add_(values.mul_(math.sqrt(part)))
    return z


def _edge(line: float) -> float:
    """The time constant, s, where a line's part of the band begins."""
    return float(10.0 ** (line / _LINES))


def _line(shape: tuple[int, ...], seconds: float, tau: float, key: Key, device: torch.device | str) -> Tensor:
    """``R cos(ω t + φ)``, with the phase in float64: float32 would lose it within a day."""
    phase = uniform(shape, (*key, "phase"), device).double()
    cauchy = uniform(shape, (*key, "frequency"), device).double().sub_(0.5).mul_(math.pi).tan_()
    turns = phase.add_(cauchy.mul_(seconds / (2 * math.pi * tau)))
    wave = turns.sub_(turns.floor()).mul_(2 * math.pi).float().cos_()
    radius = uniform(shape, (*key, "amplitude"), device).neg_().log1p_().mul_(-2.0).sqrt_()
    return wave.mul_(radius)
