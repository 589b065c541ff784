"""Logarithm and exponential of float32 in the steps of `crossbar.native.function_steps`, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

from crossbar.native.function_steps import EXP, LEAST, LN2_HIGH, LN2_LOW, LOG, MOST, PER_LN2, SQRT_HALF_BITS


def log(x: Tensor) -> Tensor:
    """``ln x``; of float32 in stated steps, torch's of other dtypes and where a gradient is wanted."""
    if x.dtype != torch.float32 or (x.requires_grad and torch.is_grad_enabled()):
        return x.log()
    if _is_compiled(x):
        return _compiled("log", x)
    bits = x.view(torch.int32)
    exponent = (bits - SQRT_HALF_BITS) >> 23
    y = (bits - (exponent << 23)).view(torch.float32).sub_(1.0)
    square, whole = y * y, exponent.float()
    found = _horner(LOG, y).mul_(y * square).add_(whole * LN2_LOW).sub_(square.mul_(0.5))
    return found.add_(y).add_(whole.mul_(LN2_HIGH)).add_(x - x)


def exp(x: Tensor) -> Tensor:
    """``e^x``; of float32 in stated steps, torch's of other dtypes and where a gradient is wanted."""
    if x.dtype != torch.float32 or (x.requires_grad and torch.is_grad_enabled()):
        return x.exp()
    if _is_compiled(x):
        return _compiled("exp", x)
    x = x.clamp(LEAST, MOST)
    whole = (x * PER_LN2).round_()
    rest = (x - whole * LN2_HIGH).sub_(whole * LN2_LOW)
    scale = ((whole.nan_to_num_(0.0).int() + 127) << 23).view(torch.float32)
    return _horner(EXP, rest).mul_(rest * rest).add_(rest).add_(1.0).mul_(scale)


def _horner(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    first, second, *rest = coefficients
    found = (x * first).add_(second)
    for coefficient in rest:
        found.mul_(x).add_(coefficient)
    return found


def _is_compiled(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _compiled(name: str, x: Tensor) -> Tensor:
    from crossbar.native import function_kernels, openmp  # numba takes half a second to load

    x = x.contiguous()
    found = torch.empty_like(x)
    openmp.run(getattr(function_kernels, name), -(-x.numel() // function_kernels.BLOCK), x, found, x.numel())
    return found
