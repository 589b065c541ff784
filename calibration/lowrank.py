"""A digital low-rank adapter beside each layer's tiles, in closed form."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from calibration.affine import digital_outputs, require_instants
from calibration.embedding import Batch
from calibration.observe import Instants, observe
from calibration.step import Fitted, Stage
from crossbar import analog_layers
from crossbar.errors import require_number, require_whole


@dataclass(frozen=True)
class LowRankAdapter:
    """The ``x @ down @ up`` of a rank that takes most of the error between the digital layer and the analog one.

    The error is that of outputs on calibration data, for the inputs ``x`` that reach the layer in the analog model:
    ``e = W x + b - y``. With ``S = Σ x xᵀ`` and ``D = Σ x eᵀ``, the least squares correction of full rank is
    ``S⁻¹ D``; the best one of rank r on these inputs comes from the singular vectors of ``L⁻¹ D``, where ``S = L Lᵀ``
    (reduced-rank regression: Izenman, J. Multivariate Anal. 5, 248, 1975). Directions that inputs often take count
    more, so a small rank goes far where activations are anisotropic.

    A token counts by its error relative to the mean output and relative to its own, half each: else the few tokens
    with massive activations of a language model would decide alone. Sums are float64, a batch at a time. Batches are
    read at several instants before the model's age (`calibration.observe.Instants`), since 1/f noise that is fitted is
    gone when the model is used.

    Attributes:
        rank: of the adapter; it costs ``rank · (I + O)`` multiply-and-adds a token. At most that of the layer.
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
        require_whole("LowRankAdapter rank", self.rank, least=1)
        require_number("LowRankAdapter ridge", self.ridge, above=0)
        require_instants("LowRankAdapter", self.instants, self.spacing)

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """``<layer>.adapter_down [I, r]`` and ``<layer>.adapter_up [r, O]``; layers that no batch reaches: none."""
        layers = analog_layers(model)
        moments: dict[str, tuple[Tensor, Tensor]] = {}
        before = {name: (layer.adapter_down, layer.adapter_up) for name, layer in layers.items()}

        def see(name: str, x: Tensor, y: Tensor) -> None:
            target = digital_outputs(layers[name], x)
            size = target.square().mean(1, keepdim=True)
            floor = torch.finfo(size.dtype).tiny
            weight = (1 / size.mean().clamp(min=floor) + 1 / size.clamp(min=1e-6 * size.mean() + floor)).sqrt()
            x, error = x * weight, (target - y) * weight
            s, d = (x.t() @ x).double(), (x.t() @ error).double()
            if name in moments:
                moments[name][0].add_(s)
                moments[name][1].add_(d)
            else:
                moments[name] = s, d

        for layer in layers.values():
            layer.set_adapter(None, None)
        try:
            observe(model, batches, layers, see, instants=Instants(self.instants, self.spacing))
        finally:
            for name, adapter in before.items():
                layers[name].set_adapter(*adapter)
        fitted: Fitted = {}
        while moments:
            name, (s, d) = moments.popitem()
            down, up = _reduced_rank(s, d, self.rank, self.ridge)
            fitted |= {
                f"{name}.adapter_down": down.to(layers[name].scales),
                f"{name}.adapter_up": up.to(layers[name].scales),
            }
        return fitted

    def combine(self, fits: Sequence[Fitted]) -> Fitted:
        """The adapters nearest to the mean of those of several chips."""
        fitted: Fitted = {}
        for down in (name for name in fits[0] if name.endswith(".adapter_down")):
            up = f"{down.removesuffix('down')}up"
            # The mean is one adapter of a larger rank: the singular vectors of its product come from its two halves.
            q_down, r_down = torch.linalg.qr(torch.cat([chip[down].double() for chip in fits], 1) / len(fits))
            q_up, r_up = torch.linalg.qr(torch.cat([chip[up].double() for chip in fits]).t())
            u, s, vh = torch.linalg.svd(r_down @ r_up.t(), full_matrices=False)
            rank = fits[0][down].shape[1]
            fitted[down] = (q_down @ u[:, :rank] * s[:rank]).to(fits[0][down].dtype)
            fitted[up] = (vh[:rank] @ q_up.t()).to(fits[0][up].dtype)
        return fitted

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Put the adapters beside the tiles."""
        for name, layer in analog_layers(model).items():
            if f"{name}.adapter_down" in fitted:
                layer.set_adapter(fitted[f"{name}.adapter_down"], fitted[f"{name}.adapter_up"])


def _reduced_rank(s: Tensor, d: Tensor, rank: int, ridge: float) -> tuple[Tensor, Tensor]:
    """``down [I, r]`` and ``up [r, O]`` from moments ``[I, I]`` and ``[I, O]``."""
    diagonal = s.diagonal()
    diagonal += ridge * diagonal.mean() + torch.finfo(torch.float32).tiny
    root = torch.linalg.cholesky(s)
    whitened = torch.linalg.solve_triangular(root, d, upper=False)
    rank = min(rank, *d.shape)
    # The leading left singular vectors, from the smaller of the two Gram matrices.
    if d.shape[0] <= d.shape[1]:
        left = torch.linalg.eigh(whitened @ whitened.t()).eigenvectors[:, -rank:]
    else:
        right = torch.linalg.eigh(whitened.t() @ whitened).eigenvectors[:, -rank:]
        left = torch.linalg.qr(whitened @ right).Q
    return torch.linalg.solve_triangular(root.t(), left, upper=True), left.t() @ whitened
