"""Compiled kernels for the CPU: normal numbers, cells in fixed point, input codes, converted columns, aged rows.

Each is a C function for `crossbar.team.run`, compiled by numba when this module is first imported and kept in numba's
cache. They stand in one file because that cache follows changes of a kernel's own file only. What a C function raises
is lost, so division by 0 gives infinity or NaN, and a thread that comes to the end says so.

Random numbers come from a counter: word ``i`` of a stream is a 32-bit mix of ``i`` and the stream's two keys, so any
thread can make any number, in any order. Mixing is the finaliser of C. Wellons' hash search (three multiplications,
"triple32"), with the second key put in after the first of them. Two words give two numbers by the method of Box and
Muller (Ann. Math. Stat. 29, 610, 1958).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

COLUMNS = 64
"""Columns of a tile that are worked on together."""

_F, _U = np.float32, np.uint32
_SIGNATURE = types.void(types.CPointer(types.int64))
_FAST = {"contract"}  # multiply-adds; NaN and infinity keep their meaning

# -2 ln(1 + y) / y from sqrt(1/2) - 1 to sqrt(2) - 1, highest power first: least squares at Chebyshev points, error of
# the logarithm 8e-7.
_LOG = (-0.23862109, 0.37361503, -0.40983519, 0.49816578, -0.66629348, 1.0000229, -2.00000193)
_SQRT_HALF_BITS = 0x3F3504F3

# 2^y from -1/2 to 1/2, highest power first: least squares at Chebyshev points, relative error 8e-8.
_EXP2 = (1.32669704e-3, 9.67545975e-3, 5.55074262e-2, 0.240221218, 0.693146949, 1.00000007)


@intrinsic  # type: ignore[untyped-decorator]  # numba's own
def _as_float(context: Any, word: Any) -> Any:
    """The float32 with these 32 bits."""
    return types.float32(types.uint32), lambda _, builder, __, given: builder.bitcast(given[0], ir.FloatType())


@intrinsic  # type: ignore[untyped-decorator]  # numba's own
def _as_bits(context: Any, number: Any) -> Any:
    """The 32 bits of a float32."""
    return types.uint32(types.float32), lambda _, builder, __, given: builder.bitcast(given[0], ir.IntType(32))


@intrinsic  # type: ignore[untyped-decorator]  # numba's own
def _as_double(context: Any, word: Any) -> Any:
    """The float64 with these 64 bits."""
    return types.float64(types.int64), lambda _, builder, __, given: builder.bitcast(given[0], ir.DoubleType())


@intrinsic  # type: ignore[untyped-decorator]  # numba's own
def _pointer(context: Any, address: Any) -> Any:
    """What stands at an address."""

    def generate(_: Any, builder: Any, __: Any, given: Any) -> Any:
        return builder.inttoptr(given[0], ir.IntType(8).as_pointer())

    return types.voidptr(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]  # numba's own
def _called(context: Any, address: Any) -> Any:
    """What the C function at an address, ``int function(void)``, returns."""

    def generate(_: Any, builder: Any, __: Any, given: Any) -> Any:
        function = ir.FunctionType(ir.IntType(32), []).as_pointer()
        return builder.call(builder.inttoptr(given[0], function), [])

    return types.int32(types.int64), generate


@intrinsic  # type: ignore[untyped-decorator]  # numba's own
def _random_word(context: Any, start: Any, index: Any, key: Any) -> Any:
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
def _share(given: Any, work: int) -> Any:
    """The part of the work, from and to, that the calling thread does: neighbours, as torch's products share them."""
    thread, threads = _place(given)
    return work * thread // threads, work * (thread + 1) // threads


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _place(given: Any) -> Any:
    """The number of the calling thread, and how many there are: maybe fewer than were asked for."""
    members = carray(_pointer(given[0]), 2, np.int64)
    thread, threads = 0, 1
    if members[0] != 0:
        thread, threads = _called(members[0]), _called(members[1])
    return thread, threads


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _done(given: Any) -> None:
    """Tell `crossbar.team.run` that the calling thread came to the end: what a C function raises is lost."""
    thread, threads = _place(given)
    members = carray(_pointer(given[0]), 2 + given[1], np.int64)
    members[2 + thread] = threads


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _pair(start: Any, index: int, key: Any) -> Any:
    """Two normal numbers from two words: 23 bits for their radius, so that tails reach to 5.77, 16 for the angle."""
    word = _random_word(start, 2 * index + 1, key)
    code = _as_bits(_F(np.int32(_U(_random_word(start, 2 * index, key) >> _U(9)))) + _F(0.5))
    exponent = np.int32(np.int32(_U(code - _U(_SQRT_HALF_BITS))) >> np.int32(23))
    y = _as_float(_U(code - _U(exponent << np.int32(23)))) - _F(1.0)
    log = _F(_LOG[0])
    for coefficient in _LOG[1:]:
        log = log * y + _F(coefficient)
    radius = np.sqrt(log * y + (_F(23.0) - _F(exponent)) * _F(2 * math.log(2)))
    # Two of the angle's 16 bits choose the quadrant, the others an angle within ± π/4 of its middle.
    angle = _F(np.int32(_U(word << _U(18)))) * _F(math.pi / 2**33)
    square = angle * angle
    sine = angle * (_F(1.0) + square * (_F(-0.16666655) + square * _F(8.3321609e-3)))
    cosine = _F(1.0) + square * (_F(-0.49999994) + square * (_F(4.16630e-2) + square * _F(-1.3600e-3)))
    top, second = _U(word << _U(16)), _U(word << _U(17))
    swapped = np.int32(second) < np.int32(0)
    first = sine if swapped else cosine
    other = cosine if swapped else sine
    sign = _U(0x80000000)
    one = radius * _as_float(_U(_as_bits(first) ^ _U(top & sign)))
    return one, radius * _as_float(_U(_as_bits(other) ^ _U(_U(top ^ second) & sign)))


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _halved(times: Any) -> Any:
    """``2^-times`` for times >= 0; what is below the smallest normal number is that."""
    power = -times if times < _F(126.0) else _F(-126.0)
    whole = np.rint(power)
    y = power - whole
    value = _F(_EXP2[0])
    for coefficient in _EXP2[1:]:
        value = value * y + _F(coefficient)
    return value * _as_float(_U((np.int32(whole) + np.int32(127)) << np.int32(23)))


