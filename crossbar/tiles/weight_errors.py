"""How well cells keep weights: the error of every weight after a time, relative to the largest one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor

from crossbar.hardware import Hardware
from crossbar.tiles.tile_array import TileArray

_LEVELS = 64  # steps of the weight between 0 and 1
_SAMPLES = 1024  # cells written at each level


@dataclass(frozen=True)
class WeightErrors:
    """What becomes of weights from 0 to 1, where 1 is a cell at g_max, behind one gain that brings back what it can.

    Attributes:
        gain: least squares against the targets, over all levels.
        squared: mean of ``(gain · w(t) - w)²`` at 65 weights ``w`` from 0 to 1, float64.
        mean: of ``gain · w(t)`` at the same weights, float64.
    """

    gain: float
    squared: Tensor
    mean: Tensor


@lru_cache(maxsize=32)
@torch.inference_mode(False)
@torch.no_grad()
def weight_errors(hardware: Hardware, seconds: float) -> WeightErrors:
    """Errors of weights at a time, from 1,024 cells (or groups of them) a level, written, aged and read as any others.

    So it holds for every device and encoding: programming error, drift and its spread, and 1/f noise together, without
    faults and wires, which are not of single cells.
    """
    levels = torch.linspace(0.0, 1.0, _LEVELS + 1, device="cpu")
    probe = levels.unsqueeze(1).expand(-1, _SAMPLES).contiguous()
    cells = TileArray(probe, replace(hardware, faults=None, wire=None), "weight errors")
    cells.set_weight_range(torch.ones_like(cells.scales))
    cells.program(0)
    cells.age(seconds)
    seen = cells.readout(cells.scales.new_ones(len(cells.scales) * hardware.tile.slices, _LEVELS + 1), None)
    found, wanted = seen.effective(hardware.tile.rows).t().double(), levels.double().unsqueeze(1)
    products, squares = (found * wanted).sum(1), found.square().sum(1)  # level by level: the same with any threads
    gain = float(products.sum() / squares.sum())
    return WeightErrors(gain, (gain * found - wanted).square().mean(1), gain * found.mean(1))
