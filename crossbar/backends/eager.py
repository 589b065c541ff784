"""The torch backend: it honours everything, has gradients, and runs on any device; the others are tested against it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from crossbar.backends.converters import Drive, bent, bit_planes, convert, drive, found_range
from crossbar.backends.protocol import REDRAWN, AgedRows, Columns, Product, Read, Work
from crossbar.devices import RedrawDevice, span
from crossbar.features import CELLS, CONVERTERS, MISMATCH, NOISES, WIRES
from crossbar.hardware import CellNoise, Converter, Hardware
from crossbar.native.sizes import at_once
from crossbar.random.streams import Stream
from crossbar.tiles.mapping import cell_weights
from crossbar.tiles.readout import Readout, folded

_VECTORS = 128  # input vectors worked on at once, at least, so that products stay efficient ...
_PARTIALS = 2**18  # ... or this many partial sums: 1 MiB of float32, so that what comes after them stays in cache


@dataclass(frozen=True)
class Eager:
    """Floating point, an operation of torch at a time; `crossbar.backends.naive` is a slow transcription of it."""

    name: str = "eager"
    honours: frozenset[str] = CELLS | CONVERTERS | MISMATCH | NOISES | WIRES

    def refuses(self, work: Work, device: torch.device, dtype: torch.dtype, gradient: bool) -> str | None:
        """Rows of any age of a device that has no state apart from its time."""
        return REDRAWN if isinstance(work, AgedRows) and isinstance(work.device, RedrawDevice) else None

    def multiply(self, read: Read) -> Tensor:
        """`crossbar.backends.protocol.Backend.multiply`."""
        x, cells, hardware, input_range, noise, _ = read
        if _digital(cells, hardware, noise):
            # Nothing happens between a column and the digital sum: the row tiles are one product.
            driven = _drive(x, hardware, input_range, noise)
            y = driven.codes @ folded(cells.weight, cells.scales, hardware.tile.rows)
            return _finish(y.mul_(driven.unit), driven, cells, hardware)
        if input_range is None and hardware.dac is not None:
            input_range = found_range(x, hardware.dac)
        cells = replace(cells, digits=cells.weight)
        size = at_once(max(_VECTORS, _PARTIALS // cells.scales.numel()), x.device)
        parts, whole = [], None if torch.is_grad_enabled() else x.new_empty(len(x), cells.weight.shape[2])
        for first in range(0, max(len(x), 1), size):
            piece = slice(first, first + size)
            spans = input_range[piece] if input_range is not None and input_range.dim() else input_range
            driven = _drive(x[piece], hardware, spans, noise, first)
            columns, step = self._layer(driven, cells, hardware, noise, first, len(x))
            columns = columns.mul_((cells.scales * step).unsqueeze(1))
            part = columns.sum(0) if whole is None else torch.sum(columns, 0, out=whole[piece])
            parts.append(_finish(part, driven, cells, hardware))
        return whole if whole is not None else parts[0] if len(parts) == 1 else torch.cat(parts)

    def read_columns(self, read: Read) -> Tensor:
        """`crossbar.backends.protocol.Backend.read_columns`."""
        x, cells, hardware, input_range, noise, _ = read
        # Sums in float64: what their order changes is far below a step of any converter.
        offset, variance, ranges = map(_double, (cells.offset, cells.variance, cells.adc_range))
        wide = replace(cells, digits=cells.weight.double(), offset=offset, variance=variance, adc_range=ranges)
        driven = _drive(x, hardware, input_range, noise)
        y, step = self._layer(driven._replace(codes=driven.codes.double()), wide, hardware, noise, 0, len(x))
        return y.mul_(step).mul_(driven.full_scale).to(x.dtype)

    def sense(self, columns: Columns) -> Tensor:
        """`crossbar.backends.protocol.Backend.sense`."""
        adc, sigma, step = columns.hardware.adc, columns.hardware.output_noise, columns.step
        like = columns.products[0].codes
        # The product adds itself onto the noise, in ADC steps at once: one pass for multiplying, adding and scaling.
        if columns.normals is None or (sigma == 0 and columns.variance is None):
            y, beta = like.new_empty(columns.shape), 0.0
        else:
            y, beta = columns.normals().to(like.dtype), sigma / step
            if columns.variance is not None:
                y, beta = y.mul_(columns.variance.add_(sigma**2).sqrt_()), 1 / step
        if columns.offset is not None:
            offset = (columns.offset / step).unsqueeze(1)
            y, beta = (torch.add(offset, y, alpha=beta) if beta else offset.expand(columns.shape).clone()), 1.0
        for place, codes, cells in columns.products:
            sums = y if place is None else y[place]
            multiply = sums.addmm_ if codes.dim() == 2 else sums.baddbmm_
            multiply(codes, cells, beta=beta, alpha=columns.unit / step)
        if adc is None:
            return y
        if columns.spans is None:
            return convert(y, adc)
        if torch.is_grad_enabled():
            return convert(y / columns.spans, adc) * columns.spans
        return convert(y.div_(columns.spans), adc).mul_(columns.spans)

    def age_rows(self, rows: AgedRows) -> tuple[Tensor, Tensor | None]:
        """`crossbar.backends.protocol.Backend.age_rows`."""
        hardware, cells = rows.hardware, rows.conductances()
        tile, width = hardware.tile, span(hardware.device)[1]
        variance = _pair_variance(cells, hardware.read_noise, tile.pairs * width)
        return cell_weights(cells, tile, width)[0], variance

    def _layer(
        self, driven: Drive, cells: Readout, hardware: Hardware, noise: Stream | None, first: int, vectors: int
    ) -> tuple[Tensor, float]:
        """Converted columns ``[T, B, O]`` of word-line codes, and the unit outputs that 1 of them stands for.

        The codes are those of input vectors from the ``first`` on, of so many.
        """
        dac = hardware.dac
        if dac is None or dac.coding != "bit_serial":
            columns = of_layer(driven.codes, driven.unit, cells, hardware, noise, first)
            return self.sense(columns), columns.step
        total: Tensor | None = None
        for place, plane in enumerate(bit_planes(driven.codes, dac)):
            columns = of_layer(plane, 1.0, cells, hardware, noise, place * vectors + first)
            y = self.sense(columns).mul_(columns.step * driven.unit * 2**place)
            total = y if total is None else total.add_(y)
        assert total is not None
        if torch.is_grad_enabled() and driven.codes.requires_grad:
            fixed = cells.adc_range if cells.adc_range is None else cells.adc_range.detach()
            cells = replace(cells, digits=cells.weight.detach(), adc_range=fixed)  # these have theirs from the bits
            columns = of_layer(driven.codes, driven.unit, cells, hardware, None)
            whole = self.sense(columns) * columns.step
            total = total + (whole - whole.detach())  # bits of the input have no gradient: that of the whole pulse
        return total, 1.0


def of_layer(
    codes: Tensor, unit: float, cells: Readout, hardware: Hardware, noise: Stream | None, first: int = 0
) -> Columns:
    """The columns of a layer's tiles, ``[T, B, O]``, under word-line codes ``[B, I]``.

    ``first``: how many input vectors' random numbers come before.
    """
    adc, rows, slices = hardware.adc, hardware.tile.rows, len(cells.weight)
    shape = (len(cells.scales), len(codes), cells.weight.shape[2])
    own_ranges = adc is not None and (cells.adc_range is not None or adc.range == "active_rows")
    variance = None
    if noise is not None and cells.variance is not None:
        variance = _cell_variance(codes.detach() * unit, cells, rows)
    return Columns(
        products=tuple(_products(codes, cells.weight, rows)),
        shape=shape,
        unit=unit,
        hardware=hardware,
        step=adc.full_scale / adc.levels if adc is not None and not own_ranges else 1.0,
        spans=_spans(codes, cells, adc, rows, slices) if adc is not None and own_ranges else None,
        normals=None if noise is None else partial(noise.columns, *shape, first=first),
        variance=variance,
        offset=cells.offset,
    )


def _spans(codes: Tensor, cells: Readout, adc: Converter, rows: int, slices: int) -> Tensor:
    """Unit outputs that a code of each column's ADC stands for; broadcasts to ``[T, B, O]``."""
    ranges = adc.full_scale if cells.adc_range is None else cells.adc_range
    if isinstance(ranges, Tensor) and ranges.dim():
        ranges = ranges.unsqueeze(1)
    if adc.range == "active_rows":
        ranges = ranges * _active_share(codes, rows).repeat(slices, 1).unsqueeze(-1)
    assert isinstance(ranges, Tensor)
    return ranges / adc.levels


