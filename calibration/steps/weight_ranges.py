"""Weight ranges: what a cell at its largest conductance stands for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.observe import digital, observe
from calibration.steps.protocol import Fitted, Stage
from crossbar import AnalogLinear, analog_layers
from crossbar.errors import require_number
from crossbar.mapping import over_shared
from crossbar.weight_errors import WeightErrors, weight_errors

_SHARES = torch.arange(20, 5, -1) / 20  # of the largest weight: 1, 0.95 ... 0.3


@dataclass(frozen=True)
class WeightRanges:
    """Clip the largest weights of each column where that costs less than it gains for all others.

    The largest weight of a column sets what a cell at g_max stands for, and so pushes the others down to where cells
    are noisiest, and the column's sums down towards the noise of its output. The range is the share s of the largest
    weight, from 1 to 0.3, that makes least of the expected squared error of the outputs,

        ``c Σ_i <x_i²> max(|w_i| - s, 0)² + s² (Σ_i <x_i²> e²(|w_i| / s) + (gain · output noise)² <range²>)``,

    where ``x`` are the digital model's inputs on calibration data as they reach the DACs, ``range`` is what full scale
    stands for, and ``e²`` and ``gain`` are those of cells of this kind at an age (`crossbar.weight_errors`). Errors of
    ADCs are left out, since their ranges follow the sums (`AdcRanges`). Columns that share a scale
    (`crossbar.Tile.scale`) share a range. It changes the cells, so it comes before programming.

    What is clipped counts ``c`` times over: cells err independently of each other, so that what follows a layer
    averages their errors, but clipping takes from all columns in the direction of what they give, and these errors add
    up. Keys are where it shows: without cells' errors, clipping for 30 d takes from MiniLM 5% of its score on document
    similarity at c = 1, 1.6% at 4 and 0.4% at 16, at c = 1 four fifths of it by keys alone.

    Attributes:
        seconds: the age whose errors are weighed; older cells ask for smaller ranges.
        clipping: the ``c``.
    """

    stage: ClassVar[Stage] = Stage.BEFORE_PROGRAMMING
    seconds: float = 30 * 86400.0
    clipping: float = 4.0

    def __post_init__(self) -> None:
        require_number("WeightRanges seconds", self.seconds)
        require_number("WeightRanges clipping", self.clipping)

    @torch.no_grad()
    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """Ranges ``[T_in, O]`` by layer, in units of the mapped weights; layers that no batch reaches are left out."""
        layers = analog_layers(model)
        powers: dict[str, _Powers] = {}

        def see(name: str, x: Tensor, y: Tensor) -> None:
            layer = layers[name]
            driven = x if layer.line_scale is None else x / layer.line_scale
            powers.setdefault(name, _Powers()).add(driven, layer.full_scale(driven))

        with digital(model):
            observe(model, batches, layers, see)
        return {name: _range(layers[name], power, self) for name, power in powers.items()}

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Set the ranges; the cells must then be written again."""
        layers = analog_layers(model)
        for name, weight_range in fitted.items():
            layers[name].set_weight_range(weight_range)


class _Powers:
    """Mean squares of driven inputs ``[I]`` and of the range of the DACs, from sums that do not grow."""

    def __init__(self) -> None:
        self._tokens = 0
        self._lines: Tensor | float = 0.0
        self._range: Tensor | float = 0.0

    def add(self, driven: Tensor, full_scale: Tensor) -> None:
        """Take in inputs ``[B, I]`` and what full scale stood for, 0-d or ``[B, 1]``."""
        self._tokens += len(driven)
        self._lines = self._lines + driven.double().square().sum(0)
        self._range = self._range + full_scale.double().square().expand(len(driven), 1).sum()

    def means(self) -> tuple[Tensor, Tensor]:
        """Of the inputs ``[I]`` and of the range, 0-d."""
        lines, full = self._lines / self._tokens, self._range / self._tokens
        assert isinstance(lines, Tensor)
        assert isinstance(full, Tensor)
        return lines, full


def _range(layer: AnalogLinear, powers: _Powers, options: WeightRanges) -> Tensor:
    lines, full = powers.means()
    errors = weight_errors(layer.hardware, options.seconds)
    noise = (errors.gain * layer.hardware.output_noise) ** 2 * full
    rows, (tiles, outputs) = layer.hardware.tile.rows, layer.scales.shape
    padding = tiles * rows - layer.in_features
    power = F.pad(lines, (0, padding)).view(tiles, rows, 1).to(layer.scales)
    weight = layer.target_weight() if layer.line_scale is None else layer.target_weight() * layer.line_scale
    magnitude = F.pad(weight.abs().t(), (0, 0, 0, padding)).view(tiles, rows, outputs)
    ranges = [share * layer.scales for share in _SHARES.tolist()]
    cost = torch.stack([_cost(magnitude, power, scale, noise, errors, options.clipping) for scale in ranges])
    best = torch.stack([over_shared(each, layer.hardware.tile, torch.sum) for each in cost]).argmin(0)
    return layer.scales * _SHARES.to(layer.scales)[best]


def _cost(
    magnitude: Tensor, power: Tensor, scale: Tensor, noise: Tensor, errors: WeightErrors, clipping: float
) -> Tensor:
    """Expected squared error ``[T, O]`` of a column's output for weights ``[T, R, O]``."""
    table = errors.squared.to(magnitude)
    levels = (magnitude / scale.unsqueeze(1)).clamp_(max=1.0).mul_(len(table) - 1).round_().int()
    clipped = (magnitude - scale.unsqueeze(1)).clamp_(min=0).square_()
    squares = table[levels].mul_(scale.unsqueeze(1).square()).add_(clipped, alpha=clipping)
    return (power * squares).sum(1) + scale.square() * noise
