"""Filamentary ReRAM: cells that relax after programming instead of drifting by a power law."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from crossbar.devices.protocol import MOST_SCALE, Draw, State, require_conductance
from crossbar.errors import InputError, require_number, shown

_WAN_G_MAX = 40.0  # µS, the largest conductance of the measurement
_WAN = {  # deviation from the target by time (s): µS, ascending in g = G / g_max
    1.0: (0.348, 16.030, -43.853, 45.393, -16.815),
    86400.0: (0.701, 22.086, -50.773, 47.095, -16.458),
    172800.0: (0.782, 20.274, -43.507, 37.062, -11.934),
}


@dataclass(frozen=True)
class ReRam:
    """ReRAM of the NeuRRAM chip: the statistics of aihwkit's ``ReRamWan2022NoiseModel``.

    Deviations ``σ_t(g)`` from the target, ``g = G / g_max``, are fourth-order fits to the published distributions 1 s,
    1 d and 2 d after programming, characterised at g_max = 40 µS (Wan et al., Nature 608, 504, 2022) and scaled by
    ``g_max / 40 µS`` for another. (aihwkit leaves the scaling out: at 25 µS and g = 0.5 it gives σ / g_max = 0.081
    instead of 0.051.) At each of these times the conductance is ``max(N(G, σ_t), 0)``, as there.

    A cell keeps its error of the first second and relaxes from it in a direction of its own, drawn at programming::

        G(t) = G + σ_t (cos θ z_0 + sin θ z_1),   cos θ = min(σ_1s / σ_t, 1)

    so that it follows one smooth path. Between the three times the deviation is interpolated in log time; before 1 s
    and after 2 d, where nothing was measured, that of 1 s and of 2 d is held. No 1/f noise was published.

    Attributes:
        g_max: conductance of the largest weight, µS, 0.001 to 1e5.
        noise_scale: multiplies all deviations, up to 1000; 0 turns them off.
    """

    kind: ClassVar[str] = "reram"
    g_max: float = _WAN_G_MAX
    noise_scale: float = 1.0

    def __post_init__(self) -> None:
        require_conductance("device field g_max", self.g_max)
        require_number("device field noise_scale", self.noise_scale, most=MOST_SCALE)

    def deviation(self, g: Tensor, seconds: float) -> Tensor:
        """``σ_t`` in µS at relative targets ``g`` at a time."""
        times, fits = list(_WAN), list(_WAN.values())
        after = bisect_right(times, seconds)
        if 0 < after < len(times):
            share = math.log(seconds / times[after - 1]) / math.log(times[after] / times[after - 1])
            fit = [(1 - share) * a + share * b for a, b in zip(fits[after - 1], fits[after], strict=True)]
        else:
            fit = list(fits[min(after, len(times) - 1)])
        value = g * fit[-1] + fit[-2]
        for coefficient in reversed(fit[:-2]):
            value.mul_(g).add_(coefficient)
        return value.mul_(self.g_max / _WAN_G_MAX * self.noise_scale)

    def deviations(self, target: Tensor, seconds: float) -> tuple[Tensor, Tensor]:
        """What is left of the first second's error and what relaxation has added: deviations in µS at a time."""
        g = target / self.g_max
        first, now = self.deviation(g, 0.0), self.deviation(g, seconds)
        kept = torch.minimum(first, now)
        return kept, ((now - kept) * (now + kept)).sqrt_()

    def program(self, target: Tensor, draw: Draw) -> State:
        """Targets (µS), errors of the first second and directions of relaxation (both in units of σ)."""
        return {"target": target, "error": draw("programming"), "relaxation": draw("relaxation")}

    def drifted(self, state: State, seconds: float) -> Tensor:
        """The target with the error of this time, at least 0 µS."""
        kept, relaxed = self.deviations(state["target"], seconds)
        return state["target"].addcmul(kept, state["error"]).addcmul_(relaxed, state["relaxation"]).clamp_(min=0.0)

    def fluctuation(self, state: State, drifted: Tensor, seconds: float) -> None:
        """None: none was published."""


_CMO_WINDOW = (9.0, 88.2)  # µS
_CMO_PROGRAMMING = {0.2: (0.00081107, 0.00106879), 2.0: (0.0112185391, 0.01129027418)}  # by acceptance (%): µS, in G
_CMO_SHIFT = -0.08900206  # µS per unit of ln t
_CMO_SPREAD = (0.41183342, 0.04201137)  # µS, ascending in ln t
_CMO_READ = 0.0277316483  # µS per decade of conductance
_CMO_T_READ = 1e-6  # s
_CMO_FIRST = 1.0  # s: where the fit begins


