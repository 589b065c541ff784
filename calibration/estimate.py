"""What a job will take before it starts: processor time and memory, at once and block by block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from calibration.calibrate import estimate_calibration
from calibration.emulate import estimate_emulation
from calibration.progress import Progress
from calibration.runs.estimating import Estimate
from calibration.runs.request import TIMES, MemoryLike, ModelLike, PatternLike, RecipeLike, Request, TimesLike
from calibration.tasks import Task
from crossbar.presets import HardwareLike


def estimate(
    model: ModelLike,
    task: str | Task,
    hardware: HardwareLike = "pcm",
    recipe: RecipeLike | None = None,
    *,
    pattern: PatternLike | None = None,
    memory: MemoryLike | None = None,
    times: TimesLike = TIMES,
    wait: str | float = "1h",
    chips: int = 3,
    population: int | None = None,
    staircase: bool = True,
    device: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    tied_heads: bool = False,
    progress: Progress | None = None,
) -> Estimate:
    """What `emulate` or, with a recipe, `calibrate` of the same arguments would take (docs/scale.md).

    The job is done with one block of the model, random weights in it, on one chip at one time and on the first batches
    of the task; that says what all of it takes on this machine. It takes about as long as one of the model's blocks.
    What ``Finetune`` takes is measured on one of its steps.

    Args:
        model: as in `emulate`.
        task: as in `emulate`.
        hardware: as in `emulate`.
        recipe: as in `calibrate`; None: the job is `emulate`.
        pattern: as in `emulate`.
        memory: as in `emulate`.
        times: as in `emulate`.
        wait: as in `calibrate`.
        chips: as in `emulate`.
        population: as in `calibrate`.
        staircase: as in `calibrate`.
        device: as in `emulate`.
        include: as in `emulate`.
        exclude: as in `emulate`.
        tied_heads: as in `emulate`.
        progress: called while a model is converted for the first time.

    Raises:
        InputError: for what the job would refuse before it reads the model's weights.
    """
    options: dict[str, Any] = {} if recipe is None else {"recipe": recipe, "wait": wait, "population": population}
    request = Request.of(
        model,
        task,
        hardware,
        pattern=pattern,
        memory=memory,
        times=times,
        chips=chips,
        device=device,
        include=include,
        exclude=exclude,
        tied_heads=tied_heads,
        **options,
    )
    if recipe is None:
        return estimate_emulation(request, progress)
    return estimate_calibration(request, staircase=staircase, progress=progress)
