"""What a calibration step is."""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Protocol

from torch import Tensor, nn

from calibration.embedding import Batch

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
