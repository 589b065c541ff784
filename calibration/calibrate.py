"""The second job: how much of the accuracy comes back, chip by chip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from attention import Pattern
from calibration import recipe as recipes
from calibration.bundles.files import require_new
from calibration.bundles.writer import require_no_memory, save_bundle
from calibration.emulate import score_uncalibrated
from calibration.models import Loaded
from calibration.models.outputs import device_of
from calibration.progress import Progress
from calibration.recipe import Recipe
from calibration.results.emulation import Calibration
from calibration.runs import fingerprint, populations
from calibration.runs.chips import require_chips
from calibration.runs.deployment import Deployment, FittedStep
from calibration.runs.experiment import TIMES, Experiment, MemoryLike, TimesLike, parse_times
from calibration.runs.journal import Journal, only_run
from calibration.runs.overlap import require_disjoint
from calibration.runs.populations import Shared
from calibration.steps.protocol import Stage
from calibration.storage import hashes
from calibration.tasks import Task
from crossbar import InputError, age, to_seconds
from crossbar.presets import HardwareLike
from crossbar.storage.files import require_room


def calibrate(
    model: str | Path | nn.Module | Loaded,
    task: str | Task,
    hardware: HardwareLike = "pcm",
    recipe: str | Recipe = "fast",
    *,
    pattern: str | Pattern | None = None,
    memory: MemoryLike | None = None,
    times: TimesLike = TIMES,
    wait: str | float = "1h",
    chips: int = 3,
    seed: int = 0,
    device: str | None = None,
    staircase: bool = True,
    population: int | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    progress: Progress | None = None,
    out: str | Path | None = None,
    notify: Callable[[str], None] | None = None,
) -> Calibration:
    """Score a model in digital, on analog chips as programmed, and on the same chips calibrated at each age.

    Steps that change the cells are fitted once, on the task's calibration data, before programming. The others are
    fitted on each chip at each time ``t`` and scored at ``t + wait``: at one instant they would fit a snapshot of the
    1/f noise. The uncalibrated chips are scored at ``t + wait`` too. Comparisons are paired, since all arms use the
    same seeds and instants (`calibration.results.staircase`).

    Args:
        model: as in `emulate`.
        task: as in `emulate`; its calibration split is what steps are fitted on.
        hardware: as in `emulate`.
        recipe: ``"fast"``, ``"thorough"``, or a `Recipe` of steps.
        pattern: as in `emulate`.
        memory: as in `emulate`.
        times: since programming, at which steps are fitted.
        wait: from each of the times to that at which all chips are scored.
        chips: as in `emulate`.
        seed: as in `emulate`.
        device: as in `emulate`.
        staircase: also score the converters alone (``quantised``), and after each step but the last.
        population: fit the steps that follow programming on this many other chips, for all chips at once, instead of
            on each chip itself; nothing is then measured on the chips that are scored.
        include: as in `emulate`.
        exclude: as in `emulate`.
        progress: called before each evaluation, and while a model is converted for the first time.
        out: folder to write as a deployment bundle (`Calibration.save`) of the first chip at the last time. Until it is
            whole, what was found is kept in a hidden folder beside it, and the same call goes on from there after it
            was stopped.
        notify: told, in a sentence, when the call goes on from an earlier one, and of results that were damaged.

    Raises:
        InputError: as `emulate`, for an unknown recipe, a wait of 0 s, a task whose calibration data are in its
            evaluation data, a folder that cannot be written, and one that another run is making.
    """
    seconds, delay = parse_times(times), require_wait(wait)
    seeds = require_chips(chips, seed)
    recipe = recipes.get(recipe) if isinstance(recipe, str) else recipe
    populations.require(recipe, population, seeds)
    if out is not None:
        require_new(Path(out))
        require_room(Path(out))
        require_no_memory(memory)
    with nullcontext() if out is None else only_run(Path(out)):
        if out is not None:
            require_new(Path(out))  # again: another run may have ended meanwhile
        experiment = Experiment.prepare(model, task, hardware, pattern, include, exclude, progress, memory, device)
        require_disjoint(experiment.task)
        if out is not None:
            options = [recipe.to_dict(), seconds, delay, chips, seed, staircase, population]
            options.append(str(device_of(experiment.digital)))
            experiment.journal = _journal(Path(out), experiment, options, notify)
            if notify is not None and len(experiment.journal):
                notify(f"goes on from the {len(experiment.journal)} results in {str(experiment.journal.folder)!r}")
        result = _scored(experiment, recipe, seconds, delay, seeds, staircase, population)
        if out is not None:
            last = result.deployment.last_time()
            save_bundle(result.deployment, result.to_dict(), Path(out), seed, last, whole=experiment.journal.mark_done)
            experiment.journal.remove()
    return result


def _scored(
    experiment: Experiment,
    recipe: Recipe,
    seconds: list[float],
    delay: float,
    chips: range,
    staircase: bool,
    population: int | None,
) -> Calibration:
    """All arms of the experiment, on all chips."""
    stairs = len(recipe.steps) if staircase else 1
    experiment.total = (1 if experiment.pattern is None else 2) + staircase + len(chips) * len(seconds) * (1 + stairs)
    experiment.score_digital()
    if staircase:
        experiment.score_quantised()
    score_uncalibrated(experiment, [time + delay for time in seconds], chips)
    climb = _Climb(experiment, recipe, seconds, delay, staircase)
    climb.before_programming(chips)
    shared = None if population is None else populations.fit(experiment, recipe, seconds, population)
    fits: dict[tuple[int, float], list[FittedStep]] = {}
    for chip in chips:
        fits |= climb.chip(chip, shared, first=chip == chips[0])
    return Calibration(
        setup={
            **experiment.setup,
            "chips": len(chips),
            "seed": chips[0],
            "recipe": recipe.to_dict(),
            "fitted_on": "each chip itself" if population is None else f"a population of {population} other chips",
            "calibration_batches": sum(1 for _ in experiment.task.batches("calibration")),
        },
        primary=experiment.task.primary,
        measurements=tuple(experiment.measurements),
        conversion=experiment.conversion,
        counts=experiment.counts,
        deployment=Deployment(experiment, fits, delay),
    )


def require_wait(wait: str | float) -> float:
    """Seconds from fitting to scoring.

    Raises:
        InputError: for an impossible time and 0 s.
    """
    delay = to_seconds(wait)
    if delay == 0:
        raise InputError("a wait of 0 s would score the very noise that was fitted: wait longer, such as '1h'")
    return delay


@dataclass(frozen=True)
class _Climb:
    """The steps of a recipe, one after another, each scored where the staircase is asked for."""

    experiment: Experiment
    recipe: Recipe
    seconds: list[float]
    delay: float
    staircase: bool

    def before_programming(self, chips: range) -> None:
        """Fit and apply what changes the cells' targets, and score each step but the last on chips programmed for it.

        The last one is scored on the chips that later steps go on with (`chip`).
        """
        steps = self.recipe.steps_at(Stage.BEFORE_PROGRAMMING)
        for index, step in steps.items():
            self.experiment.write(step, self.experiment.fit(step, f"{index}"))
            for chip in chips if self.staircase and index != max(steps) else ():
                self.experiment.new_chip(chip)
                self.experiment.later(self.experiment.uncalibrate)
                self._score_all(index, chip)

    def chip(self, chip: int, shared: Shared | None, *, first: bool) -> dict[tuple[int, float], list[FittedStep]]:
        """Program a chip, fit it at each time, or take over what is ``shared``, and score it; what was applied.

        What fitting takes is counted on the ``first`` chip.
        """
        experiment = self.experiment
        analog = experiment.analog
        experiment.new_chip(chip)
        experiment.later(experiment.uncalibrate)
        written = self.recipe.steps_at(Stage.BEFORE_PROGRAMMING)
        if written:
            self._score_all(max(written), chip)
        programmed: list[FittedStep] = []
        for index, step in self.recipe.steps_at(Stage.PROGRAMMED).items():
            experiment.later(partial(age, analog, 0.0))
            fitted = experiment.fit(step, f"{index} chip {chip}", count=first)
            experiment.later(partial(step.apply, analog, fitted))
            programmed.append(FittedStep(step, fitted, 0.0))
            self._score_all(index, chip)
        fits = {}
        for time in self.seconds:
            experiment.later(experiment.uncalibrate)
            fits[chip, time] = list(programmed)
            for index, step in self.recipe.steps_at(Stage.IN_USE).items():
                experiment.later(partial(age, analog, time))
                if shared is None:
                    count = first and time == self.seconds[0]
                    fitted = experiment.fit(step, f"{index} chip {chip} at {time!r}", count=count)
                else:
                    fitted = shared[time][index]
                experiment.later(partial(step.apply, analog, fitted))
                fits[chip, time].append(FittedStep(step, fitted, time))
                self._score(index, chip, time)
        return fits

    def _score_all(self, index: int, chip: int) -> None:
        for time in self.seconds:
            self._score(index, chip, time)

    def _score(self, index: int, chip: int, time: float) -> None:
        if self.staircase or index == len(self.recipe.steps) - 1:
            self.experiment.later(partial(age, self.experiment.analog, time + self.delay))
            self.experiment.score(self.recipe.arms[index], chip, time + self.delay, fitted=time)


def _journal(out: Path, experiment: Experiment, options: list[Any], notify: Callable[[str], None] | None) -> Journal:
    """Beside ``out``, in the name of everything that decides the result."""
    layers = [layer.name for layer in experiment.conversion.analog]
    parts = [fingerprint.of_model(experiment.digital), fingerprint.of_task(experiment.task), fingerprint.of_code()]
    identity = hashes.of_values([*parts, experiment.setup, layers, options])
    return Journal(out.with_name(f".{out.name}.{identity[:16]}.progress"), notify=notify)
