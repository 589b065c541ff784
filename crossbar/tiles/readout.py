"""What the columns of an array of tiles see of its cells now: digits, mismatch, the variance of read noise."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from crossbar.devices import span
from crossbar.hardware import CellNoise, Hardware, Tile
from crossbar.random.streams import Key, normal
from crossbar.tiles.faults import Fault
from crossbar.tiles.mapping import cell_weights

Forms = Callable[[str, Callable[[Tensor], Any]], Any]
"""Gives the digits in a backend's own form, by its name: made by a function of them, kept until they change."""


@dataclass(frozen=True)
class Readout:
    """An array of tiles as its columns see it now.

    ``T = S T_in`` counts the conversions that make up one output: slice after slice, row tile after row tile.

    Attributes:
        digits: gives the signed digits (`crossbar.tiles.mapping.cell_weights`), mismatch of gains included,
            ``[S, I, O]``; or these themselves, if a gradient may be asked for.
        scales: what one unit output is worth, calibrated gains included, ``[T, O]``, weight units.
        offset: what mismatch adds to each column, ``[T, O]``, unit outputs; None: nothing.
        variance: of each cell's white read noise, ``[S, I, O]``, or the mean of each column, ``[T, O]``; unit outputs
            squared; None: no such noise.
        bias_scales: of the ``offset`` encoding, ``[T_in, O]``: digital logic takes the sum of the inputs times these.
        adc_range: calibrated or learned, 0-d or ``[T, O]``, unit outputs; None: the converter's own.
        forms: gives the digits as a backend holds them; None: they are used once.
    """

    digits: Callable[[], Tensor] | Tensor
    scales: Tensor
    offset: Tensor | None = None
    variance: Tensor | None = None
    bias_scales: Tensor | None = None
    adc_range: Tensor | None = None
    forms: Forms | None = None

    @property
    def weight(self) -> Tensor:
        """The digits, ``[S, I, O]``."""
        return self.digits if isinstance(self.digits, Tensor) else self.digits()

    def effective(self, rows: int) -> Tensor:
        """What noise-free converters would see, ``[I, O]`` in weight units, of tiles of so many word lines."""
        weight = folded(self.weight, self.scales, rows)
        if self.bias_scales is not None:
            weight = weight - self.bias_scales.repeat_interleave(rows, 0)[: len(weight)]
        return weight


def read_digits(cells: Tensor, hardware: Hardware, key: Key | None) -> tuple[Tensor, Tensor | None]:
    """Digits ``[S, I, O]`` and column offsets ``[T, O]`` of cells ``[K, I, O]`` (µS), with chip ``key``'s mismatch.

    A word line's gain error multiplies its drive, a column's the sum of its cells; a word line's offset is a drive that
    never goes away. They are drawn once for a chip; without a key there is no mismatch.
    """
    return with_mismatch(cell_weights(cells, hardware.tile, span(hardware.device)[1]), hardware, key)


def with_mismatch(weight: Tensor, hardware: Hardware, key: Key | None) -> tuple[Tensor, Tensor | None]:
    """`read_digits` of digits ``[S, I, O]`` without mismatch."""
    offset: Tensor | None = None
    if key is None:
        return weight, offset
    tile, dac, adc = hardware.tile, hardware.dac, hardware.adc
    in_features, out_features = weight.shape[1:]
    t_in, t_out = -(-in_features // tile.rows), -(-out_features // tile.cols)

    def drawn(std: float, shape: tuple[int, ...], what: str) -> Tensor:
        return normal(shape, (*key, "mismatch", what), weight.device).to(weight.dtype) * std

    def by_line(std: float, what: str) -> Tensor:
        shape = (tile.slices, in_features, t_out)
        return drawn(std, shape, what).repeat_interleave(tile.cols, 2)[:, :, :out_features]

    if dac is not None and dac.offset_std:
        offset = _tile_sums(weight * by_line(dac.offset_std, "dac offset"), tile)
    if dac is not None and dac.gain_std:
        weight = weight * (1 + by_line(dac.gain_std, "dac gain"))
    columns = (tile.slices * t_in, out_features)
    if adc is not None and adc.gain_std:
        gain = 1 + drawn(adc.gain_std, columns, "adc gain")
        by_slice = gain.unflatten(0, (tile.slices, t_in)).repeat_interleave(tile.rows, 1)
        weight = weight * by_slice[:, :in_features]
        offset = None if offset is None else offset * gain
    if adc is not None and adc.offset_std:
        own = drawn(adc.offset_std, columns, "adc offset")
        offset = own if offset is None else offset + own
    return weight, offset


def read_variance(
    cells: Tensor, noise: CellNoise | None, hardware: Hardware, fault_map: Tensor | None = None
) -> Tensor | None:
    """Variance of white read noise of cells ``[K, I, O]`` (µS) in unit outputs squared: see `Readout.variance`.

    Cells that carry no current, open ones of ``fault_map``, make no noise.
    """
    if noise is None or noise.constant == noise.relative == 0:
        return None
    is_open = None if fault_map is None else fault_map == Fault.OPEN
    each = cell_variance(cells, noise, hardware, is_open)
    return of_columns(each, noise, hardware, is_open is not None and bool(is_open.any()))


def cell_variance(cells: Tensor, noise: CellNoise, hardware: Hardware, is_open: Tensor | None) -> Tensor:
    """Variance of each weight's white noise, ``[S, I, O]``, unit outputs squared, of cells ``[K, I, O]`` (µS)."""
    tile = hardware.tile
    each = cells.square().mul_(noise.relative**2).add_(noise.constant**2)
    if is_open is not None:
        each.masked_fill_(is_open, 0.0)
    each = each.view(tile.signs * tile.pairs, tile.slices, *cells.shape[1:]).sum(0)
    return each.div_((tile.pairs * span(hardware.device)[1]) ** 2)


def of_columns(each: Tensor, noise: CellNoise, hardware: Hardware, any_open: bool) -> Tensor:
    """`Readout.variance` of the variance of each weight ``[S, I, O]``: the mean of columns where that is enough."""
    alike = noise.relative == 0 and not any_open
    if noise.form == "exact" and not alike:
        return each
    rows = hardware.tile.rows
    lines = F.pad(each.new_ones(each.shape[1]), (0, -each.shape[1] % rows)).view(-1, rows).sum(1)
    return _tile_sums(each, hardware.tile) / lines.repeat(hardware.tile.slices).unsqueeze(1)


def folded(weight: Tensor, scales: Tensor, rows: int) -> Tensor:
    """Slices ``[S, I, O]`` shifted, added and scaled by ``[S T_in, O]``: the weight ``[I, O]``, in weight units."""
    by_row = scales.unflatten(0, (weight.shape[0], -1)).repeat_interleave(rows, 1)[:, : weight.shape[1]]
    product: Tensor = weight * by_row
    return product.sum(0) if len(weight) > 1 else product[0]


def _tile_sums(cells: Tensor, tile: Tile) -> Tensor:
    """Sums of ``[S, I, O]`` over the word lines of each row tile, ``[T, O]``."""
    padded = F.pad(cells, (0, 0, 0, -cells.shape[1] % tile.rows))
    return padded.view(-1, tile.rows, cells.shape[2]).sum(1)
