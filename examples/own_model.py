"""Your own model, device and task: a small attention classifier of handwritten digits on a device that is made up."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from rich import print
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attention import gated_attention, parse
from calibration import calibrate
from crossbar import Hardware
from crossbar.devices import Draw, State


class DigitReader(nn.Module):
    """Reads an 8 x 8 picture as 8 tokens, one for each row of pixels, with one layer of sparse attention."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.qkv, self.read = nn.Linear(8, 64), nn.Linear(64, 3 * 64), nn.Linear(8 * 64, 10)

    def forward(self, rows: Tensor) -> Tensor:
        """Pictures ``[B, 8, 8]`` to scores ``[B, 10]``."""
        q, k, v = self.qkv(self.embed(rows)).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)  # [B, H, N, D] each
        attended = gated_attention(q, k, v, parse("window(4) | global(0)"))
        return self.read(attended.transpose(1, 2).flatten(1).relu())


@dataclass(frozen=True)
class LeakyCell:
    """A cell whose conductance falls as a power of time. Every number is made up for this example."""

    kind: ClassVar[str] = "leaky-cell"
    g_max: float = 40.0  # µS
    write_error: float = 0.03  # standard deviation of a written conductance, as part of g_max
    exponent: float = 0.05  # mean drift exponent; a third of it is the standard deviation from cell to cell

    def program(self, target: Tensor, draw: Draw) -> State:
        """What the cells keep: their conductance (µS) and their own drift exponent."""
        written = target + self.write_error * self.g_max * draw("write")
        return {"written": written.clamp(min=0.0), "exponent": self.exponent * (1 + draw("drift") / 3)}

    def drifted(self, state: State, seconds: float) -> Tensor:
        """Conductance (µS) at a time since programming."""
        return state["written"] * (1 + seconds) ** -state["exponent"]

    def fluctuation(self, state: State, drifted: Tensor, seconds: float) -> None:
        """None: no 1/f noise. A tensor would be its standard deviation (µS)."""


class Digits:
    """1,797 digits that come with scikit-learn; those that score the model neither train nor calibrate it."""

    name, primary = "digits", "accuracy"
    splits: ClassVar = {"training": slice(900), "calibration": slice(900, 1000), "evaluation": slice(1000, None)}
    pixels, labels = (torch.tensor(array) for array in load_digits(return_X_y=True))

    def batches(self, split: str) -> list[dict[str, Tensor]]:
        """Keyword inputs of ``DigitReader.forward``."""
        return [{"rows": self.pixels[self.splits[split]].float().view(-1, 8, 8) / 16}]

    @torch.no_grad()
    def metrics(self, model: nn.Module) -> dict[str, float]:
        """Part of the digits that the model reads correctly."""
        correct = model(**self.batches("evaluation")[0]).argmax(-1) == self.labels[self.splits["evaluation"]]
        return {"accuracy": float(correct.double().mean())}


torch.manual_seed(0)
model, task = DigitReader(), Digits()
optimizer, labels = torch.optim.AdamW(model.parameters(), lr=3e-3), task.labels[task.splits["training"]]
for _ in range(150):
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(**task.batches("training")[0]), labels).backward()
    optimizer.step()
result = calibrate(model, task, Hardware(device=LeakyCell()), times=["1h", "1d", "1y"], chips=4)
print(result)
