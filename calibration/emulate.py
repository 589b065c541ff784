"""The first job: what a model's accuracy becomes on analog hardware, over time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from torch import nn

from attention import Pattern
from calibration.models import Loaded
from calibration.progress import Progress
from calibration.results.emulation import Emulation
from calibration.runs.chips import require_chips
from calibration.runs.experiment import TIMES, Experiment, MemoryLike, TimesLike, parse_times
from calibration.tasks import Task
from crossbar import age
from crossbar.presets import HardwareLike


def emulate(
    model: str | Path | nn.Module | Loaded,
    task: str | Task,
    hardware: HardwareLike = "pcm",
    *,
    pattern: str | Pattern | None = None,
    memory: MemoryLike | None = None,
    times: TimesLike = TIMES,
    chips: int = 3,
    seed: int = 0,
    device: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
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
        device: where it is computed, ``"cpu"`` or ``"cuda"``; None: where the model is. A seed is another chip there.
        include: shell patterns of the layers to make analog; None: all.
        exclude: shell patterns of layers that stay digital.
        progress: called before each evaluation, and while a model is converted for the first time.

    Raises:
        InputError: for an unknown name, an impossible value, or a model with nothing to convert.
    """
    seconds = parse_times(times)
    seeds = require_chips(chips, seed)
    experiment = Experiment.prepare(model, task, hardware, pattern, include, exclude, progress, memory, device)
    experiment.total = (1 if experiment.pattern is None else 2) + chips * len(seconds)
    experiment.score_digital()
    score_uncalibrated(experiment, seconds, seeds)
    return Emulation(
        setup={**experiment.setup, "chips": chips, "seed": seed},
        primary=experiment.task.primary,
        measurements=tuple(experiment.measurements),
        conversion=experiment.conversion,
        counts=experiment.counts,
    )


def score_uncalibrated(experiment: Experiment, seconds: Sequence[float], chips: Sequence[int]) -> None:
    """Arm ``analog``: every chip as it was programmed, at every time."""
    for chip in chips:
        experiment.new_chip(chip)
        for time in seconds:
            experiment.later(partial(age, experiment.analog, time))
            experiment.score("analog", chip, time)
