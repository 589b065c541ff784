"""How long a study will take, from timing one block of its model on a part of its data."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from statistics import fmean
from typing import Any

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.studies.plan import Cell, Plan
from calibration.studies.worker import Setup
from calibration.tasks import Task
from calibration.tasks.protocol import Split, fitted_on
from crossbar import InputError

_PRODUCTS = 1e9  # of a timed evaluation: a quarter of a second of one core's, or less
_SHORTEST = 8  # tokens

Networks = Callable[[str], tuple[nn.Module, int]]
"""A model with one block, and how many the whole has, by its fingerprint."""


def estimate(plan: Plan, cells: Iterable[Cell], rates: Mapping[str, float], workers: int) -> float:
    """Seconds that cells will take, from what cells of their kind took, or from timing a small part of one.

    Setups are of one kind when model, task, memory and recipe are the same. What is timed, in seconds of one core: a
    model of the same kind with a single block and random weights is made ready, programmed and scored on some of the
    task's data; the rest follows from the numbers of blocks and tokens. That is rough, by half or so, and takes seconds
    where a cell takes minutes. Workers also take some seconds each to start, which are left out.

    Args:
        plan: where the cells are from.
        cells: those to come.
        rates: seconds a cell of finished cells by setup.
        workers: how many compute at a time.

    Raises:
        RuntimeError: when what is timed fails; its failure is the message.
    """
    kinds: dict[str, list[Cell]] = defaultdict(list)
    known: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        kinds[_kind(plan.setups[cell.setup])].append(cell)
    for setup, rate in rates.items():
        known[_kind(plan.setups[setup])].append(rate)
    networks = cache(lambda key: _with_one_block(plan.loaded[key].model))
    threads, total = torch.get_num_threads(), 0.0
    torch.set_num_threads(1)
    try:
        for kind, members in kinds.items():
            total += len(members) * fmean(known[kind]) if kind in known else _seconds(plan, members, networks)
    finally:
        torch.set_num_threads(threads)
    return total / workers


def _kind(setup: dict[str, Any]) -> str:
    digital = setup["hardware"] is None
    same = ("task", "memory", "recipe", "staircase")
    return str((setup["model"]["fingerprint"], *map(setup.get, same), digital))


def _seconds(plan: Plan, cells: list[Cell], networks: Networks) -> float:
    values = copy.deepcopy(plan.setups[cells[0].setup])
    try:
        return _timed(plan, cells, values, networks)
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        raise RuntimeError(f"a part that was timed failed: {type(error).__name__}: {reason}") from error


def _timed(plan: Plan, cells: list[Cell], values: dict[str, Any], networks: Networks) -> float:
    network, blocks = networks(values["model"]["fingerprint"])
    task = _Part(plan.tasks[values["task"]["fingerprint"]], network)
    training = _without_training(values)
    began = time.process_time()
    setup = _ready(values, network, task)
    making = (time.process_time() - began) * blocks
    first = cells[0]
    seed, seconds = (None, None) if first.seed is None else (first.seed, first.seconds)
    inside = _InBlock(setup.model)
    setup.score(seed, seconds)  # what is loaded and compiled by a first run is not counted
    scoring = inside.full(blocks, lambda: setup.score(seed, seconds), task)
    if seed is None:
        return making + len(cells) * scoring
    began = time.process_time()
    setup.program(seed + 1)
    programming = (time.process_time() - began) * blocks
    setups, chips = {cell.setup for cell in cells}, {(cell.setup, cell.seed) for cell in cells}
    training *= scoring / max(task.tokens["evaluation"], 1)
    return len(setups) * making + len(chips) * programming + len(cells) * (scoring + training)


def _with_one_block(model: nn.Module) -> tuple[nn.Module, int]:
    """A model of the same class with one block and random weights, and how many blocks there are."""
    config: Any = copy.deepcopy(model.config)
    blocks = int(getattr(config, "num_hidden_layers", 1))
    if blocks > 1:
        config.num_hidden_layers = 1
        if isinstance(getattr(config, "layer_types", None), list):
            config.layer_types = config.layer_types[:1]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return type(model)(config).float().eval(), blocks


def _ready(values: dict[str, Any], network: nn.Module, task: Task) -> Setup:
    try:
        return Setup(values, network, task)
    except InputError:  # names of layers that the one block does not have
        return Setup({**values, "model": {**values["model"], "include": None, "exclude": None}}, network, task)


def _without_training(values: dict[str, Any]) -> float:
    """Take steps that train out of a recipe; returns how many tokens, in evaluations of a token, they stand for."""
    if values.get("recipe") is None:
        return 0.0
    training = [step for step in values["recipe"]["steps"] if "steps" in step]
    values["recipe"]["steps"] = [step for step in values["recipe"]["steps"] if "steps" not in step]
    if not values["recipe"]["steps"]:
        values["recipe"] = None
    return float(sum(3.0 * step["steps"] * step.get("accumulate", 1) * 512 for step in training))


class _Part:
    """A task with the beginning of its first batches, and how many tokens there are in all."""

    def __init__(self, task: Task, network: nn.Module) -> None:
        self.name, self.primary = task.name, task.primary
        products = sum(module.weight.numel() for module in network.modules() if isinstance(module, nn.Linear))
        most = max(_SHORTEST, int(_PRODUCTS / max(products, 1)))
        batches = {"calibration": task.batches("calibration"), "evaluation": task.batches("evaluation")}
        batches = {**fitted_on(task), **batches}
        self._part: dict[str, Batch] = {}
        self.tokens: dict[str, int] = {}
        for split, some in batches.items():
            kept = [*some]
            self.tokens[split] = sum(_tokens(batch) for batch in kept)
            self._part[split] = _cut(kept[0], most)

    def batches(self, split: Split) -> list[Batch]:
        """One batch."""
        return [self._part[split]]

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """Runs the model."""
        with torch.inference_mode():
            model(**self._part["evaluation"])
        return {self.primary: 0.0}

    @property
    def times(self) -> float:
        """How often the part goes into the whole."""
        return self.tokens["evaluation"] / _tokens(self._part["evaluation"])


def _tokens(batch: Batch) -> int:
    shape = next(iter(batch.values())).shape
    return int(shape[0]) * (int(shape[1]) if len(shape) > 1 else 1)


def _cut(batch: Batch, most: int) -> Batch:
    """The first tokens of the first rows of a batch."""
    shape = next(iter(batch.values())).shape
    length = min(int(shape[1]) if len(shape) > 1 else 1, most)
    rows = max(1, most // length)

    def part(values: Tensor) -> Tensor:
        own = values[:rows]
        return own[:, :length] if values.shape[:2] == shape[:2] and len(shape) > 1 else own

    return {name: part(values) for name, values in batch.items()}


class _InBlock:
    """How long a model's one block takes, of what is called."""

    def __init__(self, model: nn.Module) -> None:
        self._block = self._began = 0.0
        block = next((part[0] for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == 1), model)
        block.register_forward_pre_hook(self._begin)
        block.register_forward_hook(self._end)

    def _begin(self, *_: Any) -> None:
        self._began = time.process_time()

    def _end(self, *_: Any) -> None:
        self._block += time.process_time() - self._began

    def full(self, blocks: int, score: Callable[[], object], task: _Part) -> float:
        """What a call would take with all blocks and all tokens."""
        self._block, began = 0.0, time.process_time()
        score()
        took = time.process_time() - began
        block = min(self._block, took)
        return (took - block + blocks * block) * task.times
