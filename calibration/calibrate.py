"""The second job: how much of the accuracy comes back, chip by chip."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from attention import Memory, Pattern
from calibration import fingerprint
from calibration import recipe as recipes
from calibration.bundle_files import require_new
from calibration.deployment import Deployment, FittedStep
from calibration.emulate import score_uncalibrated
from calibration.experiment import TIMES, Experiment, parse_times, require_chips
from calibration.journal import Journal
from calibration.models import Loaded
from calibration.progress import Progress
from calibration.recipe import Recipe
from calibration.results import Calibration
from calibration.step import Stage
from calibration.tasks import Task
from crossbar import Hardware, InputError, age, reset_gains, to_seconds


def calibrate(
    model: str | Path | nn.Module | Loaded,
    task: str | Task,
    hardware: str | Hardware = "pcm",
    recipe: str | Recipe = "fast",
    *,
    pattern: str | Pattern | None = None,
    memory: str | Hardware | Memory | None = None,
    times: Sequence[str | float] = TIMES,
    wait: str | float = "1h",
    chips: int = 3,
    staircase: bool = True,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    progress: Progress | None = None,
    out: str | Path | None = None,
    notify: Callable[[str], None] | None = None,
) -> Calibration:
    """Score a model in digital, on analog chips as programmed, and on the same chips calibrated at each age.

    Steps that change the cells are fitted once, on the task's calibration data, before programming. The others are
    fitted on each chip at each time ``t`` and scored at ``t + wait``: at one instant they would fit a snapshot of the
    1/f noise. Comparisons are paired, since both arms use the same seeds.

    Args:
        model: as in `emulate`.
        task: as in `emulate`; its calibration split is what steps are fitted on.
        hardware: as in `emulate`.
        recipe: ``"fast"``, or a `Recipe` of steps.
        pattern: as in `emulate`.
        memory: as in `emulate`.
        times: since programming, at which steps are fitted.
        wait: between fitting and scoring.
        chips: number of programmed chips, seeds 0, 1, ...
        staircase: also score after each step but the last.
        include: as in `emulate`.
        exclude: as in `emulate`.
        progress: called before each evaluation, and while a model is converted for the first time.
        out: folder to write as a deployment bundle (`Calibration.save`) of chip 0 at the last time. Until it is whole,
            what was found is kept in a hidden folder beside it, and the same call goes on from there after it was
            stopped.
        notify: told, in a sentence, when the call goes on from an earlier one.

    Raises:
        InputError: as `emulate`, for an unknown recipe, a wait of 0 s, and a folder that cannot be written.
    """
    seconds, delay = parse_times(times), to_seconds(wait)
    require_chips(chips)
    if delay == 0:
        raise InputError("a wait of 0 s would score the very noise that was fitted: wait longer, such as '1h'")
    recipe = recipes.get(recipe) if isinstance(recipe, str) else recipe
    if out is not None:
        require_new(Path(out))
    experiment = Experiment.prepare(model, task, hardware, pattern, include, exclude, progress, memory)
    if out is not None:
        experiment.journal = _journal(Path(out), experiment, [recipe.to_dict(), seconds, delay, chips, staircase])
        if notify is not None and len(experiment.journal):
            notify(f"goes on from the {len(experiment.journal)} results in {str(experiment.journal.folder)!r}")
    written = [step for step in recipe.steps if step.stage is Stage.BEFORE_PROGRAMMING]
    measured = recipe.steps[len(written) :]
    scores = bool(written) + len(measured) if staircase else 1
    experiment.total = (1 if experiment.pattern is None else 2) + chips * len(seconds) * (1 + scores)
    experiment.score_digital()
    score_uncalibrated(experiment, seconds, chips)

    arms = _arms(recipe)
    batches = list(experiment.task.batches("calibration"))
    for index, step in enumerate(written):
        step.apply(experiment.analog, experiment.fit(step, f"{index}", batches))
    fits: dict[tuple[int, float], list[FittedStep]] = {}
    for chip in range(chips):
        experiment.new_chip(chip)
        for time in seconds:
            experiment.later(partial(reset_gains, experiment.analog))
            fits[chip, time] = []
            for index in range(max(len(written) - 1, 0), len(recipe.steps)):
                step = recipe.steps[index]
                if step.stage is not Stage.BEFORE_PROGRAMMING:
                    experiment.later(partial(age, experiment.analog, time))
                    first = (chip, time) == (0, seconds[0])
                    fitted = experiment.fit(step, f"{index} chip {chip} at {time!r}", batches, count=first)
                    experiment.later(partial(step.apply, experiment.analog, fitted))
                    fits[chip, time].append(FittedStep(step, fitted, time))
                if staircase or index == len(recipe.steps) - 1:
                    experiment.later(partial(age, experiment.analog, time + delay))
                    experiment.score(arms[index], chip, time + delay, fitted=time)
    result = Calibration(
        setup={**experiment.setup, "chips": chips, "recipe": recipe.to_dict(), "calibration_batches": len(batches)},
        primary=experiment.task.primary,
        measurements=tuple(experiment.measurements),
        conversion=experiment.conversion,
        counts=experiment.counts,
        deployment=Deployment(experiment, fits, delay),
    )
    if out is not None:
        result.save(out)
        experiment.journal.remove()
    return result


def _arms(recipe: Recipe) -> list[str]:
    """The arm that is scored after each step; a kind of step that comes again is numbered."""
    arms: list[str] = []
    for step in recipe.steps[:-1]:
        arm = f"after {type(step).__name__}"
        again = sum(other.startswith(arm) for other in arms)
        arms.append(f"{arm} {again + 1}" if again else arm)
    return [*arms, "calibrated"]


def _journal(out: Path, experiment: Experiment, options: list[Any]) -> Journal:
    """Beside ``out``, in the name of everything that decides the result."""
    layers = [layer.name for layer in experiment.conversion.analog]
    parts = [fingerprint.of_model(experiment.digital), fingerprint.of_task(experiment.task), fingerprint.of_code()]
    identity = fingerprint.of_values([*parts, experiment.setup, layers, options])
    return Journal(out.with_name(f".{out.name}.{identity[:16]}.progress"))
