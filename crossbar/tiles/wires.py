"""Cells as columns see them through wires: the transfer matrix of each tile in the place of its conductances.

For any input the currents of a tile with wires are a product with one matrix (`crossbar.circuit.currents`). It is found
when cells are read at an age, so that reads cost what they cost without wires.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor

from crossbar.circuit.currents import Solver, transfer_matrix
from crossbar.circuit.ladders import rows_alone
from crossbar.hardware import Hardware, Wire

_MOST_KEPT = 2**28  # bytes of matrices that were found last, such as those of one model at the two times of a fit

_kept: OrderedDict[bytes, Tensor] = OrderedDict()
_keeping = threading.Lock()


class Placement(NamedTuple):
    """Where the lines of a tile lie.

    Attributes:
        rows: place of each input's word line in its tile, 0 at the top, int64 ``[T_out, I]``.
        columns: place of each output's bit line in its tile, 0 at the left, int64 ``[T_in, O]``.
    """

    rows: Tensor
    columns: Tensor


def resistive(hardware: Hardware) -> bool:
    """Whether any wire has a resistance."""
    return hardware.wire is not None and (hardware.wire.r_row > 0 or hardware.wire.r_col > 0)


def are_places(places: Tensor, tiles: int, lines: int, size: int) -> bool:
    """Whether places of lines, int64 ``[tiles, lines]``, have each place of each tile of ``size`` lines once."""
    if places.dtype != torch.int64 or places.shape != (tiles, lines):
        return False
    found = torch.cat([piece.sort(1).values for piece in places.split(size, 1)], 1)
    return torch.equal(found, (torch.arange(lines, device=places.device) % size).expand(tiles, -1))


def seen(cells: Tensor, hardware: Hardware, placement: Placement | None = None, alone: bool = False) -> Tensor:
    """What columns see of cells ``[K, I, O]`` (µS): their conductances if wires are ideal, else transfer matrices.

    A tile at an uneven edge has the lines that it uses, next to drivers and amplifiers. The last matrices are kept by
    the content of their cells, so that a chip which goes back to an age is not solved again. ``alone``: each read opens
    a single row of a tile, which has a closed form.
    """
    if not resistive(hardware) or cells.numel() == 0:
        return cells
    if alone:
        return _solved(cells, hardware, placement, alone)
    key = _content(cells, hardware, placement)
    with _keeping:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key].to(cells.device, copy=True)
    found = _solved(cells, hardware, placement, alone)
    with _keeping:
        _kept[key] = found.to("cpu", copy=True)
        while sum(each.numel() * each.element_size() for each in _kept.values()) > _MOST_KEPT:
            _kept.popitem(last=False)
    return found


def _solved(cells: Tensor, hardware: Hardware, placement: Placement | None, alone: bool) -> Tensor:
    wire, tile = hardware.wire, hardware.tile
    assert wire is not None
    places, (inputs, outputs) = tile.signs * tile.pairs, cells.shape[1:]
    found = torch.empty_like(cells)
    for t_in, top in enumerate(range(0, inputs, tile.rows)):
        lines = slice(top, top + tile.rows)
        row, into = cells[:, lines], found[:, lines]
        full = outputs // tile.cols * tile.cols
        for first, last in ((0, full), (full, outputs)):
            if last == first:
                continue
            size = min(tile.cols, last - first)
            tiles = row[:, :, first:last].unflatten(2, (-1, size)).permute(2, 0, 1, 3)  # [n, K, R, C]
            order = None if placement is None else _order(placement, lines, t_in, slice(first, last), size, tile.cols)
            if order is not None:
                tiles = tiles.take_along_dim(order[0], 2).take_along_dim(order[1], 3)
            planes = tiles.unflatten(1, (places, tile.slices)).transpose(1, 2)  # [n, S, planes, R, C]
            matrices = _alone(planes, wire) if alone else _together(planes, wire)
            matrices = matrices.transpose(1, 2).flatten(1, 2)
            if order is not None:
                matrices = matrices.take_along_dim(order[0].argsort(2), 2).take_along_dim(order[1].argsort(3), 3)
            into[:, :, first:last] = matrices.permute(1, 2, 0, 3).flatten(2)
    return found


def _together(planes: Tensor, wire: Wire) -> Tensor:
    """Transfer matrices of planes ``[..., K, R, C]`` whose rows all are open."""
    solver: Solver | None = "first_order" if wire.solution == "first_order" else None
    return transfer_matrix(
        planes, wire.r_row, wire.r_col, drive=wire.drive, sense=wire.sense, layout=wire.layout, solver=solver
    )


def _alone(planes: Tensor, wire: Wire) -> Tensor:
    """What each row of planes ``[..., K, R, C]`` gives while the others are closed."""
    both, top = wire.drive == "both", wire.sense == "top"
    if wire.layout == "separate":
        return rows_alone(planes, wire.r_row, wire.r_col, both, top)
    beside = planes.movedim(-3, -1)
    found = rows_alone(beside.flatten(-2), wire.r_row, wire.r_col, both, top)
    planes = found.unflatten(-1, beside.shape[-2:]).movedim(-1, -3)
    return planes


def _order(
    placement: Placement, lines: slice, t_in: int, columns: slice, size: int, cols: int
) -> tuple[Tensor, Tensor]:
    """Which line lies at each place, of word lines ``[n, 1, R, 1]`` and of bit lines ``[n, 1, 1, C]``."""
    first = columns.start // cols
    bit = placement.columns[t_in, columns].view(-1, size).argsort(1)
    word = placement.rows[first : first + len(bit), lines].argsort(1)
    return word[:, None, :, None], bit[:, None, None, :]


def _content(cells: Tensor, hardware: Hardware, placement: Placement | None) -> bytes:
    """A key of all that a result depends on."""
    tile = hardware.tile
    layout = (hardware.wire, tile.rows, tile.cols, tile.signs, tile.pairs, tile.slices, cells.shape, cells.dtype)
    digest = hashlib.blake2b(repr(layout).encode(), digest_size=32)
    for part in (cells, *(placement or ())):
        digest.update(part.detach().cpu().contiguous().numpy().data)
    return digest.digest()
