"""What the domains share: a small encoder and its training, tasks of arrays and of texts, and what is shown."""

import argparse
import copy
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from attention import attach, gated_attention, parse
from calibration import calibrate, console
from calibration.models.embedding import embed, tokenise
from calibration.results.plots import accuracy_over_time
from calibration.tasks import scores
from crossbar import Ledger, age, convert, presets, price, program

OUT = Path("demo/domains")


class Encoder(nn.Module):
    """Vectors ``x [B, N, I]`` to numbers ``[B, O]`` by layers of sparse attention, each with an MLP.

    Args:
        tokens: N.
        inputs: I.
        outputs: O.
        pattern: who attends to whom.
    """

    def __init__(self, tokens: int, inputs: int, outputs: int, pattern: str, *, width: int = 64) -> None:
        super().__init__()
        self.embed, self.positions = nn.Linear(inputs, width), nn.Parameter(0.02 * torch.randn(tokens, width))
        self.layers = nn.ModuleList(Layer(width, pattern) for _ in range(2))
        self.norm, self.read = nn.LayerNorm(width), nn.Linear(tokens * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, I]`` to ``[B, O]``."""
        x = self.embed(x) + self.positions
        for layer in self.layers:
            x = layer(x)
        return self.read(self.norm(x).flatten(1))


class Layer(nn.Module):
    """One layer of `Encoder`, with 4 heads."""

    def __init__(self, width: int, pattern: str) -> None:
        super().__init__()
        self.pattern = parse(pattern)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, width]`` to the same."""
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, 4, -1)).permute(2, 0, 3, 1, 4)  # [B, H, N, D] each
        x = x + self.out(gated_attention(q, k, v, self.pattern).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[1](x))


class Arrays:
    """A task of arrays: parts ``training``, ``calibration`` and ``evaluation``, each of inputs and answers.

    Args:
        name: of the task.
        primary: what the score is called.
        parts: inputs ``[n, ...]`` and answers ``[n, ...]`` of each part.
        score: of outputs and answers, higher is better.
        argument: the model's name for its input.
    """

    def __init__(
        self,
        name: str,
        primary: str,
        parts: Mapping[str, tuple[Tensor, Tensor]],
        score: Callable[[Tensor, Tensor], float],
        argument: str = "x",
    ) -> None:
        self.name, self.primary, self.parts, self.score, self.argument = name, primary, parts, score, argument

    def batches(self, split: str) -> list[dict[str, Tensor]]:
        """Keyword inputs of the model, 64 samples in each."""
        return [{self.argument: part} for part in self.parts[split][0].split(64)]

    @torch.inference_mode()
    def metrics(self, model: nn.Module) -> dict[str, float]:
        """The score of all outputs."""
        found = torch.cat([result(model(**batch)) for batch in self.batches("evaluation")])
        return {self.primary: self.score(found, self.parts["evaluation"][1])}


class Pairs:
    """A task of texts: find the second of each pair among all by the first, by cosine similarity of embeddings.

    Args:
        name: of the task.
        pairs: of texts; the first ``scored`` are scored, the others calibrate.
        lengths: most tokens of a first and of a second text.
    """

    primary = "recall@1"

    def __init__(
        self, name: str, pairs: Sequence[tuple[str, str]], scored: int, tokenizer: object, lengths: tuple[int, int]
    ) -> None:
        self.name = name
        parts = {"evaluation": pairs[:scored], "calibration": pairs[scored:]}
        self._texts = {
            split: [
                tokenise([pair[side] for pair in part], tokenizer, max_length=lengths[side], batch_size=16)
                for side in (0, 1)
            ]
            for split, part in parts.items()
        }

    def batches(self, split: str) -> list[dict[str, Tensor]]:
        """Keyword inputs of the model: first texts, then second ones."""
        return [batch for texts in self._texts[split] for batch in texts.batches]

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """Part of the first texts whose second is the most similar of all."""
        first, second = (embed(model, texts) for texts in self._texts["evaluation"])
        return {"recall@1": scores.recall_at_1(scores.ranks(first @ second.T))}


def result(output: object) -> Tensor:
    """The numbers that a model returns, transformers' classifiers too."""
    return output if isinstance(output, Tensor) else output.logits  # type: ignore[attr-defined]  # ModelOutput


def accuracy(found: Tensor, labels: Tensor) -> float:
    """Part of the samples whose highest output ``[n, classes]`` is their label ``[n]``."""
    return float((found.argmax(-1) == labels).double().mean())


