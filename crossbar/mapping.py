"""Weights to target conductances, and the shape of the tiles that hold them.

Compact form, used for computing: one cell a weight, ``[I, O]`` (word lines first), no padding. Tile form, used to look
at the chip: ``[T_out, T_in, R, C]``, where uneven edges hold absent cells (NaN).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from crossbar.errors import InputError
from crossbar.hardware import Tile

_SILENT = 1e-30  # weights below this are 0 to a cell, and g_max over them is beyond float32


def tile_grid(in_features: int, out_features: int, tile: Tile) -> tuple[int, int]:
    """Tiles along the outputs and along the inputs, ``(T_out, T_in)``."""
    return math.ceil(out_features / tile.cols), math.ceil(in_features / tile.rows)


def column_scales(weight: Tensor, tile: Tile, layer: str = "layer") -> Tensor:
    """Digital scales ``s``: the weight that a cell at g_max stands for, for each column of each row tile.

    Args:
        weight: ``[O, I]``.
        tile: geometry, and whether a column of a tile, a tile or the layer shares one abs-max.
        layer: name for the error message.

    Returns:
        ``[T_in, O]``, in weight units; 1 where all weights of a group are 0 (or below 1e-30).

    Raises:
        InputError: if a weight is NaN or infinite.
    """
    if not torch.isfinite(weight).all():
        bad = int((~torch.isfinite(weight)).sum())
        raise InputError(
            f"{layer} has {bad} weights that are NaN or infinite out of {weight.numel()}: repair the model first"
        )
    out_features, in_features = weight.shape
    t_out, t_in = tile_grid(in_features, out_features, tile)
    rows = F.pad(weight.detach().abs().t(), (0, 0, 0, t_in * tile.rows - in_features))  # [T_in R, O]
    scales = rows.view(t_in, tile.rows, out_features).amax(1)
    if tile.scale != "tile_column":
        columns = F.pad(scales, (0, t_out * tile.cols - out_features)).view(t_in, t_out, tile.cols)
        shared = columns.amax((0, 1, 2), keepdim=True) if tile.scale == "layer" else columns.amax(2, keepdim=True)
        scales = shared.expand_as(columns).reshape(t_in, -1)[:, :out_features]
    return torch.where(scales > _SILENT, scales, 1.0)


def target_conductances(weight: Tensor, scales: Tensor, rows: int, g_max: float) -> Tensor:
    """Targets of each pair, ``G± = g_max max(±w, 0) / s``.

    Args:
        weight: ``[O, I]``.
        scales: ``[T_in, O]`` of `column_scales`.
        rows: word lines of a tile.
        g_max: µS.

    Returns:
        ``[2, I, O]`` in µS, G⁺ first.
    """
    unit = weight.detach().t() * (g_max / scales).repeat_interleave(rows, 0)[: weight.shape[1]]
    return torch.stack((unit, -unit)).clamp_(0.0, g_max)


def to_tiles(cells: Tensor, tile: Tile) -> Tensor:
    """Compact cells ``[I, O]`` cut into tiles ``[T_out, T_in, R, C]``; absent cells are NaN."""
    in_features, out_features = cells.shape
    t_out, t_in = tile_grid(in_features, out_features, tile)
    padding = (0, t_out * tile.cols - out_features, 0, t_in * tile.rows - in_features)
    padded = F.pad(cells, padding, value=math.nan)
    return padded.view(t_in, tile.rows, t_out, tile.cols).permute(2, 0, 1, 3).contiguous()
