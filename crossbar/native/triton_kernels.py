"""`crossbar.native.functions` of Triton, to be compiled into kernels of GPUs."""

import triton
import triton.language as tl

from crossbar.native import function_steps as steps

_ROUNDING = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it is rounded to a whole number, to even
_LN2_HIGH = tl.constexpr(steps.LN2_HIGH)
_LN2_LOW = tl.constexpr(steps.LN2_LOW)
_PER_LN2 = tl.constexpr(steps.PER_LN2)
_LEAST, _MOST = tl.constexpr(steps.LEAST), tl.constexpr(steps.MOST)
_SQRT_HALF_BITS = tl.constexpr(steps.SQRT_HALF_BITS)
_P = tl.constexpr(steps.LOG)
_Q = tl.constexpr(steps.EXP)


@triton.jit
def log(x):
    """`crossbar.native.functions.log`; no number stays none."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - _SQRT_HALF_BITS) >> 23
    y = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    square, whole = y * y, exponent.to(tl.float32)
    p = y * _P[0] + _P[1]
    p = p * y + _P[2]
    p = p * y + _P[3]
    p = p * y + _P[4]
    p = p * y + _P[5]
    p = p * y + _P[6]
    p = p * y + _P[7]
    found = p * (y * square) + whole * _LN2_LOW - square * 0.5
    return (found + y) + whole * _LN2_HIGH + (x - x)


@triton.jit
def exp(x):
    """`crossbar.native.functions.exp` of a number."""
    x = tl.minimum(tl.maximum(x, _LEAST), _MOST)
    whole = (x * _PER_LN2 + _ROUNDING) - _ROUNDING
    r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    q = r * _Q[0] + _Q[1]
    q = q * r + _Q[2]
    q = q * r + _Q[3]
    q = q * r + _Q[4]
    q = q * r + _Q[5]
    scale = ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
    return ((q * (r * r) + r) + 1.0) * scale
