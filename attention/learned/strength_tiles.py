"""Tiles that hold attention strengths: token j on a row, token i on a column, for the attended pairs of every head."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from crossbar import AnalogLinear
from crossbar.backends import dispatch
from crossbar.backends.converters import drive
from crossbar.backends.protocol import Columns, Product
from crossbar.costs.counts import book_masked_reads
from crossbar.costs.ledger import book, counting
from crossbar.features import CELLS, CONVERTERS, MISMATCH, NOISES, WIRES, require_honoured
from crossbar.hardware import Hardware

HONOURED = (CELLS | CONVERTERS | MISMATCH | NOISES | WIRES) - {
    "faults", "tile.slices", "tile.encoding:offset", "dac.coding:rate", "dac.coding:bit_serial",
    "dac.coding:amplitude",
}  # fmt: skip
"""Features of hardware that tiles of strengths have."""


class StrengthTiles(nn.Module):
    """The tiles that attended pairs touch, head after head, with devices for attended pairs only.

    Tokens are cut into ranges of a tile's rows and columns, and a tile stands where some pair of two ranges is
    attended: T of them for each head. They are one matrix on tiles, with a tile's rows as inputs and the columns of all
    ``H T`` tiles side by side: so `layer` is programmed, aged and calibrated. `mix` drives each tile with its own
    tokens and adds up in digital what is one token's (content-free); `read_pairs` reads each strength on its own.

    Args:
        strength: of each head and pair, [H, P].
        query, key: the pairs' tokens, int64 [P].
        n: tokens.
        hardware: cells, tiles and converters.
        name: keys the random streams and the counts.
        alone: strengths are read one by one, so that wires meet one open row at a time; else rows are driven together.

    Attributes:
        layer: the matrix on tiles.

    Raises:
        InputError: for hardware with a feature that these tiles do not have.
    """

    def __init__(
        self, strength: Tensor, query: Tensor, key: Tensor, n: int, hardware: Hardware, name: str, alone: bool
    ) -> None:
        super().__init__()
        require_honoured(hardware, HONOURED, "strengths")
        tile = replace(hardware.tile, rows=min(hardware.tile.rows, n), cols=min(hardware.tile.cols, n))
        heads, ranges = len(strength), -(-n // tile.rows)
        touched, which = (query // tile.cols * ranges + key // tile.rows).unique(return_inverse=True)
        row, column = key % tile.rows, which * tile.cols + query % tile.cols
        width = len(touched) * tile.cols
        weight = strength.new_zeros(heads, width, tile.rows)
        weight[:, column, row] = strength.detach()
        device = torch.zeros(width, tile.rows, dtype=torch.bool, device=weight.device)
        device[column, row] = True
        everywhere = device.repeat(heads, 1)
        self.layer = AnalogLinear.from_matrix(weight.flatten(0, 1), replace(hardware, tile=tile), name, everywhere)
        self.layer.cells.alone = alone
        for buffer, value in {
            "devices": device.view(-1, tile.cols, tile.rows),
            "queries": touched.div(ranges, rounding_mode="floor"),
            "keys": touched % ranges,
            "_pair_row": row,
            "_pair_column": column,
        }.items():
            self.register_buffer(buffer, value, persistent=False)
        self.heads, self.n = heads, n

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

    def mix(self, v: Tensor) -> Tensor:
        """``Σ_j s_ij v_j`` of values [B, H, N, D], N at most n, each dimension of a head in a read of its own."""
        batch, heads, count, size = v.shape
        layer = self.layer
        hardware, rows, columns = layer.hardware, layer.hardware.tile.rows, layer.hardware.tile.cols
        if counting():
            book_masked_reads(layer.name, hardware, layer.cells.devices, batch * size, heads * self.n)
        cells, noise = layer.readout(), layer.read_noise("read", layer.reads)
        layer.reads += 1
        lines = torch.nn.functional.pad(v.transpose(2, 3), (0, -(-self.n // rows) * rows - count)).flatten(0, 2)
        driven = drive(lines.to(layer.scales.dtype), hardware.dac, layer.input_range)
        codes = driven.codes.view(batch, heads, size, -1, rows).index_select(3, self.keys)
        codes = codes.permute(1, 3, 0, 2, 4).reshape(heads * self.tiles, batch * size, rows)
        shape = (heads * self.tiles, batch * size, columns)
        variance = None
        if noise is not None and cells.variance is not None:
            power = (codes.detach() * driven.unit).square()
            exact = cells.variance.dim() == 3
            variance = power @ self._by_tile(cells.variance[0]) if exact else (
                power.sum(2, keepdim=True) * self._by_tile(cells.variance)
            )  # fmt: skip
        step, spans = self._ranges(codes, cells.adc_range)
        sensed = dispatch.sense(
            Columns(
                products=(Product(None, codes, self._by_tile(cells.weight[0])),),
                shape=shape,
                unit=driven.unit,
                hardware=hardware,
                step=step,
                spans=spans,
                normals=None if noise is None else partial(noise.columns, *shape),
                variance=variance,
                offset=None if cells.offset is None else self._by_tile(cells.offset)[:, 0],
            )
        )
        sensed = (sensed * step * self._by_tile(cells.scales)).view(heads, self.tiles, batch, size, columns)
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
        layer, hardware = self.layer, self.layer.hardware
        if counting():
            count = sequences * self.heads * len(pairs)
            book(layer.name, "row_activations", count)
            book(layer.name, "adc_conversions", count, hardware.adc.bits if hardware.adc else None)
            book(layer.name, "cell_macs", count * hardware.tile.pairs)
        cells, noise = layer.readout(), layer.read_noise("read", layer.reads)
        layer.reads += 1
        row, column = self._pair_row[pairs], self._pair_column[pairs]

        def of_pairs(x: Tensor) -> Tensor:
            """[H pairs] of numbers of cells [R, O]."""
            return x.view(len(x), self.heads, -1)[row, :, column].t().flatten()

        digits = of_pairs(cells.weight[0])[None]
        shape = (1, sequences, digits.shape[1])
        variance = None
        if noise is not None and cells.variance is not None and cells.variance.dim() == 3:
            variance = of_pairs(cells.variance[0]).expand(shape).clone()
        limit = 1.0 if layer.adc_range is None or layer.adc_range.dim() else float(layer.adc_range)
        step = 1.0 if hardware.adc is None else limit / hardware.adc.levels
        sensed = dispatch.sense(
            Columns(
                products=(Product(0, digits.new_ones(sequences, 1), digits),),
                shape=shape,
                unit=1.0,
                hardware=hardware,
                step=step,
                normals=None if noise is None else partial(noise.normal, shape),
                variance=variance,
                offset=None if cells.offset is None else of_pairs(cells.offset.expand(len(cells.weight[0]), -1))[None],
            )
        )[0].mul(step)
        return sensed.view(sequences, self.heads, -1) * cells.scales.view(self.heads, -1)[:, column]

    def _ranges(self, codes: Tensor, adc_range: Tensor | None) -> tuple[float, Tensor | None]:
        """Unit outputs that sums are counted in, and steps of a code of each column's ADC where these differ."""
        hardware = self.layer.hardware
        adc = hardware.adc
        if adc is None:
            return 1.0, None
        if adc_range is None and adc.range == "static":
            return adc.full_scale / adc.levels, None
        span = codes.new_tensor(adc.full_scale) if adc_range is None else adc_range
        span = self._by_tile(span) if span.dim() else span
        if adc.range == "active_rows":
            active = (codes.detach() != 0).sum(2, keepdim=True).clamp_(min=1)
            span = span * (active / hardware.tile.rows).sqrt()
        return 1.0, span / adc.levels

    def _by_tile(self, x: Tensor) -> Tensor:
        """Numbers of all columns [R or 1, O], tile after tile [H T, R or 1, C]."""
        return x.view(len(x), -1, self.layer.hardware.tile.cols).transpose(0, 1)
