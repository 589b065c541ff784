"""What a calibration step is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum
from pathlib import Path
from types import MappingProxyType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.progress import Progress
from calibration.steps.norms import restore_norms
from crossbar import analog_layers, reset_gains

Fitted = dict[str, Tensor]
"""What a step found: plain tensors, keyed by what they are for, such as a layer's name."""


class Stage(IntEnum):
    """When a step is fitted and applied; the steps of a recipe come in this order."""

    BEFORE_PROGRAMMING = 0
    """Once: it changes what is written into the cells."""
    PROGRAMMED = 1
    """Once for each chip, when it was just written (0 s)."""
    IN_USE = 2
    """At each age of each chip."""


class Step(Protocol):
    """One calibration step: a frozen dataclass of its options."""

    @property
    def stage(self) -> Stage:
        """When it is fitted and applied."""

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """Find the step's values for a converted model as it is now; leaves the model unchanged."""

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Put fitted values into a converted model, in the place of what was applied before."""


@runtime_checkable
class LongStep(Step, Protocol):
    """A step whose fit takes so long that it keeps its state and says how far it is."""

    def fit_long(
        self, model: nn.Module, batches: Iterable[Batch], file: Path | None, progress: Progress | None
    ) -> Fitted:
        """`fit`, with its state in a file (None: nowhere), from which the same call goes on after it was stopped."""


@runtime_checkable
class PopulationStep(Step, Protocol):
    """A step that can be fitted on several chips for all chips of their kind."""

    def combine(self, fits: Sequence[Fitted]) -> Fitted:
        """One set of values from those that were found on each of several chips."""


@runtime_checkable
class WritingStep(Step, Protocol):
    """A step that writes cells of a programmed chip again."""

    def cells(self, model: nn.Module, fitted: Fitted) -> int:
        """How many cells `apply` would write."""


@runtime_checkable
class SamplingStep(Step, Protocol):
    """A step that stops before the end of the calibration data."""

    def batches_of(self, tokens: int) -> int:
        """How many batches it takes of so many tokens each."""


def mean(fits: Sequence[Fitted]) -> Fitted:
    """The mean of each tensor over what was found on several chips."""
    return {name: torch.stack([fitted[name] for fitted in fits]).mean(0) for name in fits[0]}


def uncalibrate(model: nn.Module, adc_ranges: Mapping[str, Tensor] = MappingProxyType({})) -> None:
    """Take away all that steps of the stage `Stage.IN_USE` put into a model: gains, corrections, ADC ranges, norms.

    Args:
        model: a converted model.
        adc_ranges: those that layers had before they were programmed, by name.
    """
    reset_gains(model)
    for name, layer in analog_layers(model).items():
        layer.set_adc_range(adc_ranges.get(name))
    restore_norms(model)
