"""Gains and biases of norms, fitted anew to a chip."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.affine import require_instants
from calibration.steps.least_squares import LeastSquares
from calibration.steps.norms import digital_norms, digital_parameters, norms, parameters, recalibrate
from calibration.steps.observe import Instants, run, visiting
from calibration.steps.protocol import Fitted, Stage, mean
from crossbar import bypassed
from crossbar.errors import require_number


@dataclass(frozen=True)
class NormRecalibration:
    """A gain, and a bias where there is one, for each feature of each norm, against the digital model's norm outputs.

    The least squares line from what a norm gives in the analog model to what it gives in the digital model on the same
    tokens, errors of all layers before it included: where features are noisy, the gain falls below 1. Written as the
    norm's own parameters it costs nothing when the model runs.

    Sums are float64, a batch at a time. Batches are read at several instants before the model's age
    (`calibration.steps.observe.Instants`).

    Attributes:
        strength: part of the way from the norm as it was to the line; every norm is fitted to the same run of the
            model, so that full strength in a row of norms corrects too much.
        instants: how many.
        spacing: seconds between them.
    """

    stage: ClassVar[Stage] = Stage.IN_USE
    strength: float = 1.0
    instants: int = 8
    spacing: float = 60.0

    def __post_init__(self) -> None:
        require_number("NormRecalibration strength", self.strength, above=0, most=1e9)
        require_instants("NormRecalibration", self.instants, self.spacing)

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """``<norm>.weight`` and, of a norm with bias, ``<norm>.bias``, each ``[D]``."""
        found = norms(model)
        fits: dict[str, LeastSquares] = {}
        expected: dict[str, list[Tensor]] = {}

        def keep(name: str, x: Tensor, y: Tensor) -> None:
            expected.setdefault(name, []).append(y)

        def compare(name: str, x: Tensor, y: Tensor) -> None:
            fits.setdefault(name, LeastSquares()).add(y, expected[name].pop(0))

        with visiting(model, Instants(self.instants, self.spacing)) as visit, digital_norms(model):
            for index, batch in enumerate(batches):
                expected.clear()
                with bypassed(model):
                    run(model, batch, found, keep)
                visit(index)
                run(model, batch, found, compare)
        fitted: Fitted = {}
        for name, fit in fits.items():
            before = digital_parameters(found[name])
            gain, offset = fit.solve(intercept="bias" in before)
            after = {"weight": before["weight"] * gain}
            if "bias" in before:
                after["bias"] = before["bias"] * gain + offset
            for part, value in after.items():
                fitted[f"{name}.{part}"] = torch.lerp(before[part].double(), value, self.strength).to(
                    before[part].dtype
                )
        return fitted

    def combine(self, fits: Sequence[Fitted]) -> Fitted:
        """The mean over chips."""
        return mean(fits)

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Give the norms their gains and biases (`calibration.steps.norms.restore_norms` takes them away)."""
        for name, norm in norms(model).items():
            recalibrate(
                norm, {part: fitted[f"{name}.{part}"] for part in parameters(norm) if f"{name}.{part}" in fitted}
            )
