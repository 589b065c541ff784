"""Drift compensation: digital gains that undo what drift took, measured through the converters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.protocol import Fitted, Stage, mean
from crossbar import AnalogLinear, InputError, analog_layers
from crossbar.errors import MOST_SEED, require_whole
from crossbar.random.streams import Key, uniform

MOST_READS = 100_000
"""Of a layer at once; the error of a gain is in their square root."""

Per = Literal["tile", "column"]
Reference = Literal["programmed", "ideal"]


@dataclass(frozen=True)
class DriftCompensation:
    """Measure each column (or tile) with chosen inputs, and set the digital gain that brings it back.

    Random inputs, uniform over ± full scale, are driven through DACs, cells, read noise and ADCs; the gain is the least
    squares solution of ``gain · measured = reference`` over the reads. Nothing looks at the conductances, and no data
    are needed: a chip in the field can do it. (Global drift compensation is the case of one gain for a whole layer:
    Joshi et al., Nat. Commun. 11, 2473, 2020.) The reads are booked in open ledgers.

    Attributes:
        per: one gain for each column of each row tile, or for each tile.
        reference: ``ideal``, what the targets would give, from digital arithmetic; or ``programmed``, what the chip
            itself gave right after programming, which leaves programming errors alone.
        reads: test inputs.
        seed: of the test inputs.
    """

    stage: ClassVar[Stage] = Stage.IN_USE
    per: Per = "column"
    reference: Reference = "ideal"
    reads: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        for name, choices in (("per", get_args(Per)), ("reference", get_args(Reference))):
            if getattr(self, name) not in choices:
                value = getattr(self, name)
                raise InputError(f"DriftCompensation {name} = {value!r} is not allowed: choose {', '.join(choices)}")
        require_whole("DriftCompensation reads", self.reads, least=1, most=MOST_READS)
        require_whole("DriftCompensation seed", self.seed, least=0, most=MOST_SEED)

    @torch.no_grad()
    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """Gains ``[T_in, O]`` by layer for a programmed model at its present age; ``batches`` are not needed."""
        gains = {}
        for name, layer in analog_layers(model).items():
            inputs = read_out_inputs(layer, self.reads, (self.seed, name, "drift compensation"))
            # Test inputs make larger sums than data do, for which the ADC's range may have been chosen.
            present = layer.adc_range
            layer.set_adc_range(None)
            gains[name] = self._gain(layer, layer.read_out(inputs), self._reference(layer, inputs))
            layer.set_adc_range(present)
        return gains

    def combine(self, fits: Sequence[Fitted]) -> Fitted:
        """The mean over chips."""
        return mean(fits)

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Set the digital gains."""
        layers = analog_layers(model)
        for name, gain in fitted.items():
            layers[name].column_gain = gain

    def _reference(self, layer: AnalogLinear, inputs: Tensor) -> Tensor:
        if self.reference == "ideal":
            return layer.expected_read_out(inputs)
        # The chip kept these reads from the day it was programmed; its trajectory gives the same again.
        now = layer.seconds
        layer.age(0.0)
        programmed = layer.read_out(inputs)
        layer.age(now)
        return programmed

    def _gain(self, layer: AnalogLinear, measured: Tensor, reference: Tensor) -> Tensor:
        return column_gain(measured, reference, layer.hardware.tile.cols if self.per == "tile" else None)


def read_out_inputs(layer: AnalogLinear, reads: int, key: Key) -> Tensor:
    """Inputs ``[reads, I]`` as they reach a layer's DACs, uniform over ± full scale."""
    unit = uniform((reads, layer.in_features), key, layer.scales.device).to(layer.scales.dtype)
    dac, full_scale = layer.hardware.dac, layer.input_range
    if full_scale is None:  # a range found from the inputs themselves is reached by any
        full_scale = unit.new_tensor(dac.full_scale if dac is not None and dac.range == "static" else 1.0)
    return (2 * unit - 1) * full_scale


def column_gain(measured: Tensor, reference: Tensor, width: int | None = None) -> Tensor:
    """The least squares ``gain · measured = reference`` over the reads of ``[T, reads, O]``: ``[T, O]``.

    A column that delivers nothing keeps gain 1. With a ``width``, the columns of tiles that wide share a gain.
    """
    product, power = (measured * reference).sum(1), measured.square().sum(1)
    if width is not None:
        product, power = (_per_tile(x, width) for x in (product, power))
    return torch.where(power > 0, product / power.clamp(min=torch.finfo(power.dtype).tiny), 1.0)


def _per_tile(columns: Tensor, width: int) -> Tensor:
    """Sums over the columns of each tile, repeated for each of them: ``[T_in, O]``."""
    return torch.cat([part.sum(1, keepdim=True).expand_as(part) for part in columns.split(width, dim=1)], dim=1)
