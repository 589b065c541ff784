"""The float64 oracle: one tile, one column, one converter at a time, as the hardware would do it.

Slow and plain on purpose. The fast path is tested against this module and shares no code with it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from crossbar.hardware import Converter, Hardware

Array = NDArray[np.float64]


def multiply(
    x: Array,
    g_plus: Array,
    g_minus: Array,
    scales: Array,
    hardware: Hardware,
    input_range: float | None = None,
    noise: Array | None = None,
) -> Array:
    """Products of a layer's tiles with input vectors (physics.md: mapping, converters).

    Args:
        x: ``[B, I]``.
        g_plus, g_minus: conductances in µS, ``[T_out, T_in, R, C]``; absent cells NaN.
        scales: digital scale of every column of every row tile, ``[T_in, O]``.
        hardware: converters, output noise and g_max.
        input_range: calibrated DAC range in activation units; None: found as ``hardware.dac.range`` says.
        noise: standard normal numbers ``[T_in, B, O]`` for the output noise; None for quiet reads.

    Returns:
        ``[B, O]``.
    """
    t_out, t_in, rows, cols = g_plus.shape
    batch, out_features = x.shape[0], scales.shape[1]
    y = np.zeros((batch, out_features))
    for b in range(batch):
        full_scale = _dac_range(x, b, hardware.dac, input_range)
        volts = np.array([_convert(v / full_scale, hardware.dac, 1.0) for v in x[b]])
        for j in range(t_in):
            driven = volts[j * rows : (j + 1) * rows]
            for i in range(t_out):
                for c in range(min(cols, out_features - i * cols)):
                    o = i * cols + c
                    net = (g_plus[i, j, : len(driven), c] - g_minus[i, j, : len(driven), c]) / hardware.device.g_max
                    unit_output = math.fsum(driven * net)
                    if noise is not None:
                        unit_output += hardware.output_noise * noise[j, b, o]
                    adc_range = hardware.adc.full_scale if hardware.adc else math.inf
                    y[b, o] += _convert(unit_output, hardware.adc, adc_range) * scales[j, o] * full_scale
    return y


def _dac_range(x: Array, b: int, dac: Converter | None, calibrated: float | None) -> float:
    if dac is None:
        return 1.0
    if calibrated is not None:
        return calibrated
    if dac.range == "static":
        return dac.full_scale
    largest = float(np.abs(x[b] if dac.range == "per_token" else x).max())
    return largest if largest > 0 else 1.0


def _convert(value: float, converter: Converter | None, full_scale: float) -> float:
    """The nearest of ``2^bits - 1`` levels over ± full scale, ties to even, clipped; unchanged without a converter."""
    if converter is None:
        return value
    levels = 2 ** (converter.bits - 1) - 1
    code = max(-levels, min(levels, round(value / full_scale * levels)))
    return float(code * full_scale / levels)
