"""Compiled line relaxation: alternating exact solutions of all word lines and all bit lines, many inputs at once.

With cells at ``G`` (here in siemens times ohms, so that every number is a ratio) and the unknowns ``w`` (volts of the
word lines) and ``u`` (amperes of the bit lines' segments, so that ``b = r_col u`` are their volts), Kirchhoff's law at
each crossing reads ``(L_w + r_row G) w = r_row G b + drive`` along rows and ``(L_b + r_col G) u = G w`` along columns,
each a tridiagonal system. The first term of the solution, word lines solved with bit lines at 0 V and then bit lines
with the word lines of other rows at 0 V, has a closed form. Every sweep adds the next term of a series that converges.

A sweep is one pass over memory: bit lines are eliminated from one end while they are substituted back to the other, so
that each row is read, solved along its word line and written once. Everything is float64, and no sum depends on how the
inputs are shared out among threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, njit

from crossbar.native.compiled import SIGNATURE, done, pointer, share

INPUTS = 16
"""Inputs that are worked on together: what several vector registers hold, so that recursions do not wait."""


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def factor(words: Any) -> None:
    """Reciprocal pivots of every line, and the first term of the transfer matrix.

    Arguments, each [T, R, C] float64: conductances (S); found: reciprocal pivots of word lines from the left, of bit
    lines from the top, of bit lines from the bottom, ``G h`` with ``h`` the volts of a word line driven by 1 V and bit
    lines at 0 V, and the first term of the transfer matrix (S); then T, R, C, resistances [2] (ohm) of a word line's
    and of a bit line's segments, whether word lines are driven from the right too.
    """
    given = carray(words, 13)
    arrays, rows, columns = given[8], given[9], given[10]
    shape = (arrays, rows, columns)
    conductance = carray(pointer(given[2]), shape, np.float64)
    across, down, up = (
        carray(pointer(given[3]), shape, np.float64),
        carray(pointer(given[4]), shape, np.float64),
        carray(pointer(given[5]), shape, np.float64),
    )
    driven, first = carray(pointer(given[6]), shape, np.float64), carray(pointer(given[7]), shape, np.float64)
    ohms = carray(pointer(given[11]), 2, np.float64)
    right = given[12] != 0
    begin, end = share(given, arrays)
    for t in range(begin, end):
        for k in range(rows):
            pivot, volts = 0.0, 0.0
            for j in range(columns):
                diagonal = 2.0 if j < columns - 1 or right else 1.0
                pivot = 1.0 / (diagonal + ohms[0] * conductance[t, k, j] - pivot)
                across[t, k, j] = pivot
                source = (1.0 if j == 0 else 0.0) + (1.0 if right and j == columns - 1 else 0.0)
                volts = (source + volts) * pivot
                driven[t, k, j] = volts
            volts = 0.0
            for back in range(columns):
                j = columns - 1 - back
                volts = driven[t, k, j] + across[t, k, j] * volts
                driven[t, k, j] = volts * conductance[t, k, j]
        for j in range(columns):
            pivot = 0.0
            for k in range(rows):
                diagonal = 2.0 if k > 0 else 1.0
                pivot = 1.0 / (diagonal + ohms[1] * conductance[t, k, j] - pivot)
                down[t, k, j] = pivot
            pivot, reaches = 0.0, 1.0
            for back in range(rows):
                k = rows - 1 - back
                diagonal = 2.0 if k > 0 else 1.0
                pivot = 1.0 / (diagonal + ohms[1] * conductance[t, k, j] - pivot)
                up[t, k, j] = pivot
                reaches *= down[t, k, j]
                first[t, k, j] = reaches * driven[t, k, j]
    done(given)


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _start(driven: Any, pivot: Any, drive: Any, before: Any, state: Any) -> None:
    """Eliminate bit lines on a row whose cells carry what its driver alone brings."""
    for j in range(len(driven)):
        source, passed = driven[j] * pivot[j], pivot[j]
        for q in range(INPUTS):
            state[j, q] = source * drive[q] + passed * before[j, q]


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _substitute(pivot: Any, state: Any, current: Any) -> None:
    """Bit lines' currents on a row, from those of the row that was done before."""
    for j in range(len(pivot)):
        passed = pivot[j]
        for q in range(INPUTS):
            current[j, q] = state[j, q] + passed * current[j, q]


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _along(conductance: Any, pivot: Any, both: float, current: Any, volts: Any) -> None:
    """Volts of a word line whose driver is at 0 V, and whose cells lead to bit lines with these currents."""
    columns = len(pivot)
    for q in range(INPUTS):
        volts[0, q] = both * conductance[0] * pivot[0] * current[0, q]
    for j in range(1, columns):
        source, passed = both * conductance[j] * pivot[j], pivot[j]
        for q in range(INPUTS):
            volts[j, q] = source * current[j, q] + passed * volts[j - 1, q]
    for back in range(1, columns):
        j = columns - 1 - back
        passed = pivot[j]
        for q in range(INPUTS):
            volts[j, q] += passed * volts[j + 1, q]


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _eliminate(conductance: Any, pivot: Any, volts: Any, before: Any, state: Any) -> None:
    """Eliminate bit lines on a row whose word line has these volts."""
    for j in range(len(pivot)):
        source, passed = conductance[j] * pivot[j], pivot[j]
        for q in range(INPUTS):
            state[j, q] = source * volts[j, q] + passed * before[j, q]


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def sweep(words: Any) -> None:
    """Further terms of the currents under given inputs, two for each pair of sweeps.

    Arguments: as `factor` found them, conductances, pivots across, down and up, ``G h``, each [T, R, C]; volts
    [T, R, B]; terms found [2 P, T, C, B] (A), the one after the first first; T, R, C, B, P, resistances [2]; all
    float64.
    """
    given = carray(words, 15)
    arrays, rows, columns, inputs, pairs = given[9], given[10], given[11], given[12], given[13]
    shape = (arrays, rows, columns)
    conductance = carray(pointer(given[2]), shape, np.float64)
    across, down, up = (
        carray(pointer(given[3]), shape, np.float64),
        carray(pointer(given[4]), shape, np.float64),
        carray(pointer(given[5]), shape, np.float64),
    )
    driven = carray(pointer(given[6]), shape, np.float64)
    volts = carray(pointer(given[7]), (arrays, rows, inputs), np.float64)
    found = carray(pointer(given[8]), (2 * pairs, arrays, columns, inputs), np.float64)
    ohms = carray(pointer(given[14]), 2, np.float64)
    both = ohms[0] * ohms[1]
    pieces = (inputs + INPUTS - 1) // INPUTS
    begin, end = share(given, arrays * pieces)
    state = np.empty((rows, columns, INPUTS))
    volts_along, current = np.empty((columns, INPUTS)), np.empty((columns, INPUTS))
    drive, nothing = np.zeros((rows, INPUTS)), np.zeros((columns, INPUTS))
    for piece in range(begin, end):
        t, place = piece // pieces, piece % pieces * INPUTS
        width = min(INPUTS, inputs - place)
        drive[:] = 0.0
        drive[:, :width] = volts[t, :, place : place + width]
        for k in range(rows):
            _start(driven[t, k], down[t, k], drive[k], state[k - 1] if k > 0 else nothing, state[k])
        for pair in range(pairs):
            current[:] = 0.0
            for back in range(rows):
                k = rows - 1 - back
                _substitute(down[t, k], state[k], current)
                _along(conductance[t, k], across[t, k], both, current, volts_along)
                _eliminate(conductance[t, k], up[t, k], volts_along, state[k + 1] if back > 0 else nothing, state[k])
            current[:] = 0.0
            for k in range(rows):
                _substitute(up[t, k], state[k], current)
                _along(conductance[t, k], across[t, k], both, current, volts_along)
                _eliminate(conductance[t, k], down[t, k], volts_along, state[k - 1] if k > 0 else nothing, state[k])
            found[2 * pair, t, :, place : place + width] = current[:, :width]
            found[2 * pair + 1, t, :, place : place + width] = state[rows - 1, :, :width]
    done(given)
