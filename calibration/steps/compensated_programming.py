"""Writing a chip line by line, each line making up for what went wrong in those before."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.clipping import InputMoments
from calibration.steps.least_squares import token_weights
from calibration.steps.observe import digital, observe
from calibration.steps.protocol import Fitted, Stage
from calibration.threads import one_thread
from crossbar import AnalogLinear, analog_layers
from crossbar.errors import require_number, require_whole


@dataclass(frozen=True)
class CompensatedProgramming:
    """Write some word lines, read them out, and change what is not yet written so that it makes up for their errors.

    Inputs of a layer depend on each other, so the lines still to be written can give most of what those before them
    fail to. With errors ``e`` of a block of lines ``B``, the outputs on calibration data stay nearest if the lines
    ``R`` that are left change by ``e H⁻¹_BB⁻¹ H⁻¹_BR``, where ``H = <x xᵀ>`` of the lines of both with a ridge. It is
    what GPTQ (Frantar et al., ICLR 2023) does for rounding errors, after Optimal Brain Surgeon (Hassibi and Stork,
    NeurIPS 1993), with errors of programming and stuck cells in their place. Weights stay within what the column can
    hold. Each cell is written once, as without the step; what it costs is reads of each line while it is written.

    A read-out has 1/f noise, which no weight should make up for: several, apart in time, are averaged. Writing a chip
    takes ``parts · reads · spacing`` seconds then. Drift that comes later is known as far as cells show it by then.

    Attributes:
        parts: of each layer's word lines that are written one after another.
        reads: read-outs of each part.
        spacing: seconds between them.
        ridge: added to the diagonal of ``H``, as a part of it.
    """

    stage: ClassVar[Stage] = Stage.PROGRAMMED
    parts: int = 16
    reads: int = 16
    spacing: float = 10.0
    ridge: float = 0.03

    def __post_init__(self) -> None:
        require_whole("CompensatedProgramming parts", self.parts, least=1, most=2**20)
        require_whole("CompensatedProgramming reads", self.reads, least=1, most=10_000)
        require_number("CompensatedProgramming spacing", self.spacing, above=0, most=1e9)
        require_number("CompensatedProgramming ridge", self.ridge, above=0, most=1e9)

    @torch.no_grad()
    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """``<layer>.chip_correction [O, I]`` in units of the mapped weights; layers that no batch reaches: none.

        Raises:
            InputError: for cells that are verified, or of a user's device (`crossbar.tiles.TileArray.write_errors`).
        """
        layers = analog_layers(model)
        moments: dict[str, InputMoments] = {}

        def see(name: str, x: Tensor, y: Tensor) -> None:
            moments.setdefault(name, InputMoments()).add(layers[name].driven(x), token_weights(y))

        with digital(model):
            observe(model, batches, layers, see)
        fitted: Fitted = {}
        while moments:
            name, seen = moments.popitem()
            fitted[f"{name}.chip_correction"] = self._correction(layers[name], seen.mean())
        return fitted

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Have the chip written with the corrections.

        Raises:
            InputError: for a chip that is not at 0 s.
        """
        for name, layer in analog_layers(model).items():
            if f"{name}.chip_correction" in fitted:
                layer.write_corrected(fitted[f"{name}.chip_correction"])

    def _correction(self, layer: AnalogLinear, moments: Tensor) -> Tensor:
        """What is added to the mapped weights of a layer, ``[O, I]``, for inputs of ``moments [I, I]``."""
        size = moments.diagonal().clamp(min=1e-12 * moments.diagonal().max()).sqrt()
        size = torch.where(size > 0, size, 1.0)  # a layer that saw only zeros
        unit = moments / size / size.unsqueeze(1)
        unit.diagonal().mul_(1 + self.ridge).add_(torch.finfo(torch.float32).eps)
        with one_thread():
            upper = torch.linalg.cholesky(torch.linalg.inv(unit), upper=True)
        mapped = layer.cells.matrix().to(layer.scales.dtype)
        bound = layer.largest_weight()
        written = mapped.clamp(-bound, bound)
        size = size.to(written)
        instants = [read * self.spacing for read in range(self.reads)]
        step = -(-layer.in_features // self.parts)
        for first in range(0, layer.in_features, step):
            last = min(first + step, layer.in_features)
            error = layer.write_errors(written, slice(first, last), instants) * size[first:last]
            own, rest = upper[first:last, first:last], upper[first:last, last:]
            change = error @ torch.linalg.solve_triangular(own, rest, upper=True).to(error)
            written[:, last:] += change / size[last:]
            written[:, last:].clamp_(-bound[:, last:], bound[:, last:])
        return written - mapped
