"""Cells without any error, to study the rest alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crossbar.devices.protocol import Draw, State, require_conductance


@dataclass(frozen=True)
class Ideal:
    """A device that takes its target exactly and keeps it."""

    kind: ClassVar[str] = "ideal"
    ages_apart: ClassVar[bool] = True
    g_max: float = 25.0  # µS, 0.001 to 1e5

    def __post_init__(self) -> None:
        require_conductance("device field g_max", self.g_max)

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
