"""Weight ranges: what a cell at its largest conductance stands for, and what makes up for larger weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.clipping import InputMoments, nearest_within
from calibration.steps.least_squares import token_weights
from calibration.steps.observe import digital, observe, some
from calibration.steps.protocol import Fitted, Stage
from crossbar import AnalogLinear, analog_layers
from crossbar.errors import require_number
from crossbar.tiles.mapping import over_shared
from crossbar.tiles.weight_errors import WeightErrors, weight_errors

# Of the largest weight: 1, 0.95 ... 0.3, and, for sums beyond the range of the ADC, 1.41 ... 8 in half octaves
_SHARES = torch.cat([torch.arange(20, 5, -1, device="cpu") / 20, 2 ** (torch.arange(1, 7, device="cpu") / 2)])
_VECTORS, _OF_A_BATCH = 512, 128  # whose sums are compared with the range of the ADC


@dataclass(frozen=True)
class WeightRanges:
    """Clip the largest weights of each column where that costs less than it gains, or make all conductances smaller.

    The largest weight of a column sets what a cell at g_max stands for, and so pushes the others down to where cells
    are noisiest, and the column's sums down towards the noise of its output. The range is the share s of the largest
    weight, from 8 to 0.3, that makes least of the expected squared error of the outputs,

        ``Σ_i <x_i²> max(|w_i| - s, 0)² + s² (Σ_i <x_i²> e²(|w_i| / s) + (gain · output noise)² <range²>)
        + <max(|y| - s · range · full scale, 0)²>``,

    where ``x`` are the digital model's inputs on calibration data as they reach the DACs, ``range`` is what full scale
    stands for, and ``e²`` and ``gain`` are those of cells of this kind at an age (`crossbar.tiles.weight_errors`).
    The last term is what the ADC clips of the sums ``y`` of the column in its tile, on 512 vectors: a column whose
    weights agree with its inputs gets a range above 1, with smaller conductances, and sums that the ADC can hold.
    (Weights in several slices of cells: without this term.) The ADC's rounding is left out, since ranges follow the
    sums (`AdcRanges`). Columns that share a scale (`crossbar.Tile.scale`) share a range. It changes the cells, so it
    comes before programming.

    What is clipped is then made up for. Cells err independently of each other, so that what follows a layer averages
    their errors, but clipping takes from all columns in the direction of what they give, and these errors add up: in
    digital arithmetic, clipping for 30 d alone takes from MiniLM 5% of its score on document similarity. Inputs of a
    layer depend on each other, and so the other weights of a column can give most of what is taken
    (`calibration.steps.clipping.nearest_within`): of the squared error of clipping on texts that were not fitted, two
    thirds to four fifths on MiniLM, while that of cells grows by 0.3%. Cells are written with these weights; the
    digital layer, with which later steps compare, stays. Tokens count as
    `calibration.steps.least_squares.token_weights` says.

    Attributes:
        seconds: the age whose errors are weighed; older cells ask for smaller ranges.
        compensate: let the other weights of a column make up for what is clipped.
    """

    stage: ClassVar[Stage] = Stage.BEFORE_PROGRAMMING
    seconds: float = 30 * 86400.0
    compensate: bool = True

    def __post_init__(self) -> None:
        require_number("WeightRanges seconds", self.seconds, most=1e12)

    @torch.no_grad()
    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """``<layer>.weight_range [T_in, O]`` and ``<layer>.weight_correction [O, I]``, in units of the mapped weights.

        Layers that no batch reaches are left out, and corrections of layers where nothing is clipped.
        """
        layers = analog_layers(model)
        powers: dict[str, _Powers] = {}
        moments: dict[str, InputMoments] = {}

        def see(name: str, x: Tensor, y: Tensor) -> None:
            layer = layers[name]
            driven = layer.driven(x)
            powers.setdefault(name, _Powers(layer)).add(driven, layer.full_scale(driven))
            if self.compensate:
                moments.setdefault(name, InputMoments()).add(driven, token_weights(y))

        with digital(model):
            observe(model, batches, layers, see)
        fitted: Fitted = {}
        for name, power in powers.items():
            layer = layers[name]
            fitted[f"{name}.weight_range"] = weight_range = _range(layer, power, self.seconds)
            if self.compensate:
                weight = layer.scaled_weight()
                bound = weight_range.repeat_interleave(layer.hardware.tile.rows, 0)[: layer.in_features].t()
                if (weight.abs() > bound).any():
                    written = nearest_within(weight, bound, moments.pop(name).mean())
                    fitted[f"{name}.weight_correction"] = written - weight
        return fitted

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Set ranges and corrections; the cells must then be written again."""
        for name, layer in analog_layers(model).items():
            if f"{name}.weight_range" in fitted:
                layer.set_weight_range(fitted[f"{name}.weight_range"])
                layer.set_weight_correction(fitted.get(f"{name}.weight_correction"))


