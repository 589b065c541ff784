"""Compiled kernels of the CPU: cells in fixed point, input codes, converted columns, aged rows.

Each is a C function for `crossbar.native.openmp.run` (`crossbar.native.compiled`). Everything is float32, and rounded
after each operation but where ``fma(a, b, c)``, a multiply-add that is rounded once, stands: a backend that does the
same in this order gives the same bits, whatever its blocks are.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, njit

from crossbar.native.compiled import (
    SIGNATURE,
    WIDTH,
    as_bits,
    as_double,
    as_float,
    done,
    fma,
    pointer,
    share,
    sums_of_products,
)
from crossbar.random.kernels import pair

COLUMNS = 64
"""Columns of a tile that are worked on together."""
_NEAR = 32  # of them whose cells stay in the first cache while all vectors meet them

_two_by_four, _two_by_one = sums_of_products(2, 4), sums_of_products(2, 1)
_one_by_four, _one_by_one = sums_of_products(1, 4), sums_of_products(1, 1)

_F, _U = np.float32, np.uint32

# 2^y from -1/2 to 1/2, highest power first: least squares at Chebyshev points, relative error 8e-8.
_EXP2 = (1.32669704e-3, 9.67545975e-3, 5.55074262e-2, 0.240221218, 0.693146949, 1.00000007)


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _halved(times: Any) -> Any:
    """``2^-times`` for times >= 0; what is below the smallest normal number is that."""
    power = -times if times < _F(126.0) else _F(-126.0)
    whole = np.rint(power)
    y = power - whole
    value = _F(_EXP2[0])
    for coefficient in _EXP2[1:]:
        value = fma(value, y, _F(coefficient))
    return value * as_float(_U((np.int32(whole) + np.int32(127)) << np.int32(23)))


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def fix(words: Any) -> None:
    """Digits of a tile as integers of two bytes, within ± ``largest`` of each column, and what 1 of them stands for.

    Arguments: digits [R, O] float32, integers [O, W] int16 where W > 0, else bytes [2, O, R] int8 (high parts, then
    low), steps [O] float32, R, O, largest, least step, W.
    """
    given = carray(words, 10)
    rows, outputs, largest, least = given[5], given[6], _F(given[7]), _F(as_double(given[8]))
    digits = carray(pointer(given[2]), (rows, outputs), np.float32)
    parts = carray(pointer(given[3]), (2, outputs, rows), np.int8)
    width = given[9]
    wholes = carray(pointer(given[3]), (outputs, width), np.int16)
    steps = carray(pointer(given[4]), outputs, np.float32)
    for block in range(*share(given, (outputs + COLUMNS - 1) // COLUMNS)):
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
                if width > 0:
                    wholes[column, row] = np.int16(whole)
                    continue
                high = np.int32(np.int32(whole + np.int32(128)) >> np.int32(8))
                parts[0, column, row] = np.int8(high)
                parts[1, column, row] = np.int8(np.int32(whole - np.int32(high << np.int32(8))))
    done(given)


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def encode(words: Any) -> None:
    """Input codes of a DAC, and the range of each vector: NaN where an input is NaN or the range no number above 0.

    Arguments: inputs [B, I] float32, ranges [known] float32 or 0 (find the largest of each vector), known (1 or B),
    codes [B, I] int8 or, where W > 0, [B, stride] int16, W for each row tile and the rest for the last, with zeros
    behind the rows of each, full_scale [B] float32, power [B, T_in] float32 or 0 (sums of squared drives), B, I, rows
    of a tile, levels, least range, W, stride.
    """
    given = carray(words, 15)
    known, vectors, lines, rows = given[4], given[8], given[9], given[10]
    levels, least = _F(given[11]), _F(as_double(given[12]))
    inputs = carray(pointer(given[2]), (vectors, lines), np.float32)
    ranges = carray(pointer(given[3]), known, np.float32)
    codes = carray(pointer(given[5]), (vectors, lines), np.int8)
    full_scale = carray(pointer(given[6]), vectors, np.float32)
    tiles, width, stride = (lines + rows - 1) // rows, given[13], given[14]
    wide = carray(pointer(given[5]), (vectors, stride), np.int16)
    power = carray(pointer(given[7]), (vectors, tiles), np.float32)
    infinity = np.int32(0x7F800000)
    for row in range(*share(given, vectors)):
        largest = np.int32(0)  # as bits, which sort as magnitudes do, and NaN behind infinity
        for i in range(lines):
            largest = max(largest, np.int32(_U(as_bits(inputs[row, i]) & _U(0x7FFFFFFF))))
        if given[3] == 0:
            span = _F(max(as_float(_U(largest)), least))
            lost = bool(largest >= infinity)
        else:
            span = ranges[row % known]
            lost = bool(largest > infinity or not np.isfinite(span) or span <= 0)
        if lost:
            full_scale[row] = _F(np.nan)
            if width > 0:
                wide[row] = 0
            else:
                codes[row] = 0
        elif width > 0:
            full_scale[row] = span
            factor = levels / span
            for tile in range(tiles):
                first, count = tile * rows, min(rows, lines - tile * rows)
                for i in range(count):
                    code = np.rint(inputs[row, first + i] * factor)
                    code = levels if code > levels else code
                    code = -levels if code < -levels else code
                    wide[row, tile * width + i] = np.int16(np.int32(code))
                for i in range(tile * width + count, min(tile * width + width, stride)):
                    wide[row, i] = 0
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
                if width > 0:
                    for i in range(tile * width, min(tile * width + width, stride)):
                        total += np.int32(wide[row, i]) * np.int32(wide[row, i])
                else:
                    for i in range(tile * rows, min(tile * rows + rows, lines)):
                        total += np.int32(codes[row, i]) * np.int32(codes[row, i])
                power[row, tile] = _F(total) / (levels * levels)
    done(given)


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def product(words: Any) -> None:
    """Column sums of a tile, exact: codes times cells.

    Arguments: codes [B, stride] int16, of which W from a place on are driven, cells [O, W] int16, sums [B, O] int32, B,
    O, W (a multiple of `WIDTH`), the stride, the place.
    """
    given = carray(words, 10)
    vectors, outputs, width = given[5], given[6], given[7]
    steps, size, stride = width // WIDTH, 2 * width, 2 * given[8]
    first, last = share(given, (vectors + 1) // 2)
    first, last = 2 * first, min(2 * last, vectors)
    for near in range(0, outputs, _NEAR):
        end = min(near + _NEAR, outputs)
        for row in range(first, last, 2):
            codes, sums = given[2] + 2 * given[9] + row * stride, given[4] + 4 * row * outputs
            pair_of = row + 1 < last
            column = near
            while column + 4 <= end:
                if pair_of:
                    _two_by_four(codes, stride, given[3] + column * size, steps, sums + 4 * column, outputs)
                else:
                    _one_by_four(codes, stride, given[3] + column * size, steps, sums + 4 * column, outputs)
                column += 4
            while column < end:
                if pair_of:
                    _two_by_one(codes, stride, given[3] + column * size, steps, sums + 4 * column, outputs)
                else:
                    _one_by_one(codes, stride, given[3] + column * size, steps, sums + 4 * column, outputs)
                column += 1
    done(given)


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def convert(words: Any) -> None:
    """What the ADCs of a tile deliver of integer column sums, noise added before, scaled and added to what is there.

    Arguments: sums [B, 2 O] (high parts, then low) of float32 (0) or int32 (1), or [B, O] int32 (2), which of these,
    factor [O] (ADC steps that 1 of the sums is), offset [O] (ADC steps) or 0, deviation [O] (of output noise, ADC
    steps) or 0, variance [O] (of the cells under full power, ADC steps squared) or 0, power [B, T_in] or 0, scale [O],
    full_scale [B], out
    [B, O], B, O, T_in, this tile of T_in, levels, T (tiles of a row of noise), this tile of T, first row, start and key
    of the noise.

    With z the numbers of row ``(first row + b) T + tile`` (`crossbar.random`), ``added = z deviation``, or with cells
    ``z sqrt(fma(deviation, deviation, power variance))``; then ``added + offset``. ``code = rint(fma(fma(high, 256,
    low), factor, added))``, to even and clipped; ``out = fma(code, scale full_scale, out)``, tile after tile from 0.
    """
    given = carray(words, 22)
    vectors, outputs, row_tiles, row_tile = given[12], given[13], given[14], given[15]
    levels, tiles, tile, first_row = _F(given[16]), given[17], given[18], given[19]
    start, key = _U(given[20]), _U(given[21])
    integers = carray(pointer(given[2]), (vectors, 2, outputs), np.int32)
    floats = carray(pointer(given[2]), (vectors, 2, outputs), np.float32)
    wholes = carray(pointer(given[2]), (vectors, outputs), np.int32)
    factor = carray(pointer(given[4]), outputs, np.float32)
    offset = carray(pointer(given[5]), outputs, np.float32)
    deviation = carray(pointer(given[6]), outputs, np.float32)
    variance = carray(pointer(given[7]), outputs, np.float32)
    power = carray(pointer(given[8]), (vectors, row_tiles), np.float32)
    scale = carray(pointer(given[9]), outputs, np.float32)
    full_scale = carray(pointer(given[10]), vectors, np.float32)
    out = carray(pointer(given[11]), (vectors, outputs), np.float32)
    half = (outputs + 1) // 2
    added, sums = np.zeros(outputs, np.float32), np.empty(outputs, np.float32)
    upper, lower = added[:half], added[half:]
    for row in range(*share(given, vectors)):
        if given[6] != 0:
            at = _U(start + _U(((first_row + row) * tiles + tile) * 2 * half))
            for i in range(outputs - half):
                upper[i], lower[i] = pair(at, i, key)
            for i in range(outputs - half, half):
                upper[i] = pair(at, i, key)[0]
            if given[7] == 0:
                for i in range(outputs):
                    added[i] *= deviation[i]
            else:
                driven = power[row, row_tile]
                for i in range(outputs):
                    added[i] *= np.sqrt(fma(deviation[i], deviation[i], driven * variance[i]))
        elif given[5] != 0:
            added[:] = 0
        if given[5] != 0:
            for i in range(outputs):
                added[i] += offset[i]
        total, unit = out[row], full_scale[row]
        if tile == 0:
            total[:] = 0
        if given[3] == 2:
            for i in range(outputs):
                sums[i] = _F(wholes[row, i])  # rounded once, as below
        elif given[3] == 1:
            for i in range(outputs):
                sums[i] = fma(_F(integers[row, 0, i]), _F(256.0), _F(integers[row, 1, i]))
        else:
            for i in range(outputs):
                sums[i] = fma(floats[row, 0, i], _F(256.0), floats[row, 1, i])
        for i in range(outputs):
            code = np.rint(fma(sums[i], factor[i], added[i]))
            code = levels if code > levels else code
            code = -levels if code < -levels else code
            total[i] = fma(code, scale[i] * unit, total[i])
    done(given)


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def age_rows(words: Any) -> None:
    """Digits of opened rows, each at its own age: ``G = P 2^(-halvings exponent) (1 + amplitude band z)``, at least 0.

    Arguments: P [K, V, S, D] float32 (G⁺ of all pairs, then G⁻), exponent or 0 (1 of every cell) and amplitude or 0 (no
    fluctuation) as P, row of S of each opened one [L] int64, halvings [L] and band [L] float32, start [L] int64 and key
    [L] int64 of the numbers z of each row (of the first of V, others are ``stride`` words further each), digits
    [V, L, D] float32, variance [V, L, D] or 0 (of white noise), K, V, S, L, D, stride, a digit of 1 µS, squares of the
    constant and the relative part of the white noise, in digits and per digit.

    ``2^(-halvings exponent)`` is a polynomial in fused steps times a power of 2; the factor of the fluctuation is
    ``fma(amplitude band, z, 1)``; pair after pair, ``digit = fma(up - down, digit of 1 µS, digit)`` and ``variance +=
    fma(fma(up, up, down down), relative², 2 constant²)``.
    """
    given = carray(words, 21)
    cells, vectors, slots, opened, size, stride = given[12], given[13], given[14], given[15], given[16], given[17]
    unit, constant, relative = (
        _F(as_double(given[18])), _F(as_double(given[19])), _F(as_double(given[20])),
    )  # fmt: skip
    shape, pairs = (cells, vectors, slots, size), cells // 2
    programmed = carray(pointer(given[2]), shape, np.float32)
    exponent = carray(pointer(given[3]), shape, np.float32)
    amplitude = carray(pointer(given[4]), shape, np.float32)
    place = carray(pointer(given[5]), opened, np.int64)
    halvings = carray(pointer(given[6]), opened, np.float32)
    band = carray(pointer(given[7]), opened, np.float32)
    start = carray(pointer(given[8]), opened, np.int64)
    key = carray(pointer(given[9]), opened, np.int64)
    digits = carray(pointer(given[10]), (vectors, opened, size), np.float32)
    variance = carray(pointer(given[11]), (vectors, opened, size), np.float32)
    up, down = np.empty(size, np.float32), np.empty(size, np.float32)
    for line in range(*share(given, vectors * opened)):
        vector, row = line // opened, line % opened
        slot, times, width, own = place[row], halvings[row], band[row], _U(key[row])
        at = _U(start[row] + vector * stride)
        total, spread = digits[vector, row], variance[vector, row]
        total[:] = 0
        for each in range(pairs):
            one, other = programmed[each, vector, slot], programmed[pairs + each, vector, slot]
            if given[3] == 0:
                kept = _halved(times)
                for i in range(size):
                    up[i], down[i] = one[i] * kept, other[i] * kept
            else:
                first, second = exponent[each, vector, slot], exponent[pairs + each, vector, slot]
                for i in range(size):
                    up[i] = one[i] * _halved(first[i] * times)
                    down[i] = other[i] * _halved(second[i] * times)
            if given[4] != 0:
                first, second = amplitude[each, vector, slot], amplitude[pairs + each, vector, slot]
                for i in range(size):
                    above, below = pair(at, each * size + i, own)
                    factor = fma(first[i] * width, above, _F(1.0))
                    up[i] *= factor if factor > 0 else _F(0.0)
                    factor = fma(second[i] * width, below, _F(1.0))
                    down[i] *= factor if factor > 0 else _F(0.0)
            for i in range(size):
                total[i] = fma(up[i] - down[i], unit, total[i])
            if given[11] != 0:
                if each == 0:
                    spread[:] = 0
                for i in range(size):
                    spread[i] += fma(fma(up[i], up[i], down[i] * down[i]), relative, _F(2.0) * constant)
    done(given)
