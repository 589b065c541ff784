"""Lines through points by least squares, from moments that are summed as data come."""

from __future__ import annotations

import torch
from torch import Tensor


class LeastSquares:
    """``target ≈ gain · measured + offset`` for each of ``O`` columns, from sums in float64 that do not grow."""

    def __init__(self) -> None:
        self._weight: Tensor | float = 0.0
        self._sums: Tensor | None = None

    def add(self, measured: Tensor, target: Tensor, weight: Tensor | None = None) -> None:
        """Take in data, each ``[B, O]``, and how much each row counts, ``[B, 1]``; None: all the same."""
        a, b = measured.double(), target.double()
        w = a.new_ones(len(a), 1) if weight is None else weight.double()
        sums = torch.stack([(w * a).sum(0), (w * b).sum(0), (w * a.square()).sum(0), (w * a * b).sum(0)])
        self._weight = self._weight + w.sum()
        self._sums = sums if self._sums is None else self._sums + sums

    def solve(self, intercept: bool = True) -> tuple[Tensor, Tensor]:
        """Gains and offsets, each ``[O]``; a column that shows nothing but one value keeps gain 1.

        Args:
            intercept: or lines through 0, with offset 0.
        """
        assert self._sums is not None
        means = self._sums / self._weight
        a, b, square, product = means
        if not intercept:
            a, b = torch.zeros_like(a), torch.zeros_like(b)
        spread = square - a * a
        seen = spread > 1e-12 * square
        gain = torch.where(seen, (product - a * b) / torch.where(seen, spread, 1.0), 1.0)
        return gain, b - gain * a


def token_weights(target: Tensor) -> Tensor:
    """How much the error of each token counts, ``[B, 1]``, for outputs ``[B, O]``.

    Its square is taken relative to the mean square of outputs and to that of the token's own, half each: else the few
    tokens with massive activations that transformers have would decide alone.
    """
    size = target.square().mean(1, keepdim=True)
    floor = torch.finfo(size.dtype).tiny
    return 1 / size.mean().clamp(min=floor) + 1 / size.clamp(min=1e-6 * size.mean() + floor)
