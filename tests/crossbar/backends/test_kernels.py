"""Kernels fuse the multiply-adds that they write out, and no others: bits against numpy with an exact one."""

import numpy as np
import pytest
import torch

from crossbar.backends.cpu import kernels
from crossbar.native import openmp
from crossbar.random import reference
from crossbar.random.streams import Stream

F = np.float32
KEY = ("kernels",)


def plain(a, b, c):
    return a * b + c


def drawn(*shape, seed=0, least=0.001):
    return np.random.default_rng(seed).uniform(least, 1, shape).astype(F)


def tensors(*arrays):
    return [None if array is None else torch.from_numpy(array) for array in arrays]


def converted(high, low, factor, offset, deviation, variance, power, scale, full_scale, before, z, fma):
    """`kernels.convert` of one of two row tiles, levels 511."""
    added = np.zeros_like(z)
    if deviation is not None:
        each = np.broadcast_to(deviation, z.shape)
        if variance is not None:
            each = np.sqrt(fma(each, each, power[:, None] * variance))
        added = z * each
    if offset is not None:
        added = added + offset
    sums = fma(high.astype(F), F(256), low.astype(F))
    codes = np.rint(fma(sums, np.broadcast_to(factor, sums.shape), added)).clip(-511, 511)
    return fma(codes, scale * full_scale[:, None], before)


@pytest.mark.parametrize("outputs", [1, 33, 64])
@pytest.mark.parametrize("with_offset", [False, True])
@pytest.mark.parametrize("noise", ["quiet", "output", "cells"])
@pytest.mark.parametrize("kind", [np.int32, F])  # of the sums
def test_conversion(outputs, with_offset, noise, kind):
    vectors = 200
    draw = np.random.default_rng(outputs)
    sums = draw.integers(-(2**23), 2**23, (vectors, 2, outputs)).astype(kind)
    factor, scale, full_scale = drawn(outputs) * F(4e-7), drawn(outputs, seed=1), drawn(vectors, seed=2)
    offset = drawn(outputs, seed=3) if with_offset else None
    deviation = drawn(outputs, seed=4) * F(3) if noise != "quiet" else None
    variance, power = drawn(outputs, seed=5) if noise == "cells" else None, drawn(vectors, 2, seed=6)
    before = drawn(vectors, outputs, seed=7) - F(0.5)
    out, stream = torch.from_numpy(before.copy()), Stream(KEY)
    openmp.run(
        kernels.convert, vectors,
        *tensors(sums), kind == np.int32,
        *tensors(factor, offset, deviation, variance, power if noise == "cells" else None, scale, full_scale),
        out, vectors, outputs, 2, 1, 511, 2, 1, 0, stream.start, stream.word_key,
    )  # fmt: skip
    z = reference.columns(KEY, 2, vectors, outputs)[1]
    given = (sums[:, 0], sums[:, 1], factor, offset, deviation, variance, power[:, 1], scale, full_scale, before, z)
    assert np.array_equal(out.numpy(), converted(*given, reference.fma))
    if outputs > 1:
        assert not np.array_equal(out.numpy(), converted(*given, plain))  # so it matters


def halved(times, fma):
    power = np.maximum(-times, F(-126))
    whole = np.rint(power)
    value, y = np.full_like(power, F(1.32669704e-3)), power - whole
    for coefficient in (9.67545975e-3, 5.55074262e-2, 0.240221218, 0.693146949, 1.00000007):
        value = fma(value, y, F(coefficient))
    return value * np.exp2(whole).astype(F)


@pytest.mark.parametrize("size", [1, 8, 33])
@pytest.mark.parametrize("own_exponents", [False, True])
def test_rows_that_age(size, own_exponents):
    rows, unit, constant, relative = 5, F(1 / 25), F(0.0002), F(0.3)
    programmed, exponent, amplitude = (drawn(2, 3, rows, size, seed=seed) for seed in (1, 2, 3))
    halvings, band = drawn(rows, seed=4) * F(3), drawn(rows, seed=5)
    stream, width = Stream(KEY), 2 * size
    place = np.arange(rows)
    digits, variance = np.empty((3, rows, size), F), np.empty((3, rows, size), F)
    start, key = stream.start + place * width, np.full(rows, stream.word_key)
    openmp.run(
        kernels.age_rows, 3 * rows,
        *tensors(programmed, exponent if own_exponents else None, amplitude, place, halvings, band, start, key),
        *tensors(digits, variance), 2, 3, rows, rows, size, rows * width, float(unit), float(constant), float(relative),
    )  # fmt: skip

    def aged(fma):
        z = np.stack([reference.row(KEY, row * width, width) for row in range(3 * rows)]).reshape(3, rows, 2, size)
        cells = []
        for side in (0, 1):
            times = halvings[:, None] * (exponent[side] if own_exponents else np.ones((3, rows, size), F))
            cell = programmed[side] * halved(times, fma)
            factor = fma(amplitude[side] * band[:, None], z[:, :, side], F(1))
            cells.append(cell * np.maximum(factor, F(0)))
        up, down = cells
        return fma(up - down, unit, F(0)), fma(fma(up, up, down * down), relative, F(2) * constant)

    for found, expected, otherwise in zip((digits, variance), aged(reference.fma), aged(plain), strict=True):
        assert np.array_equal(found, expected)
        if size > 1:
            assert not np.array_equal(found, otherwise)  # so it matters
