"""Compiled passes over phase-change cells of the CPU: the arithmetic of `crossbar.devices.PCM` between logarithms.

Each does in one pass what torch does in ten, with the same roundings in the same order: so the bits are those of
`crossbar.devices.power_law`, whose sums and products they repeat. Logarithms and exponentials are left to torch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, cfunc

from crossbar.native.compiled import SIGNATURE, as_double, done, fma, pointer, share

_F = np.float32
_BLOCK = 2048  # cells that several loops go over while they are in the first cache


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def pcm_relative(words: Any) -> None:
    """Relative targets, at least 1e-7, of which the logarithm is needed.

    Arguments: targets of either sign [n] (µS), found [n], n, g_max.
    """
    given = carray(words, 6)
    n, g_max, least = given[4], _F(as_double(given[5])), _F(1e-7)
    first, last = share(given, n)
    target = carray(pointer(given[2]), n, np.float32)[first:last]  # loops from 0 are those LLVM makes vectors of
    found = carray(pointer(given[3]), n, np.float32)[first:last]
    for i in range(len(target)):
        size = abs(target[i])
        g = (size if size < g_max else g_max) / g_max
        found[i] = g if g > least else least
    done(given)


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def pcm_program(words: Any) -> None:
    """What programming leaves, and of what exponential and logarithm are needed to read it at a time.

    Arguments: targets of either sign [n] (µS), of which cells hold the positive part; logarithms of their relative
    sizes [n]; normal numbers of programming [n], overwritten by programmed conductances; of drift [n], overwritten by
    the exponents of ``e`` that drift is; relative conductances [n], at least 1e-3, found; n; sign of the targets that
    cells hold; logarithm of no target; g_max, g_max / 25, scales of programming error and drift, ``-ln(1 + t / t_0)``.
    """
    given = carray(words, 15)
    n, sign, none, g_max = given[7], _F(as_double(given[8])), _F(as_double(given[9])), _F(as_double(given[10]))
    size, prog_scale = _F(as_double(given[11])), _F(as_double(given[12]))
    drift_scale, decades = _F(as_double(given[13])), _F(as_double(given[14]))
    target = carray(pointer(given[2]), n, np.float32)
    log = carray(pointer(given[3]), n, np.float32)
    programmed = carray(pointer(given[4]), n, np.float32)
    drift = carray(pointer(given[5]), n, np.float32)
    relative = carray(pointer(given[6]), n, np.float32)
    first, last = share(given, n)
    for begin in range(first, last, _BLOCK):
        end = min(begin + _BLOCK, last)
        goal, logs, exponent = target[begin:end], log[begin:end], drift[begin:end]
        written, part = programmed[begin:end], relative[begin:end]
        for i in range(len(exponent)):  # three loops, since LLVM makes no vectors of all in one
            own = logs[i] if goal[i] * sign > _F(0.0) else none
            mean = own * _F(-0.0155) + _F(0.0244)
            mean = mean if mean > _F(0.049) else _F(0.049)
            mean = mean if mean < _F(0.1) else _F(0.1)
            spread = own * _F(-0.0125) - _F(0.0059)
            spread = spread if spread > _F(0.008) else _F(0.008)
            spread = spread if spread < _F(0.045) else _F(0.045)
            exponent[i] = abs(fma(spread, exponent[i], mean)) * drift_scale * decades
        for i in range(len(written)):
            wanted = goal[i] * sign
            wanted = wanted if wanted > _F(0.0) else _F(0.0)
            wanted = wanted if wanted < g_max else g_max
            g = wanted / g_max
            deviation = (((g * _F(-1.1731) + _F(1.9650)) * g + _F(0.26348)) * size) * prog_scale
            found = fma(deviation, written[i], wanted)
            written[i] = found if found > _F(0.0) else _F(0.0)
        for i in range(len(part)):
            g = written[i] / g_max
            part[i] = g if g > _F(1e-3) else _F(1e-3)
    done(given)


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def pcm_read(words: Any) -> None:
    """Conductances with their 1/f fluctuation, at least 0 µS, or the digits that they and those of G⁺ stand for.

    Arguments: programmed conductances [n] (µS); what drift leaves of them [n]; relative amplitudes [n] before their
    factor 0.0088; normal numbers [n]; conductances or digits [n], found; conductances of G⁺ [n] or 0 (not of a pair);
    n, ``band`` times the scale of the fluctuation, g_max.
    """
    given = carray(words, 11)
    n, band, g_max = given[8], _F(as_double(given[9])), _F(as_double(given[10]))
    programmed = carray(pointer(given[2]), n, np.float32)
    left = carray(pointer(given[3]), n, np.float32)
    amplitude = carray(pointer(given[4]), n, np.float32)
    numbers = carray(pointer(given[5]), n, np.float32)
    first, last = share(given, n)
    found = carray(pointer(given[6]), n, np.float32)[first:last]
    programmed, left = programmed[first:last], left[first:last]
    amplitude, numbers = amplitude[first:last], numbers[first:last]
    for i in range(len(found)):
        drifted = left[i] * programmed[i]
        size = amplitude[i] * _F(0.0088)
        size = size if size < _F(0.2) else _F(0.2)
        read = fma((size * drifted) * band, numbers[i], drifted)
        found[i] = read if read > _F(0.0) else _F(0.0)
    if given[7] != 0:
        plus = carray(pointer(given[7]), n, np.float32)[first:last]
        for i in range(len(found)):
            found[i] = (plus[i] - found[i]) / g_max
    done(given)
