"""What computes cells, in whatever process an engine puts it: one chip at a time, at several times."""

from __future__ import annotations

import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from calibration import tasks
from calibration.calibrate import fit_before_programming, score_calibrated
from calibration.experiment import Experiment
from calibration.journal import Journal
from calibration.journal import Scored as Evaluation
from calibration.models import Loaded
from calibration.recipe import Recipe
from crossbar import Hardware, Ledger, age

Scores = dict[str, dict[str, float]]
"""Metrics by arm."""

Counts = dict[str, Any]
"""``parts``: as `calibration.Emulation.counts`; ``ledger``: name, bits and count of all that one evaluation takes."""


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
        self._ready: tuple[str, _Setup] | None = None

    def run(self, unit: Unit) -> Iterator[Scored | Failed]:
        """Score a unit, cell by cell; ends with a cell that failed."""
        began = time.perf_counter()
        try:
            if self._ready is None or self._ready[0] != unit.id:
                self._ready = None  # frees the last one before the next is made
                self._ready = (unit.id, _Setup(unit.setup, self._load(unit.setup["model"]["fingerprint"])))
            setup = self._ready[1]
            for seconds in unit.seconds:
                scores = setup.score(unit.seed, seconds)
                yield Scored(seconds, scores, time.perf_counter() - began, setup.counts)
                began = time.perf_counter()
        except Exception as error:  # noqa: BLE001 - whatever a cell raises is its result
            self._ready = None
            reason = " ".join(str(error).split()) or "no message"
            yield Failed(f"{type(error).__name__}: {reason}", traceback.format_exc())


class _Setup:
    """A model on its tiles with its task and recipe, ready for any chip at any time.

    What is shared is done once: the copy on tiles, the steps before programming, and a chip's programming as long as
    the next score is of the same chip.
    """

    def __init__(self, values: dict[str, Any], loaded: Loaded) -> None:
        task = tasks.get(values["task"]["name"], loaded.tokenizer, **values["task"]["options"])
        network = loaded.model.to(values["device"])
        hardware = "ideal" if values["hardware"] is None else Hardware.from_dict(values["hardware"])
        layers = values["model"].get("include"), values["model"].get("exclude")
        self._experiment = Experiment.prepare(network, task, hardware, values["pattern"], *layers)
        self._experiment.journal = self._journal = _Counting(experiment=self._experiment)
        self._recipe = None if values["recipe"] is None else Recipe.from_dict(values["recipe"])
        self._programmed: int | None = None
        if self._recipe is not None:
            self._staircase, self._wait = values["staircase"], values["wait"]
            self._batches = list(task.batches("calibration"))
            fit_before_programming(self._experiment, self._recipe, self._batches)

    @property
    def counts(self) -> Counts:
        """What was counted so far."""
        return {"parts": self._experiment.counts, "ledger": self._journal.counted}

    def score(self, seed: int | None, seconds: float | None) -> Scores:
        """Scores by arm, of a chip at a time or of the digital model."""
        done = len(self._experiment.measurements)
        if seed is None or seconds is None:
            self._experiment.score_digital()
        else:
            self._score_chip(seed, seconds)
        scores: Scores = {}
        for found in self._experiment.measurements[done:]:
            scores.setdefault(found.arm, {})[found.metric] = found.value
        return scores

    def _score_chip(self, seed: int, seconds: float) -> None:
        """As `calibration.emulate` and `calibration.calibrate` score a chip at one time."""
        experiment = self._experiment
        if seed != self._programmed:
            experiment.new_chip(seed)
            self._programmed = seed
        if self._recipe is None:
            experiment.later(partial(age, experiment.analog, seconds))
            experiment.score("analog", seed, seconds)
            return
        count = "calibration" not in experiment.counts
        options = {"staircase": self._staircase, "count": count}
        score_calibrated(experiment, self._recipe, self._batches, seed, seconds, self._wait, **options)


@dataclass(frozen=True)
class _Counting(Journal):
    """Keeps nothing, and counts everything that the first evaluation on tiles takes, digital layers too.

    Attributes:
        experiment: whose evaluations these are.
        counted: name, bits and count, once there was one.
    """

    experiment: Experiment | None = None
    counted: list[tuple[str, int | None, int]] = field(default_factory=list)

    def score(self, key: str, compute: Callable[[], Evaluation]) -> Evaluation:
        """What ``compute`` gives."""
        if self.counted or self.experiment is None or key.startswith("score digital"):
            return compute()
        self.experiment.catch_up()  # programming is not part of an evaluation
        with Ledger(self.experiment.analog) as ledger:
            evaluation = compute()
        totals: Counter[tuple[str, int | None]] = Counter()
        for counts in ledger.by_layer.values():
            totals.update({(counted.name, counted.bits): number for counted, number in counts.items()})
        self.counted.extend((name, bits, number) for (name, bits), number in totals.items())
        return evaluation
