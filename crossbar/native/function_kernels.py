"""`crossbar.native.functions` compiled for the CPU: of tensors, and to be compiled into other kernels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, njit

from crossbar.native.compiled import SIGNATURE, as_bits, as_float, done, pointer, share
from crossbar.native.function_steps import EXP, LEAST, LN2_HIGH, LN2_LOW, LOG, MOST, PER_LN2, SQRT_HALF_BITS

BLOCK = 4096
"""Numbers that a thread takes at least."""

_F, _U = np.float32, np.uint32
_P = tuple(np.float32(each) for each in LOG)
_Q = tuple(np.float32(each) for each in EXP)


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def logarithm(x: Any) -> Any:
    """`crossbar.native.functions.log` of a number."""
    bits = np.int32(as_bits(x))
    exponent = np.int32(np.int32(bits - np.int32(SQRT_HALF_BITS)) >> np.int32(23))
    y = as_float(_U(np.int32(bits - np.int32(exponent << np.int32(23))))) - _F(1.0)
    square, whole = y * y, _F(exponent)
    p = y * _P[0] + _P[1]
    p = p * y + _P[2]
    p = p * y + _P[3]
    p = p * y + _P[4]
    p = p * y + _P[5]
    p = p * y + _P[6]
    p = p * y + _P[7]
    found = p * (y * square) + whole * _F(LN2_LOW) - square * _F(0.5)
    return (found + y) + whole * _F(LN2_HIGH) + (x - x)


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def exponential(x: Any) -> Any:
    """`crossbar.native.functions.exp` of a number."""
    x = _F(LEAST) if x < _F(LEAST) else x
    x = _F(MOST) if x > _F(MOST) else x
    whole = np.rint(x * _F(PER_LN2))
    r = (x - whole * _F(LN2_HIGH)) - whole * _F(LN2_LOW)
    q = r * _Q[0] + _Q[1]
    q = q * r + _Q[2]
    q = q * r + _Q[3]
    q = q * r + _Q[4]
    q = q * r + _Q[5]
    safe = whole if whole == whole else _F(0.0)
    scale = as_float(_U((np.int32(safe) + np.int32(127)) << np.int32(23)))
    return ((q * (r * r) + r) + _F(1.0)) * scale


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def log(words: Any) -> None:
    """Logarithms. Arguments: numbers [n] float32, found [n], n."""
    given = carray(words, 5)
    first, last = share(given, given[4])
    numbers = carray(pointer(given[2]), given[4], np.float32)[first:last]
    found = carray(pointer(given[3]), given[4], np.float32)[first:last]
    for i in range(len(numbers)):
        found[i] = logarithm(numbers[i])
    done(given)


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def exp(words: Any) -> None:
    """Exponentials. Arguments: numbers [n] float32, found [n], n."""
    given = carray(words, 5)
    first, last = share(given, given[4])
    numbers = carray(pointer(given[2]), given[4], np.float32)[first:last]
    found = carray(pointer(given[3]), given[4], np.float32)[first:last]
    for i in range(len(numbers)):
        found[i] = exponential(numbers[i])
    done(given)