def train(model: nn.Module, task: Arrays, loss: Callable[[Tensor, Tensor], Tensor], steps: int) -> None:
    """AdamW on 64 samples a step, seeded, with a rate that rises over 20 steps and then falls to 0."""
    inputs, answers = task.parts["training"]
    drawn = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min((k + 1) / 20, (steps - k) / steps))
    model.train()
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (64,), generator=drawn)
        optimizer.zero_grad()
        loss(result(model(**{task.argument: inputs[chosen]})), answers[chosen]).backward()
        optimizer.step()
        schedule.step()
    model.eval()


def options(text: str, chips: int = 3) -> argparse.Namespace:
    """``--short``, a run of seconds whose figures mean nothing, and ``--chips``."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--short", action="store_true", help="see that it runs, in seconds")
    parser.add_argument("--chips", type=int, default=chips)
    return parser.parse_args()


def microjoules(model: nn.Module, task: object, pattern: str | None) -> dict[str, float]:
    """Energy of a sample in digital and on tiles (`crossbar.price` with the default books), in µJ."""
    model = copy.deepcopy(model)
    samples = sum(len(next(iter(batch.values()))) for batch in task.batches("evaluation"))
    if pattern is not None:
        attach(model, parse(pattern))
    found = {}
    for arm in ("digital", "analog"):
        if arm == "analog":
            convert(model, presets.pcm())
            program(model, seed=0)
            age(model, "1d")
        with Ledger(model) as ledger:
            task.metrics(model)
        found[arm] = price(ledger).total.pj / 1e6 / samples
    return found


def show(
    model: nn.Module,
    task: object,
    chosen: argparse.Namespace,
    *,
    pattern: str | None = None,
    recipe: str = "fast",
    times: Sequence[str] = ("1d", "1y"),
    beside: Mapping[str, float] | None = None,
) -> None:
    """Score a trained model in digital, analog and calibrated; print a table and a sentence, draw a picture.

    Args:
        model: trained.
        task: scores it.
        chosen: what `options` found.
        pattern: for a model of transformers: who attends to whom.
        recipe: of the calibration.
        times: since programming.
        beside: scores of something else that did the task, by its name.
    """
    times = list(times[-1:] if chosen.short else times)
    with console.progress_bar(task.name) as progress:
        found = calibrate(
            model,
            task,
            "pcm",
            recipe,
            pattern=pattern,
            times=times,
            chips=chosen.chips,
            staircase=False,
            progress=progress,
        )
    energy = microjoules(model, task, pattern)
    table = Table(title=f"{task.name}: {task.primary}, PCM, {chosen.chips} chips", title_justify="left")
    for column, side in (("", "left"), ("after", "right"), (task.primary, "right"), ("µJ a sample", "right")):
        table.add_column(column, justify=side)
    for name, score in (beside or {}).items():
        table.add_row(name, "", f"{score:.3f}", "")
    rows = {(row.arm, row.seconds): row for row in found.rows() if row.metric == task.primary}
    scored = dict(zip(times, sorted(found.fits()), strict=True))  # each at its wait after the calibration
    digital = rows["digital", None].mean
    table.add_row("digital", "", f"{digital:.3f}", f"{energy['digital']:.3g}")
    for arm in ("analog", "calibrated"):
        for time, seconds in scored.items():
            row = rows[arm, seconds]
            half = "" if row.n < 2 else f" ± {(row.high - row.low) / 2:.3f}"
            table.add_row(arm, time, f"{row.mean:.3f}{half}", f"{energy['analog']:.3g}" if arm == "analog" else "")
    analog, calibrated = (rows[arm, scored[times[-1]]].mean for arm in ("analog", "calibrated"))
    sentence = (
        f"{task.name}: after {times[-1]} on phase-change cells {calibrated:.3f} of {digital:.3f} with calibration and "
        f"{analog:.3f} without; a sample takes {energy['analog']:.3g} µJ there, and {energy['digital']:.3g} µJ in "
        "digital logic that reads its weights from DRAM."
    )
    Console().print(table)
    print(sentence)
    OUT.mkdir(parents=True, exist_ok=True)
    place = OUT / task.name.replace(" ", "_")
    accuracy_over_time([found]).savefig(place.with_suffix(".png"), dpi=110)
    values = {"sentence": sentence, "energy": energy, "beside": dict(beside or {}), "result": found.to_dict()}
    place.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")