def _products(codes: Tensor, weight: Tensor, rows: int) -> Iterator[Product]:
    """Products of codes ``[B, I]`` with the row tiles of digits ``[S, I, O]``, for columns ``[T, B, O]``."""
    full, rest = divmod(codes.shape[1], rows)
    driven = codes[:, : full * rows].unflatten(1, (full, rows)).transpose(0, 1) if full else codes
    for index, cells in enumerate(weight):
        first = index * (full + bool(rest))
        if full:
            # A single slice of even tiles is accumulated without a view, for which autograd would copy all columns.
            place = None if len(weight) == 1 and not rest else slice(first, first + full)
            yield Product(place, driven, cells[: full * rows].unflatten(0, (full, rows)))
        if rest:
            yield Product(first + full, codes[:, full * rows :], cells[full * rows :])


def ideal_columns(x: Tensor, weight: Tensor, hardware: Hardware, input_range: Tensor | None = None) -> Tensor:
    """What ideal ADCs would deliver of cells without noise, digits ``[S, I, O]``: ``[T, B, O]`` as `read_columns`.

    Codes are whole numbers. Digits are rounded to a step so small that sums are whole numbers below 2^53 of it, which
    float64 holds exactly: the bits do not depend on the order of a sum, and so not on the number of threads.
    """
    driven, rows = drive(x, hardware.dac, input_range), hardware.tile.rows
    codes, digits = driven.codes.double(), weight.double()
    step = 1.0
    if hardware.dac is not None:
        largest = math.frexp(float(digits.abs().amax()))[1]
        step = 2.0 ** (largest + (hardware.dac.levels * rows).bit_length() - 53)
        digits = (digits / step).round_()
    columns = _summed(codes, digits, rows)
    return columns.mul_(step * driven.unit).mul_(driven.full_scale).to(x.dtype)


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()


