"""Random streams keyed by what they are for, so that no result depends on call order, threads or global state.

A key is any tuple of strings and numbers, such as ``(seed, layer name, "read", time, index)``. The same key gives the
same bits on the same kind of device.
"""

from __future__ import annotations

import hashlib
import math
from functools import cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Key = tuple[str | int | float, ...]

_BINS = 65536
_PIECE = 2**17  # numbers looked up at once, so that their indices stay in the processor's cache


def normal(shape: tuple[int, ...], key: Key, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers, float32, of ``shape``, for state that lives long (programming, drift, 1/f noise).

    On the CPU: as `ReadNoise`, and the two outermost of its quantiles, beyond 4.17, drawn anew from the tails.
    """
    device = torch.device(device)
    if device.type != "cpu":
        return torch.randn(shape, generator=torch.Generator(device).manual_seed(seed(key)), device=device)
    bits = _bit_generator(key)
    n = math.prod(shape)
    words = bits.random_raw((n + 3) // 4).view(np.uint16)[:n]
    z = _picked(words, shape)
    outermost = np.flatnonzero((words + np.uint16(1)) < 2)
    chance = (1 - np.random.Generator(bits).random(len(outermost))) / _BINS
    sign = np.where(words[outermost] == 0, 1.0, -1.0)
    z.view(-1)[torch.from_numpy(outermost)] = (
        torch.special.ndtri(torch.from_numpy(chance)) * torch.from_numpy(sign)
    ).float()
    return z


def seed(key: Key) -> int:
    """A seed of 64 bits, for code that brings its own generator."""
    return _digest(key) >> 64


def uniform(shape: tuple[int, ...], key: Key, device: torch.device | str = "cpu") -> Tensor:
    """Numbers evenly spread over [0, 1), float32, of ``shape``."""
    device = torch.device(device)
    if device.type != "cpu":
        return torch.rand(shape, generator=torch.Generator(device).manual_seed(seed(key)), device=device)
    return torch.from_numpy(np.random.Generator(_bit_generator(key)).random(shape, dtype=np.float32))


class ReadNoise:
    """Standard normal numbers for read noise, drawn in pieces at a fraction of the cost of a matrix product.

    On the CPU a number is one of the 65,536 equally likely quantiles of the normal distribution (|z| < 4.4, scaled to
    variance 1), picked by 16 random bits: 4 numbers from each 64-bit word of SFC64. A Kolmogorov-Smirnov distance of
    2^-17 from the normal distribution is the price.
    """

    def __init__(self, key: Key, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        if self._device.type == "cpu":
            self._bits = _bit_generator(key)
        else:
            self._generator = torch.Generator(self._device).manual_seed(seed(key))

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The stream's next numbers, float32, of ``shape``."""
        if self._device.type != "cpu":
            return torch.randn(shape, generator=self._generator, device=self._device)
        n = math.prod(shape)
        return _picked(self._bits.random_raw((n + 3) // 4).view(np.uint16)[:n], shape)

    def binomial(self, chance: Tensor, trials: int) -> Tensor:
        """How many of ``trials`` succeed, each with ``chance`` (0 … 1), in its dtype."""
        if self._device.type != "cpu":
            return torch.binomial(chance.new_full(chance.shape, trials), chance, generator=self._generator)
        counts = np.random.Generator(self._bits).binomial(trials, chance.double().numpy())
        return torch.from_numpy(counts).to(chance.dtype)

    def bytes(self, shape: tuple[int, ...]) -> Tensor:
        """Numbers evenly spread over 0 … 255, int32, of ``shape``."""
        if self._device.type != "cpu":
            return torch.randint(256, shape, generator=self._generator, device=self._device, dtype=torch.int32)
        n = math.prod(shape)
        words = self._bits.random_raw((n + 7) // 8).view(np.uint8)[:n]
        return torch.from_numpy(words).to(torch.int32).view(shape)


def _digest(key: Key) -> int:
    """128 bits from a key; ``repr`` tells 1 from 1.0 and "1", and gives floats exactly."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=16).digest(), "little")


def _bit_generator(key: Key) -> np.random.SFC64:
    return np.random.SFC64(_digest(key))


def _picked(words: npt.NDArray[np.uint16], shape: tuple[int, ...]) -> Tensor:
    """The quantiles that 16-bit words stand for."""
    z = torch.empty(shape)  # not a view of something longer: autograd would copy that whenever z is written to
    flat = z.view(-1)
    for first in range(0, len(words), _PIECE):
        piece = slice(first, first + _PIECE)
        torch.index_select(_quantiles(), 0, torch.from_numpy(words[piece].astype(np.int32)), out=flat[piece])
    return z


@cache
def _quantiles() -> Tensor:
    middles = (torch.arange(_BINS, dtype=torch.float64) + 0.5) / _BINS
    z = torch.special.ndtri(middles)
    table: Tensor = z.div_(z.square().mean().sqrt()).float()
    return table
