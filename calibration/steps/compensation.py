"""Drift compensation: digital gains that undo what drift took, measured through the converters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.protocol import Fitted, Stage, mean
from crossbar import AnalogLinear, InputError, analog_layers, format_seconds
from crossbar.errors import MOST_SEED, require_number, require_whole
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

    With ``predict`` a chip is read out at two early times alone, and never again: from the later one on, gains grow by
    the power law of time that phase-change cells drift by, ``gain(t) = gain(t_2) (t / t_2)^ν``. The exponent is one of
    a layer, from the sum of its columns: of a single column, 1/f noise moves the difference of two read-outs by more
    than exponents differ between columns (docs/calibration.md).

    Attributes:
        per: one gain for each column of each row tile, or for each tile.
        reference: ``ideal``, what the targets would give, from digital arithmetic; or ``programmed``, what the chip
            itself gave right after programming, which leaves programming errors alone.
        reads: test inputs.
        seed: of the test inputs.
        predict: gains at the chip's age are calculated from read-outs at two times.
        first_read, second_read: these times, s since programming, above 0.
    """

    stage: ClassVar[Stage] = Stage.IN_USE
    per: Per = "column"
    reference: Reference = "ideal"
    reads: int = 256
    seed: int = 0
    predict: bool = False
    first_read: float = 3600.0
    second_read: float = 86400.0

    def __post_init__(self) -> None:
        for name, choices in (("per", get_args(Per)), ("reference", get_args(Reference))):
            if getattr(self, name) not in choices:
                value = getattr(self, name)
                raise InputError(f"DriftCompensation {name} = {value!r} is not allowed: choose {', '.join(choices)}")
        require_whole("DriftCompensation reads", self.reads, least=1, most=MOST_READS)
        require_whole("DriftCompensation seed", self.seed, least=0, most=MOST_SEED)
        if not isinstance(self.predict, bool):
            raise InputError(f"DriftCompensation predict = {self.predict!r} is not allowed: give true or false")
        for name in ("first_read", "second_read"):
            require_number(f"DriftCompensation {name}", getattr(self, name), above=0, most=1e12)
        if self.first_read >= self.second_read:
            raise InputError(
                f"DriftCompensation first_read = {self.first_read:g} s is not before second_read = "
                f"{self.second_read:g} s: give an earlier time"
            )

    @torch.no_grad()
    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """Gains ``[T, O]`` by layer for a programmed model at its present age; ``batches`` are not needed.

        To predict, gains are those at the second read-out, and ``<layer>.exponent``, 0-d, says how they grow. An
        emulated chip goes back to the times of the read-outs, and they are booked.

        Raises:
            InputError: for a chip that is younger than the read-outs it is to be predicted from.
        """
        gains: Fitted = {}
        for name, layer in analog_layers(model).items():
            inputs = read_out_inputs(layer, self.reads, (self.seed, name, "drift compensation"))
            # Test inputs make larger sums than data do, for which the ADC's range may have been chosen.
            present, now = layer.adc_range, layer.seconds
            if self.predict and now < self.second_read:
                raise InputError(
                    f"DriftCompensation predicts from a read-out at {format_seconds(self.second_read)}, and the chip "
                    f"is {format_seconds(now)} old: give later times, or an earlier second_read"
                )
            layer.set_adc_range(None)
            reference = self._reference(layer, inputs)
            if self.predict:
                layer.age(self.first_read)
                first = layer.read_out(inputs)
                layer.age(self.second_read)
                second = layer.read_out(inputs)
                layer.age(now)
                gains[name] = self._gain(layer, second, reference)
                gains[f"{name}.exponent"] = self._exponent(first, second, reference)
            else:
                gains[name] = self._gain(layer, layer.read_out(inputs), reference)
            layer.set_adc_range(present)
        return gains

    def combine(self, fits: Sequence[Fitted]) -> Fitted:
        """The mean over chips."""
        return mean(fits)

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Set the digital gains; predicted ones are those of each layer's present age."""
        for name, layer in analog_layers(model).items():
            if name not in fitted:
                continue
            gain, exponent = fitted[name], fitted.get(f"{name}.exponent")
            if exponent is not None:
                gain = gain * ((layer.seconds / self.second_read) ** exponent).to(gain)
            layer.column_gain = gain

    def _reference(self, layer: AnalogLinear, inputs: Tensor) -> Tensor:
        if self.reference == "ideal":
            return layer.expected_read_out(inputs)
        # The chip kept these reads from the day it was programmed; its trajectory gives the same again.
        now = layer.seconds
        layer.age(0.0)
        programmed = layer.read_out(inputs)
        layer.age(now)
        return programmed

    def _exponent(self, first: Tensor, second: Tensor, reference: Tensor) -> Tensor:
        """``ν`` of a layer, float64, from its columns ``[T, reads, O]`` at both times; 0 where they deliver nothing.

        What is compared are the least squares ``measured = strength · reference``, which noise does not draw to 0.
        """
        strengths = [(columns.double() * reference.double()).sum() for columns in (first, second)]
        if min(strengths) <= 0:
            return reference.new_zeros((), dtype=torch.float64)
        return (strengths[0] / strengths[1]).log() / math.log(self.second_read / self.first_read)

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
