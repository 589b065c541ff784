"""Intrinsics of kernels."""

import math

import numpy as np
from numba import njit

from crossbar.native.compiled import as_bits, as_double, as_float, fma

F = np.float32


@njit(error_model="numpy")
def fused(a, b, c):
    return fma(a, b, c)


@njit(error_model="numpy")
def unfused(a, b, c):
    return a * b + c


@njit
def bits_and_back(number, word):
    return as_bits(number), as_float(as_bits(number)), as_double(word)


def test_a_fused_multiply_add_is_rounded_once_and_others_are_not_fused():
    near = F(1 + 2.0**-12)  # whose square, 1 + 2^-11 + 2^-24, is a tie of float32 that goes down
    assert fused(near, near, F(-(1 + 2.0**-11))) == F(2.0**-24)
    assert unfused(near, near, F(-(1 + 2.0**-11))) == 0
    assert fused(F(3), F(4), F(5)) == 17
    assert math.isnan(fused(F(math.inf), F(0), F(1)))


def test_bits_of_numbers():
    assert bits_and_back(F(1.5), np.int64(0x3FF8000000000000)) == (0x3FC00000, 1.5, 1.5)
    bits, back, _ = bits_and_back(F(-0.0), np.int64(0))
    assert bits == 0x80000000
    assert math.copysign(1, back) == -1
