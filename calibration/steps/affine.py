"""Corrections of a layer's outputs by least squares against the digital layer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.least_squares import LeastSquares, token_weights
from calibration.steps.observe import Instants, observe
from calibration.steps.protocol import Fitted, Stage, mean
from crossbar import AnalogLinear, analog_layers
from crossbar.errors import require_number, require_whole


@dataclass(frozen=True)
class AffineCorrection:
    """A digital gain and offset for each output of a layer, by least squares against the digital layer.

    Both get the inputs that reach the layer in the analog model, on calibration data: what is fitted is the error of
    this layer and not what it is fed with. Tokens count as
    `calibration.steps.least_squares.token_weights` says. Moments are summed batch by batch in float64. Batches are read
    at several instants before the model's age (`calibration.steps.observe.Instants`).

    Attributes:
        instants: how many.
        spacing: seconds between them.
    """

    stage: ClassVar[Stage] = Stage.IN_USE
    instants: int = 8
    spacing: float = 60.0

    def __post_init__(self) -> None:
        require_instants("AffineCorrection", self.instants, self.spacing)

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """``<layer>.output_gain`` and ``<layer>.output_offset``, each ``[O]``; layers that no batch reaches: none."""
        layers = analog_layers(model)
        fits: dict[str, LeastSquares] = {}
        before = {name: (layer.output_gain, layer.output_offset) for name, layer in layers.items()}

        def see(name: str, x: Tensor, y: Tensor) -> None:
            beside = layers[name].beside(x)
            target = digital_outputs(layers[name], x) - beside
            fits.setdefault(name, LeastSquares()).add(y - beside, target, token_weights(target))

        for layer in layers.values():
            layer.set_output_correction(None, None)
        try:
            observe(model, batches, layers, see, instants=Instants(self.instants, self.spacing))
        finally:
            for name, correction in before.items():
                layers[name].set_output_correction(*correction)
        fitted: Fitted = {}
        for name, fit in fits.items():
            gain, offset = fit.solve()
            dtype = layers[name].scales.dtype
            fitted |= {f"{name}.output_gain": gain.to(dtype), f"{name}.output_offset": offset.to(dtype)}
        return fitted

    def combine(self, fits: Sequence[Fitted]) -> Fitted:
        """The mean over chips."""
        return mean(fits)

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Set the layers' output corrections."""
        for name, layer in analog_layers(model).items():
            if f"{name}.output_gain" in fitted:
                layer.set_output_correction(fitted[f"{name}.output_gain"], fitted[f"{name}.output_offset"])


def digital_outputs(layer: AnalogLinear, x: Tensor) -> Tensor:
    """What the digital layer makes of inputs ``[B, I]``, ``[B, O]``."""
    return layer.digital_outputs(x)


def require_instants(step: str, instants: int, spacing: float) -> None:
    """Refuse impossible fields of a step that reads at several instants."""
    require_whole(f"{step} instants", instants, least=1, most=10_000)
    require_number(f"{step} spacing", spacing, above=0, most=1e9)
