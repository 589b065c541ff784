"""Compiled walks along the bit lines of rows that each read opens, float32: those of `crossbar.circuit.ladders`.

A closed row costs nothing. Every read is done by one thread, in an order of sums that depends on nothing else.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, njit

from crossbar.native.compiled import SIGNATURE, done, pointer, share

_LANES = 16  # partial sums over columns, which so fill vector registers
_ONE = np.float32(1.0)


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _collect(segments: Any, load: Any, drive: Any, source: Any, behind: Any, current: Any) -> None:
    """Past so many segments, and then a row's cells."""
    for c in range(len(load)):
        part = _ONE / (_ONE + segments * behind[c])
        behind[c] = behind[c] * part + load[c]
        current[c] = current[c] * part + drive * source[c]


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def collect(words: Any) -> None:
    """`crossbar.circuit.ladders.collected`.

    Arguments, float32 but for opened: load [P, L, W], source [P, L, W], opened uint8 [P, R, L] or none, drive
    [P, R, L], segments [P, L], found [P, R, W]; then P, R, L, W.
    """
    given = carray(words, 12)
    arrays, reads, rows, width = given[8], given[9], given[10], given[11]
    load = carray(pointer(given[2]), (arrays, rows, width), np.float32)
    source = carray(pointer(given[3]), (arrays, rows, width), np.float32)
    chosen, some = given[4] != 0, rows if given[4] != 0 else 0
    opened = carray(pointer(given[4]), (arrays, reads, some), np.uint8)
    drive = carray(pointer(given[5]), (arrays, reads, rows), np.float32)
    segments = carray(pointer(given[6]), (arrays, rows), np.float32)
    found = carray(pointer(given[7]), (arrays, reads, width), np.float32)
    begin, end = share(given, arrays * reads)
    behind, nothing = np.empty(width, np.float32), np.zeros(width, np.float32)
    for piece in range(begin, end):
        p, r = piece // reads, piece % reads
        current, passed = found[p, r], np.float32(0.0)
        behind[:] = np.float32(0.0)
        current[:] = np.float32(0.0)
        for row in range(rows):
            if not chosen or opened[p, r, row] != 0:
                _collect(passed, load[p, row], drive[p, r, row], source[p, row], behind, current)
                passed = np.float32(0.0)
            passed += segments[p, row]
        _collect(passed, nothing, np.float32(0.0), nothing, behind, current)
    done(given)


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _pass(load: Any, behind: Any, segments: Any, part: Any) -> None:
    """A row's cells, and then so many segments."""
    for c in range(len(load)):
        whole = behind[c] + load[c]
        part[c] = _ONE / (_ONE + segments * whole)
        behind[c] = whole * part[c]


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _back(part: Any, volts: Any, source: Any, reaches: Any, lanes: Any) -> Any:
    """What a row's word line carries, of volts that reach it from the amplifiers; ``part`` is overwritten."""
    width = len(part)
    whole = width // _LANES * _LANES
    for c in range(width):
        reaches[c] = reaches[c] * part[c]
        part[c] = reaches[c] * volts[c] * source[c]
    for q in range(_LANES):
        lanes[q] = np.float32(0.0)
    for first in range(0, whole, _LANES):
        for q in range(_LANES):
            lanes[q] += part[first + q]
    total = np.float32(0.0)
    for q in range(_LANES):
        total += lanes[q]
    for c in range(whole, width):
        total += part[c]
    return total


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def reach(words: Any) -> None:
    """`crossbar.circuit.ladders.reached`; closed rows get 0.

    Arguments, float32 but for opened: load [P, L, W], source [P, L, W], opened uint8 [P, R, L] or none, volts
    [P, R, W], segments [P, L], found [P, R, L]; then P, R, L, W.
    """
    given = carray(words, 12)
    arrays, reads, rows, width = given[8], given[9], given[10], given[11]
    load = carray(pointer(given[2]), (arrays, rows, width), np.float32)
    source = carray(pointer(given[3]), (arrays, rows, width), np.float32)
    chosen, some = given[4] != 0, rows if given[4] != 0 else 0
    opened = carray(pointer(given[4]), (arrays, reads, some), np.uint8)
    volts = carray(pointer(given[5]), (arrays, reads, width), np.float32)
    segments = carray(pointer(given[6]), (arrays, rows), np.float32)
    found = carray(pointer(given[7]), (arrays, reads, rows), np.float32)
    begin, end = share(given, arrays * reads)
    behind, reaches = np.empty(width, np.float32), np.empty(width, np.float32)
    lanes, parts, places = np.empty(_LANES, np.float32), np.empty((rows, width), np.float32), np.empty(rows, np.int64)
    for piece in range(begin, end):
        p, r = piece // reads, piece % reads
        behind[:] = np.float32(0.0)
        reaches[:] = _ONE
        count = 0
        for row in range(rows):
            found[p, r, row] = np.float32(0.0)
            if not chosen or opened[p, r, row] != 0:
                places[count] = row
                count += 1
        for k in range(count):
            after = places[k + 1] if k + 1 < count else rows
            passed = np.float32(0.0)
            for row in range(places[k], after):
                passed += segments[p, row]
            _pass(load[p, places[k]], behind, passed, parts[k])
        for k in range(count - 1, -1, -1):
            row = places[k]
            found[p, r, row] = _back(parts[k], volts[p, r], source[p, row], reaches, lanes)
    done(given)
