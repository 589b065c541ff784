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
    """Standard normal numbers, float32, of ``shape``: `Stream.normal`."""
    return Stream(key, device).normal(shape)


def uniform(shape: tuple[int, ...], key: Key, device: torch.device | str = "cpu") -> Tensor:
    """Numbers evenly spread over [0, 1), float32, of ``shape``: `Stream.uniform`."""
    return Stream(key, device).uniform(shape)


def seed(key: Key) -> int:
    """A seed of 64 bits, for code that brings its own generator."""
    return _digest(key) >> 64


class Stream:
    """The random numbers of a key: each has its place, and the same bits whoever makes it, in whatever order.

    Nothing is used up: a second call gives the same numbers. A key is therefore for one purpose, and a tensor that is
    made in parts takes ``first``; `Cursor` is for parts that have no place but their order.

    Attributes:
        key: what the numbers are for.
        device: where they are made.
        start: of the counter: the word (mod 2^32) with which the numbers begin.
        word_key: 32 bits that tell this counter from others.
    """

    def __init__(self, key: Key, device: torch.device | str = "cpu") -> None:
        self.key, self.device = key, torch.device(device)
        self._digest = _digest(key)
        self.start, self.word_key = self._digest & _WORD, self._digest >> 32 & _WORD

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers, float32, of ``shape``."""
        return self._normal(shape, self.start)[0]

    def columns(self, tiles: int, vectors: int, outputs: int, first: int = 0) -> Tensor:
        """Standard normal numbers of columns ``[T, B, O]``, those of one input vector after one another.

        Args:
            tiles: T, conversions of an output.
            vectors: B, input vectors.
            outputs: O, columns.
            first: of the vectors, in a batch of which these are a part.
        """
        return self._columns(tiles, vectors, outputs, self.place(first * tiles, outputs))

    def place(self, row: int, width: int) -> int:
        """The word with which a row of normal numbers begins, of rows of ``width`` from `start` on."""
        return self.start + row * words(width) & _WORD

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Numbers evenly spread over [0, 1), float32, of ``shape``."""
        if self.device.type != "cpu":
            return torch.rand(shape, generator=self._generator(), device=self.device)
        return torch.from_numpy(np.random.Generator(np.random.SFC64(self._digest)).random(shape, dtype=np.float32))

    def bytes(self, shape: tuple[int, ...]) -> Tensor:
        """Numbers evenly spread over 0 … 255, uint8, of ``shape``."""
        if self.device.type != "cpu":
            return torch.randint(256, shape, generator=self._generator(), device=self.device, dtype=torch.uint8)
        n = math.prod(shape)
        return torch.from_numpy(np.random.SFC64(self._digest).random_raw((n + 7) // 8).view(np.uint8)[:n]).view(shape)

    def _normal(self, shape: tuple[int, ...], start: int) -> tuple[Tensor, int]:
        """Numbers of ``shape`` from a word on, and how many words they take."""
        count = math.prod(shape)
        whole, rest = divmod(count, _ROW)
        if self.device.type != "cpu":
            generator = torch.Generator(self.device).manual_seed(self._digest ^ start - self.start & 2**64 - 1)
            return torch.randn(shape, generator=generator, device=self.device), whole * _ROW + words(rest)
        numbers = torch.empty(shape, device=self.device)
        flat = numbers.view(-1)
        self._fill(flat[: whole * _ROW], 1, whole, _ROW, start)
        self._fill(flat[whole * _ROW :], 1, 1, rest, start + whole * _ROW & _WORD)
        return numbers, whole * _ROW + words(rest)

    def _columns(self, tiles: int, vectors: int, outputs: int, start: int) -> Tensor:
        shape = (tiles, vectors, outputs)
        if self.device.type != "cpu":
            return self._normal(shape, start)[0]
        numbers = torch.empty(shape, device=self.device)
        self._fill(numbers, *shape, start)
        return numbers

    def _fill(self, numbers: Tensor, groups: int, rows: int, width: int, start: int) -> None:
        from crossbar.native import openmp  # numba takes half a second to load
        from crossbar.random import kernels

        if numbers.numel():
            openmp.run(kernels.fill, groups * rows, numbers, groups, rows, width, start, self.word_key)

    def _generator(self) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(self._digest >> 64)


class Cursor:
    """A stream whose normal numbers are taken one tensor after another, for parts that have no place but their order.

    Attributes:
        stream: whose numbers are taken.
    """

    def __init__(self, key: Key, device: torch.device | str = "cpu") -> None:
        self.stream = Stream(key, device)
        self._at = self.stream.start

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """The next standard normal numbers, float32, of ``shape``."""
        numbers, taken = self.stream._normal(shape, self._at)
        self._at = self._at + taken & _WORD
        return numbers

    def columns(self, tiles: int, vectors: int, outputs: int) -> Tensor:
        """The next numbers for columns ``[T, B, O]``: pieces of a batch get those that the whole batch would."""
        return self.stream._columns(tiles, vectors, outputs, self.take(tiles * vectors, outputs))

    def take(self, rows: int, width: int) -> int:
        """The word with which the next ``rows`` rows of ``width`` normal numbers begin, for a kernel to make them."""
        at = self._at
        self._at = at + rows * words(width) & _WORD
        return at

    def binomial(self, chance: Tensor, trials: int) -> Tensor:
        """How many of ``trials`` succeed, each with ``chance`` (0 … 1), in its dtype; the next of such numbers."""
        if self.stream.device.type != "cpu":
            return torch.binomial(chance.new_full(chance.shape, trials), chance, generator=self.stream._generator())
        counts = self._pulses.binomial(trials, chance.double().numpy())
        return torch.from_numpy(counts).to(chance.dtype)

    @cached_property
    def _pulses(self) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(self.stream._digest))


def words(width: int) -> int:
    """Words that a row of ``width`` normal numbers takes."""
    return 2 * ((width + 1) // 2)


def _digest(key: Key) -> int:
    """128 bits from a key; ``repr`` tells 1 from 1.0 and "1", and gives floats exactly."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=16).digest(), "little")
