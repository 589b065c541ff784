"""What computes cells, in whatever process an engine puts it: one chip at a time, at several times."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from calibration.models import Loaded
from calibration.placement.layout import Target, measures
from calibration.recipe import Recipe
from calibration.runs.climb import Climb
from calibration.runs.experiment import Experiment
from calibration.runs.request import Request
from calibration.steps.protocol import Stage
from calibration.tasks import Task
from crossbar import Ledger

Scores = dict[str, dict[str, float]]
"""Metrics by arm."""

Counts = list[tuple[str, int | None, int]]
"""Name, bits and number of all that one evaluation takes; of a digital setup, what its dense attention attends to."""


@dataclass(frozen=True)
class Unit:
    """Work that belongs together: a chip at its times, or a digital baseline.

    Attributes:
        id: of the setup.
        setup: everything but the chip and the times, as `calibration.studies.plan` enters it.
        seed: of the chip; None for digital.
        seconds: the times; one None for digital.
    """

    id: str
    setup: dict[str, Any]
    seed: int | None
    seconds: tuple[float | None, ...]


@dataclass(frozen=True)
class Scored:
    """A finished cell.

    Attributes:
        seconds: which of the unit's times.
        scores: metrics by arm.
        took: seconds of computing, with the shared work that this cell came first to.
        counts: what an evaluation takes, the same for each cell of a setup.
    """

    seconds: float | None
    scores: Scores
    took: float
    counts: Counts


@dataclass(frozen=True)
class Failed:
    """A cell that raised: the first of the unit's times without a score.

    Attributes:
        reason: one line.
        trace: the traceback.
    """

    reason: str
    trace: str


class Worker:
    """Computes units with one thread; keeps the last task and analog copy for the next unit.

    Args:
        load: a model by its fingerprint.
    """

    def __init__(self, load: Callable[[str], Loaded]) -> None:
        torch.set_num_threads(1)
        self._load = load
        self._ready: tuple[str, Setup] | None = None

    def run(self, unit: Unit) -> Iterator[Scored | Failed]:
        """Score a unit, cell by cell; ends with a cell that failed."""
        began = time.perf_counter()
        try:
            if self._ready is None or self._ready[0] != unit.id:
                self._ready = None  # frees the last one before the next is made
                loaded = self._load(unit.setup["model"]["fingerprint"])
                self._ready = (unit.id, Setup(unit.setup, loaded))
            setup = self._ready[1]
            for seconds in unit.seconds:
                scores = setup.score(unit.seed, seconds)
                yield Scored(seconds, scores, time.perf_counter() - began, setup.counts)
                began = time.perf_counter()
        except Exception as error:  # noqa: BLE001 - whatever a cell raises is its result
            self._ready = None
            reason = " ".join(str(error).split()) or "no message"
            yield Failed(f"{type(error).__name__}: {reason}", traceback.format_exc())


class Setup:
    """A model on its tiles with its task and recipe, ready for any chip at any time.

    What is shared is done once: the twin on tiles, the steps before programming, and a chip's programming as long as
    the next score is of the same chip.

    Args:
        values: of a setup, as `calibration.studies.plan` enters it.
        model: loaded, or a network with a task of its own; its parameters are used as they lie in memory.
        task: for a network; None: the one that the values name.
    """

    def __init__(self, values: Mapping[str, Any], model: Loaded | nn.Module, task: Task | None = None) -> None:
        self.counts: Counts = []
        self._is_digital = values["hardware"] is None
        self._staircase = bool(values.get("staircase", False))
        request = request_of(values, model, task)
        self._request = request
        self._experiment = Experiment.prepare(request, is_lent=True)
        self._recipe = request.recipe
        self._climb = Climb(
            self._experiment, request.recipe, request.wait, staircase=self._staircase, watch=self._counted
        )
        self._climb.write()

    def score(self, seed: int | None, seconds: float | None) -> Scores:
        """Scores by arm, of a chip at a time or of the digital model."""
        climb = self._climb
        climb.measurements.clear()
        if seed is None or seconds is None:
            climb.score_digital()
            dense = climb.counts.get("dense attention", {})
            self.counts = [(name, None, number) for name, number in dense.items()]
        else:
            score_cell(climb, self._recipe, seed, seconds, staircase=self._staircase)
        scores: Scores = {}
        for found in climb.measurements:
            scores.setdefault(found.arm, {})[found.metric] = found.value
        return scores

    @contextmanager
    def _counted(self, model: nn.Module) -> Iterator[None]:
        """Count what the first evaluation of a chip takes, digital layers too, and how long it would on its chips."""
        if self.counts:
            yield
            return
        with Ledger(model) as ledger:
            yield
        totals: Counter[tuple[str, int | None]] = Counter()
        for counts in ledger.by_layer.values():
            totals.update({(counted.name, counted.bits): number for counted, number in counts.items()})
        self.counts = [(name, bits, number) for (name, bits), number in totals.items()]
        if self._request.target is not None:
            batches = self._experiment.task.batches("evaluation")
            placed = measures(model, ledger, batches, self._request.pattern, self._request.target)
            self.counts += [(name, None, number) for name, number in placed.items()]


def request_of(values: Mapping[str, Any], model: Loaded | nn.Module, task: Task | None = None) -> Request:
    """The job that a setup is, for one chip at one time: see `Setup`."""
    return Request.of(
        model,
        values["task"]["name"] if task is None else task,
        "ideal" if values["hardware"] is None else values["hardware"],
        pattern=values["pattern"],
        memory=values["memory"],
        recipe=values["recipe"],
        wait=values.get("wait", 0.0),  # of a study without recipes there is none
        device=values["device"],
        include=values["model"].get("include"),
        exclude=values["model"].get("exclude"),
        tied_heads=values["model"].get("tied_heads", False),
        options=values["task"].get("options") if task is None else None,
        target=Target.from_dict(values["chip"]) if values.get("chip") else None,
    )


def score_cell(climb: Climb, recipe: Recipe | None, seed: int, seconds: float, *, staircase: bool) -> None:
    """All arms of a chip at a time, after `Climb.write`."""
    if recipe is None:
        climb.score_programmed(seed, [seconds])
        return
    written = len(recipe.steps_at(Stage.BEFORE_PROGRAMMING))
    for index in range(written - 1 if staircase else 0):
        climb.score_written(seed, [seconds], index)
    climb.score_chip(seed, [seconds])
