"""The second job: how much of the accuracy comes back, chip by chip."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from calibration.bundles.files import require_new
from calibration.bundles.writer import require_cells, require_no_memory, save_bundle, save_part, save_streamed
from calibration.models.outputs import device_of
from calibration.progress import Progress
from calibration.results.emulation import Calibration
from calibration.runs import fingerprint, parts
from calibration.runs.climb import Climb, FittedStep
from calibration.runs.deployment import Deployment, Streamed
from calibration.runs.estimating import Estimate, estimate
from calibration.runs.experiment import Experiment
from calibration.runs.journal import Journal, only_run
from calibration.runs.request import TIMES, MemoryLike, ModelLike, PatternLike, RecipeLike, Request, TimesLike
from calibration.runs.streaming import Stream, Way, is_streamed
from calibration.steps.protocol import Stage
from calibration.storage import hashes
from calibration.tasks import Task
from crossbar.presets import HardwareLike
from crossbar.storage.files import require_room

Fits = dict[tuple[int, float], list[FittedStep]]
"""What was fitted, by chip and time."""


def calibrate(
    model: ModelLike,
    task: str | Task,
    hardware: HardwareLike = "pcm",
    recipe: RecipeLike = "fast",
    *,
    pattern: PatternLike | None = None,
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
    tied_heads: bool = False,
    stream: bool | None = None,
    engine: str = "local",
    progress: Progress | None = None,
    out: str | Path | None = None,
    cells: str = "conductances",
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
        recipe: ``"fast"`` or another name (`calibration.recipe.get`), or a `Recipe` of steps.
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
        tied_heads: as in `emulate`.
        stream: as in `emulate`; of a stream, `Calibration.save` writes nothing: give ``out``.
        engine: as in `emulate`.
        progress: called before each evaluation, and while a model is converted for the first time.
        out: folder to write as a deployment bundle (`Calibration.save`) of the first chip at the last time. Until it is
            whole, what was found is kept in a hidden folder beside it, and the same call goes on from there after it
            was stopped.
        cells: what the bundle holds of cells, as for `Calibration.save`.
        notify: told, in a sentence, when the call goes on from an earlier one, and of results that were damaged.

    Raises:
        InputError: as `emulate`, for an unknown recipe, a wait of 0 s, a task whose calibration data are in its
            evaluation data, a folder that cannot be written, and one that another run is making.
    """
    request = Request.of(
        model,
        task,
        hardware,
        pattern=pattern,
        memory=memory,
        recipe=recipe,
        times=times,
        wait=wait,
        chips=chips,
        seed=seed,
        population=population,
        device=device,
        include=include,
        exclude=exclude,
        tied_heads=tied_heads,
        stream=stream,
        engine=engine,
    )
    return run_calibration(request, staircase=staircase, progress=progress, out=out, cells=cells, notify=notify)


def run_calibration(
    request: Request,
    *,
    staircase: bool = True,
    progress: Progress | None = None,
    out: str | Path | None = None,
    cells: str = "conductances",
    notify: Callable[[str], None] | None = None,
) -> Calibration:
    """`calibrate` of what is resolved already."""
    require_cells(cells)
    if out is None:
        return _calibrated(request, staircase, progress)
    path = Path(out)
    require_place(path, request)
    with only_run(path):
        require_new(path)  # again: another run may have ended meanwhile
        return _calibrated(request, staircase, progress, path, cells, notify)


def estimate_calibration(request: Request, *, staircase: bool = True, progress: Progress | None = None) -> Estimate:
    """What `run_calibration` would take."""
    return estimate(request, partial(_rise, staircase=staircase), staircase=staircase, progress=progress)


def require_place(path: Path, request: Request) -> None:
    """Refuse a bundle that could not be written, before anything runs.

    Raises:
        InputError: for a folder that exists already or has no room, and for a model with analog memory.
    """
    require_new(path)
    require_room(path)
    require_no_memory(request.memory)


def _calibrated(
    request: Request,
    staircase: bool,
    progress: Progress | None,
    out: Path | None = None,
    cells: str = "conductances",
    notify: Callable[[str], None] | None = None,
) -> Calibration:
    """All arms, on all chips; with ``out``, a bundle of the first chip too."""
    if is_streamed(request, lambda: estimate_calibration(request, staircase=staircase, progress=progress).bytes):
        return _streamed(request, staircase, progress, out, cells, notify)
    experiment = Experiment.prepare(request, progress)
    journal = Journal() if out is None else _journal(out, experiment, request, staircase, notify)
    climb = Climb(
        experiment,
        request.recipe,
        request.wait,
        staircase=staircase,
        journal=journal,
        progress=progress,
        total=_evaluations(request, staircase),
    )
    if notify is not None and len(journal):
        notify(f"goes on from the {len(journal)} results in {str(journal.folder)!r}")
    fits = _rise(climb, request, staircase)
    result = _result(climb, request, Deployment(climb, fits))
    if out is not None:
        time = result.deployment.last_time()
        chip, done = request.chips[0], journal.mark_done
        save_bundle(result.deployment, result.to_dict(), out, chip, time, whole=done, cells=cells)
        journal.remove()
    return result