@dataclass(frozen=True)
class CmoReRam:
    """Conductive-metal-oxide/HfOx ReRAM: the statistics of aihwkit's ``ReRamCMONoiseModel``.

    Fits to an array of IBM Research Zurich (Falcone et al., arXiv:2502.04524), t in s, G in µS:

    - programming ends within a band around the target and leaves ``N(0, σ)``, ``σ = 0.00081107 + 0.00106879 G`` for an
      ``acceptance`` of 0.2%, ``0.0112185 + 0.0112903 G`` for 2%;
    - all cells alike then relax by ``N(-0.08900206 ln t, 0.41183342 + 0.04201137 ln t)``, on a path of their own drawn
      at programming, so a mean shift is left in a conductance that is not one of a pair;
    - read noise is ``0.0277316 log10(G) sqrt(ln((t + t_read) / (2 t_read)))``, t_read = 1 µs.

    The fit begins at 1 s: before, a cell reads as at 1 s, but at 0 s as programmed and without read noise. What is
    read stays within g_min … g_max; aihwkit lets it leave them at 0 s only. (aihwkit's default of
    ``acceptance_range=2e-2`` is neither of the two bands and gives the one of 0.2% in silence.)

    Attributes:
        g_max: conductance of the largest weight, µS; 88.2 was measured.
        g_min: smallest conductance, µS; 9 was measured. Lower targets are written as this.
        acceptance: half width of the band that ends programming, in % of the target: 0.2 or 2.
        prog_noise_scale, drift_scale, read_noise_scale: multiply the three effects, up to 1000; 0 turns one off.
    """

    kind: ClassVar[str] = "reram_cmo"
    g_max: float = _CMO_WINDOW[1]
    g_min: float = _CMO_WINDOW[0]
    acceptance: float = 0.2
    prog_noise_scale: float = 1.0
    drift_scale: float = 1.0
    read_noise_scale: float = 1.0

    def __post_init__(self) -> None:
        for field in ("g_max", "g_min"):
            require_number(f"device field {field}", getattr(self, field), above=0)
        for field in ("prog_noise_scale", "drift_scale", "read_noise_scale"):
            require_number(f"device field {field}", getattr(self, field), most=MOST_SCALE)
        if not _CMO_WINDOW[0] <= self.g_min < self.g_max <= _CMO_WINDOW[1]:
            raise InputError(
                f"device fields g_min = {self.g_min!r} and g_max = {self.g_max!r} are not allowed: cells were measured "
                f"from {_CMO_WINDOW[0]} to {_CMO_WINDOW[1]} µS, give a window within"
            )
        if self.acceptance not in tuple(_CMO_PROGRAMMING):  # a list, say, has no hash
            raise InputError(f"device field acceptance = {shown(self.acceptance)} is not allowed: choose 0.2 or 2 (%)")

    @property
    def programming(self) -> tuple[float, float]:
        """Of the programming error: offset (µS) and slope over the target."""
        return _CMO_PROGRAMMING[self.acceptance]

    def relaxation(self, seconds: float) -> tuple[float, float]:
        """Deviation and mean (µS) of what cells have relaxed by at a time, above 0 s."""
        log_t = math.log(max(seconds, _CMO_FIRST))
        return _CMO_SPREAD[0] + _CMO_SPREAD[1] * log_t, _CMO_SHIFT * log_t

    def program(self, target: Tensor, draw: Draw) -> State:
        """Programmed conductances (µS) and directions of relaxation (in units of its deviation)."""
        target = target.clamp(min=self.g_min)
        offset, slope = self.programming
        error = (offset + slope * target).mul_(self.prog_noise_scale)
        return {"programmed": torch.addcmul(target, error, draw("programming")), "relaxation": draw("relaxation")}

    def drifted(self, state: State, seconds: float) -> Tensor:
        """Programmed conductance and relaxation since."""
        if seconds == 0:
            return state["programmed"]
        spread, shift = self.relaxation(seconds)
        return (state["relaxation"] * spread).add_(shift).mul_(self.drift_scale).add_(state["programmed"])

    def fluctuation(self, state: State, drifted: Tensor, seconds: float) -> Tensor | None:
        """Read noise; none below 1 µS, where its logarithm ends."""
        if seconds == 0 or self.read_noise_scale == 0:
            return None
        band = math.sqrt(math.log((max(seconds, _CMO_FIRST) + _CMO_T_READ) / (2 * _CMO_T_READ)))
        return drifted.clamp(min=1.0).log10_().mul_(_CMO_READ * band * self.read_noise_scale)
