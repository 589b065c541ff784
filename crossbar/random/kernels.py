"""Compiled random numbers: word ``i`` of a stream is a 32-bit mix of ``i`` and the stream's two keys.

So any thread can make any number, in any order. Mixing is the finaliser of C. Wellons' hash search (three
multiplications, "triple32"), with the second key put in after the first of them. Two words give two numbers by the
method of Box and Muller (Ann. Math. Stat. 29, 610, 1958).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from crossbar.native.compiled import SIGNATURE, as_bits, as_float, done, fma, pointer, share

_F, _U = np.float32, np.uint32

# -2 ln(1 + y) / y from sqrt(1/2) - 1 to sqrt(2) - 1, highest power first: least squares at Chebyshev points, error of
# the logarithm 8e-7.
_LOG = (-0.23862109, 0.37361503, -0.40983519, 0.49816578, -0.66629348, 1.0000229, -2.00000193)
_SQRT_HALF_BITS = 0x3F3504F3


@intrinsic  # type: ignore[untyped-decorator]  # numba's own
def random_word(context: Any, start: Any, index: Any, key: Any) -> Any:
    """32 random bits: word ``start + index`` of the stream; in 32-bit arithmetic, which numba's operators leave."""

    def generate(_: Any, builder: Any, __: Any, given: Any) -> Any:
        start, index, key = given
        width = ir.IntType(32)

        def folded(x: Any, shift: int) -> Any:
            return builder.xor(x, builder.lshr(x, ir.Constant(width, shift)))

        def times(x: Any, factor: int) -> Any:
            return builder.mul(x, ir.Constant(width, factor))

        x = times(folded(builder.add(start, builder.trunc(index, width)), 17), 0xED5AD4BB)
        x = times(builder.xor(folded(x, 11), key), 0xAC4C1B51)
        return folded(times(folded(x, 15), 0x31848BAB), 14)

    return types.uint32(types.uint32, types.int64, types.uint32), generate


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def pair(start: Any, index: int, key: Any) -> Any:
    """Two normal numbers from two words: 23 bits for their radius, so that tails reach to 5.77, 16 for the angle."""
    word = random_word(start, 2 * index + 1, key)
    code = as_bits(_F(np.int32(_U(random_word(start, 2 * index, key) >> _U(9)))) + _F(0.5))
    exponent = np.int32(np.int32(_U(code - _U(_SQRT_HALF_BITS))) >> np.int32(23))
    y = as_float(_U(code - _U(exponent << np.int32(23)))) - _F(1.0)
    log = _F(_LOG[0])
    for coefficient in _LOG[1:]:
        log = fma(log, y, _F(coefficient))
    radius = np.sqrt(fma(_F(23.0) - _F(exponent), _F(2 * math.log(2)), log * y))
    # Two of the angle's 16 bits choose the quadrant, the others an angle within ± π/4 of its middle.
    angle = _F(np.int32(_U(word << _U(18)))) * _F(math.pi / 2**33)
    square = angle * angle
    sine = angle * fma(square, fma(square, _F(8.3321609e-3), _F(-0.16666655)), _F(1.0))
    cosine = fma(square, _F(-1.3600e-3), _F(4.16630e-2))
    cosine = fma(square, fma(square, cosine, _F(-0.49999994)), _F(1.0))
    top, second = _U(word << _U(16)), _U(word << _U(17))
    swapped = np.int32(second) < np.int32(0)
    first = sine if swapped else cosine
    other = cosine if swapped else sine
    sign = _U(0x80000000)
    one = radius * as_float(_U(as_bits(first) ^ _U(top & sign)))
    return one, radius * as_float(_U(as_bits(other) ^ _U(_U(top ^ second) & sign)))


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def fill(words: Any) -> None:
    """Standard normal numbers ``[groups, rows, width]``, made row by row, of each row all groups.

    Arguments: numbers, groups, rows, width, start, key. A row of ``width`` takes ``2 ceil(width / 2)`` words.
    """
    given = carray(words, 8)
    groups, rows, width = given[3], given[4], given[5]
    numbers = carray(pointer(given[2]), (groups, rows, width), np.float32)
    start, key = _U(given[6]), _U(given[7])
    half = (width + 1) // 2
    for line in range(*share(given, groups * rows)):
        row, group = line // groups, line % groups
        first, second = numbers[group, row, :half], numbers[group, row, half:]
        at = _U(start + _U(2 * line * half))
        for i in range(width - half):
            first[i], second[i] = pair(at, i, key)
        for i in range(width - half, half):
            first[i] = pair(at, i, key)[0]
    done(given)
