"""Memory devices: how a conductance is written, how it drifts, and how it fluctuates.

A device is a frozen description with the statistics of one cell. All tensors are conductances in microsiemens (µS) of
any shape; times are seconds since programming, where 0 s means ``t_0`` after the last programming pulse.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from crossbar.errors import InputError, require_number

Draw = Callable[[str], Tensor]
"""Gives standard normal numbers, shaped like the target, for a named purpose; the same name gives the same bits."""

State = dict[str, Tensor]
"""What a cell keeps from programming: tensors by name, each shaped like the target."""


@runtime_checkable
class Device(Protocol):
    """A device whose statistics split into programming error, drift and a read fluctuation."""

    kind: ClassVar[str]

    @property
    def g_max(self) -> float:
        """Conductance (µS) of the largest weight."""
        ...

    def program(self, target: Tensor, draw: Draw) -> State:
        """Write ``target`` (µS): the state that the cell keeps until it is written again."""
        ...

    def drifted(self, state: State, seconds: float) -> Tensor:
        """Conductance (µS) at a time, without fluctuation."""
        ...

    def fluctuation(self, state: State, drifted: Tensor, seconds: float) -> Tensor | None:
        """Standard deviation (µS) of accumulated 1/f noise around ``drifted`` at a time; None where there is none."""
        ...


@dataclass(frozen=True)
class Ideal:
    """A device that takes its target exactly and keeps it."""

    kind: ClassVar[str] = "ideal"
    g_max: float = 25.0  # µS

    def __post_init__(self) -> None:
        require_number("device field g_max", self.g_max, above=0)

    def program(self, target: Tensor, draw: Draw) -> State:
        """The target itself."""
        return {"programmed": target}

    def drifted(self, state: State, seconds: float) -> Tensor:
        """The target at any time."""
        return state["programmed"]

    def fluctuation(self, state: State, drifted: Tensor, seconds: float) -> None:
        """None: an ideal cell is quiet."""


@dataclass(frozen=True)
class PowerLawDrift(ABC):
    """Devices that drift by a power law and fluctuate with a 1/f band: what PCM and HERMES share.

    With ``g = G / g_max``:

    - programming adds ``N(0, σ_prog(g))`` and clamps at 0 µS;
    - drift is ``G(t) = G_prog ((t + t_0) / t_0)^-ν``, ``ν = |N(μ(g), σ(g))|`` drawn from the *target* conductance;
    - 1/f noise has the deviation ``G(t) Q(g) sqrt(ln((t + t_0 + t_read) / (2 t_read)))``, Q from the *programmed* one.

    Attributes:
        g_max: conductance of the largest weight, µS.
        t_0: time of the first read after programming, s. Earlier times are an extrapolation of the fit.
        t_read: duration of a read, s.
        prog_noise_scale, drift_scale, read_noise_scale: multiply the three effects; 0 turns one off.
    """

    kind: ClassVar[str]
    g_max: float = 25.0
    t_0: float = 20.0
    t_read: float = 250e-9
    prog_noise_scale: float = 1.0
    drift_scale: float = 1.0
    read_noise_scale: float = 1.0

    def __post_init__(self) -> None:
        for field in ("g_max", "t_0", "t_read"):
            require_number(f"device field {field}", getattr(self, field), above=0)
        for field in ("prog_noise_scale", "drift_scale", "read_noise_scale"):
            require_number(f"device field {field}", getattr(self, field))
        if self.t_read >= self.t_0:
            raise InputError(f"device field t_read = {self.t_read!r} is not allowed: give less than t_0 = {self.t_0!r}")

    @abstractmethod
    def programming_deviation(self, g: Tensor) -> Tensor:
        """``σ_prog`` in µS at relative targets ``g``."""

    @abstractmethod
    def exponent_moments(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the drift exponent at relative targets ``g``."""

    @abstractmethod
    def read_amplitude(self, g: Tensor) -> Tensor:
        """``Q`` at relative programmed conductances ``g``."""

    def program(self, target: Tensor, draw: Draw) -> State:
        """Programmed conductances (µS) and drift exponents (1)."""
        g = target / self.g_max
        deviation = self.programming_deviation(g) * self.prog_noise_scale
        programmed = torch.addcmul(target, deviation, draw("programming")).clamp_(min=0.0)
        mean, spread = self.exponent_moments(g)
        exponent = torch.addcmul(mean, spread, draw("drift")).abs_().mul_(self.drift_scale)
        return {"programmed": programmed, "exponent": exponent}

    def drifted(self, state: State, seconds: float) -> Tensor:
        """``G_prog ((t + t_0) / t_0)^-ν``."""
        return (state["exponent"] * -math.log1p(seconds / self.t_0)).exp_().mul_(state["programmed"])

    def fluctuation(self, state: State, drifted: Tensor, seconds: float) -> Tensor | None:
        """1/f noise accumulated since programming."""
        if self.read_noise_scale == 0:
            return None
        band = math.sqrt(math.log((seconds + self.t_0 + self.t_read) / (2 * self.t_read)))
        return self.read_amplitude(state["programmed"] / self.g_max).mul_(drifted).mul_(band * self.read_noise_scale)


@dataclass(frozen=True)
class PCM(PowerLawDrift):
    """Phase-change memory: the statistics of aihwkit's ``PCMLikeNoiseModel``, fitted to a million-device array.

    ``σ_prog = (0.26348 + 1.9650 g - 1.1731 g²) µS · g_max / 25``, ``μ = clip(-0.0155 ln g + 0.0244, 0.049, 0.1)``,
    ``σ = clip(-0.0125 ln g - 0.0059, 0.008, 0.045)``, ``Q = min(0.0088 / g^0.65, 0.2)`` (Nandakumar et al., ICECS 2019;
    Joshi et al., Nat. Commun. 11, 2473, 2020).
    """

    kind: ClassVar[str] = "pcm"

    def programming_deviation(self, g: Tensor) -> Tensor:
        """Quadratic in g."""
        return (0.26348 + g * (1.9650 - 1.1731 * g)) * (self.g_max / 25.0)

    def exponent_moments(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithmic in g, clipped."""
        log_g = g.clamp(min=1e-7).log_()
        return (-0.0155 * log_g + 0.0244).clamp_(0.049, 0.1), (-0.0125 * log_g - 0.0059).clamp_(0.008, 0.045)

    def read_amplitude(self, g: Tensor) -> Tensor:
        """A power of g, at most 0.2."""
        # exp(log) because torch's pow gives other last bits at the end of each thread's share; 0 µS gives 0.2.
        return g.log().mul_(-0.65).exp_().mul_(0.0088).clamp_(max=0.2)
