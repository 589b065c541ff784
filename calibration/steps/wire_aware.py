"""Wire-aware mapping: targets that give the wanted weights through the wires, and places for lines that lose less."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.observe import digital, observe
from calibration.steps.protocol import Fitted, Stage
from crossbar import AnalogLinear, Wire, analog_layers
from crossbar.errors import require_number, require_whole
from crossbar.features import require_honoured
from crossbar.tiles.mapping import over_shared
from crossbar.tiles.tile_array import HONOURED
from crossbar.tiles.weight_errors import weight_errors
from crossbar.tiles.wires import resistive

_LEAST = 0.02  # of its current that a column keeps on the mean: what wires take more from is not made up for


@dataclass(frozen=True)
class WireAware:
    """Write cells so that their tiles, wires and all, give the wanted weights.

    What columns see of targets G is a transfer matrix M(G) that digital arithmetic knows
    (`crossbar.circuit.currents`), so targets can be distorted beforehand. A fixed-point iteration adds to the weights
    that are mapped what M(G) still lacks of the wanted ones; a cell at g_max then stands for a larger weight, so that
    all of them stay within the device's window, or, where `WeightRanges` chose what is clipped, as much larger as its
    column's currents are smaller. Wires of drifted cells take less, so the iteration looks at cells as they are at an
    age: the mean part that is left of them (`crossbar.tiles.weight_errors`). It changes the cells, so it comes before
    programming and behind `WeightRanges`, and does nothing for hardware without wires.

    Attributes:
        rounds: of the iteration; each takes as long as ageing the model.
        place: move lines first: within each tile the columns with the largest sums of weights next to the drivers, and
            the word lines with the largest sums of weights times inputs, on calibration data, next to the amplifiers.
        seconds: the age that is looked at.
    """

    stage: ClassVar[Stage] = Stage.BEFORE_PROGRAMMING
    rounds: int = 6
    place: bool = True
    seconds: float = 86400.0

    def __post_init__(self) -> None:
        require_whole("WireAware rounds", self.rounds, least=0, most=100)
        require_number("WireAware seconds", self.seconds, most=1e12)

    @torch.no_grad()
    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """By layer: ``weight_range``, ``target_correction``, and, if lines move, ``row_places``, ``column_places``.

        Shapes are those of `crossbar.AnalogLinear` and `crossbar.tiles.tile_array.TileArray`.

        Raises:
            InputError: for the ``offset`` encoding, where a wider range takes more than a larger target gives.
        """
        layers = {name: layer for name, layer in analog_layers(model).items() if resistive(layer.hardware)}
        for layer in layers.values():
            require_honoured(layer.hardware, HONOURED - {"tile.encoding:offset"}, "WireAware")
        inputs = _sizes(model, batches, layers) if self.place and layers else {}
        fitted: Fitted = {}
        for name, layer in layers.items():
            cells = layer.cells
            before = cells.row_places, cells.column_places
            try:
                if self.place:
                    size = inputs.get(name, layer.scales.new_ones(layer.in_features))
                    places = _places(layer, size)
                    cells.set_placement(*places)
                    fitted[f"{name}.row_places"], fitted[f"{name}.column_places"] = places
                if self.rounds:
                    fitted[f"{name}.weight_range"], fitted[f"{name}.target_correction"] = self._written(layer)
            finally:
                cells.set_placement(*before)
        return fitted

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Set ranges, corrections and places; the cells must then be written again."""
        for name, layer in analog_layers(model).items():
            layer.cells.set_placement(fitted.get(f"{name}.row_places"), fitted.get(f"{name}.column_places"))
            if f"{name}.weight_range" in fitted:
                correction = layer.weight_correction
                layer.set_weight_range(fitted[f"{name}.weight_range"])
                layer.set_weight_correction(correction)
                layer.set_target_correction(fitted[f"{name}.target_correction"])

    def _written(self, layer: AnalogLinear) -> tuple[Tensor, Tensor]:
        """The range ``[T_in, O]``, and what is added to the mapped weights, ``[O, I]``."""
        cells, tile, given = layer.cells, layer.hardware.tile, layer.weight_range
        left = min(1.0 / weight_errors(layer.hardware, self.seconds).gain, 1.0)
        scales = layer.scales
        mapped, bound = layer.wanted_weight(), layer.largest_weight()
        wanted = mapped.clamp(-bound, bound)
        written, ranges = wanted, scales
        for _ in range(self.rounds):
            found = cells.through_wires(written, ranges, left)
            if written is wanted:  # the mean loss of each column at once
                kept = _of_tiles(found * wanted, layer) / _of_tiles(wanted.square(), layer).clamp(min=1e-30)
                kept = torch.where(_of_tiles(wanted.square(), layer) > 0, kept, 1.0).clamp(_LEAST, 1.0)
                larger = over_shared(1.0 / kept, tile, torch.amax)
                ranges = scales * larger
                written = wanted * _by_line(larger, layer)
                continue
            written = written + (wanted - found)
            if given is None:
                largest = _tile_largest(written, layer)
                ranges = torch.maximum(over_shared(largest, tile, torch.amax), scales)
            else:
                bound = _by_line(ranges, layer)
                written = written.clamp(-bound, bound)
        return ranges, written - mapped


