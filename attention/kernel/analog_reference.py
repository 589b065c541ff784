"""Attention on analog keys and values as the hardware does it, one query, tile and converter at a time, in float64.

Slow and plain on purpose. `attention.kernel.analog` is tested against this module and shares no code with it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from crossbar.circuit import reference
from crossbar.devices import span
from crossbar.hardware import Converter, Hardware

Array = NDArray[np.float64]


def analog_reference(
    q: Array,
    keys: Array,
    key_scale: Array,
    values: Array,
    value_scale: Array,
    allowed: NDArray[np.bool_],
    scale: float,
    hardware: Hardware,
    noise: float = 0.0,
    key_variance: Array | None = None,
    value_variance: Array | None = None,
    key_cells: Array | None = None,
    value_cells: Array | None = None,
) -> tuple[Array, Array, dict[str, int]]:
    """Output, log-sum-exp of the converted scores, and how often lines are driven and converted.

    Args:
        q: queries [H, N_queries, D] of one sequence.
        keys, values: digits [H_kv, N_keys, D]; H is a multiple of H_kv.
        key_scale, value_scale: what a digit of 1 is worth [H_kv, N_keys].
        allowed: bool [N_queries, N_keys].
        scale: factor on the scores.
        hardware: converters, geometry and noise.
        noise: the number that every draw of a standard normal number gives; 0 for quiet reads.
        key_variance, value_variance: of each digit's white noise [H_kv, N_keys, D]; None: none.
        key_cells, value_cells: conductances behind the digits, µS [K, H_kv, N_keys, D], G⁺ before G⁻: each query's open
            rows are then read through the wires of the hardware; None: wires are ideal.

    Returns:
        [H, N_queries, D], [H, N_queries] and counts by the names of `attention.counts.Counts`.
    """
    heads, n_queries, size = q.shape
    group, rows, columns = heads // len(keys), hardware.tile.rows, hardware.tile.cols
    output, lse = np.zeros(q.shape), np.full(q.shape[:2], -np.inf)
    counts = dict.fromkeys(
        ("score_sense_lines", "score_conversions", "query_drives", "value_row_drives", "value_conversions"), 0
    )
    for h in range(heads):
        head = h // group
        for i in range(n_queries):
            attended = np.flatnonzero(allowed[i])
            if len(attended) == 0:
                continue
            tiles = sorted({int(j) // rows for j in attended})
            key_digits = _seen(keys, key_cells, head, attended, hardware)
            value_digits = _seen(values, value_cells, head, attended, hardware)
            volts, full_scale = _drive(q[h, i], hardware.dac)
            counts["query_drives"] += size * len(tiles)
            scores = []
            for n, j in enumerate(attended.tolist()):
                score = 0.0
                for low in range(0, size, columns):
                    here = slice(low, min(low + columns, size))
                    sensed = math.fsum(volts[here] * key_digits[n, here])
                    spread = _spread(volts[here], key_variance, (head, j, here), hardware)
                    share = max(int(np.count_nonzero(volts[here])), 1) / len(volts[here])
                    score += _convert(sensed + noise * spread, hardware.adc, share)
                    counts["score_sense_lines"] += 1
                    counts["score_conversions"] += 1
                scores.append(score * key_scale[head, j] * full_scale * scale)
            largest = max(scores)
            total = math.fsum(math.exp(s - largest) for s in scores)
            lse[h, i] = largest + math.log(total)
            drives = np.array(
                [math.exp(s - largest) / total * value_scale[head, j] for s, j in zip(scores, attended, strict=True)]
            )
            volts, full_scale = _drive(drives, hardware.dac)
            for tile in tiles:
                open_rows = [n for n, j in enumerate(attended) if j // rows == tile]
                counts["value_row_drives"] += len(open_rows) * math.ceil(size / columns)
                for d in range(size):
                    cells = [(head, attended[n], d) for n in open_rows]
                    sensed = math.fsum(volts[n] * value_digits[n, d] for n in open_rows)
                    variance = hardware.output_noise**2
                    if value_variance is not None:
                        variance += math.fsum(
                            volts[n] ** 2 * value_variance[cell] for n, cell in zip(open_rows, cells, strict=True)
                        )
                    read = sensed + noise * math.sqrt(variance)
                    output[h, i, d] += _convert(read, hardware.adc, len(open_rows) / rows) * full_scale
                    counts["value_conversions"] += 1
    return output, lse, counts


def _seen(digits: Array, cells: Array | None, head: int, attended: NDArray[np.int64], hardware: Hardware) -> Array:
    """What the lines see of the digits of attended tokens [n, D], whose rows alone are open."""
    wire, rows, columns = hardware.wire, hardware.tile.rows, hardware.tile.cols
    found: Array = digits[head, attended]
    if cells is None or wire is None:
        return found
    count, size = len(cells), cells.shape[3]
    for tile in set((attended // rows).tolist()):
        here = np.flatnonzero(attended // rows == tile)
        lines = attended[here] % rows
        for low in range(0, size, columns):
            part = slice(low, min(low + columns, size))
            planes = np.zeros((count, rows, part.stop - low))
            planes[:, lines] = cells[:, head, attended[here], part]
            options = (np.eye(rows)[lines], wire.r_row, wire.r_col, wire.drive, wire.sense)
            if wire.layout == "interleaved":
                beside = reference.solve(planes.transpose(1, 2, 0).reshape(rows, -1), *options)[0]
                matrix = beside.reshape(len(lines), -1, count).transpose(2, 0, 1)
            else:
                matrix = np.stack([reference.solve(plane, *options)[0] for plane in planes])
            signed = (matrix[: count // 2] - matrix[count // 2 :]).mean(0) / span(hardware.device)[1]
            found[here, part] = signed
    return found


def _drive(x: Array, dac: Converter | None) -> tuple[Array, float]:
    """Word-line drives as parts of full scale, and what full scale stands for."""
    if dac is None:
        return x, 1.0
    full_scale = dac.full_scale if dac.range == "static" else float(np.abs(x).max()) or 1.0
    levels = 2 ** (dac.bits - 1) - 1
    codes = [max(-levels, min(levels, round(v / full_scale * levels))) for v in x]
    return np.array(codes) / levels, full_scale


def _spread(volts: Array, variance: Array | None, cells: tuple[int, int, slice], hardware: Hardware) -> float:
    cell_noise = 0.0 if variance is None else math.fsum(volts**2 * variance[cells])
    return math.sqrt(hardware.output_noise**2 + cell_noise)


def _convert(value: float, adc: Converter | None, share: float) -> float:
    """The nearest level in unit outputs; ``share`` is the part of the tile's lines that is driven."""
    if adc is None:
        return value
    full_scale = adc.full_scale * (math.sqrt(share) if adc.range == "active_rows" else 1.0)
    levels = 2 ** (adc.bits - 1) - 1
    code = max(-levels, min(levels, round(value / full_scale * levels)))
    return float(code * full_scale / levels)
