"""Digits on phase-change memory: a vision transformer with its patch embedding, and a small residual network.

Both are trained in digital on 4,000 digits of MNIST, calibrated on 500 of these and scored on 1,000 others, on several
chips at 1 d. The residual network is scored under single steps of calibration too, of which `BatchNormStatistics` is
Joshi et al.'s AdaBS (Nat. Commun. 11, 2473, 2020).

    python benchmarks/digits_on_tiles.py            # both, minutes
    python benchmarks/digits_on_tiles.py --only vit --chips 3
"""

import statistics
import time
from collections.abc import Callable

import digits
import paired
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers.modeling_outputs import ImageClassifierOutput

from calibration import DriftCompensation, Recipe, calibrate, recipe
from calibration.metrics import interval
from calibration.steps.batch_norms import BatchNormStatistics
from crossbar.random.streams import seed as derived_seed

FAST = recipe.get("fast")
RECIPES = {
    "DriftCompensation": Recipe("drift", (DriftCompensation(),)),
    "AdaBS alone": Recipe("adabs", (BatchNormStatistics(),)),
    "fast": FAST,
    "fast, then AdaBS": Recipe("fast-adabs", (*FAST.steps, BatchNormStatistics())),
}


class Block(nn.Module):
    """Two 3x3 convolutions with batch norms, and a shortcut, of 1x1 where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)])
        self.shortcut = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C, H, W]``."""
        y = self.norms[1](self.second(F.relu(self.norms[0](self.first(x)))))
        return F.relu(y + self.shortcut(x))


class ResidualNet(nn.Module):
    """A ResNet-8 in He et al.'s form for small images: 16, 32 and 64 channels, one block each, 77,000 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 2), Block(32, 64, 2))
        self.head = nn.Linear(64, 10)

    def forward(self, pixel_values: Tensor) -> ImageClassifierOutput:
        """``[B, 1, 28, 28]``."""
        x = self.blocks(F.relu(self.norm(self.stem(pixel_values))))
        return ImageClassifierOutput(logits=self.head(x.mean((2, 3))))


def residual_net() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed((0, "residual net")))
        return ResidualNet()


SUBJECTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Recipe], int]] = {
    "vit": (digits.build, {"fast": FAST}, 2000),
    "residual net": (residual_net, RECIPES, 600),
}


def main() -> None:
    parser = paired.option_parser(__doc__, rounds=1)
    parser.add_argument("--only", choices=SUBJECTS, help="one of the two")
    parser.add_argument("--chips", type=int, default=5)
    parser.add_argument("--steps", type=int, help="of digital training (vit: 2000, residual net: 600)")
    parser.add_argument("--time", default="1d")
    options = paired.use(parser)
    paired.print_setting()
    for name in [options.only] if options.only else SUBJECTS:
        build, recipes, steps = SUBJECTS[name]
        task, model = digits.Digits(calibration=500), build()
        digits.train(model.train(), task, steps=options.steps or steps)
        Console(width=150).print(measured(name, model.eval(), task, recipes, options.time, options.chips))


def measured(
    name: str, model: nn.Module, task: digits.Digits, recipes: dict[str, Recipe], when: str, chips: int
) -> Table:
    view = Table(title=f"{name}: accuracy of {chips} chips at {when}, an hour after they were calibrated")
    for column in ("arm", "mean", "95% interval", "chips", "seconds of the processor"):
        view.add_column(column, justify="left" if column == "arm" else "right")
    for label, steps in recipes.items():
        began = time.process_time()
        result = calibrate(model, task, "pcm", steps, times=[when], chips=chips, staircase=False)
        arms = {"calibrated": label}
        if not view.rows:
            print(result.conversion, flush=True)
            arms = {"digital": "digital", "analog": "programmed, without calibration", **arms}
        for arm, told in arms.items():
            values = result.values(arm)
            spread = f"{interval(values)[1]:.1%} to {interval(values)[2]:.1%}" if len(values) > 1 else ""
            each = ", ".join(f"{value:.1%}" for value in values) if len(values) > 1 else ""
            seconds = f"{time.process_time() - began:.0f}" if arm == "calibrated" else ""
            view.add_row(told, f"{statistics.mean(values):.1%}", spread, each, seconds)
            print(f"{told}: {statistics.mean(values):.1%} {each}", flush=True)
    return view


if __name__ == "__main__":
    main()
