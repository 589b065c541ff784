"""The one protocol of a calibration: chips are programmed, aged, fitted, calibrated, and scored a wait later.

No other code of the jobs does any of this, so two rules hold in all of them. What is fitted on a chip is scored at a
later instant, since at one instant a fit knows a snapshot of the 1/f noise. And what steps are fitted on shares no text
with what is scored.
"""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

from torch import Tensor, nn

from attention import renew_memory
from calibration.progress import Progress
from calibration.recipe import Recipe
from calibration.runs.costs import Costs, Fitting, conversions_of
from calibration.runs.experiment import Experiment
from calibration.runs.journal import Counts, Evaluation, Fit, Journal
from calibration.runs.measurement import Measurement
from calibration.runs.overlap import require_disjoint
from calibration.runs.populations import FIRST_SEED, Shared
from calibration.runs.request import as_wait
from calibration.steps.protocol import Fitted, LongStep, PopulationStep, Stage, Step, WritingStep, uncalibrate
from calibration.tasks import Batch, Task
from calibration.tasks.protocol import fitted_on
from crossbar import InputError, Ledger, age, analog_layers, new_chip, program, reset_reads

Watch = Callable[[nn.Module], AbstractContextManager[object]]
"""What is open while a chip is scored, such as a ledger."""


class FittedStep(NamedTuple):
    """A step, what it found on a chip, and when (s since programming)."""

    step: Step
    values: Fitted
    seconds: float


class Bench:
    """A model on tiles that becomes one chip after another.

    Chips are changed when the next measurement needs it: what a journal knows is not measured, so a resumed job skips
    the changes before it.

    Args:
        make: returns the model, converted.
    """

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self.model = make()
        self._pending: list[Callable[[], object]] = []
        self._chip: int | None = None  # what `program` asked for last, if its cells are as they were programmed
        self._adc_ranges: Mapping[str, Tensor] = {}

    def write(self, step: Step, fitted: Fitted) -> None:
        """Apply a step that comes before programming, at once; the chip is lost."""
        self._pending.clear()
        self._chip = None
        step.apply(self.model, fitted)
        layers = analog_layers(self.model)
        self._adc_ranges = {name: layer.adc_range for name, layer in layers.items() if layer.adc_range is not None}

    def program(self, chip: int, *, anew: bool = False) -> None:
        """Go on with a chip as it was programmed, without what steps in use put into it.

        It is written if another one is at hand, or ``anew``.
        """
        if anew or chip != self._chip:
            self._pending = [lambda: new_chip(self.model), lambda: program(self.model, chip)]
            self._chip = chip
        self.uncalibrate()

    def uncalibrate(self) -> None:
        """Take away what steps in use put into the model; what was before programming stays."""
        self._pending.append(lambda: uncalibrate(self.model, self._adc_ranges))

    def age(self, seconds: float) -> None:
        """Go to a time since programming, s."""
        self._pending.append(partial(age, self.model, seconds))

    def apply(self, step: Step, fitted: Fitted) -> None:
        """Apply a step that comes after programming."""
        self._pending.append(partial(step.apply, self.model, fitted))
        if step.stage is Stage.PROGRAMMED:  # it writes cells
            self._chip = None

    def catch_up(self) -> None:
        """Make the changes that were put off."""
        while self._pending:
            self._pending.pop(0)()

    def be_read(self, memory: int | None = None) -> None:
        """Catch up, and begin again with read noise and, of a chip's or the last seed, with the memory's errors."""
        self.catch_up()
        reset_reads(self.model)
        renew_memory(self.model, memory)