def _streamed(
    request: Request,
    staircase: bool,
    progress: Progress | None,
    out: Path | None,
    cells: str,
    notify: Callable[[str], None] | None,
) -> Calibration:
    """The same block by block."""
    stream = Stream(request, progress, notify)
    chip, last = request.chips[0], max(request.times)
    made = None if out is None else partial(_write_part, chip=chip, time=last, cells=cells)
    with ExitStack() as stack:
        if out is None:
            journal = Journal(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="ohmformer-"))))
        else:
            journal = _journal(out, stream.whole, request, staircase, notify, cells)
        assert journal.folder is not None
        if notify is not None and journal.folder.is_dir() and (through := stream.through(journal.folder)):
            notify(f"goes on behind the {through} of {len(stream.model)} parts in {str(journal.folder)!r}")
        rise = partial(_rise, staircase=staircase)
        climb, fits = parts.run(stream, Way(journal.folder, rise, made, staircase, keeps=out is not None))
        result = _result(climb, request, Streamed(climb, fits))
        if out is not None:
            folders = stream.part_folders(journal.folder)
            scored = (chip, last, request.wait)
            save_streamed(stream.whole, stream.model.files, result.to_dict(), out, scored, folders, cells)
            journal.mark_done()
            journal.remove()
    return result


def _write_part(folder: Path, climb: Climb, fits: Fits, chip: int, time: float, cells: str) -> None:
    """What a bundle holds of a part, of which a chip is through."""
    climb.restore(chip, fits[chip, time], time)
    save_part(climb.experiment, folder, cells)


def _evaluations(request: Request, staircase: bool) -> int:
    """How many there are, for progress."""
    assert request.recipe is not None
    stairs = len(request.recipe.steps) if staircase else 1
    arms = (1 if request.pattern is None else 2) + staircase
    return arms + len(request.chips) * len(request.times) * (1 + stairs)


def _rise(climb: Climb, request: Request, staircase: bool) -> Fits:
    """All arms; returns what was fitted, by chip and time."""
    recipe, times, chips = request.recipe, request.times, request.chips
    assert recipe is not None
    climb.score_digital()
    if staircase:
        climb.score_quantised()
    for chip in chips:
        climb.score_programmed(chip, times)
    last = max(recipe.steps_at(Stage.BEFORE_PROGRAMMING), default=0)

    def score_written(index: int) -> None:
        """Of each step but the last, which `Climb.score_chip` scores on the chips that later steps go on with."""
        for chip in chips if staircase and index != last else ():
            climb.score_written(chip, times, index)

    climb.write(score_written)
    shared = None if request.population is None else climb.fit_population(times, request.population)
    fits: Fits = {}
    for chip in chips:
        found = climb.score_chip(chip, times, shared, count=chip == chips[0])
        fits |= {(chip, time): steps for time, steps in found.items()}
    return fits


def _result(climb: Climb, request: Request, deployment: Deployment) -> Calibration:
    """What a climb through all arms found."""
    assert request.recipe is not None
    experiment = climb.experiment
    own = "each chip itself" if request.population is None else f"a population of {request.population} other chips"
    return Calibration(
        setup={
            **experiment.setup,
            "chips": len(request.chips),
            "seed": request.chips[0],
            "recipe": request.recipe.to_dict(),
            "fitted_on": own,
            "calibration_batches": sum(1 for _ in experiment.task.batches("calibration")),
        },
        primary=experiment.task.primary,
        measurements=tuple(climb.measurements),
        conversion=experiment.conversion,
        counts=climb.counts,
        costs=climb.costs.of,
        minutes={arm: seconds / 60 for arm, seconds in climb.costs.seconds.items()},
        deployment=deployment,
    )


def _journal(
    out: Path,
    experiment: Experiment,
    request: Request,
    staircase: bool,
    notify: Callable[[str], None] | None,
    cells: str = "conductances",
) -> Journal:
    """Beside ``out``, in the name of everything that decides the result."""
    assert request.recipe is not None
    options: list[Any] = [request.recipe.to_dict(), request.times, request.wait, request.chips, staircase]
    options += [request.population, str(device_of(experiment.digital)), cells]
    layers = [layer.name for layer in experiment.conversion.analog]
    meta = device_of(experiment.digital).type == "meta"  # a stream, whose weights are known by their files
    weights = ["by blocks", experiment.setup["model_fingerprint"]] if meta else fingerprint.of_model(experiment.digital)
    parts = [weights, fingerprint.of_task(experiment.task), fingerprint.of_code()]
    identity = hashes.of_values([*parts, experiment.setup, layers, options])
    return Journal(out.with_name(f".{out.name}.{identity[:16]}.progress"), notify=notify)
