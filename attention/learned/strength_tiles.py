"""Tiles that hold attention strengths: token j on a row, token i on a column, for the attended pairs of every head."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from crossbar import AnalogLinear
from crossbar.backends.converters import convert, drive
from crossbar.costs.ledger import book, counting
from crossbar.errors import InputError
from crossbar.hardware import Hardware
from crossbar.random.streams import Cursor
from crossbar.tiles.faults import Fault
from crossbar.tiles.readout import Array


class StrengthTiles(AnalogLinear):
    """An analog layer of the tiles that attended pairs touch, head after head, with devices for attended pairs only.

    Tokens are cut into ranges of a tile's rows and columns, and a tile stands where some pair of two ranges is
    attended: T of them for each head. To programming, ageing and calibration they are one layer with a tile's rows as
    inputs and the columns of all ``H T`` tiles side by side. `mix` drives each with its own tokens and adds up in
    digital what is one token's (content-free); `read_pairs` reads each strength on its own.

    Args:
        strength: of each head and pair, [H, P].
        query, key: the pairs' tokens, int64 [P].
        n: tokens.
        hardware: cells, tiles and converters.
        name: keys the random streams and the counts.

    Raises:
        InputError: for hardware with faults, slices, the offset encoding, or inputs that are not one pulse.
    """

    def __init__(self, strength: Tensor, query: Tensor, key: Tensor, n: int, hardware: Hardware, name: str) -> None:
        for field, refused, wanted in (
            ("faults", hardware.faults is not None, "None"),
            ("tile.slices", hardware.tile.slices > 1, "1"),
            ("tile.encoding", hardware.tile.encoding == "offset", "differential or balanced"),
            ("dac.coding", hardware.dac is not None and hardware.dac.coding != "pwm", "pwm"),
        ):
            if refused:
                raise InputError(f"hardware field {field} is not supported for strengths: give {wanted}")
        tile = replace(hardware.tile, rows=min(hardware.tile.rows, n), cols=min(hardware.tile.cols, n))
        heads, ranges = len(strength), -(-n // tile.rows)
        touched, which = (query // tile.cols * ranges + key // tile.rows).unique(return_inverse=True)
        row, column = key % tile.rows, which * tile.cols + query % tile.cols
        width = len(touched) * tile.cols
        weight = strength.new_zeros(heads, width, tile.rows)
        weight[:, column, row] = strength.detach()
        digital = nn.Linear(1, 1, bias=False)
        digital.weight = nn.Parameter(weight.flatten(0, 1), requires_grad=False)
        super().__init__(digital, replace(hardware, tile=tile), name)
        device = torch.zeros(width, tile.rows, dtype=torch.bool, device=weight.device)
        device[column, row] = True
        for buffer, value in {
            "devices": device.view(-1, tile.cols, tile.rows),
            "queries": touched.div(ranges, rounding_mode="floor"),
            "keys": touched % ranges,
            "_pair_row": row,
            "_pair_column": column,
        }.items():
            self.register_buffer(buffer, value, persistent=False)
        self.heads, self.n = heads, n
        self._take_out()

    devices: Tensor
    """Which cells of each tile have a device, bool [T, columns, rows]."""
    queries: Tensor
    """Range of tokens on each tile's columns, int64 [T]."""
    keys: Tensor
    """Range of tokens on each tile's rows, int64 [T]."""
    _pair_row: Tensor
    _pair_column: Tensor

    @property
    def tiles(self) -> int:
        """Tiles of a head."""
        return len(self.devices)

    def new_chip(self) -> None:
        """Forget the chip; where no device is, there is none on the next one."""
        super().new_chip()
        self._take_out()

    def mix(self, v: Tensor) -> Tensor:
        """``Σ_j s_ij v_j`` of values [B, H, N, D], N at most n, each dimension of a head in a read of its own."""
        batch, heads, count, size = v.shape
        rows, columns = self.hardware.tile.rows, self.hardware.tile.cols
        self._book_reads(batch * size)
        cells, noise = self._array(), self._noise("read", self.reads)
        self.reads += 1
        lines = torch.nn.functional.pad(v.transpose(2, 3), (0, -(-self.n // rows) * rows - count)).flatten(0, 2)
        driven = drive(lines.to(self.scales.dtype), self.hardware.dac, self.input_range)
        codes = driven.codes.view(batch, heads, size, -1, rows).index_select(3, self.keys)
        codes = codes.permute(1, 3, 0, 2, 4).reshape(heads * self.tiles, batch * size, rows)
        sensed = self._sensed(codes, driven.unit, cells, noise) * self._by_tile(cells.scales)
        sensed = sensed.view(heads, self.tiles, batch, size, columns)
        total = sensed.new_zeros(heads, -(-self.n // columns), *sensed.shape[2:])
        total = total.index_add(1, self.queries, sensed).permute(2, 0, 1, 4, 3)  # [B, H, ranges, columns, D]
        total = total.flatten(2, 3)[:, :, :count]
        if isinstance(driven.full_scale, Tensor) and driven.full_scale.dim():
            return (total * driven.full_scale.view(batch, heads, 1, size)).to(v.dtype)
        return (total * driven.full_scale).to(v.dtype)

    def read_pairs(self, sequences: int, pairs: Tensor) -> Tensor:
        """Some strengths, each read on its own with the converter's range at one cell: [sequences, H, pairs].

        Args:
            sequences: whose queries read; each read has noise of its own.
            pairs: which of the P, int64 [pairs].
        """
        hardware = self.hardware
        if counting():
            count = sequences * self.heads * len(pairs)
            book(self.name, "row_activations", count)
            book(self.name, "adc_conversions", count, hardware.adc.bits if hardware.adc else None)
            book(self.name, "cell_macs", count * hardware.tile.pairs)
        cells = self._array()
        row, column = self._pair_row[pairs], self._pair_column[pairs]

        def of_pairs(x: Tensor) -> Tensor:
            """[H, pairs] of numbers of cells [R, O]."""
            return x.view(len(x), self.heads, -1)[row, :, column].t()

        read = of_pairs(cells.weight[0]).expand(sequences, -1, -1)
        noise = self._noise("read", self.reads)
        self.reads += 1
        if noise is not None:
            variance = read.new_tensor(hardware.output_noise**2)
            if cells.variance is not None and cells.variance.dim() == 3:
                variance = variance + of_pairs(cells.variance[0])
            read = read + variance.sqrt() * noise.normal(tuple(read.shape)).to(read)
        if cells.offset is not None:
            read = read + cells.offset.view(self.heads, -1)[:, column]
        if hardware.adc is not None:
            limit = 1.0 if self.adc_range is None or self.adc_range.dim() else float(self.adc_range)
            step = limit / hardware.adc.levels
            read = convert(read / step, hardware.adc).mul(step)
        return read * cells.scales.view(self.heads, -1)[:, column]

    def _sensed(self, codes: Tensor, unit: float, cells: Array, noise: Cursor | None) -> Tensor:
        """What the ADCs deliver for codes [H T, vectors, R], unit outputs [H T, vectors, C]."""
        adc, sigma = self.hardware.adc, self.hardware.output_noise
        y = codes @ self._by_tile(cells.weight[0]) * unit
        if noise is not None:
            variance = y.new_tensor(sigma**2)
            power = (codes.detach() * unit).square()
            if cells.variance is not None and cells.variance.dim() == 3:
                variance = variance + power @ self._by_tile(cells.variance[0])
            elif cells.variance is not None:
                variance = variance + power.sum(2, keepdim=True) * self._by_tile(cells.variance)
            y = y + variance.sqrt() * noise.columns(*y.shape).to(y)
        if cells.offset is not None:
            y = y + self._by_tile(cells.offset)
        if adc is None:
            return y
        span = y.new_tensor(adc.full_scale) if cells.adc_range is None else cells.adc_range
        span = self._by_tile(span) if span.dim() else span
        if adc.range == "active_rows":
            active = (codes.detach() != 0).sum(2, keepdim=True).clamp_(min=1)
            span = span * (active / self.hardware.tile.rows).sqrt()
        step = span / adc.levels
        return convert(y / step, adc) * step

    def _by_tile(self, x: Tensor) -> Tensor:
        """Numbers of all columns [R or 1, O], tile after tile [H T, R or 1, C]."""
        return x.view(len(x), -1, self.hardware.tile.cols).transpose(0, 1)

    def _book_reads(self, vectors: int) -> None:
        """Rows that have a device in a tile are driven there, and columns that have one are converted."""
        if not counting():
            return
        vectors *= self.heads
        rows, columns = int(self.devices.any(1).sum()), int(self.devices.any(2).sum())
        dac, adc = self.hardware.dac, self.hardware.adc
        book(self.name, "row_activations", vectors * rows)
        book(self.name, "dac_conversions", vectors * min(rows, self.n), dac.bits if dac else None)
        book(self.name, "adc_conversions", vectors * columns, adc.bits if adc else None)
        book(self.name, "cell_macs", vectors * int(self.devices.sum()) * self.hardware.tile.pairs)
        book(self.name, "digital_macs", vectors * columns)

    def _take_out(self) -> None:
        """Leave devices for attended pairs only."""
        absent = torch.where(self.devices, int(Fault.NONE), int(Fault.OPEN)).to(torch.uint8)
        absent = absent.flatten(0, 1).repeat(self.heads, 1).t()  # [R, O]
        self.set_faults(absent.expand(self.cells_a_weight, -1, -1).contiguous())
