"""Defects of a chip: cells that do not take their target, and spare columns that stand in for the worst."""

from __future__ import annotations

from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from crossbar.hardware import Faults, Tile
from crossbar.random.streams import Key, uniform


class Fault(IntEnum):
    """What a cell does instead of holding its target: codes of a fault map."""

    NONE = 0
    STUCK_MIN = 1  # the least conductance
    STUCK_MAX = 2  # g_max
    SHORT = 3  # Faults.short_conductance
    OPEN = 4  # in a broken row or column: no current


def draw(faults: Faults, tile: Tile, in_features: int, out_features: int, key: Key, device: torch.device) -> Tensor:
    """A fault map, uint8 codes of `Fault`, ``[K, I, O]`` as `crossbar.tiles.mapping` lays them out, seeded by ``key``.

    A broken word line takes all its cells in one tile, a broken column all of its in one tile.
    """
    rows, cols, planes = tile.rows, tile.cols, tile.signs * tile.pairs
    t_in, t_out = -(-in_features // rows), -(-out_features // cols)
    key = (faults.seed, *key, "faults")
    columns = _cells(faults, (tile.slices, t_in, t_out, cols, planes, rows), (*key, "cells"), device)
    lines = uniform((tile.slices, t_in, t_out, 1, 1, rows), (*key, "rows"), device) < faults.broken_rows
    columns.masked_fill_(lines, Fault.OPEN)
    if faults.spare_cols:
        # Absent cells have no faults: no spare stands in for them or is turned down for them.
        absent_lines = torch.arange(t_in * rows, device=device).view(t_in, 1, 1, 1, rows) >= in_features
        absent_columns = torch.arange(t_out * cols, device=device).view(t_out, cols, 1, 1) >= out_features
        columns.masked_fill_(absent_lines | absent_columns, Fault.NONE)
        spares = _cells(faults, (tile.slices, t_in, t_out, faults.spare_cols, planes, rows), (*key, "spares"), device)
        spares.masked_fill_(lines, Fault.OPEN).masked_fill_(absent_lines, Fault.NONE)
        _replace_worst(columns, spares)
    cells = columns.permute(4, 0, 1, 5, 2, 3).reshape(planes, tile.slices, t_in * rows, t_out * cols)
    return cells[:, :, :in_features, :out_features].reshape(-1, in_features, out_features).contiguous()


def apply(fault_map: Tensor, cells: Tensor, g_min: float, g_max: float, short_conductance: float) -> Tensor:
    """Conductances (µS) with the faulty cells at what their fault gives."""
    values = cells.new_tensor([0.0, g_min, g_max, short_conductance, 0.0])
    return torch.where(fault_map == Fault.NONE, cells, F.embedding(fault_map.int(), values.unsqueeze(1)).squeeze(-1))


def around(fault_map: Tensor, targets: Tensor, g_min: float, g_max: float, short_conductance: float) -> Tensor:
    """Targets (µS) of pairs of cells ``[K, r, O]`` in which the good cell makes up for the faulty one.

    What a pair's G⁺ - G⁻ misses is left to its good cell, within the window. Of cells stuck at g_max this keeps the
    weights that the pair can still give: those of the stuck cell's sign, and 0 for the others. Mappings with inner
    fault tolerance (Xia et al., IEEE JETCAS 8, 102, 2018) do so, and search for better ones.

    Args:
        fault_map: codes of `Fault` of the same cells, ``[K, r, O]``, G⁺ before G⁻.
    """
    codes, pairs = fault_map.unflatten(0, (2, -1)), targets.unflatten(0, (2, -1))
    held = apply(fault_map, targets, g_min, g_max, short_conductance).unflatten(0, (2, -1))
    missed = (held[0] - held[1]) - (pairs[0] - pairs[1])
    written = torch.stack((pairs[0] - missed, pairs[1] + missed)).clamp_(g_min, g_max)
    return torch.where(codes == Fault.NONE, written, pairs).flatten(0, 1)


def _cells(faults: Faults, shape: tuple[int, ...], key: Key, device: torch.device) -> Tensor:
    """Codes by column, ``[S, T_in, T_out, C, planes, R]``, with broken columns."""
    chance = uniform(shape, key, device)
    limits = torch.tensor([faults.stuck_min, faults.stuck_max, faults.shorts], device=device).cumsum(0)
    kinds = torch.tensor([Fault.STUCK_MIN, Fault.STUCK_MAX, Fault.SHORT, Fault.NONE], dtype=torch.uint8, device=device)
    codes = kinds[torch.bucketize(chance, limits, right=True)]
    broken = uniform(shape[:4], (*key, "columns"), device) < faults.broken_cols
    return codes.masked_fill_(broken[..., None, None], Fault.OPEN)


def _replace_worst(columns: Tensor, spares: Tensor) -> None:
    """Put the best spares in the place of the worst columns of their tile, where that lowers the number of faults."""
    count = min(spares.shape[3], columns.shape[3])
    worst = (columns != Fault.NONE).flatten(4).sum(4).topk(count, dim=3)
    best = (spares != Fault.NONE).flatten(4).sum(4).topk(count, dim=3, largest=False)

    def expanded(index: Tensor) -> Tensor:
        return index[..., None, None].expand(-1, -1, -1, -1, *columns.shape[4:])

    candidates = spares.gather(3, expanded(best.indices))
    present = columns.gather(3, expanded(worst.indices))
    better = (best.values < worst.values)[..., None, None]
    columns.scatter_(3, expanded(worst.indices), torch.where(better, candidates, present))
