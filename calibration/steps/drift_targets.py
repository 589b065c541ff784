"""Targets from which cells drift to the wanted weights."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.protocol import Fitted, Stage
from crossbar import AnalogLinear, Hardware, InputError, analog_layers
from crossbar.errors import require_number
from crossbar.tiles.weight_errors import weight_errors

_MATTERS = 0.05  # part of the squared error that the bent mean is
_SMALL = 1e-6  # of the largest weight's square: ideal cells have but rounding


@dataclass(frozen=True)
class DriftTargets:
    """Write weights so that their mean is the wanted one after a time, but for the gain that all share.

    Where cells of different conductance drift by different exponents, the mean weight after a time is a bent curve of
    what was written, which no gain of a column straightens: of HERMES' cells half of g_max has come to 0.32 of what
    g_max has come to after a year. So what is written is the inverse of that curve, which the device's own cells give
    (`crossbar.tiles.weight_errors`). It is the part of weight-programming optimization (Mackin et al., Nat. Commun. 13,
    3765, 2022) that pays here: a common part of G⁺ and G⁻ only adds to the errors of PCM and ReRAM.

    It needs no data, comes behind `WeightRanges`, and leaves layers alone whose cells keep the ratios of weights.

    Attributes:
        seconds: the time since programming.
    """

    stage: ClassVar[Stage] = Stage.BEFORE_PROGRAMMING
    seconds: float = 2592000.0

    def __post_init__(self) -> None:
        require_number("DriftTargets seconds", self.seconds, most=1e12)

    @torch.no_grad()
    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """``<layer>.target_correction [O, I]`` in units of the mapped weights; none where ratios are kept.

        Raises:
            InputError: for a layer whose targets already make up for wires.
        """
        fitted: Fitted = {}
        for name, layer in analog_layers(model).items():
            curve = _curve(layer.hardware, float(self.seconds))
            if curve is not None:
                fitted[f"{name}.target_correction"] = _correction(layer, curve)
        return fitted

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Set the corrections; the cells must then be written again."""
        for name, layer in analog_layers(model).items():
            if f"{name}.target_correction" in fitted:
                layer.set_target_correction(fitted[f"{name}.target_correction"])


@lru_cache(maxsize=32)
def _curve(hardware: Hardware, seconds: float) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
    """The mean weight after a time, of weights from 0 to 1 in equal steps, and 1 at 1; None where it is straight."""
    errors = weight_errors(hardware, seconds)
    wanted = torch.linspace(0.0, 1.0, len(errors.mean), dtype=torch.float64, device="cpu")
    bent = (errors.mean - wanted).square().mean()
    if bent < max(_MATTERS * float(errors.squared.mean()), _SMALL):
        return None
    return np.maximum.accumulate((errors.mean / errors.mean[-1]).clamp(0, 1).numpy())


def _correction(layer: AnalogLinear, curve: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Tensor:
    if layer.target_correction is not None:
        raise InputError(f"{layer.name} has targets that make up for wires: leave out DriftTargets or WireAware")
    mapped, scale = layer.wanted_weight(), layer.largest_weight()
    part = (mapped.abs() / scale).clamp(max=1.0)
    written = np.interp(part.double().cpu().numpy(), curve, np.linspace(0.0, 1.0, len(curve)))
    return (torch.from_numpy(written).to(part) - part) * scale * mapped.sign()
