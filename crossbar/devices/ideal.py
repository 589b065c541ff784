"""Cells without any error, to study the rest alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crossbar.devices.protocol import Draw, State
from crossbar.errors import require_number


@dataclass(frozen=True)
class Ideal:
    """A device that takes its target exactly and keeps it."""

    kind: ClassVar[str] = "ideal"
    ages_apart: ClassVar[bool] = True
    g_max: float = 25.0  # µS

    def __post_init__(self) -> None:
        require_number("device field g_max", self.g_max, above=0)

    def program(self, target: Tensor, draw: Draw) -> State:
        """The target itself."""
        return {"programmed": target}

    def drifted(self, state: State, seconds: float | Tensor) -> Tensor:
        """The target at any time."""
        return state["programmed"]

    def fluctuation(self, state: State, drifted: Tensor, seconds: float | Tensor) -> None:
        """None: an ideal cell is quiet."""

    def halvings(self, seconds: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(seconds)

    def amplitude(self, state: State) -> None:
        """None: as `fluctuation`."""

    def band(self, seconds: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(seconds)
