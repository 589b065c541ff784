"""One model, one task, one hardware, one pattern: resolved, converted, scored."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from attention import Pattern, attach, parse
from calibration import models, tasks
from calibration.models import Loaded
from calibration.progress import Progress
from calibration.results import Measurement
from calibration.tasks import Task
from crossbar import ConversionReport, Hardware, InputError, Ledger, convert, presets, reset_reads, to_seconds

TIMES = ("0s", "1h", "1d", "30d", "1y")


@dataclass
class Experiment:
    """A digital model and its analog copy, with what they are scored on.

    Attributes:
        digital: the digital model, gated if there is a pattern.
        analog: its copy on tiles, not programmed.
        task: what is scored.
        pattern: who attends to whom; None leaves the model's own attention.
        hardware: the tiles.
        conversion: what became analog.
        setup: all of this as plain values.
        counts: of one evaluation, once an arm was scored.
    """

    digital: nn.Module
    analog: nn.Module
    task: Task
    pattern: Pattern | None
    hardware: Hardware
    conversion: ConversionReport
    setup: dict[str, Any]
    total: int = 0
    progress: Progress | None = None
    measurements: list[Measurement] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    _done: int = 0

    @classmethod
    def prepare(
        cls,
        model: str | Path | nn.Module | Loaded,
        task: str | Task,
        hardware: str | Hardware,
        pattern: str | Pattern | None,
        include: str | Sequence[str] | None,
        exclude: str | Sequence[str] | None,
        progress: Progress | None = None,
    ) -> Experiment:
        """Resolve names, copy the model and put the copy on tiles; the user's model stays as it was.

        Raises:
            InputError: for unknown names, or what `crossbar.convert` and `attention.attach` refuse.
        """
        hardware = presets.get(hardware) if isinstance(hardware, str) else hardware
        pattern = parse(pattern) if isinstance(pattern, str) else pattern
        if isinstance(task, str):
            tasks.require(task)
        loaded = models.load_model(model, progress) if isinstance(model, str | Path) else model
        network = loaded.model if isinstance(loaded, Loaded) else loaded
        if isinstance(task, str):
            if not isinstance(loaded, Loaded):
                raise InputError(
                    f"task {task!r} needs a tokenizer, which a bare {type(network).__name__} has not: "
                    "give calibration.tasks.get(name, tokenizer) or a task of your own"
                )
            tasks.require(task, loaded)
            task = tasks.get(task, loaded.tokenizer)
        digital = copy.deepcopy(network).eval()
        if pattern is not None:
            attach(digital, pattern)
        analog = copy.deepcopy(digital)
        conversion = convert(analog, hardware, include, exclude)
        setup = {
            "model": loaded.name if isinstance(loaded, Loaded) else type(network).__name__,
            "model_fingerprint": loaded.fingerprint if isinstance(loaded, Loaded) else None,
            "task": task.name,
            "hardware": hardware.to_dict(),
            "pattern": None if pattern is None else str(pattern),
        }
        return cls(digital, analog, task, pattern, hardware, conversion, setup, progress=progress)

    def score_digital(self) -> None:
        """Arm ``digital`` (with the pattern) and, where there is a pattern, ``digital dense`` (the plain model)."""
        if self.pattern is not None:
            attach(self.digital, "dense")
            dense = self._count(self.digital, "digital dense")
            self.count("dense attention", dense)
            attach(self.digital, self.pattern)
        self._score(self.digital, "digital")

    def score(self, arm: str, chip: int, seconds: float, fitted: float | None = None) -> None:
        """Score the analog copy as it is now; the first score also counts activations and conversions."""
        reset_reads(self.analog)
        if "linear" in self.counts:
            self._score(self.analog, arm, chip, seconds, fitted)
            return
        ledger = self._count(self.analog, arm, chip, seconds, fitted)
        linear = {layer.name for layer in self.conversion.analog}
        self.count("linear", ledger, lambda layer: layer in linear)
        if self.pattern is not None:
            self.count("attention", ledger, lambda layer: layer not in linear)

    def count(self, part: str, ledger: Ledger, chosen: Callable[[str], bool] = lambda layer: True) -> None:
        """Add a ledger's totals over the chosen layers to the counts of ``part``."""
        totals = self.counts.setdefault(part, {})
        for layer, counts in ledger.by_layer.items():
            if chosen(layer):
                for counter, number in counts.items():
                    totals[counter.name] = totals.get(counter.name, 0) + number

    def _count(self, model: nn.Module, *of: Any) -> Ledger:
        with Ledger() as ledger:
            self._score(model, *of)
        return ledger

    def _score(
        self,
        model: nn.Module,
        arm: str,
        chip: int | None = None,
        seconds: float | None = None,
        fitted: float | None = None,
    ) -> None:
        if self.progress is not None:
            self.progress(self._done, self.total, arm if chip is None else f"{arm}, chip {chip}")
        self._done += 1
        for metric, value in self.task.metrics(model).items():
            self.measurements.append(Measurement(arm, metric, value, chip, seconds, fitted))


def parse_times(times: Sequence[str | float]) -> list[float]:
    """Times in seconds, as given, each once.

    Raises:
        InputError: for no time at all and for an impossible one.
    """
    if isinstance(times, str) or not times:
        raise InputError(f"times {times!r} are not usable: give a list such as ['0s', '1h', '1d']")
    return list(dict.fromkeys(to_seconds(time) for time in times))


def require_chips(chips: int) -> None:
    """Refuse a number of chips below 1."""
    if isinstance(chips, bool) or not isinstance(chips, int) or chips < 1:
        raise InputError(f"chips = {chips!r} is not allowed: give a whole number of 1 or more")
