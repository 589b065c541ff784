"""Weights to target conductances, and the shape of the tiles that hold them.

Compact form, used for computing: one cell a weight, ``[I, O]`` (word lines first), no padding. Tile form, used to look
at the chip: ``[T_out, T_in, R, C]``, where uneven edges hold absent cells (NaN).
"""

from __future__ import annotations

import math
from collections.abc import Callable

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
    out_features, in_features = weight.shape
    _, t_in = tile_grid(in_features, out_features, tile)
    rows = F.pad(weight.detach().abs().t(), (0, 0, 0, t_in * tile.rows - in_features))  # [T_in R, O]
    scales = rows.view(t_in, tile.rows, out_features).amax(1)
    if not scales.is_meta and not torch.isfinite(scales).all():
        bad = int((~torch.isfinite(weight)).sum())
        raise InputError(
            f"{layer} has {bad} weights that are NaN or infinite out of {weight.numel()}: repair the model first"
        )
    scales = over_shared(scales, tile, torch.amax)
    return torch.where(scales > _SILENT, scales, 1.0)


def over_shared(columns: Tensor, tile: Tile, reduce: Callable[..., Tensor]) -> Tensor:
    """``reduce`` (such as `torch.amax`) of values of 0 or more ``[T_in, O]`` over the columns that share a scale."""
    if tile.scale == "tile_column":
        return columns
    t_in, out_features = columns.shape
    tiles = F.pad(columns, (0, -out_features % tile.cols)).view(t_in, -1, tile.cols)
    shared = reduce(tiles, (0, 1, 2) if tile.scale == "layer" else (2,), keepdim=True)
    return shared.expand_as(tiles).reshape(t_in, -1)[:, :out_features]


def target_conductances(
    weight: Tensor, scales: Tensor, tile: Tile, g_max: float, g_min: float = 0.0, lines: slice = slice(None)
) -> Tensor:
    """Target of every cell, as ``tile.encoding``, ``pairs`` and ``slices`` lay weights out (`crossbar.hardware.Tile`).

    Args:
        weight: ``[O, I]``.
        scales: ``[T_in, O]`` of `column_scales`.
        tile: geometry and encoding.
        g_max, g_min: the window of conductances, µS; a share m of the weight is ``g_min + m (g_max - g_min)``
        lines: the word lines whose cells are wanted; all unless given.

    Returns:
        ``[K, I, O]`` in µS, ``K = signs x pairs x slices``; G⁺ before G⁻, the most significant slice first.
    """
    span = g_max - g_min
    unit = signed_targets(weight, scales, tile, span, lines)
    if tile.encoding == "differential":
        parts = torch.stack((unit, -unit))
    elif tile.encoding == "balanced":
        parts = torch.stack((span + unit, span - unit)) / 2
    else:
        parts = ((span + unit) / 2).unsqueeze(0)
    parts = parts.clamp_(0.0, span)
    if tile.slices > 1:
        parts = torch.stack(_digits(parts / span, tile), 1).mul_(span)
    if g_min > 0:
        parts = parts.add_(g_min).clamp_(max=g_max)
    if tile.pairs > 1:
        parts = parts.view(tile.signs, 1, tile.slices, *unit.shape).expand(-1, tile.pairs, -1, -1, -1)
    return parts.reshape(-1, *unit.shape)


def signed_targets(weight: Tensor, scales: Tensor, tile: Tile, span: float, lines: slice = slice(None)) -> Tensor:
    """Scaled weights in µS, ``[I, O]`` of the wanted word lines: what a differential pair of them aims at, G⁺ - G⁻."""
    return line_weights(weight, scales, lines) * of_lines(span / scales, tile.rows, weight.shape[1], lines)


def line_weights(weight: Tensor, scales: Tensor, lines: slice) -> Tensor:
    """Weights ``[O, I]`` of some word lines, ``[r, O]``, in the dtype of the scales."""
    return weight.detach()[:, lines].t().to(scales.dtype).contiguous()


def of_lines(values: Tensor, rows: int, count: int, lines: slice) -> Tensor:
    """Values of row tiles ``[T_in, O]`` at some of ``count`` word lines, ``rows`` a tile, ``[r, O]``."""
    return values[torch.arange(count, device=values.device)[lines].div_(rows, rounding_mode="floor")]


def cell_weights(cells: Tensor, tile: Tile, span: float) -> Tensor:
    """Signed digits that cells ``[K, I, O]`` (µS) stand for, ``[S, I, O]``: G⁺ - G⁻ over ``span``, the mean of pairs.

    ``span`` (µS) is the width of the window of conductances. For the ``offset`` encoding it is G over ``span``: what it
    is too high by is taken off in digital (`crossbar.tiles.readout.Array.bias_scales`).
    """
    places = cells.view(tile.signs, tile.pairs, tile.slices, *cells.shape[1:])
    places = places.mean(1) if tile.pairs > 1 else places[:, 0]
    return (places[0] if tile.signs == 1 else places[0] - places[1]) / span


def slice_weights(tile: Tile) -> list[float]:
    """What a full cell of each slice adds to a scaled weight; they sum to 1, and to 2 for the ``offset`` encoding."""
    base = 2**tile.slice_bits if tile.slices > 1 else 2
    full = (base**tile.slices - 1) / (base - 1) * tile.signs / 2
    return [base**place / full for place in reversed(range(tile.slices))]


def _digits(magnitude: Tensor, tile: Tile) -> list[Tensor]:
    """Digits of ``magnitude`` in 0 … 1, each itself in 0 … 1, most significant first."""
    base = 2**tile.slice_bits
    whole = (magnitude * (base**tile.slices - 1)).round_().int()
    places = [(whole >> (tile.slice_bits * place)) & (base - 1) for place in reversed(range(tile.slices))]
    return [digit.to(magnitude.dtype) / (base - 1) for digit in places]


def to_tiles(cells: Tensor, tile: Tile) -> Tensor:
    """Compact cells ``[..., I, O]`` cut into tiles ``[..., T_out, T_in, R, C]``; absent cells are NaN."""
    in_features, out_features = cells.shape[-2:]
    t_out, t_in = tile_grid(in_features, out_features, tile)
    padding = (0, t_out * tile.cols - out_features, 0, t_in * tile.rows - in_features)
    padded = F.pad(cells, padding, value=math.nan)
    return padded.view(*cells.shape[:-2], t_in, tile.rows, t_out, tile.cols).movedim(-2, -4).contiguous()
