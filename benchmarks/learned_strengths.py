"""Handwritten digits read by learned attention strengths, trained in digital and then kept in phase-change memory.

Two small transformers classify scikit-learn's 1,797 images, one token a pixel. In one, strengths of token pairs are all
the attention there is: no queries, no keys, row events only. In the other, strengths of offsets are added to content
scores. All linear layers and all strengths are programmed, aged a day, calibrated by read-out and scored an hour later.

Bar: the calibrated chips are within 2 points of the digital model.
"""

import argparse
import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from paired import judge
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn

from attention import LearnedStrengths, parse, place_strengths
from attention.neuromorphic.strength_cores import fitted_to_cores
from calibration import DriftCompensation
from crossbar import Ledger, age, convert, presets, program, reset_reads

BAR = 2.0  # points
HEAD = 16  # numbers of a head


class Layer(nn.Module):
    """Attention by strengths, and an MLP."""

    def __init__(self, width: int, content_free: bool) -> None:
        super().__init__()
        by = "pair" if content_free else "offset"
        self.strengths = LearnedStrengths(width // HEAD, 64, parse("window(33)"), by=by, content_free=content_free)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.inside, self.out = nn.Linear(width, width * (1 if content_free else 3)), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Tokens [B, N, width] to the same."""
        v, *qk = self.inside(self.norms[0](x)).unflatten(-1, (-1, self.strengths.heads, HEAD)).permute(2, 0, 3, 1, 4)
        x = x + self.out(self.strengths(v, *qk).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Reader(nn.Module):
    """Pixels [B, 64] to scores of ten digits."""

    def __init__(self, content_free: bool, width: int = 64) -> None:
        super().__init__()
        self.place, self.embed = nn.Parameter(torch.randn(64, width) * 0.1), nn.Linear(1, width)
        self.layers = nn.Sequential(*(Layer(width, content_free) for _ in range(2)))
        self.read = nn.Linear(width, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        """Scores [B, 10]."""
        return self.read(self.layers(self.embed(pixels[..., None]) + self.place).mean(1))


def trained(content_free: bool, images: Tensor, labels: Tensor, epochs: int) -> Reader:
    torch.manual_seed(0)
    model = Reader(content_free)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * -(-len(images) // 64))
    for _ in range(epochs):
        for batch in torch.randperm(len(images)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return 100 * float((model(images).argmax(-1) == labels).float().mean())


def events(ledger: Ledger, axis: str) -> int:
    """Events of the strengths on one axis."""
    own = (counts for layer, counts in ledger.by_layer.items() if ".strengths." in layer)
    return sum(n for counts in own for counter, n in counts.items() if counter.name == f"{axis}_activations")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--chips", type=int, default=3)
    parser.add_argument("--plot", default="learned_strengths.png")
    chosen = parser.parse_args()
    data = load_digits()
    images, labels = torch.tensor(data.data, dtype=torch.float32) / 8 - 1, torch.tensor(data.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    fit, held = order[:1297], order[1297:]
    view = Table(title="Accuracy (%) on 500 held-out images", title_justify="left")
    columns = (
        "strengths",
        "digital",
        "8 bits",
        "4 bits",
        "TrueNorth",
        "TrueNorth, 4 axons",
        "chip",
        "PCM, 1 d",
        "calibrated, 1 h later",
        "row events",
    )
    for name in (*columns, "column events"):
        view.add_column(name, justify="right")
    figure = Figure(figsize=(6.4, 3.0), layout="constrained")
    verdicts = []
    for content_free, axes in zip((True, False), figure.subplots(1, 2), strict=True):
        name = "pairs, content-free" if content_free else "offsets, with content"
        model = trained(content_free, images[fit], labels[fit], chosen.epochs)
        digital = accuracy(model, images[held], labels[held])
        few = []
        for change in (
            lambda own: own.quantised(8),
            lambda own: own.quantised(4),
            lambda own: fitted_to_cores(own).strengths,
            lambda own: fitted_to_cores(own, axons_a_token=4).strengths,
        ):
            few.append(accuracy(trained_with(model, change), images[held], labels[held]))
        matrix = model.layers[0].strengths.matrix()[0].detach()
        limit = float(matrix.abs().max())
        picture = axes.imshow(matrix, cmap="coolwarm", vmin=-limit, vmax=limit)
        axes.set_title(f"{name}: layer 1, head 1", fontsize=8)
        figure.colorbar(picture, ax=axes)
        convert(model, presets.pcm())
        place_strengths(model, presets.pcm())
        after = []
        for chip in range(chosen.chips):
            program(model, chip)
            age(model, "1d")
            with Ledger() as ledger:
                raw = accuracy(model, images[held], labels[held])
            step = DriftCompensation()
            step.apply(model, step.fit(model, []))
            age(model, 86400 + 3600)
            reset_reads(model)
            after.append(accuracy(model, images[held], labels[held]))
            scores = (digital, *few) if chip == 0 else ()
            texts = [f"{x:.1f}" for x in scores] or [""] * 5
            counts = [f"{events(ledger, axis):,}" for axis in ("row", "column")]
            view.add_row("" if chip else name, *texts, str(chip), f"{raw:.1f}", f"{after[-1]:.1f}", *counts)
        verdicts.append(judge(f"{name}: points lost, mean of chips", digital - sum(after) / len(after), BAR))
    Console(width=160).print(view)
    print("\n".join(verdicts))
    figure.savefig(chosen.plot, dpi=110)


def trained_with(model: Reader, change: Callable[[LearnedStrengths], LearnedStrengths]) -> Reader:
    """A copy of the model with other strengths."""
    other = copy.deepcopy(model)
    for layer in other.layers:
        layer.strengths = change(layer.strengths)
    return other


if __name__ == "__main__":
    main()