def _sizes(model: nn.Module, batches: Iterable[Batch], layers: dict[str, AnalogLinear]) -> dict[str, Tensor]:
    """Root mean squares ``[I]`` of the digital model's inputs as they reach the DACs, by layer."""
    sums: dict[str, Tensor] = {}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        layer = layers[name]
        driven = layer.driven(x)
        power = driven.double().square().sum(0)
        sums[name] = sums[name] + power if name in sums else power

    with digital(model):
        observe(model, batches, layers, see)
    return {name: power.sqrt().to(layers[name].scales) for name, power in sums.items()}


def _places(layer: AnalogLinear, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Places of word lines ``[T_out, I]`` and of bit lines ``[T_in, O]`` in their tiles."""
    hardware, weight = layer.hardware, layer.scaled_weight().abs()
    wire, tile = hardware.wire or Wire(), hardware.tile
    columns = torch.stack([part.sum(1) for part in weight.split(tile.rows, 1)])
    rows = torch.stack([part.sum(0) for part in weight.split(tile.cols, 0)]) * inputs
    return (
        torch.cat([_nearest(part, wire.sense == "top", False) for part in rows.split(tile.rows, 1)], 1),
        torch.cat([_nearest(part, True, wire.drive == "both") for part in columns.split(tile.cols, 1)], 1),
    )


def _nearest(size: Tensor, first: bool, both: bool) -> Tensor:
    """Places of lines ``[n, L]``, the largest nearest to the first place, or to the last, or to either."""
    count = size.shape[1]
    place = torch.arange(count, device=size.device)
    distance = torch.minimum(place, count - 1 - place) if both else place if first else count - 1 - place
    nearest = distance.argsort(stable=True)
    rank = size.argsort(dim=1, descending=True, stable=True).argsort(1)
    return nearest[rank]


def _of_tiles(weight: Tensor, layer: AnalogLinear) -> Tensor:
    """Sums of ``[O, I]`` over the word lines of each row tile, ``[T_in, O]``."""
    return torch.stack([part.sum(1) for part in weight.split(layer.hardware.tile.rows, 1)])


def _tile_largest(weight: Tensor, layer: AnalogLinear) -> Tensor:
    return torch.stack([part.abs().amax(1) for part in weight.split(layer.hardware.tile.rows, 1)])


def _by_line(columns: Tensor, layer: AnalogLinear) -> Tensor:
    """Numbers of the columns of row tiles ``[T_in, O]`` at each of their weights, ``[O, I]``."""
    return columns.repeat_interleave(layer.hardware.tile.rows, 0)[: layer.in_features].t()
