"""Random streams keyed by what they are for, so that no result depends on call order, threads or global state.

A key is any tuple of strings and numbers, such as ``(seed, layer name, "read", time, index)``. The same key gives the
same bits on the same kind of device.
"""

from __future__ import annotations

import hashlib
import math
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

Key = tuple[str | int | float, ...]

_WORD = 2**32 - 1
_ROW = 1024  # numbers that one thread makes in one go


def normal(shape: tuple[int, ...], key: Key, device: torch.device | str = "cpu") -> Tensor:
    """Standard normal numbers, float32, of ``shape``, for state that lives long (programming, drift, 1/f noise).

    On the CPU the numbers are made by `crossbar.random.kernels`, from a counter, with any number of threads.
    """
    return ReadNoise(key, device).draw(shape)


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
    """A stream of random numbers for reads, at a fraction of the cost of a matrix product.

    On the CPU normal numbers come from a counter (`crossbar.random.kernels`): whoever makes number ``i`` gets the same
    bits.
    """

    def __init__(self, key: Key, device: torch.device | str = "cpu") -> None:
        self._device = torch.device(device)
        self._digest = digest = _digest(key)
        if self._device.type == "cpu":
            self._start, self._key = digest & _WORD, digest >> 32 & _WORD
        else:
            self._generator = torch.Generator(self._device).manual_seed(digest >> 64)

    def draw(self, shape: tuple[int, ...]) -> Tensor:
        """The stream's next normal numbers, float32, of ``shape``."""
        if self._device.type != "cpu":
            return torch.randn(shape, generator=self._generator, device=self._device)
        numbers = torch.empty(shape, device=self._device)
        flat = numbers.view(-1)
        whole = len(flat) // _ROW * _ROW
        self._fill(flat[:whole], 1, whole // _ROW, _ROW)
        self._fill(flat[whole:], 1, 1, len(flat) - whole)
        return numbers

    def columns(self, tiles: int, vectors: int, outputs: int) -> Tensor:
        """The stream's next normal numbers for columns ``[T, B, O]``: those of one input vector follow one another.

        So pieces of a batch get the numbers that the whole batch would.
        """
        shape = (tiles, vectors, outputs)
        if self._device.type != "cpu":
            return torch.randn(shape, generator=self._generator, device=self._device)
        numbers = torch.empty(shape, device=self._device)
        self._fill(numbers, *shape)
        return numbers

    def counter(self, rows: int, width: int) -> tuple[int, int]:
        """Where the next ``rows`` rows of ``width`` normal numbers start, and their key, for a kernel to make them."""
        start = self._start
        self._start = start + rows * 2 * ((width + 1) // 2) & _WORD
        return start, self._key

    @cached_property
    def _bits(self) -> np.random.SFC64:
        return np.random.SFC64(self._digest)  # takes longer than the rest of a stream, and few need it

    def _fill(self, numbers: Tensor, groups: int, rows: int, width: int) -> None:
        from crossbar.native import openmp  # numba takes half a second to load
        from crossbar.random import kernels

        if numbers.numel():
            start, key = self.counter(groups * rows, width)
            openmp.run(kernels.fill, groups * rows, numbers, groups, rows, width, start, key)

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
