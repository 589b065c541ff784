"""Writing the worst columns of a chip again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.compensation import MOST_READS, column_gain, read_out_inputs
from calibration.steps.protocol import Fitted, Stage
from crossbar import AnalogLinear, WriteVerify, analog_layers
from crossbar.errors import MOST_SEED, require_number, require_whole


@dataclass(frozen=True)
class ReprogramWorst:
    """Program and verify again the tile columns of each layer that read out worst, right after programming.

    A column's error is what the best gain leaves between its reads of random inputs and what ideal cells would give,
    relative to the latter. Cells of the chosen columns are written until they are near their targets; each pulse is
    booked (``write_pulses``). Stuck cells stay stuck.

    Attributes:
        fraction: of the columns, in each layer.
        tolerance: a cell is left alone once it is this near its target, as a part of g_max.
        rounds: of writing, at most.
        reads: test inputs.
        seed: of the test inputs.
    """

    stage: ClassVar[Stage] = Stage.PROGRAMMED
    fraction: float = 0.1
    tolerance: float = 0.02
    rounds: int = 10
    reads: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        require_number("ReprogramWorst fraction", self.fraction, above=0, most=1)
        WriteVerify(self.tolerance, self.rounds)
        require_whole("ReprogramWorst reads", self.reads, least=1, most=MOST_READS)
        require_whole("ReprogramWorst seed", self.seed, least=0, most=MOST_SEED)

    @torch.no_grad()
    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """Which columns to write again, bool ``[T_in, O]`` by layer; ``batches`` are not needed."""
        return {name: self._worst(name, layer) for name, layer in analog_layers(model).items()}

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Write the columns again.

        Raises:
            InputError: for a chip that is not at 0 s.
        """
        for name, layer in analog_layers(model).items():
            if name in fitted:
                layer.reprogram(fitted[name], WriteVerify(self.tolerance, self.rounds))

    def cells(self, model: nn.Module, fitted: Fitted) -> int:
        """Those of the chosen columns."""
        layers = analog_layers(model)
        return sum(_cells(layers[name], chosen) for name, chosen in fitted.items())

    def _worst(self, name: str, layer: AnalogLinear) -> Tensor:
        inputs = read_out_inputs(layer, self.reads, (self.seed, name, "reprogramming"))
        measured, expected = layer.read_out(inputs), layer.expected_read_out(inputs)
        error = (column_gain(measured, expected).unsqueeze(1) * measured - expected).square().sum(1)
        slices = layer.hardware.tile.slices
        power = expected.square().sum(1)
        relative = (error / power.clamp(min=torch.finfo(power.dtype).tiny)).unflatten(0, (slices, -1)).sum(0)
        worst = relative.flatten().topk(max(1, int(self.fraction * relative.numel()))).indices
        chosen = torch.zeros(relative.numel(), dtype=torch.bool, device=relative.device)
        chosen[worst] = True
        return chosen.view_as(relative)


def _cells(layer: AnalogLinear, chosen: Tensor) -> int:
    """Of tile columns, bool ``[T_in, O]``; the last row tile may have fewer word lines than the others."""
    rows = layer.hardware.tile.rows
    lines = torch.tensor([rows] * len(chosen), device=chosen.device)
    lines[-1] = layer.in_features - (len(chosen) - 1) * rows
    return int((chosen.sum(1) * lines).sum()) * layer.cells.cells_a_weight
