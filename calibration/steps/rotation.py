"""Rotations: outliers of a layer's inputs are spread over many word lines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from calibration.models.embedding import Batch
from calibration.steps.protocol import Fitted, Stage
from crossbar import analog_layers
from crossbar.errors import InputError, require_whole, shown
from crossbar.nn.rotation import LARGEST


@dataclass(frozen=True)
class Rotation:
    """Rotate each layer's inputs in digital, and its weights with them, by Hadamard blocks of word lines.

    An input that is large on few lines sets the DAC range of its token, and with it the size of every rounding and of
    the output noise; spread over a block of lines it is as large as the others (`crossbar.nn.rotation`; QuaRot:
    Ashkboos et al., NeurIPS 2024). The products stay as they are. The digital logic adds ``log2(block)`` times for each
    input, which the ledger counts. It needs no data.

    It changes the cells, so it comes before programming, behind `DigitalLines` and `InputRanges` of the balanced kind,
    whose lines are those of the layer, and before static ranges and `WeightRanges`.

    Attributes:
        block: word lines that are mixed, a power of 2 up to 4,096. A layer takes the largest up to it that leaves at
            most a sixteenth of its lines unmixed, or where there is none the largest that it has lines for.
    """

    stage: ClassVar[Stage] = Stage.BEFORE_PROGRAMMING
    block: int = 512

    def __post_init__(self) -> None:
        require_whole("Rotation block", self.block, least=2, most=LARGEST)
        if self.block & (self.block - 1):
            raise InputError(f"Rotation block = {shown(self.block)} is not allowed: give a power of 2, such as 64")

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """``<layer>.rotation``, lines of a block, int64, 0-d; none for a layer with one line."""
        layers = analog_layers(model).items()
        sizes = {name: self._block(layer.in_features) for name, layer in layers if layer.in_features > 1}
        return {f"{name}.rotation": torch.tensor(size, device="cpu") for name, size in sizes.items()}

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Rotate, whose cells must then be written again."""
        for name, layer in analog_layers(model).items():
            block = fitted.get(f"{name}.rotation")
            layer.set_rotation(None if block is None else int(block))

    def _block(self, lines: int) -> int:
        sizes = [1 << power for power in range(1, lines.bit_length()) if 1 << power <= self.block]
        return max((size for size in sizes if lines % size <= lines / 16), default=sizes[-1])
