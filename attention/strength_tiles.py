"""Tiles that hold the attention strengths of one head: token j on row j, token i on column i."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossbar import AnalogLinear
from crossbar.converters import convert
from crossbar.errors import InputError
from crossbar.faults import Fault
from crossbar.hardware import Hardware
from crossbar.ledger import book, counting
from crossbar.streams import ReadNoise


class StrengthTiles(AnalogLinear):
    """An analog layer [n tokens -> n tokens] that has devices for attended pairs only.

    As a layer it sums over the rows that are driven (content-free); `read_pairs` reads each strength on its own.

    Args:
        weight: strengths [n, n], attending token first.
        allowed: bool [n, n], which pairs have a device.
        hardware: cells, tiles and converters.
        name: keys the random streams and the counts.

    Raises:
        InputError: for hardware with faults, slices, or the offset encoding.
    """

    def __init__(self, weight: Tensor, allowed: Tensor, hardware: Hardware, name: str) -> None:
        for field, refused, wanted in (
            ("faults", hardware.faults is not None, "None"),
            ("tile.slices", hardware.tile.slices > 1, "1"),
            ("tile.encoding", hardware.tile.encoding == "offset", "differential or balanced"),
        ):
            if refused:
                raise InputError(f"hardware field {field} is not supported for strengths: give {wanted}")
        n = len(weight)
        digital = nn.Linear(n, n, bias=False, device=weight.device, dtype=weight.dtype)
        digital.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        super().__init__(digital, hardware, name)
        self.register_buffer("allowed", allowed, persistent=False)
        self._take_out()

    allowed: Tensor

    def new_chip(self) -> None:
        """Forget the chip; where no device is, there is none on the next one."""
        super().new_chip()
        self._take_out()

    def read_pairs(self, sequences: int, tokens: int) -> Tensor:
        """Every strength among the first tokens, read on its own with the converter's range at one cell.

        Args:
            sequences: whose queries read; each read has noise of its own.
            tokens: of the sequences.

        Returns:
            [sequences, tokens, tokens], attending token first; what has no device is 0.
        """
        hardware, pairs = self.hardware, self.allowed[:tokens, :tokens]
        if counting():
            count = sequences * int(pairs.sum())
            book(self.name, "row_activations", count)
            book(self.name, "adc_conversions", count, hardware.adc.bits if hardware.adc else None)
            book(self.name, "cell_macs", count * hardware.tile.pairs)
        cells = self._array()
        read = cells.weight[0, :tokens, :tokens].t().expand(sequences, -1, -1)
        noise = self._noise("read", self.reads)
        self.reads += 1
        if noise is not None:
            read = read + self._spread(cells.variance, tokens, read) * _drawn(noise, read)
        if hardware.adc is not None:
            limit = 1.0 if self.adc_range is None or self.adc_range.dim() else float(self.adc_range)
            step = limit / hardware.adc.levels
            read = convert(read / step, hardware.adc).mul(step)
        rows = torch.arange(tokens, device=read.device) // hardware.tile.rows
        return read * cells.scales[rows, :tokens].t() * pairs

    def _spread(self, variance: Tensor | None, tokens: int, like: Tensor) -> Tensor:
        """Deviation of a read of one cell, unit outputs."""
        total = like.new_tensor(self.hardware.output_noise**2)
        if variance is not None and variance.dim() == 3:
            total = total + variance[0, :tokens, :tokens].t()
        return total.sqrt()

    def _book_reads(self, vectors: int) -> None:
        """Rows that have a device in a tile are driven there, and columns that have one are converted."""
        if not counting():
            return
        tile, n = self.hardware.tile, self.in_features
        by_row = self.allowed.t()  # [row j, column i]
        rows = sum(int(part.any(1).sum()) for part in by_row.split(tile.cols, 1))
        columns = sum(int(part.any(0).sum()) for part in by_row.split(tile.rows, 0))
        dac, adc = self.hardware.dac, self.hardware.adc
        book(self.name, "row_activations", vectors * rows)
        book(self.name, "dac_conversions", vectors * min(rows, n), dac.bits if dac else None)
        book(self.name, "adc_conversions", vectors * columns, adc.bits if adc else None)
        book(self.name, "cell_macs", vectors * int(self.allowed.sum()) * tile.pairs)
        book(self.name, "digital_macs", vectors * columns)

    def _take_out(self) -> None:
        """Leave devices for attended pairs only."""
        absent = torch.where(self.allowed.t(), int(Fault.NONE), int(Fault.OPEN)).to(torch.uint8)
        self.set_faults(absent.expand(self.cells_a_weight, -1, -1).contiguous())


def _drawn(noise: ReadNoise, like: Tensor) -> Tensor:
    return noise.draw(tuple(like.shape)).to(like)
