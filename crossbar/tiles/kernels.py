"""A compiled pass over phase-change cells of the CPU, which are programmed and read at a time.

It does in one pass what torch does in thirty, with the same roundings in the same order: so the bits are those of
`crossbar.devices.power_law`, whose sums and products it repeats.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc, njit

from crossbar.native.compiled import SIGNATURE, as_double, done, fma, pointer, share
from crossbar.native.function_kernels import exponential, logarithm

BLOCK = 2048
"""Cells that several loops go over while they are in the first cache."""

_F = np.float32


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _plane(goal: Any, sign: Any, logs: Any, programming: Any, drift: Any, band: Any, laws: Any) -> None:
    """Conductances of a block of cells at a time, which take the place of the normal numbers ``programming``.

    Loops are several, since LLVM makes no vectors of all in one.
    """
    g_max, size, prog_scale, drift_scale, decades, width, none = laws
    for i in range(len(goal)):
        own = logs[i] if goal[i] * sign > _F(0.0) else none
        mean = own * _F(-0.0155) + _F(0.0244)
        mean = mean if mean > _F(0.049) else _F(0.049)
        mean = mean if mean < _F(0.1) else _F(0.1)
        spread = own * _F(-0.0125) - _F(0.0059)
        spread = spread if spread > _F(0.008) else _F(0.008)
        spread = spread if spread < _F(0.045) else _F(0.045)
        drift[i] = abs(fma(spread, drift[i], mean)) * drift_scale * decades
    for i in range(len(goal)):
        drift[i] = exponential(drift[i])
    for i in range(len(goal)):
        wanted = goal[i] * sign
        wanted = wanted if wanted > _F(0.0) else _F(0.0)
        wanted = wanted if wanted < g_max else g_max
        g = wanted / g_max
        deviation = (((g * _F(-1.1731) + _F(1.9650)) * g + _F(0.26348)) * size) * prog_scale
        found = fma(deviation, programming[i], wanted)
        programming[i] = found if found > _F(0.0) else _F(0.0)
    for i in range(len(goal)):
        g = programming[i] / g_max
        g = g if g > _F(1e-3) else _F(1e-3)
        amplitude = exponential(logarithm(g) * _F(-0.65)) * _F(0.0088)
        amplitude = amplitude if amplitude < _F(0.2) else _F(0.2)
        drifted = drift[i] * programming[i]
        read = fma((amplitude * drifted) * width, band[i], drifted)
        programming[i] = read if read > _F(0.0) else _F(0.0)


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def pcm(words: Any) -> None:
    """Conductances of cells that are programmed and read at a time, or the digits of pairs of them.

    Arguments: targets [n] (µS), of one plane of cells, or of either sign, of two: the positive part is what the first
    aims at, the negative part what the second does; normal numbers of programming, of drift and of the fluctuation,
    [n] or [2, n], overwritten: the first by conductances (µS); digits [n] that two planes stand for, or 0; n; planes;
    g_max, g_max / 25, scales of programming error and drift, ``-ln(1 + t / t_0)``, ``band`` times the scale of the
    fluctuation.
    """
    given = carray(words, 15)
    n, planes = given[7], given[8]
    g_max = _F(as_double(given[9]))
    laws = (
        g_max, _F(as_double(given[10])), _F(as_double(given[11])), _F(as_double(given[12])),
        _F(as_double(given[13])), _F(as_double(given[14])), logarithm(_F(1e-7)),
    )  # fmt: skip
    targets = carray(pointer(given[2]), n, np.float32)
    programming = carray(pointer(given[3]), (planes, n), np.float32)
    drift = carray(pointer(given[4]), (planes, n), np.float32)
    band = carray(pointer(given[5]), (planes, n), np.float32)
    digits = carray(pointer(given[6]), n, np.float32)
    first, last = share(given, n)
    block = np.empty(BLOCK, np.float32)
    for begin in range(first, last, BLOCK):
        end = min(begin + BLOCK, last)
        goal, logs = targets[begin:end], block[: end - begin]
        for i in range(len(logs)):
            size = abs(goal[i])
            g = (size if size < g_max else g_max) / g_max
            logs[i] = logarithm(g if g > _F(1e-7) else _F(1e-7))
        for plane in range(planes):
            sign = _F(1.0 - 2.0 * plane)
            _plane(
                goal, sign, logs, programming[plane, begin:end], drift[plane, begin:end], band[plane, begin:end], laws
            )
        if given[6] != 0:
            plus, minus, found = programming[0, begin:end], programming[1, begin:end], digits[begin:end]
            for i in range(len(found)):
                found[i] = (plus[i] - minus[i]) / g_max
    done(given)
