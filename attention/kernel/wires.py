"""Sums of rows that a query opens, through wires: the circuit is another one for each query and tile.

The cells of closed rows are disconnected, so what a row's cells give depends on which others are open. The first order
(`crossbar.circuit.ladders`) takes word lines, which depend on nothing but a row's own cells, once for all queries, and
a step of each bit line for each row that a query opens. ``Wire(solution="exact")`` solves the whole circuit for each
query and tile. The score stage drives the bit lines from the amplifiers' end and senses the word lines at their
drivers: by reciprocity with the same matrix.

A tile has all its word lines, of which those without a token are closed, and of its bit lines those that the head uses.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attention.kernel.token_rows import TokenRows
from crossbar.circuit import ladders
from crossbar.circuit.currents import transfer_matrix
from crossbar.devices import span
from crossbar.errors import InputError
from crossbar.hardware import Hardware, Wire
from crossbar.native.sizes import at_once
from crossbar.tiles.wires import resistive

_SIZE = 2**16  # numbers of a step along bit lines: 256 KiB of float32, so that a few of them stay in cache
_MOST = 2**26  # of all steps that are kept for the way back
_SOLVED = 2**22  # cells of circuits that are solved at once


class OpenTile(NamedTuple):
    """Some rows of P tiles, and which of them each of R queries opens.

    Attributes:
        planes: as `prepared` gives them, each [P, L, K, C].
        lines: each row's word line in its tile, int64 [P, L].
        opened: bool [P, R, L]; None: all.
        hardware: geometry and wires.
    """

    planes: tuple[Tensor, ...]
    lines: Tensor
    opened: Tensor | None
    hardware: Hardware

    @property
    def wire(self) -> Wire:
        """Of the hardware."""
        return self.hardware.wire or Wire(0.0, 0.0)

    def part(self, tiles: slice, reads: slice) -> OpenTile:
        """Some of the tiles and of the queries."""
        opened = None if self.opened is None else self.opened[tiles, reads]
        return OpenTile(tuple(plane[tiles] for plane in self.planes), self.lines[tiles], opened, self.hardware)

    def ordered(self) -> tuple[OpenTile, Tensor | None, Tensor]:
        """The rows furthest from the amplifiers first, the order that this is (None: as it was), and the segments.

        Segments lead from each row to the next and from the last to the amplifier, [P, L].
        """
        top, rows = self.wire.sense == "top", self.hardware.tile.rows
        away = self.lines + 1 if top else rows - self.lines
        order: Tensor | None = None
        tile = self
        if bool((away.diff() > 0).any()):
            order = (-away).argsort(dim=1, stable=True)
            away = away.gather(1, order)
            planes = tuple(plane.take_along_dim(order[..., None, None], 1) for plane in self.planes)
            opened = None if self.opened is None else self.opened.take_along_dim(order[:, None], 2)
            tile = OpenTile(planes, self.lines.gather(1, order), opened, self.hardware)
        return tile, order, -torch.diff(away, append=away.new_zeros(len(away), 1))


def prepared(rows: TokenRows, hardware: Hardware) -> tuple[Tensor, ...]:
    """What sums through wires need of rows, each [B, H_kv, N, K, D], digits or ratios; nothing where wires are ideal.

    First order: what each cell loads a bit line with, and its current per volt of the driver, digits with a sign.
    Exact: conductances, µS.

    Raises:
        InputError: for rows that do not know their cells.
    """
    cells, wire = rows.cells, hardware.wire
    if wire is None or not resistive(hardware):
        return ()
    if cells is None:
        raise InputError("rows without conductances have no circuit: give TokenRows(cells=...), or no hardware.wire")
    if wire.solution == "exact":
        return (cells.movedim(0, 3),)
    planes, columns = cells.movedim(0, 3), hardware.tile.cols
    driven = []
    for part in planes.split(columns, 4):
        beside = wire.layout == "interleaved"
        lines = part.transpose(3, 4).flatten(3) if beside else part
        found = ladders.word_lines(lines, wire.r_row, wire.drive == "both")
        driven.append(found.unflatten(3, (part.shape[4], part.shape[3])).transpose(3, 4) if beside else found)
    return planes * (wire.r_col * 1e-6), torch.cat(driven, 4) * _signs(len(cells), hardware, cells)


def score_sums(drives: Tensor, tile: OpenTile) -> Tensor:
    """What the word lines of opened rows carry, [P, R, L], under drives of the bit lines [P, R, C], unit outputs.

    What closed rows get is no number of any circuit.
    """
    tile, order, segments = tile.ordered()
    found = drives.new_empty(*drives.shape[:2], tile.lines.shape[1])
    for tiles, reads in _pieces(found, tile):
        part, volts = tile.part(tiles, reads), drives[tiles, reads]
        if tile.wire.solution == "exact":
            matrix = _exact(part, volts.shape[1])
            found[tiles, reads] = (matrix @ volts.unsqueeze(3))[..., 0]
            continue
        load, driven = (plane.flatten(2) for plane in part.planes)
        wide = volts.repeat(1, 1, part.planes[0].shape[2])
        found[tiles, reads] = ladders.reached(load, driven, part.opened, wide, segments[tiles].to(load.dtype))
    return found if order is None else torch.empty_like(found).scatter_(2, order[:, None].expand_as(found), found)


def value_sums(drives: Tensor, tile: OpenTile) -> Tensor:
    """What the bit lines carry, [P, R, C], under drives of the rows [P, R, L], unit outputs; closed rows have none."""
    tile, order, segments = tile.ordered()
    if order is not None:
        drives = drives.take_along_dim(order[:, None], 2)
    if tile.opened is not None:
        drives = drives * tile.opened
    count, columns = tile.planes[0].shape[2:]
    found = drives.new_empty(*drives.shape[:2], columns)
    for tiles, reads in _pieces(drives, tile):
        part, volts = tile.part(tiles, reads), drives[tiles, reads]
        if tile.wire.solution == "exact":
            found[tiles, reads] = (volts.unsqueeze(2) @ _exact(part, volts.shape[1]))[:, :, 0]
            continue
        load, driven = (plane.flatten(2) for plane in part.planes)
        currents = ladders.collected(load, driven, part.opened, volts, segments[tiles].to(load.dtype))
        found[tiles, reads] = currents.unflatten(2, (count, columns)).sum(2)
    return found


def _pieces(like: Tensor, tile: OpenTile) -> Iterator[tuple[slice, slice]]:
    """Parts of ``like`` [P, R, L] that are worked on at once."""
    tiles, reads, rows = like.shape
    cells = tile.planes[0].shape[2:].numel()  # of a row
    if tile.wire.solution == "exact":
        most = _SOLVED // (cells * tile.hardware.tile.rows)
    elif ladders.is_compiled(tile.planes[0]):
        most = tiles * reads  # which keep nothing
    else:
        most = min(at_once(_SIZE, like.device), _MOST // rows) // cells
    together, height = max(most // reads, 1), max(min(most, reads), 1)
    for first in range(0, tiles, together):
        for low in range(0, reads, height):
            yield slice(first, first + together), slice(low, low + height)


def _exact(tile: OpenTile, reads: int) -> Tensor:
    """The transfer matrix of the rows that each query opens, [P, R, L, C], unit outputs."""
    cells, wire, rows = tile.planes[0], tile.wire, tile.hardware.tile.rows
    arrays, (count, columns) = len(cells), cells.shape[2:]
    connected = cells.unsqueeze(1).expand(-1, reads, -1, -1, -1)
    if tile.opened is not None:
        connected = connected * tile.opened[..., None, None]
    place = tile.lines[:, None, :, None, None].expand(connected.shape)
    whole = cells.new_zeros(arrays, reads, rows, count, columns).scatter_add_(2, place, connected)
    whole = whole.transpose(2, 3)
    matrix = transfer_matrix(whole, wire.r_row, wire.r_col, drive=wire.drive, sense=wire.sense, layout=wire.layout)
    signed = (matrix * _signs(count, tile.hardware, cells).unsqueeze(2)).sum(2)
    return signed.take_along_dim(tile.lines[:, None, :, None], 2)


def _signs(count: int, hardware: Hardware, like: Tensor) -> Tensor:
    """Digits that 1 µS of each of K planes is worth, [K, 1]."""
    sign = torch.ones(count, 1, dtype=like.dtype, device=like.device)
    sign[count // 2 :] = -1.0
    return sign / (count // 2 * span(hardware.device)[1])
