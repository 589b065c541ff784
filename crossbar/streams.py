"""Random streams keyed by what they are for, so that no result depends on call order, threads or global state.

A key is any tuple of strings and numbers, such as ``(seed, layer name, "read", time, index)``. The same key gives the
same bits on the same kind of device.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

Key = tuple[str | int | float, ...]


def normal(shape: tuple[int, ...], key: Key, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers, float32, of ``shape``, for state that lives long (programming, drift, 1/f noise).

    On the CPU: Box and Muller's transform of 64 random bits a pair of numbers, |z| < 6.7.
    """
    device = torch.device(device)
    if device.type != "cpu":
        return torch.randn(shape, generator=torch.Generator(device).manual_seed(_digest(key) >> 64), device=device)
    n = math.prod(shape)
    half = (n + 1) // 2
    bits = torch.from_numpy(_bit_generator(key).random_raw(half).view(np.int32))
    radius = (bits[:half] & 0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31).log_().mul_(-2.0).sqrt_()
    angle = bits[half:].float().mul_(math.pi * 2.0**-31)
    z = torch.empty(2, half)
    torch.mul(torch.cos(angle), radius, out=z[0])
    torch.mul(angle.sin_(), radius, out=z[1])
    return z.view(-1)[:n].view(shape)


def uniform(shape: tuple[int, ...], key: Key, device: torch.device | str = "cpu") -> Tensor:
    """Numbers evenly spread over [0, 1), float32, of ``shape``."""
    device = torch.device(device)
    if device.type != "cpu":
        return torch.rand(shape, generator=torch.Generator(device).manual_seed(_digest(key) >> 64), device=device)
    return torch.from_numpy(np.random.Generator(_bit_generator(key)).random(shape, dtype=np.float32))


class ReadNoise:
    """Standard normal numbers for read noise, drawn in pieces at a fraction of the cost of a matrix product.

    On the CPU a number is one of the 65,536 equally likely quantiles of the normal distribution (|z| < 4.4, scaled to
    variance 1), picked by 16 random bits: 4 numbers from each 64-bit word of SFC64. A Kolmogorov-Smirnov distance of
    2^-17 from the normal distribution is the price; `normal` takes 3 times as long.
    """

    def __init__(self, key: Key, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        if self._device.type == "cpu":
            self._bits = _bit_generator(key)
            self._table = _quantiles()
        else:
            self._generator = torch.Generator(self._device).manual_seed(_digest(key) >> 64)

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The stream's next numbers, float32, of ``shape``."""
        if self._device.type != "cpu":
            return torch.randn(shape, generator=self._generator, device=self._device)
        n = math.prod(shape)
        words = self._bits.random_raw((n + 3) // 4).view(np.uint16)[:n]
        return self._table.index_select(0, torch.from_numpy(words).to(torch.int32)).view(shape)


def _digest(key: Key) -> int:
    """128 bits from a key; ``repr`` tells 1 from 1.0 and "1", and gives floats exactly."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=16).digest(), "little")


def _bit_generator(key: Key) -> np.random.SFC64:
    return np.random.SFC64(_digest(key))


@cache
def _quantiles() -> Tensor:
    middles = (torch.arange(65536, dtype=torch.float64) + 0.5) / 65536
    z = torch.special.ndtri(middles)
    table: Tensor = z.div_(z.square().mean().sqrt()).float()
    return table
