"""Values of one computation with the gradient of another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def straight_through(hard: Tensor, soft: Tensor) -> Tensor:
    """The numbers of ``hard``, with the gradient of ``soft`` [same shape] alone."""
    passed: Tensor = _Straight.apply(hard.detach(), soft)  # type: ignore[no-untyped-call]  # torch's own
    return passed


class _Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hard: Tensor, soft: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad
