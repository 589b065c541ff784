"""What computes cells, in whatever process an engine puts it: one chip at a time, at several times."""

from __future__ import annotations

import copy
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attention import Memory, renew_memory
from calibration import tasks
from calibration.models import Loaded
from calibration.recipe import Recipe
from calibration.runs.experiment import Experiment, data_for
from calibration.runs.overlap import require_disjoint
from calibration.steps.protocol import Fitted, Stage, Step
from calibration.tasks import Task
from crossbar import Hardware, Ledger, age, reset_reads

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
                named = unit.setup["task"]
                task = tasks.get(named["name"], loaded.tokenizer, **named["options"])
                self._ready = (unit.id, Setup(unit.setup, loaded.model, task))
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

    What is shared is done once: the copy on tiles, the steps before programming, and a chip's programming as long as
    the next score is of the same chip.
    """

    def __init__(self, values: dict[str, Any], network: nn.Module, task: Task) -> None:
        self.counts: Counts = []
        self._task = task
        network = network.to(values["device"])
        self._digital = values["hardware"] is None
        hardware = "ideal" if values["hardware"] is None else Hardware.from_dict(values["hardware"])
        layers = values["model"].get("include"), values["model"].get("exclude")
        memory = None if values["memory"] is None else Memory.from_dict(values["memory"])
        self._experiment = Experiment.prepare(network, self._task, hardware, values["pattern"], *layers, memory=memory)
        self._recipe = None if values["recipe"] is None else Recipe.from_dict(values["recipe"])
        self._wait = values.get("wait", 0.0)  # of a study without recipes there is none
        self._chip: int | None = None
        # Copies with some of the steps before programming, by the last of them, for the staircase.
        self._parts: dict[int, tuple[nn.Module, dict[str, Tensor]]] = {}
        if self._recipe is not None:
            require_disjoint(self._task)
            self._staircase = values["staircase"]
            written = self._recipe.steps_at(Stage.BEFORE_PROGRAMMING)
            for index, step in written.items():
                self._experiment.write(step, self._found(step))
                if self._staircase and index != max(written):
                    part = copy.deepcopy(self._experiment.analog), dict(self._experiment.adc_ranges)
                    self._parts[index] = part

    @property
    def model(self) -> nn.Module:
        """The copy on tiles, or, where there is no hardware, the digital model."""
        return self._experiment.digital if self._digital else self._experiment.analog

    def score(self, seed: int | None, seconds: float | None) -> Scores:
        """Scores by arm, of a chip at a time or of the digital model."""
        experiment = self._experiment
        experiment.measurements.clear()
        if seed is None or seconds is None:
            experiment.score_digital()
            dense = experiment.counts.get("dense attention", {})
            self.counts = [(name, None, number) for name, number in dense.items()]
        elif self._recipe is None:
            self.program(seed)
            age(experiment.analog, seconds + self._wait)
            self._measure("analog", seed, seconds + self._wait)
        else:
            self._climb(self._recipe, seed, seconds)
        scores: Scores = {}
        for found in experiment.measurements:
            scores.setdefault(found.arm, {})[found.metric] = found.value
        return scores

    def _climb(self, recipe: Recipe, seed: int, seconds: float) -> None:
        """Calibrate a chip at one time as `calibration.calibrate` does."""
        self._climb_written(recipe, seed, seconds)
        analog = self._experiment.analog
        if self._steps(Stage.PROGRAMMED):  # which change the cells
            self._chip = None
        self.program(seed)
        self._experiment.uncalibrate()
        arms, last = recipe.arms, len(recipe.steps) - 1
        for index in range(max(len(self._steps(Stage.BEFORE_PROGRAMMING)) - 1, 0), last + 1):
            step = recipe.steps[index]
            if step.stage is not Stage.BEFORE_PROGRAMMING:
                age(analog, seconds if step.stage is Stage.IN_USE else 0.0)
                step.apply(analog, self._found(step))
            if self._staircase or index == last:
                age(analog, seconds + self._wait)
                self._measure(arms[index], seed, seconds + self._wait, fitted=seconds)

    def _climb_written(self, recipe: Recipe, seed: int, seconds: float) -> None:
        """Score the steps before programming but the last, each on the chip that is programmed for it."""
        experiment = self._experiment
        whole = experiment.analog, experiment.adc_ranges
        try:
            for index, (analog, ranges) in self._parts.items():
                experiment.analog, experiment.adc_ranges = analog, ranges
                experiment.new_chip(seed)
                experiment.catch_up()
                experiment.uncalibrate()
                age(analog, seconds + self._wait)
                self._measure(recipe.arms[index], seed, seconds + self._wait, fitted=seconds)
        finally:
            experiment.analog, experiment.adc_ranges = whole

    def program(self, seed: int) -> None:
        """Have a chip at hand: program it, unless it was the last."""
        if seed != self._chip:
            self._experiment.new_chip(seed)
            self._experiment.catch_up()
            self._chip = seed

    def _steps(self, stage: Stage) -> list[Step]:
        return [] if self._recipe is None else [step for step in self._recipe.steps if step.stage is stage]

    def _found(self, step: Step) -> Fitted:
        analog = self._experiment.analog
        reset_reads(analog)
        renew_memory(analog)
        return step.fit(analog, data_for(step, self._task))

    def _measure(self, arm: str, seed: int, seconds: float, fitted: float | None = None) -> None:
        """Score the chip as it is; the first time, count what that takes, digital layers too."""
        if self.counts:
            self._experiment.score(arm, seed, seconds, fitted)
            return
        with Ledger(self._experiment.analog) as ledger:
            self._experiment.score(arm, seed, seconds, fitted)
        totals: Counter[tuple[str, int | None]] = Counter()
        for counts in ledger.by_layer.values():
            totals.update({(counted.name, counted.bits): number for counted, number in counts.items()})
        self.counts = [(name, bits, number) for (name, bits), number in totals.items()]