class _Powers:
    """Mean squares, from sums that do not grow: of driven inputs, the range of the DACs, and what the ADCs clip."""

    def __init__(self, layer: AnalogLinear) -> None:
        self._layer = layer
        self._tokens = self._vectors = 0
        self._lines: Tensor | float = 0.0
        self._range: Tensor | float = 0.0
        self._clipped: Tensor | float = 0.0

    def add(self, driven: Tensor, full_scale: Tensor) -> None:
        """Take in inputs ``[B, I]`` and what full scale stood for, 0-d or ``[B, 1]``."""
        full = full_scale.expand(len(driven), 1)
        self._tokens += len(driven)
        self._lines = self._lines + driven.double().square().sum(0)
        self._range = self._range + full.double().square().sum()
        if self._layer.hardware.adc is not None and self._layer.hardware.tile.slices == 1:
            chosen = some(len(driven), _OF_A_BATCH, driven.device)[: _VECTORS - self._vectors]
            driven, full = driven[chosen], full[chosen]
            self._vectors += len(driven)
            if len(driven):
                self._clipped = self._clipped + self._clips(driven, full, self._layer.hardware.adc.full_scale)

    def _clips(self, driven: Tensor, full: Tensor, adc_range: float) -> Tensor:
        """Squares that the ADCs clip, summed over inputs ``[B, I]``, with every range: ``[ranges, T, O]``."""
        weight = _by_tiles(self._layer, self._layer.scaled_weight().t())
        x = driven if self._layer.hardware.dac is None else driven.clamp(-full, full)
        x = _by_tiles(self._layer, x.t())
        sums = torch.einsum("trb,tro->bto", x, weight).abs_()
        limit = full.view(-1, 1, 1) * (adc_range * self._layer.scales)
        return torch.stack([(sums - share * limit).clamp_(min=0).square_().sum(0) for share in _SHARES.tolist()])

    def means(self) -> tuple[Tensor, Tensor, Tensor | float]:
        """Of the inputs ``[I]``, of the range, 0-d, and of what is clipped with every range ``[ranges, T, O]``."""
        lines, full = self._lines / self._tokens, self._range / self._tokens
        assert isinstance(lines, Tensor)
        assert isinstance(full, Tensor)
        return lines, full, self._clipped / max(1, self._vectors)


def _by_tiles(layer: AnalogLinear, lines: Tensor) -> Tensor:
    """Values of word lines ``[I, N]``, tile by tile, ``[T, R, N]``."""
    rows, tiles = layer.hardware.tile.rows, len(layer.scales)
    return F.pad(lines, (0, 0, 0, tiles * rows - layer.in_features)).view(tiles, rows, -1)


def _range(layer: AnalogLinear, powers: _Powers, seconds: float) -> Tensor:
    lines, full, clipped = powers.means()
    errors = weight_errors(layer.hardware, seconds)
    noise = (errors.gain * layer.hardware.output_noise) ** 2 * full
    power = _by_tiles(layer, lines.unsqueeze(1)).to(layer.scales)
    magnitude = _by_tiles(layer, layer.scaled_weight().abs().t())
    ranges = [share * layer.scales for share in _SHARES.tolist()]
    cost = torch.stack([_cost(magnitude, power, scale, noise, errors) for scale in ranges]) + clipped
    best = torch.stack([over_shared(each, layer.hardware.tile, torch.sum) for each in cost]).argmin(0)
    return layer.scales * _SHARES.to(layer.scales)[best]


def _cost(magnitude: Tensor, power: Tensor, scale: Tensor, noise: Tensor, errors: WeightErrors) -> Tensor:
    """Expected squared error ``[T, O]`` of a column's output for weights ``[T, R, O]``."""
    table = errors.squared.to(magnitude)
    levels = (magnitude / scale.unsqueeze(1)).clamp_(max=1.0).mul_(len(table) - 1).round_().int()
    clipped = (magnitude - scale.unsqueeze(1)).clamp_(min=0).square_()
    squares = table[levels].mul_(scale.unsqueeze(1).square()).add_(clipped)
    return (power * squares).sum(1) + scale.square() * noise
