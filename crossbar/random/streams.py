"""Random streams keyed by what they are for, so that no result depends on call order, threads or global state.

A key is any tuple of strings and numbers, such as ``(seed, layer name, "read", time, index)``. The same key gives the
same bits on any device (`crossbar.random` says which).
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from torch import Tensor

from crossbar.native import gpu
from crossbar.random import binomial, tensors

Key = tuple[str | int | float, ...]

_WORD = 2**32 - 1
_ROW = 1024  # numbers that one thread makes in one go
_SHARE = 4096  # words that are worth a thread


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
    made in parts says which part (``first``).

    Attributes:
        key: what the numbers are for.
        device: where they are made: by compiled kernels on the CPU and, where Triton is, on a GPU, elsewhere by torch,
            without waiting for the device.
        start: of the counter: the word (mod 2^32) with which the numbers begin.
        word_key: 32 bits that tell this counter from others.
    """

    def __init__(self, key: Key, device: torch.device | str = "cpu") -> None:
        self.key, self.device = key, torch.device(device)
        digest = _digest(key)
        self.start, self.word_key = digest & _WORD, digest >> 32 & _WORD
        self._compiled = self.device.type == "cpu"
        self._by_triton = gpu.serves(self.device)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Standard normal numbers, float32, of ``shape``."""
        count = math.prod(shape)
        return self.normal_part(count, 0, count).view(shape)

    def normal_part(self, count: int, first: int, last: int) -> Tensor:
        """Numbers ``first`` to ``last`` (excluded) of a tensor of ``count`` standard normal ones, float32, flat.

        Best cut at multiples of 1,024, since rows of so many are made together.
        """
        if self._by_triton:
            from crossbar.random import triton_kernels

            return triton_kernels.part(self.start, self.word_key, first, last, count, self.device)
        if not self._compiled:
            return tensors.part(self.start, self.word_key, first, last, count, self.device)
        from crossbar.native import openmp  # numba takes half a second to load
        from crossbar.random import kernels

        numbers = torch.empty(last - first, device=self.device)
        if last > first:
            work = -(-(last - first) // _ROW)
            openmp.run(kernels.fill_part, work, numbers, first, last, count, self.start, self.word_key)
        return numbers

    def columns(self, tiles: int, vectors: int, outputs: int, first: int = 0) -> Tensor:
        """Standard normal numbers of columns ``[T, B, O]``, float32: those of one input vector after one another.

        Args:
            tiles: T, conversions of an output.
            vectors: B, input vectors.
            outputs: O, columns.
            first: place of the first vector in the batch that these are a part of.
        """
        start = self.place(first * tiles, outputs)
        if self._by_triton:
            from crossbar.random import triton_kernels

            return triton_kernels.rows(start, self.word_key, tiles, vectors, outputs, self.device)
        if not self._compiled:
            return tensors.rows(start, self.word_key, tiles, vectors, outputs, self.device)
        from crossbar.native import openmp  # numba takes half a second to load
        from crossbar.random import kernels

        shape, rows = (tiles, vectors, outputs), tiles * vectors
        numbers = torch.empty(shape, device=self.device)
        if numbers.numel():
            openmp.run(kernels.fill, rows, numbers, *shape, start, self.word_key)
        return numbers

    def scattered(self, number: Tensor, row: Tensor, shift: Tensor, element: Tensor, width: int) -> Tensor:
        """Standard normal numbers ``[Q G, R, L]``, float32, each of a place in one of many streams of this key.

        Number ``(q G + g, r, l)`` is in stream ``number[q, r]``, there in row ``row[g, r] + shift[g, l]`` of rows of
        ``width`` numbers, and in it ``element[g, l]``. Neighbours in a row are made fastest if they stand together.

        Args:
            number: which stream, int64 ``[Q, R]``, 0 to 2^31 - 1.
            row: int64 ``[G, R]``.
            shift: int64 ``[G, L]``.
            element: int64 ``[G, L]``, below ``width``.
            width: numbers of a row.
        """
        if not self._compiled:
            return tensors.scattered(self.start, self.word_key, number, row, shift, element, width)
        from crossbar.native import openmp  # numba takes half a second to load
        from crossbar.random import kernels

        (groups, rows), (blocks, count) = number.shape, shift.shape
        numbers = torch.empty(groups * blocks, rows, count, device=self.device)
        if numbers.numel():
            places = (x.contiguous() for x in (number, row, shift, element))
            shape = (groups, blocks, rows, count)
            openmp.run(
                kernels.fill_scattered, len(numbers) * rows, numbers, *shape, *places, width, self.start, self.word_key
            )
        return numbers

    def place(self, row: int, width: int) -> int:
        """The word with which a row of normal numbers begins, of rows of ``width``, for a kernel to make them."""
        return self.start + row * words(width) & _WORD

    def uniform(self, shape: tuple[int, ...], first: int = 0) -> Tensor:
        """Numbers evenly spread over [0, 1), float32, of ``shape``: from number ``first`` on."""
        if self._by_triton:
            from crossbar.random import triton_kernels

            start, count = self.start + first, math.prod(shape)
            return triton_kernels.words(start, self.word_key, count, True, self.device).view(shape)
        if not self._compiled:
            return (self._words(math.prod(shape), first) >> 8).float().mul_(2.0**-24).view(shape)
        from crossbar.random import kernels  # numba takes half a second to load

        numbers = torch.empty(shape, device=self.device)
        self._fill_words(kernels.fill_uniform, numbers, first)
        return numbers

    def binomial(self, codes: Tensor, trials: int, first: int = 0) -> Tensor:
        """How many of ``trials`` succeed, each with the chance ``code / trials``, in the dtype of ``codes``.

        Args:
            codes: whole numbers, 0 to ``trials``, on the stream's device.
            trials: 1 to 32,767.
            first: place of the first of them in the tensor that these are a part of.
        """
        if not self._compiled:
            drawn = self._words(codes.numel(), first).view(codes.shape)
            return binomial.counts(drawn, codes.to(torch.int64), trials).to(codes.dtype)
        from crossbar.random import kernels  # numba takes half a second to load

        numbers = codes.to(torch.int32, copy=True, memory_format=torch.contiguous_format)
        found = binomial.table(trials, self.device)
        self._fill_words(kernels.fill_binomial, numbers, first, trials, *found, len(found.least))
        return numbers.to(codes.dtype)

    def bytes(self, shape: tuple[int, ...], first: int = 0) -> Tensor:
        """Numbers evenly spread over 0 … 255, uint8, of ``shape``: from number ``first`` on."""
        skipped, count = first % 4, math.prod(shape)
        numbers = self._word_bits((skipped + count + 3) // 4, first // 4).view(torch.uint8)
        return numbers[skipped : skipped + count].view(shape)

    def _words(self, count: int, first: int) -> Tensor:
        """Words from number ``first`` on, int64."""
        if not self._compiled:
            at = torch.arange(first, first + count, device=self.device, dtype=torch.int64)
            return tensors.words(self.start, self.word_key, at)
        return self._word_bits(count, first).to(torch.int64).bitwise_and_(_WORD)

    def _word_bits(self, count: int, first: int) -> Tensor:
        """The same as the bits of int32."""
        if self._by_triton:
            from crossbar.random import triton_kernels

            return triton_kernels.words(self.start + first, self.word_key, count, False, self.device)
        if not self._compiled:
            return self._words(count, first).to(torch.int32)
        from crossbar.random import kernels  # numba takes half a second to load

        numbers = torch.empty(count, dtype=torch.int32, device=self.device)
        self._fill_words(kernels.fill_words, numbers, first)
        return numbers

    def _fill_words(self, kernel: Any, numbers: Tensor, first: int, *more: Tensor | int) -> None:
        from crossbar.native import openmp

        count, start = numbers.numel(), self.start + first & _WORD
        if count:
            openmp.run(kernel, -(-count // _SHARE), numbers, count, start, self.word_key, *more)


def words(width: int) -> int:
    """Words that a row of ``width`` normal numbers takes."""
    return 2 * ((width + 1) // 2)


def _digest(key: Key) -> int:
    """128 bits from a key; ``repr`` tells 1 from 1.0 and "1", and gives floats exactly."""
    return int.from_bytes(hashlib.blake2b(repr(key).encode(), digest_size=16).digest(), "little")