@cfunc(_SIGNATURE, cache=True, fastmath=_FAST, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def fill(words: Any) -> None:
    """Standard normal numbers ``[groups, rows, width]``, made row by row, of each row all groups.

    Arguments: numbers, groups, rows, width, start, key. A row of ``width`` takes ``2 ceil(width / 2)`` words.
    """
    given = carray(words, 8)
    groups, rows, width = given[3], given[4], given[5]
    numbers = carray(_pointer(given[2]), (groups, rows, width), np.float32)
    start, key = _U(given[6]), _U(given[7])
    half = (width + 1) // 2
    for line in range(*_share(given, groups * rows)):
        row, group = line // groups, line % groups
        first, second = numbers[group, row, :half], numbers[group, row, half:]
        at = _U(start + _U(2 * line * half))
        for i in range(width - half):
            first[i], second[i] = _pair(at, i, key)
        for i in range(width - half, half):
            first[i] = _pair(at, i, key)[0]
    _done(given)


@cfunc(_SIGNATURE, cache=True, fastmath=_FAST, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def fix(words: Any) -> None:
    """Digits of a tile as integers of two bytes, within ± ``largest`` of each column, and what 1 of them stands for.

    Arguments: digits [R, O] float32, bytes [2, O, R] int8 (high parts, then low), steps [O] float32, R, O, largest,
    least step.
    """
    given = carray(words, 9)
    rows, outputs, largest, least = given[5], given[6], _F(given[7]), _F(_as_double(given[8]))
    digits = carray(_pointer(given[2]), (rows, outputs), np.float32)
    parts = carray(_pointer(given[3]), (2, outputs, rows), np.int8)
    steps = carray(_pointer(given[4]), outputs, np.float32)
    for block in range(*_share(given, (outputs + COLUMNS - 1) // COLUMNS)):
        first, last = block * COLUMNS, min(block * COLUMNS + COLUMNS, outputs)
        span = np.full(COLUMNS, least * largest, np.float32)
        for row in range(rows):
            for column in range(first, last):
                size = abs(digits[row, column])
                span[column - first] = size if size > span[column - first] else span[column - first]
        for column in range(first, last):
            steps[column] = span[column - first] / largest
            span[column - first] = largest / span[column - first]
        for row in range(rows):
            for column in range(first, last):
                whole = np.int32(np.rint(digits[row, column] * span[column - first]))
                high = np.int32(np.int32(whole + np.int32(128)) >> np.int32(8))
                parts[0, column, row] = np.int8(high)
                parts[1, column, row] = np.int8(np.int32(whole - np.int32(high << np.int32(8))))
    _done(given)


@cfunc(_SIGNATURE, cache=True, fastmath=_FAST, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def encode(words: Any) -> None:
    """Input codes of a DAC, and the range of each vector: NaN where an input is NaN or the range no number above 0.

    Arguments: inputs [B, I] float32, ranges [known] float32 or 0 (find the largest of each vector), known (1 or B),
    codes [B, I] int8, full_scale [B] float32, power [B, T_in] float32 or 0 (sums of squared drives), B, I, rows of
    a tile, levels, least range.
    """
    given = carray(words, 13)
    known, vectors, lines, rows = given[4], given[8], given[9], given[10]
    levels, least = _F(given[11]), _F(_as_double(given[12]))
    inputs = carray(_pointer(given[2]), (vectors, lines), np.float32)
    ranges = carray(_pointer(given[3]), known, np.float32)
    codes = carray(_pointer(given[5]), (vectors, lines), np.int8)
    full_scale = carray(_pointer(given[6]), vectors, np.float32)
    tiles = (lines + rows - 1) // rows
    power = carray(_pointer(given[7]), (vectors, tiles), np.float32)
    infinity = np.int32(0x7F800000)
    for row in range(*_share(given, vectors)):
        largest = np.int32(0)  # as bits, which sort as magnitudes do, and NaN behind infinity
        for i in range(lines):
            largest = max(largest, np.int32(_U(_as_bits(inputs[row, i]) & _U(0x7FFFFFFF))))
        if given[3] == 0:
            span = _F(max(_as_float(_U(largest)), least))
            lost = bool(largest >= infinity)
        else:
            span = ranges[row % known]
            lost = bool(largest > infinity or not np.isfinite(span) or span <= 0)
        if lost:
            full_scale[row] = _F(np.nan)
            for i in range(lines):
                codes[row, i] = 0
        else:
            full_scale[row] = span
            factor = levels / span
            for i in range(lines):
                code = np.rint(inputs[row, i] * factor)
                code = levels if code > levels else code
                code = -levels if code < -levels else code
                codes[row, i] = np.int8(np.int32(code))
        if given[7] != 0:
            for tile in range(tiles):
                total = np.int32(0)
                for i in range(tile * rows, min(tile * rows + rows, lines)):
                    total += np.int32(codes[row, i]) * np.int32(codes[row, i])
                power[row, tile] = _F(total) / (levels * levels)
    _done(given)


@cfunc(_SIGNATURE, cache=True, fastmath=_FAST, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def convert(words: Any) -> None:
    """What the ADCs of a tile deliver of integer column sums, noise added before, scaled and added to what is there.

    Arguments: sums [B, 2 O] int32 (high parts, then low), factor [O] (ADC steps that 1 of the sums is), offset [O] (ADC
    steps) or 0, deviation [O] (of output noise, ADC steps) or 0, variance [O] (of the cells under full power, ADC steps
    squared) or 0, power [B, T_in] or 0, scale [O], full_scale [B], out [B, O], B, O, T_in, this tile of T_in, levels, T
    (tiles of a row of noise), this tile of T, first row, start and key of the noise.
    """
    given = carray(words, 21)
    vectors, outputs, row_tiles, row_tile = given[11], given[12], given[13], given[14]
    levels, tiles, tile, first_row = _F(given[15]), given[16], given[17], given[18]
    start, key = _U(given[19]), _U(given[20])
    sums = carray(_pointer(given[2]), (vectors, 2, outputs), np.int32)
    factor = carray(_pointer(given[3]), outputs, np.float32)
    offset = carray(_pointer(given[4]), outputs, np.float32)
    deviation = carray(_pointer(given[5]), outputs, np.float32)
    variance = carray(_pointer(given[6]), outputs, np.float32)
    power = carray(_pointer(given[7]), (vectors, row_tiles), np.float32)
    scale = carray(_pointer(given[8]), outputs, np.float32)
    full_scale = carray(_pointer(given[9]), vectors, np.float32)
    out = carray(_pointer(given[10]), (vectors, outputs), np.float32)
    half = (outputs + 1) // 2
    added = np.zeros(outputs, np.float32)
    upper, lower = added[:half], added[half:]
    for row in range(*_share(given, vectors)):
        if given[5] != 0:
            at = _U(start + _U(((first_row + row) * tiles + tile) * 2 * half))
            for i in range(outputs - half):
                upper[i], lower[i] = _pair(at, i, key)
            for i in range(outputs - half, half):
                upper[i] = _pair(at, i, key)[0]
            if given[6] == 0:
                for i in range(outputs):
                    added[i] *= deviation[i]
            else:
                driven = power[row, row_tile]
                for i in range(outputs):
                    added[i] *= np.sqrt(deviation[i] * deviation[i] + driven * variance[i])
        elif given[4] != 0:
            added[:] = 0
        if given[4] != 0:
            for i in range(outputs):
                added[i] += offset[i]
        total, high, low, unit = out[row], sums[row, 0], sums[row, 1], full_scale[row]
        if tile == 0:
            total[:] = 0
        for i in range(outputs):
            code = np.rint((_F(high[i]) * _F(256.0) + _F(low[i])) * factor[i] + added[i])
            code = levels if code > levels else code
            code = -levels if code < -levels else code
            total[i] += code * (scale[i] * unit)
    _done(given)


@cfunc(_SIGNATURE, cache=True, fastmath=_FAST, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def age_rows(words: Any) -> None:
    """Digits of opened rows, each at its own age: ``G = P 2^(-halvings exponent) (1 + amplitude band z)``, at least 0.

    Arguments: P [K, V, S, D] float32 (G⁺ of all pairs, then G⁻), exponent or 0 (1 of every cell) and amplitude or 0 (no
    fluctuation) as P, row of S of each opened one [L] int64, halvings [L] and band [L] float32, start [L] int64 and key
    [L] int64 of the numbers z of each row (of the first of V, others are ``stride`` words further each), digits
    [V, L, D] float32, variance [V, L, D] or 0 (of white noise), K, V, S, L, D, stride, a digit of 1 µS, constant and
    relative part of the white noise, in digits and per digit.
    """
    given = carray(words, 21)
    cells, vectors, slots, opened, size, stride = given[12], given[13], given[14], given[15], given[16], given[17]
    unit, constant, relative = (
        _F(_as_double(given[18])), _F(_as_double(given[19])), _F(_as_double(given[20])),
    )  # fmt: skip
    shape, pairs = (cells, vectors, slots, size), cells // 2
    programmed = carray(_pointer(given[2]), shape, np.float32)
    exponent = carray(_pointer(given[3]), shape, np.float32)
    amplitude = carray(_pointer(given[4]), shape, np.float32)
    place = carray(_pointer(given[5]), opened, np.int64)
    halvings = carray(_pointer(given[6]), opened, np.float32)
    band = carray(_pointer(given[7]), opened, np.float32)
    start = carray(_pointer(given[8]), opened, np.int64)
    key = carray(_pointer(given[9]), opened, np.int64)
    digits = carray(_pointer(given[10]), (vectors, opened, size), np.float32)
    variance = carray(_pointer(given[11]), (vectors, opened, size), np.float32)
    up, down = np.empty(size, np.float32), np.empty(size, np.float32)
    for line in range(*_share(given, vectors * opened)):
        vector, row = line // opened, line % opened
        slot, times, width, own = place[row], halvings[row], band[row], _U(key[row])
        at = _U(start[row] + vector * stride)
        total, spread = digits[vector, row], variance[vector, row]
        total[:] = 0
        for pair in range(pairs):
            one, other = programmed[pair, vector, slot], programmed[pairs + pair, vector, slot]
            if given[3] == 0:
                share = _halved(times)
                for i in range(size):
                    up[i], down[i] = one[i] * share, other[i] * share
            else:
                first, second = exponent[pair, vector, slot], exponent[pairs + pair, vector, slot]
                for i in range(size):
                    up[i] = one[i] * _halved(first[i] * times)
                    down[i] = other[i] * _halved(second[i] * times)
            if given[4] != 0:
                first, second = amplitude[pair, vector, slot], amplitude[pairs + pair, vector, slot]
                for i in range(size):
                    above, below = _pair(at, pair * size + i, own)
                    factor = _F(1.0) + first[i] * width * above
                    up[i] *= factor if factor > 0 else _F(0.0)
                    factor = _F(1.0) + second[i] * width * below
                    down[i] *= factor if factor > 0 else _F(0.0)
            for i in range(size):
                total[i] += (up[i] - down[i]) * unit
            if given[11] != 0:
                if pair == 0:
                    spread[:] = 0
                for i in range(size):
                    spread[i] += (up[i] * up[i] + down[i] * down[i]) * relative + _F(2.0) * constant
    _done(given)
