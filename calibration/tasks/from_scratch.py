"""A small transformer with sparse attention, and its training from nothing on associative recall."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention import Pattern, Router, commitment, gated_attention
from attention.patterns.routing import routings
from calibration.progress import Progress
from calibration.tasks.recall import BLANK, Recall
from crossbar.errors import InputError, require_number, require_whole
from crossbar.random.streams import seed as derived_seed

_DECAY = 0.95  # of routing centroids: training takes hundreds of steps, in which Roy's 0.999 would hardly move them
_WAIT = 150  # steps of dense attention before routing: a curriculum is then at sequences of half the length or less


class Scores(NamedTuple):
    """What the model returns: scores of the next token, ``logits`` [B, N, vocabulary]."""

    logits: Tensor


class SmallTransformer(nn.Module):
    """A causal transformer of a few layers, each with sparse attention (`attention.gated_attention`) and an MLP.

    Where the pattern has `attention.Routing` in it, each layer learns centroids of its own (`attention.Router`), after
    150 steps of training in which it attends everywhere.

    The first layer turns queries and keys by their positions (Su 2021), so that it can look at near tokens; the others
    compare content alone. Nothing depends on the length of a sequence. `BLANK` is embedded as zeros, and stays so.

    Args:
        vocabulary: different tokens.
        pattern: who attends to whom, in every layer; made causal.
        width: size of a token's vector.
        heads: attention heads.
        layers: layers.
        seed: key of the initial weights.
        learn_routing: let centroids learn; if not, random directions stay, and route after as many steps.

    Raises:
        InputError: for heads that do not divide the width into even parts.
    """

    def __init__(
        self,
        vocabulary: int,
        pattern: Pattern,
        *,
        width: int = 64,
        heads: int = 2,
        layers: int = 2,
        seed: int = 0,
        learn_routing: bool = True,
    ) -> None:
        super().__init__()
        for name, number in (("vocabulary", vocabulary), ("width", width), ("heads", heads), ("layers", layers)):
            require_whole(name, number, least=1)
        if width % (2 * heads):
            raise InputError(f"width {width} does not divide into {heads} heads of even size: give a multiple of both")
        self.pattern = pattern.causal()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed((seed, "small transformer")))
            self.embed = nn.Embedding(vocabulary, width, padding_idx=BLANK)
            self.layers = nn.ModuleList(
                _Layer(width, heads, self.pattern, turned=k == 0, learned=learn_routing) for k in range(layers)
            )
            self.norm = nn.LayerNorm(width)
            self.read = nn.Linear(width, vocabulary, bias=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Scores:
        """Tokens ``[B, N]`` to scores; the mask, which says where calibration looks, changes nothing here."""
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return Scores(self.read(self.norm(x)))


class _Layer(nn.Module):
    def __init__(self, width: int, heads: int, pattern: Pattern, *, turned: bool, learned: bool) -> None:
        super().__init__()
        self.heads, self.pattern, self.turned = heads, pattern, turned
        self.router = None
        if routings(pattern):
            self.router = Router(pattern, heads, width // heads, decay=_DECAY if learned else 1.0, wait=_WAIT)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        if self.turned:
            q, k = _turned(q), _turned(k)
        pattern = self.pattern if self.router is None else self.router(q, k)
        x = x + self.out(gated_attention(q, k, v, pattern).transpose(1, 2).flatten(2))
        fed: Tensor = x + self.mlp(self.norms[1](x))
        return fed


def _turned(x: Tensor) -> Tensor:
    """Rotary positions: pairs of dimensions of ``x`` [B, H, N, D] turned by angles that grow with the position."""
    half = x.shape[3] // 2
    frequency = 1000.0 ** -(torch.arange(half, device=x.device) / half)
    angle = torch.arange(x.shape[2], device=x.device)[:, None] * frequency
    cos, sin = angle.cos(), angle.sin()
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)


@dataclass(frozen=True)
class Lesson:
    """A part of training.

    Args:
        task: what to draw sequences from.
        batch: sequences of a step.
        steps: at most so many.
        enough: the lesson ends when the running accuracy of its batches exceeds this.
    """

    task: Recall
    batch: int
    steps: int
    enough: float


class Training(NamedTuple):
    """How training went.

    Attributes:
        steps: taken in each lesson.
        seconds: wall-clock time.
        finished: False if time ran out first.
    """

    steps: tuple[int, ...]
    seconds: float
    finished: bool


def curriculum(task: Recall) -> tuple[Lesson, ...]:
    """From two pairs with the questions right behind them to the task itself; the model may pass through fast."""
    few = replace(task, pairs=min(2, task.pairs), gap=0, questions=-(-task.questions // 2))
    some = replace(few, pairs=task.pairs // 2 + 1, gap=task.gap // 4)
    few, some, short = (replace(lesson, n=lesson.episode) for lesson in (few, some, task))
    return (
        Lesson(few, batch=64, steps=500, enough=0.9),
        Lesson(some, batch=32, steps=200, enough=0.9),
        Lesson(short, batch=16, steps=200, enough=0.9),
        Lesson(task, batch=16, steps=300, enough=0.995),
    )


def train(
    model: nn.Module,
    lessons: Sequence[Lesson],
    *,
    rate: float = 3e-3,
    minutes: float = 10.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> Training:
    """Train in place, lesson after lesson, with AdamW; the rate rises over 50 steps and falls in the last lesson.

    Args:
        model: takes ``input_ids`` and returns ``logits``, such as `SmallTransformer`.
        lessons: what to train on, such as a `curriculum`.
        rate: learning rate.
        minutes: training ends after so long. Results repeat exactly only where it does not.
        seed: key of the sequences.
        progress: told of each step.
    """
    require_number("rate", rate, above=0.0)
    require_number("minutes", minutes, above=0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    began, taken = time.monotonic(), [0] * len(lessons)
    total, before = sum(lesson.steps for lesson in lessons), 0
    model.train()
    for k, lesson in enumerate(lessons):
        running = 0.0
        while taken[k] < lesson.steps and running <= lesson.enough:
            if time.monotonic() - began > 60 * minutes:
                model.eval()
                return Training(tuple(taken), time.monotonic() - began, False)
            if progress is not None:
                progress(before + taken[k], total, f"{lesson.task.n} tokens, accuracy {running:.0%}")
            warm = min(1.0, (sum(taken) + 1) / 50)
            left = 1 - taken[k] / lesson.steps if k == len(lessons) - 1 else 1.0
            for group in optimizer.param_groups:
                group["lr"] = rate * min(warm, left)
            tokens, answers = lesson.task.draw(lesson.batch, ("training", seed, k, taken[k]))
            running += 0.1 * (_step(model, optimizer, tokens, answers) - running)
            taken[k] += 1
        before += lesson.steps
    model.eval()
    return Training(tuple(taken), time.monotonic() - began, True)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor, answers: Tensor) -> float:
    """One step; the accuracy of its batch."""
    asked = answers >= 0
    logits, wanted = model(input_ids=tokens).logits[asked], answers[asked]
    optimizer.zero_grad()
    (F.cross_entropy(logits, wanted) + commitment(model)).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return float((logits.argmax(-1) == wanted).float().mean())
