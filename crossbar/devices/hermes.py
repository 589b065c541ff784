"""The phase-change cells of the HERMES chip, with one or two devices a conductance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from crossbar.devices.power_law import PowerLawDrift
from crossbar.errors import InputError, shown
from crossbar.native import functions


class Fit(NamedTuple):
    """Coefficients of one unit cell; polynomials ascend in g, logarithms are ``(slope, offset, least, most)``."""

    g_max: float  # µS, the largest characterised conductance, which the programming error refers to
    programming: tuple[float, ...]  # µS
    spread_below: float  # g under which the exponent's deviation is logarithmic
    spread_log: tuple[float, float, float, float]
    spread: tuple[float, ...]
    read_below: float  # g under which the 1/f amplitude is logarithmic
    read_log: tuple[float, float, float, float]
    read: tuple[float, ...]
    mean_below: float = 0.0945  # g under which the exponent's mean is logarithmic
    mean_log: tuple[float, float, float, float] = (-0.0387, -0.0182, 0.0720, 0.13)
    mean: tuple[float, ...] = (0.0736, -0.0126, -0.0436)


_FITS = {
    1: Fit(
        g_max=10.35,
        programming=(0.15781817, 2.32443916, -2.16310839, 0.68841818),
        spread_below=0.3039,
        spread_log=(-0.0120, -0.0023, 0.0124, 0.04),
        spread=(0.0104, 0.0116, -0.0165),
        read_below=0.1591,
        read_log=(-0.0078, 0.0038, 0.0179, 0.04),
        read=(0.0088, 0.0768, -0.1352, 0.0664),
    ),
    2: Fit(
        g_max=20.7,
        programming=(0.16603222, 4.71806468, -8.48101252, 4.68961419),
        spread_below=0.3055,
        spread_log=(-0.0117, -0.0057, 0.0091, 0.04),
        spread=(0.0073, 0.0093, -0.0118),
        read_below=0.16,
        read_log=(-0.0117, -0.0069, 0.015, 0.04),
        read=(0.0123, 0.0211, -0.0280, 0.0069),
    ),
}


@dataclass(frozen=True)
class Hermes(PowerLawDrift):
    """PCM of the IBM HERMES Project Chip: the statistics of aihwkit's ``HermesNoiseModel``.

    Fits to measured unit cells of one device or two (Le Gallo et al., Nat. Electron. 6, 680, 2023; Khaddam-Aljameh et
    al., JSSC 2022; two devices programmed as in Vasilopoulos et al., TED 2023, and drifting alike). `presets.hermes`
    gives the characterised ``g_max`` and ``t_0`` of each.

    Attributes:
        devices: devices that make up one conductance, 1 or 2.
    """

    kind: ClassVar[str] = "hermes"
    g_max: float = 20.7
    t_0: float = 300.0
    t_read: float = 512e-9
    devices: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.devices, bool) or self.devices not in tuple(_FITS):  # a list, say, has no hash
            raise InputError(f"device field devices = {shown(self.devices)} is not allowed: choose 1 or 2")
        if self.g_max > self.fit.g_max:
            raise InputError(
                f"device field g_max = {self.g_max!r} is not allowed: {self.devices} devices were measured up to "
                f"{self.fit.g_max} µS, give that or less"
            )

    @property
    def fit(self) -> Fit:
        """Coefficients of the unit cell."""
        return _FITS[self.devices]

    def programming_deviation(self, g: Tensor) -> Tensor:
        """Cubic in g."""
        return _polynomial(self.fit.programming, g) * (self.g_max / self.fit.g_max)

    def exponent_moments(self, g: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithmic at low g, quadratic above."""
        g, fit = g.clamp(min=1e-7), self.fit
        log = functions.log(g)
        mean = torch.where(g < fit.mean_below, _line(fit.mean_log, log), _polynomial(fit.mean, g))
        spread = torch.where(g < fit.spread_below, _line(fit.spread_log, log), _polynomial(fit.spread, g))
        return mean, spread

    def read_amplitude(self, g: Tensor) -> Tensor:
        """Logarithmic at low g, cubic above."""
        fit, log = self.fit, functions.log(g.clamp(min=1e-7))
        return torch.where(g < fit.read_below, _line(fit.read_log, log), _polynomial(fit.read, g))


def _polynomial(coefficients: tuple[float, ...], g: Tensor) -> Tensor:
    *rest, second, first = coefficients
    value = g * first + second
    for coefficient in reversed(rest):
        value.mul_(g).add_(coefficient)
    return value


def _line(fit: tuple[float, float, float, float], log: Tensor) -> Tensor:
    slope, offset, least, most = fit
    return (slope * log).add_(offset).clamp_(least, most)
