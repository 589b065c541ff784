"""Ranges of the output converters, from the sums that calibration data make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.observe import observe
from calibration.steps.protocol import Fitted, Stage, mean
from crossbar import AnalogLinear, InputError, analog_layers
from crossbar.errors import require_whole

Method = Literal["mse", "largest"]
_OF_A_BATCH = 64
_OCTAVES = torch.arange(13, device="cpu") / 2  # down to 1/64 of full scale, in half octaves


@dataclass(frozen=True)
class AdcRanges:
    """One ADC range for each column of each tile, chosen from what a chip reads with several of them.

    Vectors that reach a layer in the analog model, on calibration data, are read out with ranges of 1, 1/√2, 1/2 … 1/64
    of the converter's full scale, and compared with what ideal cells and converters would give:

    - ``mse``: the range with the least error that a gain for the column leaves. Rounding, clipping, output noise and
      what drift made of the sums are all in it.
    - ``largest``: the smallest range that no conversion reached the end of.

    Nobody looks at the conductances; the reads are booked in open ledgers. Sums are float64 and do not grow with the
    data. Layers without ADCs are left out.

    Attributes:
        method: as above.
        vectors: that are read out with every range, 64 of a batch, evenly spread over it; data after them are not run.
    """

    stage: ClassVar[Stage] = Stage.IN_USE
    method: Method = "mse"
    vectors: int = 512

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise InputError(f"AdcRanges method {self.method!r} is unknown: choose {', '.join(get_args(Method))}")
        require_whole("AdcRanges vectors", self.vectors, least=1, most=2**20)

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """Ranges ``[T, O]`` in unit outputs by layer; layers that no batch reaches are left out."""
        layers = {name: layer for name, layer in analog_layers(model).items() if layer.hardware.adc is not None}
        tallies: dict[str, _Tally] = {}
        before = {name: layer.adc_range for name, layer in layers.items()}

        def see(name: str, x: Tensor, y: Tensor) -> None:
            tally = tallies.setdefault(name, _Tally(layers[name]))
            tally.add(x[:: -(-len(x) // _OF_A_BATCH)][: self.vectors - tally.vectors])

        def needed() -> Iterator[Batch]:
            for batch in batches:
                if tallies and all(tally.vectors >= self.vectors for tally in tallies.values()):
                    return
                yield batch

        for layer in layers.values():
            layer.set_adc_range(None)
        try:
            if layers:
                observe(model, needed(), layers, see)
        finally:
            for name, present in before.items():
                layers[name].set_adc_range(present)
        return {name: tally.best(self.method) for name, tally in tallies.items()}

    def combine(self, fits: Sequence[Fitted]) -> Fitted:
        """The mean over chips."""
        return mean(fits)

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Set the ADC ranges."""
        for name, layer in analog_layers(model).items():
            if name in fitted:
                layer.set_adc_range(fitted[name])


class _Tally:
    """Sums over reads of a layer's columns with every range, each ``[ranges, T, O]``."""

    def __init__(self, layer: AnalogLinear) -> None:
        assert layer.hardware.adc is not None
        self.vectors = 0
        self._layer, self._reads = layer, 0
        self._ranges = (layer.hardware.adc.full_scale * 2**-_OCTAVES).to(layer.scales)
        shape = (len(self._ranges), *layer.column_gain.shape)
        self._square, self._product, self._expected, self._largest = (
            torch.zeros(shape, dtype=torch.float64, device=layer.scales.device) for _ in range(4)
        )

    def add(self, x: Tensor) -> None:
        """Read out inputs ``[B, I]`` of the layer."""
        if not len(x):
            return
        layer = self._layer
        self.vectors += len(x)
        driven = layer.driven(x)
        full = layer.full_scale(driven)
        target = layer.expected_read_out(driven) / full
        for index, adc_range in enumerate(self._ranges):
            layer.set_adc_range(adc_range)
            read = layer.read_out(driven, self._reads) / full
            self._reads += 1
            self._square[index] += read.square().sum(1)
            self._product[index] += (read * target).sum(1)
            self._expected[index] += target.square().sum(1)
            self._largest[index] = torch.maximum(self._largest[index], read.abs().amax(1).double())
        layer.set_adc_range(None)

    def best(self, method: Method) -> Tensor:
        """The chosen range of each column, ``[T, O]``; full scale for a column that delivers nothing."""
        if method == "mse":
            left = self._expected - self._product.square() / self._square.clamp(min=torch.finfo(torch.float64).tiny)
            chosen = torch.where((self._product > 0).any(0), left.argmin(0), 0)
        else:
            assert self._layer.hardware.adc is not None
            within = self._largest < (self._ranges * (1 - 1e-6)).view(-1, 1, 1)
            chosen = (within.long().cumprod(0).sum(0) - 1).clamp(min=0)
        return self._ranges[chosen]
