"""Gain cells: a capacitor that holds a weight as charge, written in a pulse and gone in milliseconds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crossbar.devices.protocol import Draw, State, require_conductance
from crossbar.errors import require_number, require_whole


@dataclass(frozen=True)
class GainCell:
    """Charge on a capacitor, written on a few levels, leaking: ``G(t) = G_written exp(-t / τ)``.

    τ = 5 ms and 8 levels of keys and values are those of silicon cells in simulations of sliding-window attention
    (Leroux et al., Nat. Comput. Sci. 5, 2025, doi 10.1038/s43588-025-00854-1). They hold voltages from 0 to 0.9 V with
    the zero of a value at 0.45 V; here a value is a pair of cells, each on ``levels`` levels from 0 to g_max.

    No number was published there for the deviation of a write, for that of τ, or for a conductance: the first is 0
    unless given, the second is left out, and g_max is a unit that results do not depend on.

    Attributes:
        g_max: conductance of the largest value, µS, 0.001 to 1e5.
        tau: time constant of the leak, s, 1e-9 to 1e12.
        levels: evenly spaced conductances that can be written, 0 and g_max included, 2 to 65,536.
        write_std: deviation of a write from its level, as a part of g_max, up to 10.
    """

    kind: ClassVar[str] = "gain_cell"
    ages_apart: ClassVar[bool] = True
    g_max: float = 25.0
    tau: float = 5e-3
    levels: int = 8
    write_std: float = 0.0

    def __post_init__(self) -> None:
        require_conductance("device field g_max", self.g_max)
        require_number("device field tau", self.tau, least=1e-9, most=1e12)
        require_whole("device field levels", self.levels, least=2, most=2**16)
        require_number("device field write_std", self.write_std, most=10)

    def program(self, target: Tensor, draw: Draw) -> State:
        """Written conductances, µS, at least 0."""
        step = self.g_max / (self.levels - 1)
        written = (target / step).round_().mul_(step)
        if self.write_std > 0:
            written.add_(draw("programming"), alpha=self.write_std * self.g_max).clamp_(min=0.0)
        return {"programmed": written}

    @property
    def retention(self) -> float:
        """Age, s, at which the largest value has leaked to half a step above 0, where it reads as nothing."""
        return self.tau * math.log(2 * (self.levels - 1))

    def drifted(self, state: State, seconds: float | Tensor) -> Tensor:
        """What the leak has left."""
        share = -seconds / self.tau
        return torch.mul(state["programmed"], share.exp() if isinstance(share, Tensor) else math.exp(share))

    def fluctuation(self, state: State, drifted: Tensor, seconds: float | Tensor) -> None:
        """None: none was published."""

    def halvings(self, seconds: Tensor) -> Tensor:
        """``t / (τ ln 2)``."""
        return seconds / (self.tau * math.log(2.0))

    def amplitude(self, state: State) -> None:
        """None: as `fluctuation`."""

    def band(self, seconds: Tensor) -> Tensor:
        """0."""
        return torch.zeros_like(seconds)
