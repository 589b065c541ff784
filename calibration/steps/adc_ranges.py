"""Ranges of the output converters, from the sums that calibration data make."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.observe import observe, some
from calibration.steps.protocol import Fitted, Stage, mean
from crossbar import AnalogLinear, InputError, analog_layers
from crossbar.errors import require_whole

Method = Literal["mse", "largest"]
Shared = Literal["nothing", "layer", "model"]
_OF_A_BATCH = 64
_OCTAVES = torch.arange(13, device="cpu") / 2  # down to 1/64 of full scale, in half octaves


@dataclass(frozen=True)
class AdcRanges:
    """One ADC range for each column of each tile, chosen from what a chip reads with several of them.

    Vectors that reach a layer in the analog model, on calibration data, are read out with ranges of 1, 1/√2, 1/2 … 1/64
    of the converter's full scale, and compared with what ideal cells and converters would give:

    - ``mse``: the largest range whose squared error, as a gain for the column leaves it, is the least one within two
      standard errors of a mean of squares (``√(2 / vectors)`` of it, for normal errors). Rounding, clipping, output
      noise and what drift made of the sums are all in it. Among ranges that the vectors cannot tell apart, a smaller
      one would only clip sums that they do not show.
    - ``largest``: the smallest range that no conversion reached the end of.

    Converters that have one range for all columns of a layer, or of a model, get the candidate with the least sum of
    the columns' errors, each as a part of the column's own mean square, so that large outputs do not decide for all
    (``largest``: the largest range of any column).

    Nobody looks at the conductances; the reads are booked in open ledgers. Sums are float64 and do not grow with the
    data. Layers without ADCs are left out.

    Attributes:
        method: as above.
        shared: which columns have one range: those of a ``layer``, all of the ``model``, or ``nothing``.
        vectors: that are read out with every range, 64 of a batch, spread over it; data after them are not run.
    """

    stage: ClassVar[Stage] = Stage.IN_USE
    method: Method = "mse"
    shared: Shared = "nothing"
    vectors: int = 512

    def __post_init__(self) -> None:
        if self.shared not in get_args(Shared):
            raise InputError(f"AdcRanges shared = {self.shared!r} is unknown: choose {', '.join(get_args(Shared))}")
        if self.method not in get_args(Method):
            raise InputError(f"AdcRanges method {self.method!r} is unknown: choose {', '.join(get_args(Method))}")
        require_whole("AdcRanges vectors", self.vectors, least=1, most=2**20)

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """Ranges ``[T, O]`` in unit outputs by layer, 0-d where they are shared; layers that no batch reaches: none.

        Raises:
            InputError: for ``shared: model`` where full scales of the layers' converters differ.
        """
        layers = {name: layer for name, layer in analog_layers(model).items() if layer.hardware.adc is not None}
        tallies: dict[str, _Tally] = {}
        before = {name: layer.adc_range for name, layer in layers.items()}

        def see(name: str, x: Tensor, y: Tensor) -> None:
            tally = tallies.setdefault(name, _Tally(layers[name]))
            tally.add(x[some(len(x), _OF_A_BATCH, x.device)][: self.vectors - tally.vectors])

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
        if self.shared == "nothing":
            return {name: tally.best(self.method) for name, tally in tallies.items()}
        costs = {name: tally.costs(self.method) for name, tally in tallies.items()}
        if self.shared == "model" and costs:
            scales = {layer.hardware.adc.full_scale for layer in layers.values() if layer.hardware.adc is not None}
            if len(scales) > 1:
                raise InputError(
                    f"AdcRanges cannot share one range among ADCs with full scales of {', '.join(map(str, scales))}: "
                    "give shared: layer"
                )
            first, *others = costs.values()
            total = sum((cost.to(first.device) for cost in others), first)
            costs = {name: total.to(cost.device) for name, cost in costs.items()}
        return {name: tallies[name].ranges[cost.argmin()] for name, cost in costs.items()}

    def batches_of(self, tokens: int) -> int:
        """How many batches of so many tokens have the vectors."""
        return -(-self.vectors // min(tokens, _OF_A_BATCH))

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
        self.ranges = (layer.hardware.adc.full_scale * 2**-_OCTAVES).to(layer.scales)
        shape = (len(self.ranges), *layer.column_gain.shape)
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
        for index, adc_range in enumerate(self.ranges):
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
            left = self._left()
            good = left <= (1 + 2 * (2 / self.vectors) ** 0.5) * left.amin(0)
            chosen = torch.where((self._product > 0).any(0), good.long().argmax(0), 0)
        else:
            chosen = self._reached()
        return self.ranges[chosen]

    def costs(self, method: Method) -> Tensor:
        """What one range for all columns costs, ``[ranges]``: least is best."""
        if method == "mse":
            delivers = (self._product > 0).any(0)
            return (self._left() / self._expected)[:, delivers].sum(1)
        index = torch.arange(len(self.ranges), device=self.ranges.device)
        return (index.view(-1, 1, 1) > self._reached()).double().sum((1, 2)) - 1e-6 * index

    def _left(self) -> Tensor:
        """The squared error of each column that a gain leaves, ``[ranges, T, O]``."""
        return self._expected - self._product.square() / self._square.clamp(min=torch.finfo(torch.float64).tiny)

    def _reached(self) -> Tensor:
        """Index of the smallest range of each column that no conversion reached the end of, ``[T, O]``."""
        within = self._largest < (self.ranges * (1 - 1e-6)).view(-1, 1, 1)
        return (within.long().cumprod(0).sum(0) - 1).clamp(min=0)
