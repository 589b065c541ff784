"""Kernels and torch operations give the bits of the specification's plain transcription."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from numba import njit

from crossbar.native import openmp
from crossbar.random import kernels, reference, tensors
from crossbar.random.streams import Stream, normal, uniform

KEYS = [(0, "layer.0", "read", 3600.0, 2), ("a",), (2**40, -1.5)]
SHAPES = [(), (1,), (2,), (5, 7), (0, 4), (1023,), (1024,), (1025,), (3, 1000)]
CPU = torch.device("cpu")


def same(found, expected):
    """Bits, so that zeros of both signs differ."""
    found, expected = found.numpy(), np.asarray(expected)
    assert found.shape == expected.shape
    assert found.dtype == expected.dtype
    assert found.tobytes() == expected.tobytes()


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_of_tensors(key, shape):
    same(normal(shape, key), reference.normal(key, shape))
    same(uniform(shape, key), reference.uniform(key, shape))
    same(Stream(key).bytes(shape), reference.bytes_of(key, shape))


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 3, 64), (4, 2, 33)])
def test_numbers_of_columns(shape):
    expected = reference.columns(KEYS[0], *shape)
    stream = Stream(KEYS[0])
    same(stream.columns(*shape), expected)
    same(tensors.rows(stream.start, stream.word_key, *shape, CPU), expected)


@pytest.mark.parametrize("trials", [1, 2, 3, 7, 15, 127, 511])
def test_binomial_numbers(trials):
    codes = np.random.default_rng(trials).integers(0, trials + 1, 300)
    codes[:4] = 0, trials, trials // 2, trials - trials // 2
    same(Stream(KEYS[1]).binomial(torch.from_numpy(codes), trials), reference.binomial(KEYS[1], codes, trials))


def test_a_counter_that_wraps_around():
    stream, found = Stream(("wrap",)), torch.empty(1, 1, 6)
    counters = np.array([2**32 - 2, 2**32 - 1, 0, 1, 2, 3], np.uint32)
    words = reference.mixed(counters, stream.word_key)
    radius, (x, y) = reference.radius(words[::2]), reference.direction(words[1::2])
    openmp.run(kernels.fill, 1, found, 1, 1, 6, 2**32 - 2, stream.word_key)
    same(found[0, 0], np.concatenate((radius * x, radius * y)))
    same(tensors.rows(2**32 - 2, stream.word_key, 1, 1, 6, CPU), found)


@pytest.mark.parametrize("count", [1, 5, 1024, 5000])
@pytest.mark.parametrize("start", [0, 2**32 - 2000])
def test_parts_of_tensors(count, start):
    stream = Stream(("part",))
    stream.start = start
    whole = stream.normal_part(count, 0, count)
    for first, last in ((0, count), (0, 1), (1000, 1030), (1024, 4096), (4000, 4999), (4500, 5000), (7, 7)):
        first, last = min(first, count), min(last, count)
        same(stream.normal_part(count, first, last), whole[first:last])
        same(tensors.part(start, stream.word_key, first, last, count, CPU), whole[first:last])


def counters_of(words, word_key):
    """Counters whose words these are: every step of the mixing can be undone."""

    def unfolded(x, shift, key=0):
        x, found = x ^ np.uint32(key), x ^ np.uint32(key)
        for _ in range(32 // shift):
            found = x ^ found >> np.uint32(shift)
        return found

    def undone(x, factor):
        return x * np.uint32(pow(factor, -1, 2**32))

    x = undone(unfolded(words, 14), 0x31848BAB)
    x = undone(unfolded(x, 15), 0xAC4C1B51)
    x = undone(unfolded(x, 11, word_key), 0xED5AD4BB)
    return unfolded(x, 17)


def test_mixing_can_be_undone_so_that_a_stream_has_each_word_once():
    words = np.random.default_rng(0).integers(0, 2**32, 1000, np.uint32)
    assert np.array_equal(reference.mixed(counters_of(words, 0x1234567), 0x1234567), words)


@njit(error_model="numpy")
def by_kernel(u, v, found):
    for i in range(len(u)):
        found[0, i], found[1, i] = kernels.normals(u[i], v[i])


def test_every_radius():
    angle = np.zeros(2**20, np.uint32)
    for code in range(0, 2**23, 2**20):
        words = np.arange(code, code + 2**20, dtype=np.uint32) << np.uint32(9)
        expected, found = reference.radius(words), torch.empty(2, 2**20)
        same(tensors.radii(torch.from_numpy(words.astype(np.int64))), expected)
        by_kernel(words | np.uint32(code >> 14), angle, found.numpy())  # at angle 0 the first number is the radius
        same(found[0], expected)


def test_every_angle():
    words = np.arange(2**16, dtype=np.uint32)
    x, y = reference.direction(words)
    some = np.array([0, 1 << 9, 12345 << 9, 0x7FFFFFFF, 0xFFFFFFFF], np.uint32)
    for word, radius in zip(some, reference.radius(some), strict=True):
        u, v, found = np.full(2**16, word), words | word << np.uint32(16), torch.empty(2, 2**16)
        by_kernel(u, v, found.numpy())
        same(found, np.stack((radius * x, radius * y)))
        same(torch.stack(tensors.pairs(*(torch.from_numpy(each.astype(np.int64)) for each in (u, v)))), found)


def test_fused_multiply_adds_are_rounded_once():
    draw = np.random.default_rng(0)
    a, b, c = (draw.standard_normal(20_000).astype(np.float32) for _ in range(3))
    c[::2] = -(a * b)[::2]  # what the rounding of the product leaves
    c[1::4] *= np.float32(2.0**-20)
    for x, y, z, found in zip(a[:2000], b, c, reference.fma(a, b, c), strict=False):
        exact = Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z))
        near = np.float32(float(exact))
        nearest = min((np.nextafter(near, np.float32(s)) if s else near for s in (0, np.inf, -np.inf)),
                      key=lambda each: abs(Fraction(float(each)) - exact))  # fmt: skip
        assert found == nearest
    # between two float32 numbers, but for a bit that float64 does not have: rounding twice would go the wrong way
    one, tiny = np.float32(1 + 2.0**-23), np.float32(2.0**-60)
    assert reference.fma(np.float32([1 + 2.0**-12]), np.float32([1 + 2.0**-12]), np.float32([tiny]))[0] > 1
    half = np.float32(2.0**-24)
    assert reference.fma(half, np.float32(1.0), np.float32(1.0)) == 1.0  # a tie, to even
    assert reference.fma(np.float32(2.0**-12 + 2.0**-35), np.float32(2.0**-12), np.float32(1.0)) == one
    assert math.isclose(float(reference.fma(np.float32(3), np.float32(4), np.float32(5))), 17.0)
