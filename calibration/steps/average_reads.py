"""Several reads for each output of the layers whose read noise the model feels most."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import nn

from calibration.models.embedding import Batch
from calibration.models.outputs import device_of
from calibration.steps.distillation import distance
from calibration.steps.observe import Instants, visiting
from calibration.steps.protocol import Fitted, Stage
from crossbar import AnalogLinear, Ledger, analog_layers, reset_reads
from crossbar.errors import require_number, require_whole
from crossbar.nn.linear import MOST_AVERAGED

_OTHER = 2**20  # index of a read that a pass does not come to otherwise


@dataclass(frozen=True)
class AverageReads:
    """Read some layers several times for each output and take the mean: noise of reads falls by the root of the number.

    What is noise of a read falls, which are that of amplifiers and of ADCs' rounding, and white noise of cells.
    Programming errors, drift and 1/f noise are the same in all reads of one instant and stay. Every read drives and
    converts again, and is booked.

    Layers are chosen by what their noise does: the model runs over a batch twice with other noise in that layer alone,
    and the distance between its outputs (`calibration.steps.distillation.distance`) counts for each ADC conversion of
    the layer. Layers are taken in this order as long as their conversions are within the share.

    Attributes:
        reads: for each output, 2 to 1000.
        share: of the model's ADC conversions that the chosen layers have with one read; at least one layer is chosen.
            Conversions grow by ``(reads - 1) · share``.
        batches: of the calibration data that sensitivity is measured on.
    """

    stage: ClassVar[Stage] = Stage.IN_USE
    reads: int = 4
    share: float = 0.1
    batches: int = 1

    def __post_init__(self) -> None:
        require_whole("AverageReads reads", self.reads, least=2, most=MOST_AVERAGED)
        require_number("AverageReads share", self.share, above=0, most=1)
        require_whole("AverageReads batches", self.batches, least=1, most=10**6)

    @torch.no_grad()
    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """``<layer>.averaged_reads``, int64, 0-d, of the chosen layers."""
        layers = analog_layers(model)
        moved, conversions = _sensitivity(model, layers, islice(batches, self.batches))
        allowed, chosen = self.share * sum(conversions.values()), list[str]()
        for name in sorted(moved, key=lambda name: moved[name] / conversions[name], reverse=True):
            if not chosen or conversions[name] <= allowed:
                chosen.append(name)
                allowed -= conversions[name]
        return {f"{name}.averaged_reads": torch.tensor(self.reads, device="cpu") for name in chosen}

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Read the chosen layers several times, and all others once."""
        for name, layer in analog_layers(model).items():
            layer.averaged_reads = fitted.get(f"{name}.averaged_reads")


def _sensitivity(
    model: nn.Module, layers: dict[str, AnalogLinear], batches: Iterable[Batch]
) -> tuple[dict[str, float], dict[str, int]]:
    """How far other noise of each layer moves the model's outputs, and the layer's ADC conversions, over all batches.

    Layers that no batch reaches are left out.
    """
    moved: dict[str, float] = {}
    conversions: dict[str, int] = {}
    counts = {layer: layer.averaged_reads for layer in layers.values()}
    try:
        for layer in layers.values():
            layer.averaged_reads = None
        with visiting(model, Instants()):
            for batch in batches:
                inputs = {key: value.to(device_of(model)) for key, value in batch.items()}
                reset_reads(model)
                with Ledger() as ledger:
                    expected = model(**inputs)
                for name, layer in layers.items():
                    counted = ledger.by_layer[layer.name].items()
                    own = sum(count for counter, count in counted if counter.name == "adc_conversions")
                    if own == 0:
                        continue
                    reset_reads(model)
                    layer.reads = _OTHER
                    apart = float(distance(model(**inputs), expected, inputs.get("attention_mask")))
                    moved[name] = moved.get(name, 0.0) + apart
                    conversions[name] = conversions.get(name, 0) + own
    finally:
        for layer, count in counts.items():
            layer.averaged_reads = count
    return moved, conversions
