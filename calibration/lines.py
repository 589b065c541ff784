"""Straight lines by least squares, from moments that are summed as data come."""

from __future__ import annotations

import torch
from torch import Tensor


class Lines:
    """``target ≈ gain · measured + offset`` for each of ``O`` columns, from sums in float64 that do not grow."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: Tensor | None = None

    def add(self, measured: Tensor, target: Tensor) -> None:
        """Take in data, each ``[B, O]``."""
        a, b = measured.double(), target.double()
        sums = torch.stack([a.sum(0), b.sum(0), a.square().sum(0), (a * b).sum(0)])
        self._count += len(a)
        self._sums = sums if self._sums is None else self._sums + sums

    def solve(self, intercept: bool = True) -> tuple[Tensor, Tensor]:
        """Gains and offsets, each ``[O]``; a column that shows nothing but one value keeps gain 1.

        Args:
            intercept: or lines through 0, with offset 0.
        """
        assert self._sums is not None
        means = self._sums / self._count
        a, b, square, product = means
        if not intercept:
            a, b = torch.zeros_like(a), torch.zeros_like(b)
        spread = square - a * a
        seen = spread > 1e-12 * square
        gain = torch.where(seen, (product - a * b) / torch.where(seen, spread, 1.0), 1.0)
        return gain, b - gain * a
