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
_CODES = 2**15  # codes, or column sums, of the vectors that are read together: they stay in the second cache
_VECTORS = 64  # vectors that are read together, at most
_ANY = 2**40  # numbers behind an address: as many as there are

_four, _one = sums_of_products(4), sums_of_products(1)

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

    Arguments: digits [R, O] float32, integers [O / 16, W / 2, 16, 2] int16 where W > 0 (two word lines of 16 columns
    after one another), else bytes [2, O, R] int8 (high parts, then low), steps [O] float32, R, O, largest, least step,
    W.
    """
    given = carray(words, 10)
    rows, outputs, largest, least = given[5], given[6], _F(given[7]), _F(as_double(given[8]))
    digits = carray(pointer(given[2]), (rows, outputs), np.float32)
    parts = carray(pointer(given[3]), (2, outputs, rows), np.int8)
    width = given[9]
    wholes = carray(pointer(given[3]), ((outputs + WIDTH - 1) // WIDTH, width // 2, WIDTH, 2), np.int16)
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
                    wholes[column // WIDTH, row // 2, column % WIDTH, row % 2] = np.int16(whole)
                    continue
                high = np.int32(np.int32(whole + np.int32(128)) >> np.int32(8))
                parts[0, column, row] = np.int8(high)
                parts[1, column, row] = np.int8(np.int32(whole - np.int32(high << np.int32(8))))
    done(given)


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _gathered(inputs: Any, place: int, runs: Any, length: int, vector: Any) -> None:
    """A vector made of runs of neighbours, ``runs`` beyond a place each."""
    for run in range(len(runs)):
        here, own = inputs[place + runs[run] :], vector[run * length :]
        for i in range(length):
            own[i] = here[i]


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _range(vector: Any, known: bool, span: Any, least: Any) -> Any:
    """The range of a vector, or its largest input; NaN where an input is, or where it is no number above 0."""
    largest = np.int32(0)  # as bits, which sort as magnitudes do, and NaN behind infinity
    for i in range(len(vector)):
        largest = max(largest, np.int32(_U(as_bits(vector[i]) & _U(0x7FFFFFFF))))
    infinity = np.int32(0x7F800000)
    if known:
        lost = bool(largest > infinity or not np.isfinite(span) or span <= 0)
    else:
        span = _F(max(as_float(_U(largest)), least))
        lost = bool(largest >= infinity)
    return _F(np.nan) if lost else span


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _driven(vector: Any, span: Any, levels: Any, codes: Any) -> Any:
    """Writes the DAC's codes of a tile's inputs, zeros for a range of NaN; gives the sum of their squares."""
    total = np.int32(0)
    if np.isnan(span):
        codes[:] = 0
        return total
    factor = levels / span
    for i in range(len(codes)):
        code = np.rint(vector[i] * factor)
        code = levels if code > levels else code
        code = -levels if code < -levels else code
        whole = np.int32(code)
        codes[i] = whole
        total = np.int32(total + np.int32(whole * whole))
    return total


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def encode(words: Any) -> None:
    """Input codes of a DAC, and the range of each vector: NaN where an input is NaN or the range no number above 0.

    Arguments: inputs float32, place of each vector [B] int64 or 0 (one after another), its runs beyond it [R] int64, R,
    numbers of a run (I / R), ranges [known] float32 or 0 (find the largest of each vector), known (1 or B), codes [B,
    I] int8, full_scale [B] float32, power [B, T_in] float32 or 0 (sums of squared drives), B, I, rows of a tile,
    levels, least range.
    """
    given = carray(words, 17)
    known, vectors, lines, rows = given[8], given[12], given[13], given[14]
    levels, least = _F(given[15]), _F(as_double(given[16]))
    inputs = carray(pointer(given[2]), _ANY, np.float32)
    places = carray(pointer(given[3]), vectors, np.int64)
    runs = carray(pointer(given[4]), given[5], np.int64)
    ranges = carray(pointer(given[7]), known, np.float32)
    codes = carray(pointer(given[9]), (vectors, lines), np.int8)
    full_scale = carray(pointer(given[10]), vectors, np.float32)
    tiles = (lines + rows - 1) // rows
    power = carray(pointer(given[11]), (vectors, tiles), np.float32)
    vector = np.empty(lines, np.float32)
    for row in range(*share(given, vectors)):
        _gathered(inputs, row * lines if given[3] == 0 else places[row], runs, given[6], vector)
        span = _range(vector, given[7] != 0, ranges[row % known] if given[7] != 0 else _F(0), least)
        full_scale[row] = span
        for tile in range(tiles):
            part = slice(tile * rows, min(tile * rows + rows, lines))
            total = _driven(vector[part], span, levels, codes[row, part])
            if given[11] != 0:
                power[row, tile] = _F(total) / (levels * levels)
    done(given)


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _multiplied(codes: int, stride: int, vectors: int, cells: int, width: int, sums: int, outputs: int) -> None:
    """Column sums, exact: codes times cells, as `product` has them; all but the numbers are addresses and bytes."""
    for panel in range((outputs + WIDTH - 1) // WIDTH):
        columns, place, row = cells + panel * 2 * WIDTH * width, sums + 4 * WIDTH * panel, 0
        apart = (outputs + WIDTH - 1) // WIDTH * WIDTH * 4
        while row + 4 <= vectors:
            _four(codes + row * stride, stride, columns, width // 2, place + row * apart, apart)
            row += 4
        while row < vectors:
            _one(codes + row * stride, stride, columns, width // 2, place + row * apart, apart)
            row += 1


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def product(words: Any) -> None:
    """Column sums of a tile, exact: codes times cells.

    Arguments: codes [B, W] int16, cells [O / 16, W / 2, 16, 2] int16, sums [B, O] int32 with places for the next
    multiple of 16 of columns, B, O, W.
    """
    given = carray(words, 8)
    vectors, outputs, width = given[5], given[6], given[7]
    first, last = share(given, vectors)
    apart = (outputs + WIDTH - 1) // WIDTH * WIDTH * 4
    _multiplied(
        given[2] + first * 2 * width, 2 * width, last - first, given[3], width, given[4] + first * apart, outputs
    )
    done(given)


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _disturb(
    added: Any, noisy: bool, at: Any, key: Any, deviation: Any, varied: bool, variance: Any, power: Any,
    shifted: bool, offset: Any,
) -> None:  # fmt: skip
    """What is added to the sums of a tile's columns, in ADC steps: noise from a word of its stream on, and offset."""
    outputs = len(added)
    half = (outputs + 1) // 2
    upper, lower = added[:half], added[half:]
    if noisy:
        for i in range(outputs - half):
            upper[i], lower[i] = pair(at, i, key)
        for i in range(outputs - half, half):
            upper[i] = pair(at, i, key)[0]
        if varied:
            for i in range(outputs):
                added[i] *= np.sqrt(fma(deviation[i], deviation[i], power * variance[i]))
        else:
            for i in range(outputs):
                added[i] *= deviation[i]
    elif shifted:
        added[:] = 0
    if shifted:
        for i in range(outputs):
            added[i] += offset[i]


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _deliver(sums: Any, factor: Any, added: Any, levels: Any, scale: Any, unit: Any, total: Any) -> None:
    """Convert the sums of a tile's columns, and add them to what is there."""
    for i in range(len(total)):
        code = np.rint(fma(sums[i], factor[i], added[i]))
        code = levels if code > levels else code
        code = -levels if code < -levels else code
        total[i] = fma(code, scale[i] * unit, total[i])


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def convert(words: Any) -> None:
    """What the ADCs of a tile deliver of integer column sums, noise added before, scaled and added to what is there.

    Arguments: sums [B, 2 O] (high parts, then low) of float32 (0) or int32 (1), which of these, factor [O] (ADC steps
    that 1 of the sums is), offset [O] (ADC steps) or 0, deviation [O] (of output noise, ADC steps) or 0, variance [O]
    (of the cells under full power, ADC steps squared) or 0, power [B, T_in] or 0, scale [O], full_scale [B], out
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
    factor = carray(pointer(given[4]), outputs, np.float32)
    offset = carray(pointer(given[5]), outputs, np.float32)
    deviation = carray(pointer(given[6]), outputs, np.float32)
    variance = carray(pointer(given[7]), outputs, np.float32)
    power = carray(pointer(given[8]), (vectors, row_tiles), np.float32)
    scale = carray(pointer(given[9]), outputs, np.float32)
    full_scale = carray(pointer(given[10]), vectors, np.float32)
    out = carray(pointer(given[11]), (vectors, outputs), np.float32)
    added, sums = np.zeros(outputs, np.float32), np.empty(outputs, np.float32)
    for row in range(*share(given, vectors)):
        at = _U(start + _U(((first_row + row) * tiles + tile) * 2 * ((outputs + 1) // 2)))
        driven = power[row, row_tile] if given[7] != 0 else _F(0)
        _disturb(added, given[6] != 0, at, key, deviation, given[7] != 0, variance, driven, given[5] != 0, offset)
        if given[3] == 1:
            for i in range(outputs):
                sums[i] = fma(_F(integers[row, 0, i]), _F(256.0), _F(integers[row, 1, i]))
        else:
            for i in range(outputs):
                sums[i] = fma(floats[row, 0, i], _F(256.0), floats[row, 1, i])
        if tile == 0:
            out[row] = 0
        _deliver(sums, factor, added, levels, scale, full_scale[row], out[row])
    done(given)


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def read(words: Any) -> None:
    """All of a read with whole cells: `encode`, `product` and `convert`, a few vectors at a time, which stay in cache.

    Arguments: inputs, places, runs, R, numbers of a run, ranges, known as `encode` has them, cells [S, .] int16, row
    tile after row tile as `product` has them, numbers of a slice of them, factor, offset or 0, deviation or 0, variance
    or 0, scale [T, O] each, out [B, O] or [T, B, O], numbers of out from tile to tile (0: all are added up), B, I, O,
    rows of a tile, T_in, T, the levels of DAC and ADC, least range, start and key of the noise.
    """
    given = carray(words, 30)
    known, length, slice_size, apart = given[8], given[6], given[10], given[17]
    vectors, lines, outputs, rows, row_tiles, tiles = given[18], given[19], given[20], given[21], given[22], given[23]
    drive_levels, levels, least = _F(given[24]), _F(given[25]), _F(as_double(given[26]))
    start, key = _U(given[27]), _U(given[28])
    inputs = carray(pointer(given[2]), _ANY, np.float32)
    places = carray(pointer(given[3]), vectors, np.int64)
    runs = carray(pointer(given[4]), given[5], np.int64)
    ranges = carray(pointer(given[7]), known, np.float32)
    factor = carray(pointer(given[11]), (tiles, outputs), np.float32)
    offset = carray(pointer(given[12]), (tiles, outputs), np.float32)
    deviation = carray(pointer(given[13]), (tiles, outputs), np.float32)
    variance = carray(pointer(given[14]), (tiles, outputs), np.float32)
    scale = carray(pointer(given[15]), (tiles, outputs), np.float32)
    out = carray(pointer(given[16]), (_ANY // outputs, outputs), np.float32)
    wide = (outputs + WIDTH - 1) // WIDTH * WIDTH
    width, rest = min(rows, lines), lines - (row_tiles - 1) * rows
    width += width % 2
    stride = (row_tiles - 1) * width + rest + rest % 2
    most = max(min(_CODES // max(stride, wide), _VECTORS) // 4 * 4, 4)
    vector, full_scale = np.empty(lines, np.float32), np.empty(most, np.float32)
    codes, power = np.zeros((most, stride), np.int16), np.empty((most, row_tiles), np.float32)
    sums, floats, added = np.empty((most, wide), np.int32), np.empty(outputs, np.float32), np.zeros(outputs, np.float32)
    first, last = share(given, vectors)
    while first < last:
        count = min(most, last - first)
        for b in range(count):
            row = first + b
            _gathered(inputs, row * lines if given[3] == 0 else places[row], runs, length, vector)
            span = _range(vector, given[7] != 0, ranges[row % known] if given[7] != 0 else _F(0), least)
            full_scale[b] = span
            for tile in range(row_tiles):
                driven = min(rows, lines - tile * rows)
                own = codes[b, tile * width :][:driven]
                total = _driven(vector[tile * rows :], span, drive_levels, own)
                power[b, tile] = _F(total) / (drive_levels * drive_levels)
        for tile in range(tiles):
            row_tile = tile % row_tiles
            cells = given[9] + 2 * (tile // row_tiles * slice_size + row_tile * width * wide)
            used = width if row_tile + 1 < row_tiles else rest + rest % 2
            _multiplied(
                codes.ctypes.data + 2 * row_tile * width, 2 * stride, count, cells, used, sums.ctypes.data, outputs
            )
            for b in range(count):
                row = first + b
                at = _U(start + _U((row * tiles + tile) * 2 * ((outputs + 1) // 2)))
                _disturb(
                    added, given[13] != 0, at, key, deviation[tile], given[14] != 0, variance[tile], power[b, row_tile],
                    given[12] != 0, offset[tile],
                )  # fmt: skip
                for i in range(outputs):
                    floats[i] = _F(sums[b, i])
                place = (tile * apart) // outputs + row
                if tile == 0:
                    out[place] = 0
                _deliver(floats, factor[tile], added, levels, scale[tile], full_scale[b], out[place])
        first += count
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