class Climb:
    """The chips of an experiment on their way up a recipe, and what was measured on it.

    Args:
        experiment: the models and the task.
        recipe: what is fitted; None: nothing, chips are scored as they were programmed.
        wait: from the instant that steps are fitted at, or that is asked for, to that of the score, s.
        staircase: score after each step; else after the last alone.
        journal: keeps what is found, if it has a folder.
        progress: called before each evaluation, and by steps that take long.
        total: evaluations to come, for ``progress``.
        watch: opened around each evaluation of a chip.
        bench: what chips are made on.
        checks: whether data that are fitted on are compared with those that are scored.

    Attributes:
        measurements: every score.
        counts: of one evaluation by part, once a chip was scored, and of fitting once.
        costs: of the arms of chips, once ``analog`` was scored.

    Raises:
        InputError: with a recipe, for a wait of 0 s, and a task whose calibration data are in its evaluation data.
    """

    def __init__(
        self,
        experiment: Experiment,
        recipe: Recipe | None = None,
        wait: float = 0.0,
        *,
        staircase: bool = False,
        journal: Journal | None = None,
        progress: Progress | None = None,
        total: int = 0,
        watch: Watch = lambda model: nullcontext(),
        bench: Callable[[Callable[[], nn.Module]], Bench] = Bench,
        checks: bool = True,
    ) -> None:
        self.experiment, self.recipe, self.wait = experiment, recipe, as_wait(wait, recipe)
        if recipe is not None and checks:
            require_disjoint(experiment.task)
        self.measurements: list[Measurement] = []
        self.counts: Counts = {}
        self.costs = Costs(experiment.hardware)
        self._staircase, self._watch = staircase, watch
        self._journal = Journal() if journal is None else journal
        self._progress, self._done, self._total = progress, 0, total
        self._make_bench = bench
        self._bench = bench(lambda: experiment.analog)
        self._written: list[FittedStep] = []

    # The digital model, and converters alone

    def score_digital(self) -> None:
        """Arm ``digital`` (with the pattern) and, where there is a pattern, ``digital dense`` (the plain model)."""
        digital, pattern = self.experiment.digital, self.experiment.pattern
        if pattern is not None:
            self.experiment.attend("dense")
            self._score(lambda: digital, "digital dense", parts={"dense attention": lambda layer: True})
            self.experiment.attend(pattern)
        self._score(lambda: digital, "digital")

    def score_quantised(self) -> None:
        """Arm ``quantised``: converters alone, since cells hold their targets and nothing is noisy."""
        self._score(self.experiment.converters_alone, "quantised")

    # Chips

    def score_programmed(self, chip: int, times: Iterable[float]) -> None:
        """Arm ``analog``: a chip as it was programmed, the wait after each of the times."""
        self._bench.program(chip)
        for time in times:
            self._bench.age(time + self.wait)
            self._score_chip(self._bench, "analog", chip, time + self.wait)

    def write(self, each: Callable[[int], object] = lambda index: None) -> None:
        """Fit and apply the steps before programming, one after another; ``each`` is told the place of each."""
        for index, step in self._steps(Stage.BEFORE_PROGRAMMING).items():
            fitted = self._fit(self._bench, step, f"{index}", index)
            self._bench.write(step, fitted)
            self._written.append(FittedStep(step, fitted, 0.0))
            each(index)

    def score_written(self, chip: int, times: Sequence[float], index: int) -> None:
        """Score a chip that is programmed after the steps up to ``index``, all of which come before programming."""
        bench = self._bench
        if index < len(self._written) - 1:  # later steps are in the cells' targets already
            bench = self._make_bench(self.experiment.another_twin)
            for fitted in self._written[: index + 1]:
                bench.write(fitted.step, fitted.values)
        bench.program(chip)
        for time in times:
            self._score_step(bench, index, chip, time)

    def score_chip(
        self, chip: int, times: Sequence[float], shared: Shared | None = None, *, count: bool = False
    ) -> dict[float, list[FittedStep]]:
        """Program a chip, fit it at each time, or take over what is ``shared``, and score it.

        Args:
            chip: its seed.
            times: since programming, at which steps in use are fitted, s.
            shared: what was fitted on a population.
            count: whether what fitting takes is counted, at the first of the times.

        Returns:
            The steps that were applied after programming, by time.
        """
        return self._take_up(chip, times, shared, count, self._score_step)

    def stand(self, chip: int, time: float) -> None:
        """Make the analog twin a chip as it is scored: what was written is in its cells, the rest fitted at a time."""
        self._take_up(chip, [time], None, False, lambda bench, index, chip, time: None)
        self._bench.age(time + self.wait)
        self._bench.catch_up()

    def evaluate(self, chip: int) -> dict[str, float]:
        """The task's metrics on the analog twin as it stands; nothing is written down."""
        self._bench.be_read(chip)
        return self.experiment.task.metrics(self.experiment.analog)

    def restore(self, chip: int, steps: Iterable[FittedStep], time: float) -> None:
        """Make the analog twin a chip that was scored: calibrated by what was found on it, and the wait older."""
        self._bench.program(chip, anew=True)
        for step, values, seconds in steps:
            self._bench.age(seconds)
            self._bench.apply(step, values)
        self._bench.age(time + self.wait)
        self._bench.be_read()

    def program(self, chip: int) -> None:
        """Write a chip now, unless it is at hand."""
        self._bench.program(chip)
        self._bench.catch_up()

    def fit_population(self, times: Sequence[float], size: int) -> Shared:
        """Fit the steps in use at each time, each on all chips of a population before the next one."""
        steps, bench = self._steps(Stage.IN_USE), self._bench
        shared: Shared = {}
        for time in times:
            shared[time] = {}
            for index, step in steps.items():
                fits = []
                for chip in range(FIRST_SEED, FIRST_SEED + size):
                    bench.program(chip)
                    bench.age(time)
                    for earlier, fitted in shared[time].items():
                        bench.apply(steps[earlier], fitted)
                    key = f"{index} population chip {chip} at {time!r}"
                    fits.append(self._fit(bench, step, key, index if time == times[0] else None))
                assert isinstance(step, PopulationStep)
                shared[time][index] = step.combine(fits)
        return shared

    # What all of these are made of

    def _take_up(
        self,
        chip: int,
        times: Sequence[float],
        shared: Shared | None,
        count: bool,
        score: Callable[[Bench, int, int, float], None],
    ) -> dict[float, list[FittedStep]]:
        """All steps of the recipe on a chip, with ``score`` called after each (bench, place, chip, time)."""
        bench = self._bench
        bench.program(chip)
        if self._written:
            for time in times:
                score(bench, len(self._written) - 1, chip, time)
        programmed: list[FittedStep] = []
        for index, step in self._steps(Stage.PROGRAMMED).items():
            bench.age(0.0)
            fitted = self._fit(bench, step, f"{index} chip {chip}", index if count else None)
            bench.apply(step, fitted)
            programmed.append(FittedStep(step, fitted, 0.0))
            for time in times:
                score(bench, index, chip, time)
        fits = {}
        for time in times:
            bench.uncalibrate()
            fits[time] = list(programmed)
            for index, step in self._steps(Stage.IN_USE).items():
                bench.age(time)
                if shared is None:
                    key = f"{index} chip {chip} at {time!r}"
                    fitted = self._fit(bench, step, key, index if count and time == times[0] else None)
                else:
                    fitted = shared[time][index]
                bench.apply(step, fitted)
                fits[time].append(FittedStep(step, fitted, time))
                score(bench, index, chip, time)
        return fits

    def _steps(self, stage: Stage) -> dict[int, Step]:
        return {} if self.recipe is None else self.recipe.steps_at(stage)

    def _fit(self, bench: Bench, step: Step, key: str, index: int | None = None) -> Fitted:
        """What a step finds on the chip as it is now; with its place in the recipe, what that takes is counted too."""

        def run() -> Fit:
            bench.be_read()
            batches = data_for(step, self.experiment.task)
            began = clock.perf_counter()
            with Ledger() as ledger:
                if isinstance(step, LongStep):
                    state = self._journal.state(f"fit {key}")
                    tensors = step.fit_long(bench.model, batches, state, self._tell_part)
                else:
                    tensors = step.fit(bench.model, batches)
            counts = {"calibration": totals} if index is not None and (totals := _totals(ledger)) else {}
            return {"tensors": tensors, "counts": counts, "seconds": clock.perf_counter() - began}

        fit = self._journal.fit(f"fit {key}", run)
        self._add(fit["counts"])
        if index is not None:
            converted = conversions_of(fit["counts"].get("calibration", {}))
            cells = step.cells(bench.model, fit["tensors"]) if isinstance(step, WritingStep) else 0
            self.costs.fitted(index, Fitting(converted, cells, fit["seconds"]))
        return fit["tensors"]

    def _score_step(self, bench: Bench, index: int, chip: int, time: float) -> None:
        """Score a chip after a step that was fitted at a time, the wait later."""
        assert self.recipe is not None
        if self._staircase or index == len(self.recipe.steps) - 1:
            bench.age(time + self.wait)
            self._score_chip(bench, self.recipe.arms[index], chip, time + self.wait, fitted=time, index=index)

    def _score_chip(
        self, bench: Bench, arm: str, chip: int, seconds: float, fitted: float | None = None, index: int = -1
    ) -> None:
        """Score a chip as it is now, after the steps up to a place in the recipe.

        The first score of all, and the first of each arm, also count activations and conversions.

        Raises:
            InputError: for a score at the time of the fit, or before.
        """
        if fitted is not None and fitted >= seconds:
            raise InputError(
                f"a calibration fitted at {fitted:g} s cannot be scored at {seconds:g} s, whose noise it knows: "
                "score it later"
            )
        parts: dict[str, Callable[[str], bool]] = {}
        linear = {layer.name for layer in self.experiment.conversion.analog}
        is_new = self.costs.wants(arm)
        if is_new:
            parts["arm"] = lambda layer: layer in linear
        if "linear" not in self.counts:
            parts["linear"] = lambda layer: layer in linear
            if self.experiment.is_gated:
                parts["attention"] = lambda layer: layer not in linear

        def ready() -> nn.Module:
            bench.be_read(chip)
            return bench.model

        scored = self._score(ready, arm, chip, seconds, fitted, parts)
        if is_new:
            layers = analog_layers(self.experiment.analog).values()
            self.costs.scored(arm, scored["counts"]["arm"], index, layers)

    def _score(
        self,
        ready: Callable[[], nn.Module],
        arm: str,
        chip: int | None = None,
        seconds: float | None = None,
        fitted: float | None = None,
        parts: Mapping[str, Callable[[str], bool]] | None = None,
    ) -> Evaluation:
        """Score what ``ready`` returns, unless the journal knows it, and count its work by parts."""
        if self._progress is not None:
            self._progress(self._done, self._total, arm if chip is None else f"{arm}, chip {chip}")
        self._done += 1

        def run() -> Evaluation:
            model = ready()
            with nullcontext() if chip is None else self._watch(model):
                if not parts:
                    return {"metrics": self.experiment.task.metrics(model), "counts": {}}
                with Ledger() as ledger:
                    metrics = self.experiment.task.metrics(model)
            return {"metrics": metrics, "counts": {part: _totals(ledger, of) for part, of in parts.items()}}

        key = arm if chip is None else f"{arm} chip {chip} at {seconds!r} fitted {fitted!r}"
        scored = self._journal.score(f"score {key}", run)
        self._add({part: counts for part, counts in scored["counts"].items() if part != "arm"})
        for metric, value in scored["metrics"].items():
            self.measurements.append(Measurement(arm, metric, value, chip, seconds, fitted))
        return scored

    def _tell_part(self, done: int, total: int, text: str) -> None:
        """Tell how far a long step is, as what comes next."""
        if self._progress is not None:
            self._progress(self._done, self._total, f"step {done} of {total}, {text}")

    def _add(self, counts: Counts) -> None:
        for part, totals in counts.items():
            own = self.counts.setdefault(part, {})
            for name, number in totals.items():
                own[name] = own.get(name, 0) + number


def refit(model: nn.Module, step: Step, seconds: float) -> None:
    """Age a chip that stands alone, without a task, and fit and apply a step that needs no data."""
    bench = Bench(lambda: model)
    bench.age(seconds)
    bench.catch_up()
    bench.apply(step, step.fit(model, []))
    bench.catch_up()
    reset_reads(model)


def data_for(step: Step, task: Task) -> Iterable[Batch]:
    """What a step is fitted on: calibration data, or training data where it trains and the task has some."""
    data = fitted_on(task)
    return data.get("training", data["calibration"]) if isinstance(step, LongStep) else data["calibration"]


def _totals(ledger: Ledger, chosen: Callable[[str], bool] = lambda layer: True) -> dict[str, int]:
    """A ledger's counts by name, over the chosen layers."""
    totals: dict[str, int] = {}
    for layer, counts in ledger.by_layer.items():
        if chosen(layer):
            for counter, number in counts.items():
                totals[counter.name] = totals.get(counter.name, 0) + number
    return totals
