"""What a column's other weights can do for those of its weights that are clipped."""

from __future__ import annotations

import torch
from torch import Tensor

from calibration.threads import one_thread

_RIDGE = 1e-2
_PENALTY, _RELAXATION, _ROUNDS = 0.1, 1.8, 12  # within 0.2% of the least error in 20 layers of MiniLM and SmolLM2


class InputMoments:
    """The mean of ``x xᵀ`` over inputs ``[tokens, I]``, from a sum in float64 that does not grow with them."""

    def __init__(self) -> None:
        self._weight: Tensor | float = 0.0
        self._sum: Tensor | float = 0.0

    def add(self, x: Tensor, weight: Tensor) -> None:
        """Take in inputs ``[B, I]`` and how much each counts, ``[B, 1]``."""
        self._weight = self._weight + weight.double().sum()
        self._sum = self._sum + ((x * weight).t() @ x).double()

    def mean(self) -> Tensor:
        """``[I, I]``."""
        mean = self._sum / self._weight
        assert isinstance(mean, Tensor)
        return mean


def nearest_within(weight: Tensor, bound: Tensor, moments: Tensor) -> Tensor:
    """The weights of no more than a size whose outputs are nearest to those of the given ones.

    For each output on its own, the ``v`` with ``|v_i| <= bound_i`` that makes least of ``(v - w)ᵀ M (v - w)``, where
    ``M = <x xᵀ>`` has 1% of its diagonal added, for inputs that these did not show. It is the compensation of Optimal
    Brain Surgeon (Hassibi and Stork, NeurIPS 1993) with bounds on all weights, found for all outputs at once by the
    alternating direction method of multipliers, over-relaxed (Boyd et al., Found. Trends Mach. Learn. 3, 2011,
    sections 5.2 and 3.4.3), on inputs of unit power. Outputs of which no weight is beyond its bound keep the given
    ones, and none is left further away than if its weights were clipped.

    Args:
        weight: ``[O, I]``.
        bound: of each weight, ``[O, I]``.
        moments: ``M``, ``[I, I]``.

    Returns:
        ``[O, I]``, in the dtype of ``weight``.
    """
    power = moments.diagonal()
    size = power.clamp(min=1e-12 * power.max()).sqrt()
    size = torch.where(size > 0, size, 1.0)  # a layer that saw only zeros
    moments = (moments / size / size.unsqueeze(1)).to(weight)
    moments.diagonal().add_(_RIDGE)
    size = size.to(weight)
    wanted, limit = weight * size, bound * size
    with one_thread():
        resolvent = torch.linalg.inv(moments + torch.diag(torch.full_like(size, _PENALTY)))
    pull = wanted @ moments @ resolvent
    resolvent *= _PENALTY
    found = clipped = wanted.clamp(-limit, limit)
    multiplier = torch.zeros_like(found)
    for _ in range(_ROUNDS):
        free = torch.addmm(pull, found - multiplier, resolvent)
        ahead = multiplier.add_(free, alpha=_RELAXATION).add_(found, alpha=1 - _RELAXATION)
        found = ahead.clamp(-limit, limit)
        multiplier = ahead - found
    worse = _distance(found - wanted, moments) > _distance(clipped - wanted, moments)
    found = torch.where(worse, clipped, found)
    exact = (weight.abs() <= bound).all(1, keepdim=True)
    return torch.where(exact, weight, found / size)


def _distance(change: Tensor, moments: Tensor) -> Tensor:
    """``[O, 1]``: the mean square that changes ``[O, I]`` of weights make of outputs."""
    return ((change @ moments) * change).sum(1, keepdim=True)
