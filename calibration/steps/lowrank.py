"""A digital low-rank adapter beside each layer's tiles, in closed form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.affine import digital_outputs, require_instants
from calibration.steps.least_squares import token_weights
from calibration.steps.observe import Instants, observe
from calibration.steps.protocol import Fitted, Stage
from calibration.threads import one_thread
from crossbar import analog_layers
from crossbar.errors import require_number, require_whole


@dataclass(frozen=True)
class LowRankAdapter:
    """The ``x @ down @ up`` of a rank that takes most of the error between the digital layer and the analog one.

    The error is that of outputs on calibration data, for the inputs ``x`` that reach the layer in the analog model:
    ``e = W x + b - y``. With ``S = Σ x xᵀ`` and ``D = Σ x eᵀ``, the least squares correction of full rank is
    ``S⁻¹ D``; the best one of rank r on these inputs comes from the singular vectors of ``M = L⁻¹ D``, where
    ``S = L Lᵀ`` (reduced-rank regression: Izenman, J. Multivariate Anal. 5, 248, 1975). Directions that inputs often
    take count more, so a small rank goes far where activations are anisotropic.

    What no adapter can correct, the noise of reads, is in ``M`` as noise of a known size in every entry. Singular
    values that noise alone would reach are left out, and the others shrunk to what is best in the mean square (Gavish
    and Donoho, IEEE Trans. Inf. Theory 63, 2137, 2017): little data then make a small correction, not a wrong one.

    Tokens count as `calibration.steps.least_squares.token_weights` says. Sums are float64, a batch at a time. Batches
    are read at several instants before the model's age (`calibration.steps.observe.Instants`), since 1/f noise that is
    fitted is gone when the model is used.

    Attributes:
        rank: of the adapter, at most; it costs ``rank · (I + O)`` multiply-and-adds a token.
        ridge: added to the diagonal of S, as a part of its mean.
        instants: how many.
        spacing: seconds between them.
    """

    stage: ClassVar[Stage] = Stage.IN_USE
    rank: int = 16
    ridge: float = 1e-3
    instants: int = 8
    spacing: float = 60.0

    def __post_init__(self) -> None:
        require_whole("LowRankAdapter rank", self.rank, least=1, most=10_000)
        require_number("LowRankAdapter ridge", self.ridge, above=0, most=1e9)
        require_instants("LowRankAdapter", self.instants, self.spacing)

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """``<layer>.adapter_down [I, r]`` and ``<layer>.adapter_up [r, O]``; layers with nothing to correct: none."""
        layers = analog_layers(model)
        moments: dict[str, _Moments] = {}
        before = {name: (layer.adapter_down, layer.adapter_up) for name, layer in layers.items()}

        def see(name: str, x: Tensor, y: Tensor) -> None:
            target = digital_outputs(layers[name], x)
            weight = token_weights(target).sqrt()
            moments.setdefault(name, _Moments()).add(x * weight, (target - y) * weight)

        for layer in layers.values():
            layer.set_adapter(None, None)
        try:
            observe(model, batches, layers, see, instants=Instants(self.instants, self.spacing))
        finally:
            for name, adapter in before.items():
                layers[name].set_adapter(*adapter)
        fitted: Fitted = {}
        while moments:
            name, moment = moments.popitem()
            with one_thread():
                down, up = moment.adapter(self.rank, self.ridge)
            if down.shape[1]:
                fitted |= {
                    f"{name}.adapter_down": down.to(layers[name].scales),
                    f"{name}.adapter_up": up.to(layers[name].scales),
                }
        return fitted

    def combine(self, fits: Sequence[Fitted]) -> Fitted:
        """The adapters nearest to the mean of those of several chips."""
        fitted: Fitted = {}
        for down in dict.fromkeys(name for chip in fits for name in chip if name.endswith(".adapter_down")):
            up = f"{down.removesuffix('down')}up"
            own = [chip for chip in fits if down in chip]  # others have nothing to correct there
            # The mean is one adapter of a larger rank: the singular vectors of its product come from its two halves.
            q_down, r_down = torch.linalg.qr(torch.cat([chip[down].double() for chip in own], 1) / len(fits))
            q_up, r_up = torch.linalg.qr(torch.cat([chip[up].double() for chip in own]).t())
            u, s, vh = torch.linalg.svd(r_down @ r_up.t(), full_matrices=False)
            rank = min(self.rank, len(s))
            fitted[down] = (q_down @ u[:, :rank] * s[:rank]).to(own[0][down].dtype)
            fitted[up] = (vh[:rank] @ q_up.t()).to(own[0][up].dtype)
        return fitted

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Put the adapters beside the tiles."""
        for name, layer in analog_layers(model).items():
            if f"{name}.adapter_down" in fitted:
                layer.set_adapter(fitted[f"{name}.adapter_down"], fitted[f"{name}.adapter_up"])


class _Moments:
    """Sums over inputs and errors in float64, which do not grow with the data."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, x: Tensor, error: Tensor) -> None:
        """Take in inputs ``[B, I]`` and errors ``[B, O]``."""
        sums = (x.t() @ x).double(), (x.t() @ error).double(), error.double().square().sum(0).sum()
        if self._sums is None:
            self._sums = sums
        else:
            for total, more in zip(self._sums, sums, strict=True):
                total.add_(more)
        self._count += len(x)

    def adapter(self, rank: int, ridge: float) -> tuple[Tensor, Tensor]:
        """``down [I, r]`` and ``up [r, O]`` of at most this rank."""
        assert self._sums is not None
        s, d, power = self._sums
        diagonal = s.diagonal()
        diagonal += ridge * diagonal.mean() + torch.finfo(torch.float32).tiny
        root = torch.linalg.cholesky(s)
        whitened = torch.linalg.solve_triangular(root, d, upper=False)
        inputs, outputs = d.shape
        # The leading left singular vectors, from the smaller of the two Gram matrices.
        if inputs <= outputs:
            values, vectors = torch.linalg.eigh(whitened @ whitened.t())
        else:
            values, vectors = torch.linalg.eigh(whitened.t() @ whitened)
        chosen = values.argsort(descending=True)[:rank]
        kept = _shrinkage(values[chosen], inputs, outputs, self._noise(whitened, power))
        chosen, kept = chosen[kept > 0], kept[kept > 0]
        left = vectors[:, chosen] if inputs <= outputs else whitened @ vectors[:, chosen] / values[chosen].sqrt()
        # In the order of files: products with columns laid one after another round otherwise.
        down = torch.linalg.solve_triangular(root.t(), left, upper=True).contiguous()
        return down, kept.unsqueeze(1) * (left.t() @ whitened)

    def _noise(self, whitened: Tensor, power: Tensor) -> Tensor:
        """Variance of an entry of ``whitened`` that comes from what is left when all of it is corrected."""
        inputs, outputs = whitened.shape
        if self._count <= inputs:
            return power / (self._count * outputs)
        return (power - whitened.square().sum()).clamp(min=0) / ((self._count - inputs) * outputs)


def _shrinkage(squares: Tensor, inputs: int, outputs: int, noise: Tensor) -> Tensor:
    """What to multiply singular values by whose ``squares`` are given, among noise of this variance; 0 leaves out."""
    edge = (inputs**0.5 + outputs**0.5) ** 2 * noise
    inside = (squares - (inputs + outputs) * noise).square() - 4 * inputs * outputs * noise.square()
    shrunk = inside.clamp(min=0).sqrt() / squares.clamp(min=torch.finfo(squares.dtype).tiny)
    return torch.where(squares > edge, shrunk, 0.0)
