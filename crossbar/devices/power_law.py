"""Devices that drift by a power law and fluctuate with a 1/f band, and phase-change memory, the first of them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crossbar.devices.protocol import MOST_SCALE, Draw, State, require_conductance
from crossbar.errors import InputError, require_number
from crossbar.native import functions


def log1p(x: float | Tensor) -> float | Tensor:
    """``ln(1 + x)`` of a number or of each number of a tensor."""
    return x.log1p() if isinstance(x, Tensor) else math.log1p(x)


@dataclass(frozen=True)
class PowerLawDrift(ABC):
    """Devices that drift by a power law and fluctuate with a 1/f band: what PCM and HERMES share.

    With ``g = G / g_max``:

    - programming adds ``N(0, σ_prog(g))`` and clamps at 0 µS;
    - drift is ``G(t) = G_prog ((t + t_0) / t_0)^-ν``, ``ν = |N(μ(g), σ(g))|`` drawn from the *target* conductance;
    - 1/f noise has the deviation ``G(t) Q(g) sqrt(ln((t + t_0 + t_read) / (2 t_read)))``, Q from the *programmed* one.

    Attributes:
        g_max: conductance of the largest weight, µS, 0.001 to 1e5.
        t_0: time of the first read after programming, s, 1e-9 to 1e9. Earlier times are an extrapolation of the fit.
        t_read: duration of a read, s, 1e-12 to 1e6 and less than ``t_0``.
        prog_noise_scale, drift_scale, read_noise_scale: multiply the three effects, up to 1000; 0 turns one off.
        correlated: 1/f noise is one path of each cell (`crossbar.devices.one_over_f`), not independent draws.
    """

    kind: ClassVar[str]
    ages_apart: ClassVar[bool] = True
    g_max: float = 25.0
    t_0: float = 20.0
    t_read: float = 250e-9
    prog_noise_scale: float = 1.0
    drift_scale: float = 1.0
    read_noise_scale: float = 1.0
    correlated: bool = False

    def __post_init__(self) -> None:
        require_conductance("device field g_max", self.g_max)
        require_number("device field t_0", self.t_0, least=1e-9, most=1e9)
        require_number("device field t_read", self.t_read, least=1e-12, most=1e6)
        for field in ("prog_noise_scale", "drift_scale", "read_noise_scale"):
            require_number(f"device field {field}", getattr(self, field), most=MOST_SCALE)
        if self.t_read >= self.t_0:
            raise InputError(f"device field t_read = {self.t_read!r} is not allowed: give less than t_0 = {self.t_0!r}")
        if not isinstance(self.correlated, bool):
            raise InputError(f"device field correlated = {self.correlated!r} is not allowed: give true or false")

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
        deviation = self.programming_deviation(g).mul_(self.prog_noise_scale)
        programmed = torch.addcmul(target, deviation, draw("programming")).clamp_(min=0.0)
        mean, spread = self.exponent_moments(g)
        exponent = torch.addcmul(mean, spread, draw("drift")).abs_().mul_(self.drift_scale)
        return {"programmed": programmed, "exponent": exponent}

    def drifted(self, state: State, seconds: float | Tensor) -> Tensor:
        """``G_prog ((t + t_0) / t_0)^-ν``."""
        return functions.exp(state["exponent"] * -log1p(seconds / self.t_0)).mul_(state["programmed"])

    def fluctuation(self, state: State, drifted: Tensor, seconds: float | Tensor) -> Tensor | None:
        """1/f noise accumulated since programming."""
        if self.read_noise_scale == 0:
            return None
        span = (seconds + self.t_0 + self.t_read) / (2 * self.t_read)
        band = span.log().sqrt() if isinstance(span, Tensor) else math.sqrt(math.log(span))
        return self.read_amplitude(state["programmed"] / self.g_max).mul_(drifted).mul_(band * self.read_noise_scale)

    def halvings(self, seconds: Tensor) -> Tensor:
        """``log2((t + t_0) / t_0)``."""
        return (seconds / self.t_0).log1p().div_(math.log(2.0))

    def amplitude(self, state: State) -> Tensor | None:
        """``Q``, scaled."""
        if self.read_noise_scale == 0:
            return None
        return self.read_amplitude(state["programmed"] / self.g_max).mul_(self.read_noise_scale)

    def band(self, seconds: Tensor) -> Tensor:
        """``sqrt(ln((t + t_0 + t_read) / (2 t_read)))``."""
        return ((seconds + self.t_0 + self.t_read) / (2 * self.t_read)).log_().sqrt_()


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
        return (g * -1.1731).add_(1.9650).mul_(g).add_(0.26348).mul_(self.g_max / 25.0)

    def exponent_moments(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithmic in g, clipped."""
        log_g = functions.log(g.clamp(min=1e-7))
        mean = (log_g * -0.0155).add_(0.0244).clamp_(0.049, 0.1)
        return mean, log_g.mul_(-0.0125).sub_(0.0059).clamp_(0.008, 0.045)

    def read_amplitude(self, g: Tensor) -> Tensor:
        """A power of g, at most 0.2."""
        # below 0.0082 it is 0.2
        return functions.exp(functions.log(g.clamp(min=1e-3)).mul_(-0.65)).mul_(0.0088).clamp_(max=0.2)


@dataclass(frozen=True)
class PowerLaw(PowerLawDrift):
    """Cells with the laws of `PowerLawDrift` and coefficients of one's own, such as `crossbar.devices.fit` finds.

    ``σ_prog = c_0 + c_1 g + c_2 g²``, ``μ`` and ``σ`` the same at all conductances, ``Q = min(q g^-p, 1)`` down to
    ``g = 0.001``. The defaults are those of `PCM` at g_max.

    Attributes:
        programming_constant, programming_linear, programming_quadratic: ``c_0``, ``c_1``, ``c_2``, µS, from -1e5 to
            1e5; the sum is 0 where it would be below.
        exponent_mean: ``μ``, 0 to 1.
        exponent_spread: ``σ``, 0 to 1.
        read_noise: ``q``, 0 to 1.
        read_power: ``p``, -5 to 5.
    """

    kind: ClassVar[str] = "power_law"
    programming_constant: float = 0.26348
    programming_linear: float = 1.9650
    programming_quadratic: float = -1.1731
    exponent_mean: float = 0.049
    exponent_spread: float = 0.008
    read_noise: float = 0.0088
    read_power: float = 0.65

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("constant", "linear", "quadratic"):
            value = getattr(self, f"programming_{name}")
            require_number(f"device field programming_{name}", value, least=-1e5, most=1e5)
        for name in ("exponent_mean", "exponent_spread", "read_noise"):
            require_number(f"device field {name}", getattr(self, name), most=1)
        require_number("device field read_power", self.read_power, least=-5, most=5)

    def programming_deviation(self, g: Tensor) -> Tensor:
        """Quadratic in g."""
        return (
            (g * self.programming_quadratic)
            .add_(self.programming_linear)
            .mul_(g)
            .add_(self.programming_constant)
            .clamp_(min=0.0)
        )

    def exponent_moments(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """The same at each g."""
        return torch.full_like(g, self.exponent_mean), torch.full_like(g, self.exponent_spread)

    def read_amplitude(self, g: Tensor) -> Tensor:
        """A power of g, at most 1."""
        return (
            functions.exp(functions.log(g.clamp(min=1e-3)).mul_(-self.read_power)).mul_(self.read_noise).clamp_(max=1)
        )