def _digital(cells: Readout, hardware: Hardware, noise: Stream | None) -> bool:
    quiet = noise is None or (hardware.output_noise == 0 and cells.variance is None)
    return quiet and hardware.adc is None and cells.offset is None


def _finish(y: Tensor, driven: Drive, cells: Readout, hardware: Hardware) -> Tensor:
    """Digital sums ``[B, O]`` in activation units, without what the ``offset`` encoding adds."""
    if cells.bias_scales is not None:
        y = y.sub_(_row_sums(driven.codes, hardware.tile.rows) @ cells.bias_scales, alpha=driven.unit)
    return y.mul_(driven.full_scale)


def _drive(x: Tensor, hardware: Hardware, input_range: Tensor | None, noise: Stream | None, first: int = 0) -> Drive:
    """What word lines carry for input vectors ``[B, I]``, the ``first`` of so many."""
    driven = drive(x, hardware.dac, input_range)
    return driven._replace(codes=_pulses(bent(driven.codes, hardware), hardware, noise, first))


def _pulses(codes: Tensor, hardware: Hardware, noise: Stream | None, first: int) -> Tensor:
    """Codes as the word lines carry them: with the ``rate`` coding, the pulses that happen to come."""
    dac = hardware.dac
    if dac is None or dac.coding != "rate" or noise is None:
        return codes
    stream, size = Stream((*noise.key, "pulses"), codes.device), codes.detach().abs().nan_to_num_(0.0)
    counts = stream.binomial(size, dac.levels, first * codes.shape[1]) * codes.detach().sign()
    return codes + (counts - codes).detach()  # straight through; a NaN code stays NaN


def _cell_variance(drives: Tensor, cells: Readout, rows: int) -> Tensor:
    """Variance of the cells' white noise under drives ``[B, I]``, unit outputs squared; broadcasts to ``[T, B, O]``."""
    power, variance = drives.square(), cells.variance
    assert variance is not None
    if variance.dim() > 2:
        return _summed(power, variance, rows)
    return _row_sums(power, rows).t().repeat(len(cells.weight), 1).unsqueeze(2) * variance.unsqueeze(1)


def _summed(codes: Tensor, weight: Tensor, rows: int) -> Tensor:
    """Sums ``[T, B, O]`` of codes ``[B, I]`` over the row tiles of cells ``[S, I, O]``."""
    sums = codes.new_empty(len(weight) * -(-codes.shape[1] // rows), len(codes), weight.shape[2])
    for place, driven, cells in _products(codes, weight, rows):
        part = sums if place is None else sums[place]
        (part.addmm_ if driven.dim() == 2 else part.baddbmm_)(driven, cells, beta=0.0)
    return sums


def _pair_variance(cells: Tensor, noise: CellNoise | None, width: float) -> Tensor | None:
    """Variance of each number's white noise, in digits squared: that of its own cells ``[K, …]``."""
    if noise is None or noise.constant == noise.relative == 0:
        return None
    return cells.square().mul_(noise.relative**2).add_(noise.constant**2).sum(0).div_(width**2)


def _row_sums(x: Tensor, rows: int) -> Tensor:
    """Sums of ``[B, I]`` over the word lines of each row tile, ``[B, T_in]``."""
    missing = -x.shape[1] % rows
    return F.pad(x, (0, missing)).view(len(x), -(-x.shape[1] // rows), rows).sum(2)


def _active_share(codes: Tensor, rows: int) -> Tensor:
    """Root of the part of each tile's word lines that is driven, at least one line: ``[T_in, B]``."""
    active = _row_sums((codes.detach() != 0).to(codes.dtype), rows).clamp_(min=1.0)
    lines = codes.new_full((codes.shape[1],), 1.0).unsqueeze(0)
    return (active / _row_sums(lines, rows)).sqrt_().t()
