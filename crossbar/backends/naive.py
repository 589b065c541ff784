"""The float64 oracle: one tile, one column, one converter at a time, as the hardware would do it.

Slow and plain on purpose. The fast path is tested against this module and shares no code with it. `multiply` starts
from conductances in µS and the numbers that were drawn; what weights become conductances is in
`crossbar.backends.naive_cells`. `Naive` starts, as every backend, from what columns see of the cells.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crossbar.backends.protocol import REDRAWN, AgedRows, Columns, Read, Work
from crossbar.devices import Device, RedrawDevice, span, window
from crossbar.features import CELLS, CONVERTERS, MISMATCH, NOISES, WIRES
from crossbar.hardware import Cell, Converter, Hardware
from crossbar.random.streams import Stream

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Draws:
    """What chance decides, as plain arrays; None: nothing.

    ``T = S T_in`` counts the conversions of one output, slice after slice, row tile after row tile. With bit-serial
    inputs there is a set of reads for each bit, least significant first: ``P = bits - 1``; else ``P`` is 1.

    Attributes:
        output: standard normal numbers for the output noise, ``[P, T, B, O]``, or ``[T, B, O]`` where P is 1.
        plus, minus: standard normal numbers for the white noise of each cell, ``[pairs, S, P, B, I, O]``.
        pulses: of the ``rate`` coding: pulses that came, with the sign of the input, ``[B, I]``.
        row_gain, row_offset: of each word line's driver, ``[S, I, T_out]``: errors, 0 is none; of full scale.
        col_gain, col_offset: of each column's ADC, ``[T, O]``: errors, 0 is none; in unit outputs.
    """

    output: Array | None = None
    plus: Array | None = None
    minus: Array | None = None
    pulses: Array | None = None
    row_gain: Array | None = None
    row_offset: Array | None = None
    col_gain: Array | None = None
    col_offset: Array | None = None


def multiply(
    x: Array,
    g_plus: Array,
    g_minus: Array,
    scales: Array,
    hardware: Hardware,
    input_range: float | None = None,
    noise: Array | None = None,
    *,
    adc_range: Array | float | None = None,
    g_min: float = 0.0,
    draws: Draws | None = None,
) -> Array:
    """Products of a layer's tiles with input vectors (docs/physics.md, "Mapping" and "Converters").

    Args:
        x: ``[B, I]``.
        g_plus, g_minus: conductances in µS, ``[pairs, S, T_out, T_in, R, C]`` without the first two where they are 1;
            absent cells NaN. The ``offset`` encoding has no ``g_minus``.
        scales: digital scale of every column of every row tile, ``[T_in, O]``.
        hardware: converters, output noise, read noise, encoding and g_max.
        input_range: calibrated DAC range in activation units; None: found as ``hardware.dac.range`` says.
        noise: short for ``Draws(output=noise)``.
        adc_range: calibrated, a number or ``[T, O]``, unit outputs; None: ``hardware.adc.full_scale``.
        g_min: conductance of an empty cell, µS.
        draws: all other chance.

    Returns:
        ``[B, O]``.
    """
    tile, dac = hardware.tile, hardware.dac
    draws = draws or Draws(output=noise)
    g_plus = g_plus.reshape(tile.pairs, tile.slices, *g_plus.shape[-4:])
    g_minus = g_minus.reshape(g_plus.shape) if tile.encoding != "offset" else np.zeros_like(g_plus)
    chip = _Chip(g_plus, g_minus, g_min, hardware, adc_range, draws)
    (batch, in_features), out_features = x.shape, scales.shape[1]
    y = np.zeros((batch, out_features))
    for b in range(batch):
        full_scale = _dac_range(x, b, dac, input_range)
        if full_scale == 0:
            continue  # nothing but zeros, and their digital scale is 0
        codes = [_convert(v / full_scale, dac, 1.0) for v in x[b]]  # parts of full scale
        if draws.pulses is not None and dac is not None:
            codes = [float(count) / _levels(dac) for count in draws.pulses[b]]
        reads = _bits(codes, dac) if dac is not None and dac.coding == "bit_serial" else [(codes, 1.0)]
        for j in range(len(scales)):
            lines = range(j * tile.rows, min((j + 1) * tile.rows, in_features))
            for o in range(out_features):
                y[b, o] += _weighted_sum(chip, b, j, o, lines, codes, reads) * scales[j, o] * full_scale
    return y


Reads = list[tuple[list[float], float]]
"""What the word lines carry in each read of a tile, ``[I]`` parts of full scale, and what the read is worth."""


@dataclass(frozen=True)
class _Chip:
    plus: Array  # [pairs, S, T_out, T_in, R, C], µS
    minus: Array
    g_min: float
    hardware: Hardware
    adc_range: Array | float | None
    draws: Draws

    @property
    def span(self) -> float:
        return self.hardware.device.g_max - self.g_min


def _weighted_sum(chip: _Chip, b: int, j: int, o: int, lines: range, codes: list[float], reads: Reads) -> float:
    """Inputs of row tile ``j`` times the scaled weights of output ``o``: slices shifted and added."""
    tile = chip.hardware.tile
    shifted = full = 0.0
    for s in range(tile.slices):
        digit = 0.0
        for p in range(len(reads)):
            digit += _converted_column(chip, (s, j, o), (p, b), lines, reads) * reads[p][1]
        shifted, full = shifted * 2**tile.slice_bits + digit, full * 2**tile.slice_bits + 1
    if tile.encoding != "offset":
        return shifted / full
    # G of a weight of 0 lies half a window above g_min, and half a window stands for a weight of 1.
    zero = (chip.g_min + chip.span / 2) / chip.span * math.fsum(codes[line] for line in lines)
    return 2 * (shifted / full - zero)


def _converted_column(
    chip: _Chip, column: tuple[int, int, int], read: tuple[int, int], lines: range, reads: Reads
) -> float:
    """One conversion of one column of one tile, unit outputs."""
    (s, j, o), (p, b), draws, hardware = column, read, chip.draws, chip.hardware
    i, c = divmod(o, hardware.tile.cols)
    t = s * chip.plus.shape[3] + j
    pulse = reads[p][0]
    currents = []
    for r, line in enumerate(lines):
        volts = pulse[line]
        if draws.row_gain is not None:
            volts *= 1 + draws.row_gain[s, line, i]
        if draws.row_offset is not None:
            volts += draws.row_offset[s, line, i]
        for pair in range(hardware.tile.pairs):
            cell, number = (pair, s, i, j, r, c), (pair, s, p, b, line, o)
            currents.append(volts * _noisy(chip.plus[cell], hardware, draws.plus, number))
            if hardware.tile.encoding != "offset":
                currents.append(-volts * _noisy(chip.minus[cell], hardware, draws.minus, number))
    unit_output = math.fsum(currents) / hardware.tile.pairs / chip.span
    if draws.col_gain is not None:
        unit_output *= 1 + draws.col_gain[t, o]
    if draws.col_offset is not None:
        unit_output += draws.col_offset[t, o]
    if draws.output is not None:
        unit_output += (
            hardware.output_noise * draws.output.reshape(len(reads), -1, *draws.output.shape[-2:])[p, t, b, o]
        )
    return _convert(unit_output, hardware.adc, _adc_range(chip, t, o, [pulse[line] for line in lines]))


def _noisy(g: float, hardware: Hardware, z: Array | None, index: tuple[int, ...]) -> float:
    noise = hardware.read_noise
    if z is None or noise is None:
        return g
    return g + math.sqrt(noise.constant**2 + (noise.relative * g) ** 2) * float(z[index])


def _bits(codes: list[float], dac: Converter) -> Reads:
    """Full-scale pulses for each magnitude bit of the codes, least significant first, and what each bit is worth."""
    levels = _levels(dac)
    planes = []
    for bit in range(dac.bits - 1):
        planes.append(([_bit(code * levels, bit) for code in codes], 2**bit / levels))
    return planes


def _bit(code: float, bit: int) -> float:
    """A magnitude bit of a whole code, with its sign; a code that is not a number has none that is."""
    return code if math.isnan(code) else math.copysign((abs(round(code)) >> bit) & 1, code)


def _dac_range(x: Array, b: int, dac: Converter | None, calibrated: float | None) -> float:
    if dac is None:
        return 1.0
    if calibrated is not None:
        return calibrated
    if dac.range == "static":
        return dac.full_scale
    return float(np.abs(x[b] if dac.range == "per_token" else x).max())


def _adc_range(chip: _Chip, t: int, o: int, pulse: list[float]) -> float:
    """Unit outputs at full scale, for word lines of one tile that carry ``pulse``."""
    adc, given = chip.hardware.adc, chip.adc_range
    if adc is None:
        return math.inf
    limit = adc.full_scale if given is None else given
    limit = float(limit[t, o] if isinstance(limit, np.ndarray) else limit)
    if adc.range == "active_rows":
        limit *= math.sqrt(max(sum(v != 0 for v in pulse), 1) / len(pulse))
    return limit


def _levels(converter: Converter) -> int:
    return (1 << (converter.bits - 1)) - 1


def _convert(value: float, converter: Converter | None, full_scale: float) -> float:
    """The nearest of ``2^bits - 1`` levels over ± full scale, ties to even, clipped; a single bit tells only the sign.

    Unchanged without a converter. What is not a number, in value or full scale, stays that.
    """
    if converter is None or math.isnan(value):
        return value
    if converter.bits == 1:
        return full_scale if value >= 0 else -full_scale
    levels = _levels(converter)
    code = value / full_scale * levels
    if math.isnan(code):
        return code
    return float(round(max(-levels, min(levels, code))) * full_scale / levels)


@dataclass(frozen=True)
class Naive:
    """The oracle as a backend, for tests and doubts: loops of Python in float64, with the noise of the other backends.

    White noise of cells is drawn once a column, as the others do it.
    """

    name: str = "naive"
    honours: frozenset[str] = CELLS | CONVERTERS | MISMATCH | NOISES | WIRES

    def refuses(self, work: Work, device: torch.device, dtype: torch.dtype, gradient: bool) -> str | None:
        """Gradients, and rows of any age of a device that has no state apart from its time."""
        if isinstance(work, AgedRows) and isinstance(work.device, RedrawDevice):
            return REDRAWN
        return "gradients" if gradient else None

    def multiply(self, read: Read) -> Tensor:
        """`crossbar.backends.protocol.Backend.multiply`."""
        columns, codes, full_scale = self._columns(read)
        scales = _numbers(read.cells.scales)
        y = (columns * scales[:, None, :]).sum(0)
        if read.cells.bias_scales is not None:
            rows = read.hardware.tile.rows
            for j, scale in enumerate(_numbers(read.cells.bias_scales)):
                y -= codes[:, j * rows : (j + 1) * rows].sum(1)[:, None] * scale
        return torch.as_tensor(y * full_scale[:, None], device="cpu").to(read.x)

    def read_columns(self, read: Read) -> Tensor:
        """`crossbar.backends.protocol.Backend.read_columns`."""
        columns, _, full_scale = self._columns(read)
        return torch.as_tensor(columns * full_scale[:, None], device="cpu").to(read.x)

    def sense(self, columns: Columns) -> Tensor:
        """`crossbar.backends.protocol.Backend.sense`."""
        hardware, like = columns.hardware, columns.products[0].codes
        sums = np.zeros(columns.shape)
        for where, codes, cells in columns.products:
            part = sums if where is None else sums[where]
            part += _numbers(codes) * columns.unit @ _numbers(cells)
        spread = np.full(columns.shape, hardware.output_noise**2)
        if columns.variance is not None:
            spread += _numbers(columns.variance)
        if columns.normals is not None:
            sums += np.sqrt(spread) * _numbers(columns.normals())
        if columns.offset is not None:
            sums += _numbers(columns.offset)[:, None]
        spans = np.ones(columns.shape) * (1.0 if columns.spans is None else _numbers(columns.spans))
        found = np.empty(columns.shape)
        for place in np.ndindex(columns.shape):
            levels = 1 if hardware.adc is None else max(_levels(hardware.adc), 1)
            found[place] = (
                _convert(float(sums[place]), hardware.adc, float(spans[place]) * columns.step * levels) / columns.step
            )
        return torch.as_tensor(found, device="cpu").to(like)

    def age_rows(self, rows: AgedRows) -> tuple[Tensor, Tensor | None]:
        """`crossbar.backends.protocol.Backend.age_rows`."""
        device, pairs, noise = cast(Device, rows.device), rows.hardware.tile.pairs, rows.hardware.read_noise
        (low, high), width = window(device), span(device)[1]
        state = {name: cells.index_select(3, rows.slots).double() for name, cells in rows.state.items()}
        like = next(iter(state.values()))
        z, found = rows.numbers.drawn(tuple(like.shape), like.device).double(), torch.empty_like(like)
        for row, age in enumerate(rows.seconds.tolist()):
            own = {name: cells[:, :, :, row] for name, cells in state.items()}
            drifted = device.drifted(own, age)
            deviation = device.fluctuation(own, drifted, age)
            moved = drifted if deviation is None else drifted + deviation * z[:, :, :, row]
            found[:, :, :, row] = moved.clamp(low, high)
        digits = (found[:pairs] - found[pairs:]).mean(0) / width
        dtype = next(iter(rows.state.values())).dtype
        if noise is None or noise.constant == noise.relative == 0:
            return digits.to(dtype), None
        variance = (noise.constant**2 + (noise.relative * found) ** 2).sum(0) / (pairs * width) ** 2
        return digits.to(dtype), variance.to(dtype)

    def _columns(self, read: Read) -> tuple[Array, Array, Array]:
        """Converted columns ``[T, B, O]`` in unit outputs, and what drove them, as `_codes` says."""
        cells, hardware, noise = read.cells, read.hardware, read.noise
        rows, adc, dac = hardware.tile.rows, hardware.adc, hardware.dac
        codes, full_scale = self._codes(read)
        digits, variance = _numbers(cells.weight), None if cells.variance is None else _numbers(cells.variance)
        (slices, lines, outputs), vectors = digits.shape, len(codes)
        row_tiles = -(-lines // rows)
        found = np.zeros((slices * row_tiles, vectors, outputs))
        serial = dac is not None and dac.coding == "bit_serial"
        reads = [_bits(row, dac) if serial and dac is not None else [(row, 1.0)] for row in codes.tolist()]
        for p in range(len(reads[0]) if reads else 0):
            z = None
            if noise is not None:
                z = _numbers(noise.columns(len(found), vectors, outputs, first=p * vectors))
            for t, b, o in np.ndindex(found.shape):
                pulse, worth = reads[b][p]
                s, j = divmod(t, row_tiles)
                here = range(j * rows, min((j + 1) * rows, lines))
                value = math.fsum(pulse[i] * digits[s, i, o] for i in here)
                spread = float(hardware.output_noise**2)
                if variance is not None and variance.ndim == 3:
                    spread += math.fsum(pulse[i] ** 2 * variance[s, i, o] for i in here)
                elif variance is not None:
                    spread += math.fsum(pulse[i] ** 2 for i in here) * float(variance[t, o])
                value += 0.0 if cells.offset is None else float(cells.offset[t, o])
                value += 0.0 if z is None else math.sqrt(float(spread)) * float(z[t, b, o])
                limit = math.inf if adc is None else adc.full_scale
                if cells.adc_range is not None:
                    limit = float(cells.adc_range[t, o] if cells.adc_range.dim() else cells.adc_range)
                if adc is not None and adc.range == "active_rows":
                    limit *= math.sqrt(max(sum(pulse[i] != 0 for i in here), 1) / len(here))
                found[t, b, o] += worth * _convert(value, adc, limit)
        return found, codes, full_scale

    def _codes(self, read: Read) -> tuple[Array, Array]:
        """What word lines carry, ``[B, I]`` parts of full scale, and the activation of full scale, ``[B]``.

        The range of a vector of nothing but zeros is 0, and so is all that its columns are worth.
        """
        x, dac, given = _numbers(read.x), read.hardware.dac, read.input_range
        ranges = [_dac_range(x, b, dac, None if given is None else float(given)) for b in range(len(x))]
        each = [[_convert(value / (ranges[b] or 1.0), dac, 1.0) for value in row] for b, row in enumerate(x.tolist())]
        codes = np.array(each).reshape(x.shape)
        if dac is not None and dac.coding == "amplitude" and read.hardware.cell is not None:
            codes = np.array([_bent(part, read.hardware.cell) for part in codes.ravel().tolist()]).reshape(codes.shape)
        if dac is not None and dac.coding == "rate" and read.noise is not None:
            chances = torch.from_numpy(np.rint(np.abs(np.nan_to_num(codes)) * _levels(dac)))
            pulses = Stream((*read.noise.key, "pulses"))
            codes = np.sign(codes) * _numbers(pulses.binomial(chances, _levels(dac))) / _levels(dac)
        return codes, np.array(ranges)


def _bent(part: float, cell: Cell) -> float:
    """The current of a pulse of this part of full height, as a part of that of a whole one."""
    volts = abs(part) * cell.v_read
    if cell.iv == "sinh":
        return math.copysign(math.sinh(volts / cell.v0) / math.sinh(cell.v_read / cell.v0), part)
    if cell.iv == "table" and not math.isnan(part):
        points = [(0.0, 0.0), *cell.table]

        def current(at: float) -> float:
            (low, one), (high, other) = next(pair for pair in pairwise(points) if at <= pair[1][0])
            return one + (other - one) * (at - low) / (high - low)

        return math.copysign(current(volts) / current(cell.v_read), part)
    return part


def _numbers(tensor: Tensor) -> Array:
    """A tensor's numbers in float64."""
    numbers: Array = tensor.detach().cpu().double().numpy()
    return numbers
