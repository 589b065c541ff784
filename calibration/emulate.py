"""The first job: what a model's accuracy becomes on analog hardware, over time."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from calibration.progress import Progress
from calibration.results.emulation import Emulation
from calibration.runs import parts
from calibration.runs.climb import Climb
from calibration.runs.estimating import Estimate, estimate
from calibration.runs.experiment import Experiment
from calibration.runs.request import TIMES, MemoryLike, ModelLike, PatternLike, Request, TimesLike
from calibration.runs.streaming import Stream, Way, is_streamed
from calibration.tasks import Task
from crossbar.presets import HardwareLike


def emulate(
    model: ModelLike,
    task: str | Task,
    hardware: HardwareLike = "pcm",
    *,
    pattern: PatternLike | None = None,
    memory: MemoryLike | None = None,
    times: TimesLike = TIMES,
    chips: int = 3,
    seed: int = 0,
    device: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    tied_heads: bool = False,
    stream: bool | None = None,
    engine: str = "local",
    progress: Progress | None = None,
) -> Emulation:
    """Score a model in digital and on programmed analog chips at several ages; the model itself is not changed.

    Args:
        model: ``"minilm"``, ``"smollm2"``, a transformers model folder, a loaded model, or any module with linear
            layers.
        task: ``"code-search"``, ``"lee"``, ``"wordsim"``, ``"perplexity"``, or an object with the members of
            `calibration.Task`.
        hardware: ``"pcm"``, ``"ideal"``, a YAML file, a CSV table of a measured device, a mapping of fields, or
            `crossbar.Hardware`: see `crossbar.presets.get`.
        pattern: who attends to whom, such as ``"window(64) | sinks(4)"``; needs a transformers model. None: its own
            attention.
        memory: where the analog model's keys and values are: hardware, as above, such as ``"gain_cell"``, an
            `attention.Memory`, or a mapping of its fields; needs a transformers model. None: they are digital.
        times: since programming, such as ``"1d"``, or several.
        chips: number of programmed chips.
        seed: of the first chip; the others have the next whole numbers.
        device: where it is computed, ``"cpu"``, ``"cuda"`` or a GPU by number; None: where the model is. A seed is
            the same chip on each (docs/gpu.md).
        include: shell patterns of the layers to make analog; None: all.
        exclude: shell patterns of layers that stay digital.
        tied_heads: make output heads that are tied to embeddings analog too, as in `crossbar.convert`.
        stream: whether a language model in a folder is taken block by block, so that memory holds one block at a time
            (docs/scale.md); results are the same bits. None: where memory does not hold the whole model, which a
            warning then says.
        engine: what computes the blocks of a stream: ``"local"``, this process one after another, or ``"ray"``, a Ray
            cluster, where one chip may be in a block while another is in the next.
        progress: called before each evaluation, and while a model is converted for the first time.

    Raises:
        InputError: for an unknown name, an impossible value, or a model with nothing to convert.
    """
    request = Request.of(
        model,
        task,
        hardware,
        pattern=pattern,
        memory=memory,
        times=times,
        chips=chips,
        seed=seed,
        device=device,
        include=include,
        exclude=exclude,
        tied_heads=tied_heads,
        stream=stream,
        engine=engine,
    )
    return run_emulation(request, progress)


def run_emulation(request: Request, progress: Progress | None = None) -> Emulation:
    """`emulate` of what is resolved already."""
    if is_streamed(request, lambda: estimate_emulation(request, progress).bytes):
        with tempfile.TemporaryDirectory(prefix="ohmformer-") as folder:
            stream = Stream(request, progress)
            climb, _ = parts.run(stream, Way(Path(folder), _rise, keeps=False))
            experiment = stream.whole
    else:
        experiment = Experiment.prepare(request, progress)
        total = (1 if request.pattern is None else 2) + len(request.chips) * len(request.times)
        climb = Climb(experiment, progress=progress, total=total)
        _rise(climb, request)
    return Emulation(
        setup={**experiment.setup, "chips": len(request.chips), "seed": request.chips[0]},
        primary=experiment.task.primary,
        measurements=tuple(climb.measurements),
        conversion=experiment.conversion,
        counts=climb.counts,
    )


def estimate_emulation(request: Request, progress: Progress | None = None) -> Estimate:
    """What `run_emulation` would take."""
    return estimate(request, _rise, progress=progress)


def _rise(climb: Climb, request: Request) -> None:
    """All arms."""
    climb.score_digital()
    for chip in request.chips:
        climb.score_programmed(chip, request.times)
