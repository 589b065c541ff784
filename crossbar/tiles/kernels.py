"""Cells that are programmed and read at a time, in one compiled pass of the CPU.

It does in one pass what torch does in thirty, with the same roundings in the same order: so the bits are those of the
devices of `crossbar.devices`, whose sums and products the laws here repeat. A law is two functions: the first makes
statistics of targets, the second conductances of these and of normal numbers, which are made here too. Of a pair of
cells one is empty, so the statistics of a weight are found once, for the other.

Work goes block by block, which stays in the first caches, in several loops, since LLVM makes no vectors of all in one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, njit

from crossbar.devices.measured import MOST_RISE
from crossbar.native.compiled import SIGNATURE, as_double, done, fma, pointer, share
from crossbar.native.function_kernels import exponential, logarithm
from crossbar.random.kernels import ROW, part

BLOCK = 2 * ROW
"""Cells that several loops go over while they are in the first cache."""

_F, _U = np.float32, np.uint32
LAWS = ("pcm", "hermes", "reram", "cmo", "gain_cell", "ideal", "measured", "fluctuating")
"""What cells can be read by, each stated at its statistics."""
DRAWS = 3
"""Kinds of normal numbers that a cell has, at most."""
_WORDS = 23 + 2 * DRAWS
_PCM, _HERMES, _RERAM, _CMO, _GAIN_CELL, _IDEAL, _MEASURED, _FLUCTUATING = range(len(LAWS))
_MOST_RISE = _F(MOST_RISE)
_SHORT = 64  # rows of a table that are gone through one by one


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _line(log: Any, line: Any) -> Any:
    """A line in a logarithm between its least and its most: slope, offset, least, most."""
    value = log * line[0] + line[1]
    value = value if value > line[2] else line[2]
    return value if value < line[3] else line[3]


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _square(g: Any, fit: Any) -> Any:
    """A polynomial of three coefficients, which ascend in g."""
    return (g * fit[2] + fit[1]) * g + fit[0]


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _cube(g: Any, fit: Any) -> Any:
    """A polynomial of four coefficients, which ascend in g."""
    return ((g * fit[3] + fit[2]) * g + fit[1]) * g + fit[0]


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _four(law: Any, at: int) -> Any:
    """Four numbers of a law, read before a loop, since LLVM would look for changes of them in it."""
    return law[at], law[at + 1], law[at + 2], law[at + 3]


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _drifted(wanted: Any, made: Any, numbers: Any, m: int, law: Any) -> None:
    """Conductances of cells that drift by a power law, [0] of the numbers, [1] being left as the part that remains.

    Of the law: 1 scale of the drift, 2 ``-ln(1 + t / t_0)``.
    """
    deviation, mean, spread = made[0], made[1], made[2]
    programmed, left, scale, decades = numbers[0], numbers[1], law[1], law[2]
    for i in range(m):
        left[i] = abs(fma(spread[i], left[i], mean[i])) * scale * decades
    for i in range(m):
        left[i] = exponential(left[i])
    for i in range(m):
        found = fma(deviation[i], programmed[i], wanted[i])
        programmed[i] = found if found > _F(0.0) else _F(0.0)


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _fluctuating(numbers: Any, amplitude: Any, m: int, law: Any) -> None:
    """Programmed conductances [0] as they are read, with what drift left [1] and fluctuations [2].

    Of the law: 3 growth of the fluctuation, scaled; 0 for none.
    """
    programmed, left, band, growth = numbers[0], numbers[1], numbers[2], law[3]
    for i in range(m):
        programmed[i] = left[i] * programmed[i]
    if growth > _F(0.0):
        for i in range(m):
            found = fma((amplitude[i] * programmed[i]) * growth, band[i], programmed[i])
            programmed[i] = found if found > _F(0.0) else _F(0.0)


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _pcm_statistics(wanted: Any, made: Any, m: int, law: Any) -> None:
    """`crossbar.devices.PCM`.

    Law: 0 g_max, 1 scale of the drift, 2 ``-ln(1 + t / t_0)``, 3 growth of the fluctuation times its scale, 4 g_max /
    25, 5 scale of the programming error. Drawn: programming, drift, fluctuation.
    """
    deviation, mean, spread, g_max, size, scale = made[0], made[1], made[2], law[0], law[4], law[5]
    for i in range(m):
        g = wanted[i] / g_max
        deviation[i] = (((g * _F(-1.1731) + _F(1.9650)) * g + _F(0.26348)) * size) * scale
        log = logarithm(g if g > _F(1e-7) else _F(1e-7))
        middle = log * _F(-0.0155) + _F(0.0244)
        middle = middle if middle > _F(0.049) else _F(0.049)
        mean[i] = middle if middle < _F(0.1) else _F(0.1)
        width = log * _F(-0.0125) - _F(0.0059)
        width = width if width > _F(0.008) else _F(0.008)
        spread[i] = width if width < _F(0.045) else _F(0.045)


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _pcm_read(wanted: Any, made: Any, numbers: Any, m: int, law: Any) -> None:
    _drifted(wanted, made, numbers, m, law)
    programmed, amplitude, g_max = numbers[0], made[0], law[0]
    for i in range(m):
        g = programmed[i] / g_max
        size = exponential(logarithm(g if g > _F(1e-3) else _F(1e-3)) * _F(-0.65)) * _F(0.0088)
        amplitude[i] = size if size < _F(0.2) else _F(0.2)
    _fluctuating(numbers, amplitude, m, law)


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _hermes_statistics(wanted: Any, made: Any, m: int, law: Any) -> None:
    """`crossbar.devices.Hermes`.

    Law: that of PCM with the g_max that was characterised in the place of 25; 6 four coefficients of the programming
    error; 10 of the exponent's mean, 18 of its deviation, with three coefficients, 26 of the fluctuation, with four: g
    below which a line holds, the line (`_line`), and the coefficients above. Drawn: as PCM.
    """
    deviation, mean, spread, g_max, size, scale = made[0], made[1], made[2], law[0], law[4], law[5]
    fit, mean_below, mean_line, mean_fit = _four(law, 6), law[10], _four(law, 11), _four(law, 15)
    spread_below, spread_line, spread_fit = law[18], _four(law, 19), _four(law, 23)
    for i in range(m):
        g = wanted[i] / g_max
        deviation[i] = _cube(g, fit) * size * scale
        g = g if g > _F(1e-7) else _F(1e-7)
        log = logarithm(g)
        mean[i] = _line(log, mean_line) if g < mean_below else _square(g, mean_fit)
        spread[i] = _line(log, spread_line) if g < spread_below else _square(g, spread_fit)


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _hermes_read(wanted: Any, made: Any, numbers: Any, m: int, law: Any) -> None:
    _drifted(wanted, made, numbers, m, law)
    programmed, amplitude, g_max, below, line, fit = (
        numbers[0],
        made[0],
        law[0],
        law[26],
        _four(law, 27),
        _four(law, 31),
    )
    for i in range(m):
        g = programmed[i] / g_max
        log = logarithm(g if g > _F(1e-7) else _F(1e-7))
        amplitude[i] = _line(log, line) if g < below else _cube(g, fit)
    _fluctuating(numbers, amplitude, m, law)


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _reram_read(wanted: Any, made: Any, numbers: Any, m: int) -> None:
    """`crossbar.devices.ReRam`. Statistics come from torch, whose square roots are rounded in its own way."""
    kept, relaxed, error, relaxation = made[0], made[1], numbers[0], numbers[1]
    for i in range(m):
        found = fma(relaxed[i], relaxation[i], fma(kept[i], error[i], wanted[i]))
        error[i] = found if found > _F(0.0) else _F(0.0)


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _cmo_statistics(wanted: Any, made: Any, m: int, law: Any) -> None:
    """`crossbar.devices.CmoReRam`, without fluctuation.

    Law: 0 g_min, 1 offset and 2 slope of the programming error, 3 its scale, 4 deviation and 5 mean of the relaxation,
    6 its scale. Drawn: programming, relaxation.
    """
    goal, error, g_min, offset, slope, scale = made[0], made[1], law[0], law[1], law[2], law[3]
    for i in range(m):
        goal[i] = wanted[i] if wanted[i] > g_min else g_min
        error[i] = (goal[i] * slope + offset) * scale


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _cmo_read(made: Any, numbers: Any, m: int, law: Any) -> None:
    goal, error, programmed, relaxation = made[0], made[1], numbers[0], numbers[1]
    spread, shift, scale = law[4], law[5], law[6]
    for i in range(m):
        found = fma(error[i], programmed[i], goal[i])
        programmed[i] = (relaxation[i] * spread + shift) * scale + found


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _fluctuating_read(wanted: Any, made: Any, numbers: Any, m: int, law: Any) -> None:
    """Cells that fluctuate around known conductances with known deviations, within 0 and 1 of the law.

    Drawn: fluctuation.
    """
    deviation, found, low, high = made[0], numbers[0], law[0], law[1]
    for i in range(m):
        cell = fma(deviation[i], found[i], wanted[i])
        cell = cell if cell > low else low
        found[i] = cell if cell < high else high


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _gain_cell_statistics(wanted: Any, made: Any, m: int, law: Any) -> None:
    """`crossbar.devices.GainCell`.

    Law: 0 µS between two levels, 1 ``e^(-t / τ)``, 2 deviation of a write (µS), 0 for none. Drawn: programming.
    """
    written, step = made[0], law[0]
    for i in range(m):
        written[i] = np.rint(wanted[i] / step) * step


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _gain_cell_read(made: Any, numbers: Any, m: int, law: Any) -> None:
    written, found, left, deviation = made[0], numbers[0], law[1], law[2]
    if deviation > _F(0.0):
        for i in range(m):
            cell = fma(deviation, found[i], written[i])
            written[i] = cell if cell > _F(0.0) else _F(0.0)
    for i in range(m):
        found[i] = written[i] * left


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _measured_statistics(wanted: Any, made: Any, m: int, law: Any) -> None:
    """`crossbar.devices.Measured`.

    Law: 0 columns of the table beside targets, 2 or 4; 1 ``-ln(1 + t / t_0)``; 2 targets; the columns, one after
    another. Drawn: programming, and with four columns drift.
    """
    columns = int(law[0])
    rows = (len(law) - 2) // (columns + 1)
    points = law[2 : 2 + rows]
    if rows <= _SHORT:
        for row in range(rows - 1):  # a later row takes the place of an earlier one: fast, since vectors can be made
            start, step = points[row], points[row + 1] - points[row]
            above = start if row > 0 else _F(-1.0)
            for column in range(columns):
                at = 2 + (column + 1) * rows + row
                low_end, high_end, found = law[at], law[at + 1], made[column]
                rise = high_end - low_end
                for i in range(m):
                    share_of = (wanted[i] - start) / step
                    nearer = abs(share_of) < _F(0.5)
                    value = fma(share_of if nearer else share_of - _F(1.0), rise, low_end if nearer else high_end)
                    found[i] = value if wanted[i] > above else found[i]
        return
    for i in range(m):
        low, high = 1, rows - 1  # of the points within: how many are below the target
        while low < high:
            middle = (low + high) >> 1
            if points[middle] < wanted[i]:
                low = middle + 1
            else:
                high = middle
        row = low - 1
        share_of = (wanted[i] - points[row]) / (points[row + 1] - points[row])
        nearer = abs(share_of) < _F(0.5)
        weight = share_of if nearer else share_of - _F(1.0)
        for column in range(columns):
            at = 2 + (column + 1) * rows + row
            made[column, i] = fma(weight, law[at + 1] - law[at], law[at] if nearer else law[at + 1])


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _measured_read(made: Any, numbers: Any, m: int, law: Any) -> None:
    mean, std, programmed, left = made[0], made[1], numbers[0], numbers[1]
    for i in range(m):
        found = fma(std[i], programmed[i], mean[i])
        programmed[i] = found if found > _F(0.0) else _F(0.0)
    if law[0] == _F(4.0):
        middle, spread, decades = made[2], made[3], law[1]
        for i in range(m):
            power = fma(spread[i], left[i], middle[i]) * decades
            left[i] = power if power < _MOST_RISE else _MOST_RISE
        for i in range(m):
            programmed[i] = exponential(left[i]) * programmed[i]


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _scale(weights: Any, scaled: Any, factors: Any, place: int, tile_rows: int) -> None:
    """Weights from ``place`` in ``[I, O]`` on, times the factors ``[T, O]`` of their tiles' columns."""
    outputs, done_with = factors.shape[1], 0
    while done_with < len(weights):
        line, output = (place + done_with) // outputs, (place + done_with) % outputs
        width = min(outputs - output, len(weights) - done_with)
        given = weights[done_with : done_with + width]
        found, own = scaled[done_with : done_with + width], factors[line // tile_rows][output : output + width]
        for i in range(width):
            found[i] = given[i] * own[i]
        done_with += width


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _statistics(kind: int, wanted: Any, made: Any, m: int, law: Any) -> None:
    """Statistics of m targets (µS) in the rows of ``made``, by a law."""
    if kind == _PCM:
        _pcm_statistics(wanted, made, m, law)
    elif kind == _HERMES:
        _hermes_statistics(wanted, made, m, law)
    elif kind == _CMO:
        _cmo_statistics(wanted, made, m, law)
    elif kind == _GAIN_CELL:
        _gain_cell_statistics(wanted, made, m, law)
    elif kind == _MEASURED:
        _measured_statistics(wanted, made, m, law)


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def _read(kind: int, wanted: Any, made: Any, numbers: Any, m: int, law: Any) -> None:
    """Conductances (µS) of m cells in the place of ``numbers[0]``, by a law."""
    if kind == _PCM:
        _pcm_read(wanted, made, numbers, m, law)
    elif kind == _HERMES:
        _hermes_read(wanted, made, numbers, m, law)
    elif kind == _RERAM:
        _reram_read(wanted, made, numbers, m)
    elif kind == _CMO:
        _cmo_read(made, numbers, m, law)
    elif kind == _GAIN_CELL:
        _gain_cell_read(made, numbers, m, law)
    elif kind == _MEASURED:
        _measured_read(made, numbers, m, law)
    elif kind == _FLUCTUATING:
        _fluctuating_read(wanted, made, numbers, m, law)
    else:
        found = numbers[0]
        for i in range(m):
            found[i] = wanted[i]


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def cells(words: Any) -> None:
    """Conductances of cells at a time, or the digits of pairs of them.

    Arguments: targets [n] (µS), of one plane of cells, or what two planes stand for, of either sign: the positive part
    is what the first aims at above the least conductance, the negative part what the second does; found: conductances
    (µS) [planes, n], or digits of two [n]; n; planes; places of the planes' first cells among the ``count`` of the
    array, by which cells have their numbers; count; g_max; law, a place in `LAWS`; its numbers [L] float32; L;
    statistics of targets [rows, n], the numbers being then those of an empty cell, or 0, to be made here; rows; how
    many kinds of normal numbers cells have; factors [T, O] of weights that are given in the place of targets, or 0;
    word lines of a tile; T; O; width of the window and, of a pair, its least conductance; whether digits are found;
    start and key of the stream of each of three kinds of numbers.
    """
    given = carray(words, _WORDS)
    n, planes, count, kind, rows, draws = given[4], given[5], given[8], given[10], given[14], given[15]
    g_max, most, foot = _F(as_double(given[9])), _F(as_double(given[20])), _F(as_double(given[21]))
    targets = carray(pointer(given[2]), n, np.float32)
    results = carray(pointer(given[3]), (1 if given[22] != 0 else planes, n), np.float32)
    law = carray(pointer(given[11]), given[12], np.float32)
    known = carray(pointer(given[13]), (rows, n), np.float32)
    tile_rows = given[17]
    factors = carray(pointer(given[16]), (given[18], given[19]), np.float32)
    scaled = np.empty(BLOCK, np.float32)
    sizes, made = np.empty(BLOCK + 1, np.float32), np.empty((rows, BLOCK + 1), np.float32)
    wanted, own = np.empty(BLOCK, np.float32), np.empty((rows, BLOCK), np.float32)
    numbers = np.empty((planes, DRAWS, BLOCK), np.float32)
    spare, held = np.empty((planes, DRAWS, ROW), np.float32), np.full((planes, DRAWS, 1), -1)
    first, last = share(given, (n + BLOCK - 1) // BLOCK)
    for block in range(first, last):
        begin = block * BLOCK
        goal = targets[begin : min(begin + BLOCK, n)]
        m = len(goal)
        if given[16] != 0:
            _scale(goal, scaled, factors, given[6] + begin, tile_rows)
            goal = scaled[:m]
        for i in range(m):
            size = goal[i]
            if planes == 2:
                size = abs(size)
                size = (size if size < most else most) + foot
            sizes[i] = size if size < g_max else g_max
        sizes[m] = foot  # the empty cell
        if given[13] == 0:
            _statistics(kind, sizes, made, m + 1, law)
        else:
            for row in range(rows):
                each, these = made[row], known[row][begin : begin + m]
                for i in range(m):
                    each[i] = these[i]
                each[m] = law[row]
        for plane in range(planes):
            for draw in range(draws):
                start, key = _U(given[23 + 2 * draw]), _U(given[24 + 2 * draw])
                place = given[6 + plane] + begin
                part(numbers[plane, draw][:m], place, count, start, key, spare[plane, draw], held[plane, draw])
            if planes == 1:
                _read(kind, sizes, made, numbers[plane], m, law)
                continue
            sign = _F(1.0 - 2.0 * plane)
            for i in range(m):
                wanted[i] = sizes[i] if goal[i] * sign > _F(0.0) else foot
            for row in range(rows):
                each, chosen = made[row], own[row]
                empty = each[m]
                for i in range(m):
                    chosen[i] = each[i] if goal[i] * sign > _F(0.0) else empty
            _read(kind, wanted, own, numbers[plane], m, law)
        if given[22] != 0:
            found, plus, minus = results[0][begin : begin + m], numbers[0, 0], numbers[1, 0]
            for i in range(m):
                found[i] = (plus[i] - minus[i]) / most
            continue
        for plane in range(planes):
            found, read = results[plane][begin : begin + m], numbers[plane, 0]
            for i in range(m):
                found[i] = read[i]
    done(given)
