"""Word lines that digital arithmetic computes: the few that make most of a layer's errors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.steps.observe import digital, observe
from calibration.steps.protocol import Fitted, Stage
from calibration.steps.ranges import LineSizes
from crossbar import analog_layers
from crossbar.errors import require_number


@dataclass(frozen=True)
class DigitalLines:
    """Compute the word lines of largest inputs times weights in digital, and leave the others to the tiles.

    A few lines of a transformer's layers carry outliers (Dettmers et al., LLM.int8, NeurIPS 2022). They set the DAC
    range of their token and the weight that a cell at g_max stands for, and so the size of every rounding and of the
    output noise, and what their cells err by is multiplied by their inputs. Lines are chosen by the product of an
    input's size and the line's largest weight, which no word-line scale changes; sizes are those of the ``balanced``
    `InputRanges`. Their cells hold 0 and are never driven; what they would give is added in digital, from the digital
    weights, and booked: a share of the layer's multiply-and-adds.

    It changes the cells, so it comes before programming, and before `InputRanges` and `WeightRanges`, which then see
    the other lines alone.

    Attributes:
        share: of the word lines of each layer, rounded down, but at least one line; above 0.
    """

    stage: ClassVar[Stage] = Stage.BEFORE_PROGRAMMING
    share: float = 0.01

    def __post_init__(self) -> None:
        require_number("DigitalLines share", self.share, above=0, most=1)

    @torch.no_grad()
    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """``<layer>.digital_lines``, int64 ``[n]``; layers that no batch reaches are left out."""
        layers = analog_layers(model)
        sizes: dict[str, LineSizes] = {}

        def see(name: str, x: Tensor, y: Tensor) -> None:
            sizes.setdefault(name, LineSizes()).add(x)

        with digital(model):
            observe(model, batches, layers, see)
        fitted: Fitted = {}
        for name, size in sizes.items():
            layer = layers[name]
            count = max(int(self.share * layer.in_features), 1)
            score = size.result() * layer.target_weight().abs().amax(0)
            fitted[f"{name}.digital_lines"] = score.topk(count).indices.sort().values
        return fitted

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Take the lines from the tiles, whose cells must then be written again."""
        for name, layer in analog_layers(model).items():
            layer.set_digital_lines(fitted.get(f"{name}.digital_lines"))
