"""What comparators at analog K rows see of queries, and what screening takes in a ledger.

All rows are open, and nothing is converted: a query drives the columns through its DAC, and each row's line carries its
key's cells with their errors, age and read noise, and with the drop along wires. A line's reference is divided by the
row's scale, where rows have scales of their own. While a call of several queries screens, all of its rows load the
wires, those of later tokens too.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from attention.kernel.token_rows import TokenRows
from attention.kernel.wires import OpenTile, prepared, score_sums
from attention.patterns.base import Pattern
from attention.patterns.screening import Lines, Screen, Screening, Spiking
from crossbar.backends.converters import drive
from crossbar.costs.ledger import book, book_later, counting
from crossbar.hardware import Hardware
from crossbar.random.streams import Key, Stream

_MOST_HEADS = 2**16


@torch.no_grad()
def lines_of_rows(
    q: Tensor,
    keys: TokenRows,
    hardware: Hardware,
    key: Key,
    read: Key,
    *,
    offset: int = 0,
    real: Tensor | None = None,
    asking: Tensor | None = None,
    position: Tensor | None = None,
    places: tuple[Tensor, Tensor] | None = None,
    within: Pattern | None = None,
    numbers: tuple[Tensor, Tensor] | None = None,
) -> Lines:
    """The lines of K rows under queries.

    Args:
        q: queries [B, H, N_queries, D], with the scales of channels, where keys have these.
        keys: the rows, M of them.
        hardware: the DAC, read noise, wires and geometry.
        key: of the comparators' offsets.
        read: of the noise of this read.
        offset, real, asking, position, within, numbers: see `attention.patterns.screening.Lines`.
        places: tile and line of each row, int64 [M]; None: rows fill tiles in order.
    """
    tile, line = places or (None, None)
    lines = Lines(
        q, q, offset, real, asking, position, tile, line, hardware.tile.rows,
        key=key, within=within, numbers=numbers,
    )  # fmt: skip
    lines = replace(lines, k=keys.digits)  # whose places say where rows are
    if keys.cells is not None:
        lines = replace(lines, k=_through_wires(keys, hardware, lines))
    scale = keys.scale.to(keys.digits.dtype)
    flat = q.detach().to(keys.digits.dtype)
    largest = None
    if hardware.dac is not None and hardware.dac.range == "per_token":
        largest = flat.abs().amax(-1, keepdim=True).clamp_(min=torch.finfo(flat.dtype).tiny).view(-1, 1)
    found = drive(flat.reshape(-1, q.shape[3]), hardware.dac, largest)
    volts = (found.codes * found.unit).view_as(flat)
    full_scale = found.full_scale
    if isinstance(full_scale, Tensor):
        full_scale = full_scale.view(*q.shape[:3], 1) if full_scale.dim() else full_scale
    noise = None
    if hardware.output_noise or keys.variance is not None:
        parts = -(-q.shape[3] // hardware.tile.cols)
        size = torch.as_tensor(full_scale, dtype=flat.dtype, device=q.device).expand(*q.shape[:3], 1)
        noise = _Noise(volts, size, keys.variance, scale, hardware.output_noise * parts**0.5, read, lines)
    return replace(lines, q=volts * full_scale, k=lines.k * scale, noise=noise)


class _Noise:
    """Read noise of lines, in units of q · k: see `Lines.noise`.

    Each line has its amplifiers' and its cells' white noise. Number ``(query, tile, line)`` of a head and phase has a
    place of its own, whatever pieces it is made in.
    """

    def __init__(
        self,
        volts: Tensor,
        full_scale: Tensor,
        variance: Tensor | None,
        scale: Tensor,
        output: float,
        read: Key,
        lines: Lines,
    ) -> None:
        self._volts, self._full_scale, self._variance, self._scale = volts, full_scale, variance, scale
        self._output, self._read, self._rows = output, read, lines.rows
        self._tile, self._line = lines.places
        self._tiles = int(self._tile.max()) + 1
        self._group = volts.shape[1] // scale.shape[1]

    def __call__(self, sequence: int, heads: tuple[int, ...], first: int, last: int, phase: int) -> Tensor:
        """Numbers [H, C, M] of some query heads and queries."""
        own = torch.tensor(heads, device=self._volts.device)
        shared = own // self._group
        device = self._volts.device
        stream = Stream((*self._read, "coarse", phase), device)
        number = (own + sequence * _MOST_HEADS)[:, None].expand(-1, last - first).contiguous()
        row = torch.arange(first, last, device=device)[None] * self._tiles
        normals = stream.scattered(number, row, self._tile[None], self._line[None], self._rows)
        size = normals.new_full((), self._output)
        if self._variance is not None:
            volts = self._volts[sequence, own, first:last].square()
            spread = volts @ self._variance[sequence, shared].transpose(1, 2)
            size = spread.add_(self._output**2).sqrt_()
        scale = self._scale[sequence, shared].transpose(1, 2)  # [H, 1, M]
        return normals.mul(size).mul_(scale).mul_(self._full_scale[sequence, own, first:last])


def _through_wires(keys: TokenRows, hardware: Hardware, lines: Lines) -> Tensor:
    """Digits as lines see them with all rows open, [B, H_kv, M, D]."""
    planes, columns = prepared(keys, hardware), hardware.tile.cols
    line = lines.places[1]
    found = torch.empty_like(keys.digits)
    batch, heads, count, size = found.shape
    for rows in lines.by_tile():
        here = rows[rows < count]
        own = line[here].repeat(batch * heads, 1)
        for low in range(0, size, columns):
            high = min(low + columns, size)
            parts = tuple(plane[:, :, here, :, low:high].flatten(0, 1) for plane in planes)
            one = torch.eye(high - low, dtype=found.dtype, device=found.device).expand(batch * heads, -1, -1)
            seen = score_sums(one, OpenTile(parts, own, None, hardware))
            found[:, :, here, low:high] = seen.transpose(1, 2).unflatten(0, (batch, heads))
    return found


def book_screening(layer: str, taken: dict[Screening, Tensor], head_dim: int, hardware: Hardware | None) -> None:
    """Book in open ledgers what the first stage took.

    Args:
        layer: whose it is.
        taken: `Screen` of each screening, as `attention.patterns.screening.screen` gives it.
        head_dim: D.
        hardware: geometry and DAC; None: tiles of 256 columns, of converters nobody knows.
    """
    if not counting():
        return
    columns = 256 if hardware is None else hardware.tile.cols
    pairs = 1 if hardware is None else hardware.tile.pairs
    dac = None if hardware is None or hardware.dac is None else hardware.dac.bits
    across = -(-head_dim // columns)
    for screening, counts in taken.items():
        phases, bits = screening.phases, 1 if screening.serial else dac
        pulse = screening.bits if isinstance(screening, Spiking) and screening.serial else dac

        def booked(
            numbers: list[int], phases: int = phases, bits: int | None = bits, pulse: int | None = pulse
        ) -> None:
            found = Screen(*numbers)
            for name, number, own in (
                ("query_drives", phases * head_dim * found.tiles, None),
                ("dac_conversions", phases * head_dim * found.tiles, bits),
                ("column_activations", across * found.pairs, None),
                ("cell_macs", phases * head_dim * pairs * found.pairs, None),
                ("tile_reads", phases * across * found.tiles, None),
                ("screening_reads", phases * across * found.tiles, None),
                ("screening_queries", found.queries, pulse),
                ("screening_drives", phases * found.queries, pulse),
                ("screened_pairs", found.pairs, None),
                ("row_spikes", found.spikes, None),
                ("comparisons", found.comparisons, None),
                ("ramp_steps", found.ramp_steps, None),
                ("waited_comparisons", found.waited, None),
            ):
                if number:
                    book(layer, name, number, own)

        book_later(layer, counts, booked)
