"""One model, one task, one hardware, one pattern: resolved, converted, scored."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from attention import Memory, Pattern, attach, parse, renew_memory
from calibration import models, tasks
from calibration.models import Loaded
from calibration.progress import Progress
from calibration.runs.chips import require_device
from calibration.runs.journal import Counts, Fit, Journal, Scored
from calibration.runs.measurement import Measurement
from calibration.steps.protocol import Fitted, LongStep, Step, uncalibrate
from calibration.tasks import Batch, Task
from calibration.tasks.protocol import fitted_on
from crossbar import (
    ConversionReport,
    Hardware,
    InputError,
    Ledger,
    analog_layers,
    convert,
    new_chip,
    presets,
    program,
    reset_reads,
    to_seconds,
)
from crossbar.errors import shown
from crossbar.presets import HardwareLike

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MemoryLike = HardwareLike | Memory
"""What `as_memory` makes a memory of."""
TimesLike = str | float | Sequence[str | float]
"""What `parse_times` makes times of."""
_MOST_TIMES = 10_000
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
        gated: whether attention of the analog copy opens rows of a memory, which are counted.
        counts: of one evaluation, once an arm was scored.
        tokenizer: the model's own, where it came with one.
        journal: keeps what was found, if it has a folder.
        adc_ranges: of layers that got theirs before programming.
    """

    digital: nn.Module
    analog: nn.Module
    task: Task
    pattern: Pattern | None
    hardware: Hardware
    conversion: ConversionReport
    setup: dict[str, Any]
    gated: bool
    total: int = 0
    progress: Progress | None = None
    measurements: list[Measurement] = field(default_factory=list)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    tokenizer: PreTrainedTokenizerBase | None = None
    journal: Journal = field(default_factory=Journal)
    adc_ranges: dict[str, Tensor] = field(default_factory=dict)
    _done: int = 0
    _pending: list[Callable[[], object]] = field(default_factory=list)

    @classmethod
    def prepare(
        cls,
        model: str | Path | nn.Module | Loaded,
        task: str | Task,
        hardware: HardwareLike,
        pattern: str | Pattern | None,
        include: str | Sequence[str] | None,
        exclude: str | Sequence[str] | None,
        progress: Progress | None = None,
        memory: MemoryLike | None = None,
        device: str | None = None,
    ) -> Experiment:
        """Resolve names, copy the model and put the copy on tiles; the user's model stays as it was.

        With a memory, the analog copy's keys and values are in it, under a dense pattern unless another is given.

        Raises:
            InputError: for unknown names, a device that is not there, or what `crossbar.convert` and `attention.attach`
                refuse.
        """
        place = require_device(device)
        hardware = presets.get(hardware)
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
        if place is not None:
            digital.to(place)
        if pattern is not None:
            attach(digital, pattern)
        analog = copy.deepcopy(digital)
        memory = as_memory(memory)
        if memory is not None:
            attach(analog, pattern or "dense", memory)
        conversion = convert(analog, hardware, include, exclude)
        setup = {
            "model": loaded.name if isinstance(loaded, Loaded) else type(network).__name__,
            "model_fingerprint": loaded.fingerprint if isinstance(loaded, Loaded) else None,
            "task": task.name,
            "hardware": hardware.to_dict(),
            "pattern": None if pattern is None else str(pattern),
            "memory": None if memory is None else memory.to_dict(),
        }
        tokenizer = loaded.tokenizer if isinstance(loaded, Loaded) else None
        gated = pattern is not None or memory is not None
        return cls(
            digital, analog, task, pattern, hardware, conversion, setup, gated, progress=progress, tokenizer=tokenizer
        )

    def new_chip(self, seed: int) -> None:
        """Go on with another chip, programmed at once or when something is first measured on it."""
        self._pending = [lambda: new_chip(self.analog), lambda: program(self.analog, seed)]

    def later(self, change: Callable[[], object]) -> None:
        """Change the analog copy before the next measurement on it, after the changes asked for before."""
        self._pending.append(change)

    def catch_up(self) -> None:
        """Make the changes that were put off. What the journal knows is not measured, so a resumed job skips them."""
        for change in self._pending:
            change()
        self._pending.clear()

    def write(self, step: Step, fitted: Fitted) -> None:
        """Apply a step that comes before programming, and keep what of it is not in the cells."""
        step.apply(self.analog, fitted)
        layers = analog_layers(self.analog)
        self.adc_ranges = {name: layer.adc_range for name, layer in layers.items() if layer.adc_range is not None}

    def uncalibrate(self) -> None:
        """Take from the analog copy what steps in use put into it."""
        uncalibrate(self.analog, self.adc_ranges)

    def score_digital(self) -> None:
        """Arm ``digital`` (with the pattern) and, where there is a pattern, ``digital dense`` (the plain model)."""
        if self.pattern is not None:
            attach(self.digital, "dense")
            self._score(self.digital, "digital dense", parts={"dense attention": lambda layer: True})
            attach(self.digital, self.pattern)
        self._score(self.digital, "digital")

    def score_quantised(self) -> None:
        """Arm ``quantised``: converters alone, since cells hold their targets and nothing is noisy."""

        def quantised() -> nn.Module:
            model = copy.deepcopy(self.digital)
            names = [escape(layer.name) for layer in self.conversion.analog]
            convert(model, replace(self.hardware, output_noise=0.0, read_noise=None), include=names)
            return model

        self._score(quantised, "quantised")

    def score(self, arm: str, chip: int, seconds: float, fitted: float | None = None) -> None:
        """Score the analog copy as it is now; the first score also counts activations and conversions.

        Raises:
            InputError: for a score at the time of the fit, or before.
        """
        if fitted is not None and fitted >= seconds:
            raise InputError(
                f"a calibration fitted at {fitted:g} s cannot be scored at {seconds:g} s, whose noise it knows: "
                "score it later"
            )
        parts: dict[str, Callable[[str], bool]] = {}
        if "linear" not in self.counts:
            linear = {layer.name for layer in self.conversion.analog}
            parts["linear"] = lambda layer: layer in linear
            if self.gated:
                parts["attention"] = lambda layer: layer not in linear
        self._score(self.analog, arm, chip, seconds, fitted, parts)

    def fit(self, step: Step, key: str, *, count: bool = False) -> Fitted:
        """What a step finds on the analog copy as it is now, and, with ``count``, what measuring it takes."""

        def run() -> Fit:
            self.catch_up()
            reset_reads(self.analog)
            renew_memory(self.analog)
            batches = data_for(step, self.task)
            with Ledger() as ledger:
                if isinstance(step, LongStep):
                    tensors = step.fit_long(self.analog, batches, self.journal.state(f"fit {key}"), self._part)
                else:
                    tensors = step.fit(self.analog, batches)
            return {"tensors": tensors, "counts": {"calibration": _totals(ledger)} if count else {}}

        fit = self.journal.fit(f"fit {key}", run)
        self._add(fit["counts"])
        return fit["tensors"]

    def _part(self, done: int, total: int, text: str) -> None:
        """Tell how far a long step is, as what comes next."""
        if self.progress is not None:
            self.progress(self._done, self.total, f"step {done} of {total}, {text}")

    def _score(
        self,
        model: nn.Module | Callable[[], nn.Module],
        arm: str,
        chip: int | None = None,
        seconds: float | None = None,
        fitted: float | None = None,
        parts: Mapping[str, Callable[[str], bool]] | None = None,
    ) -> None:
        if self.progress is not None:
            self.progress(self._done, self.total, arm if chip is None else f"{arm}, chip {chip}")
        self._done += 1

        def run() -> Scored:
            scored = model if isinstance(model, nn.Module) else model()
            if scored is self.analog:
                self.catch_up()
                reset_reads(scored)
                renew_memory(scored, chip)
            if not parts:
                return {"metrics": self.task.metrics(scored), "counts": {}}
            with Ledger() as ledger:
                metrics = self.task.metrics(scored)
            return {"metrics": metrics, "counts": {part: _totals(ledger, of) for part, of in parts.items()}}

        key = arm if chip is None else f"{arm} chip {chip} at {seconds!r} fitted {fitted!r}"
        scored = self.journal.score(f"score {key}", run)
        self._add(scored["counts"])
        for metric, value in scored["metrics"].items():
            self.measurements.append(Measurement(arm, metric, value, chip, seconds, fitted))

    def _add(self, counts: Counts) -> None:
        for part, totals in counts.items():
            own = self.counts.setdefault(part, {})
            for name, number in totals.items():
                own[name] = own.get(name, 0) + number


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


def as_memory(memory: MemoryLike | None) -> Memory | None:
    """A memory of fields, among them ``hardware``, of hardware alone, by name for example, or as it is."""
    if memory is None or isinstance(memory, Memory):
        return memory
    if isinstance(memory, Mapping) and "hardware" in memory:
        return Memory.from_dict(memory)
    return Memory(presets.get(memory))


def parse_times(times: TimesLike) -> list[float]:
    """Times in seconds, as given, each once; a text may have several with commas between them.

    Raises:
        InputError: for no time at all, for more than 10,000, and for an impossible one.
    """
    if isinstance(times, str):
        times = times.split(",")
    elif isinstance(times, int | float):
        times = [times]
    if not isinstance(times, Sequence) or not 0 < len(times) <= _MOST_TIMES:
        raise InputError(f"times {shown(times)} are not usable: give '1h', or a list such as ['0s', '1h', '1d']")
    return list(dict.fromkeys(to_seconds(time) for time in times))
