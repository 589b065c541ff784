"""Jobs that go through a language model block by block, for models that memory does not hold.

Each part of the model (`calibration.models.blocks`) climbs alone: it is programmed, aged, fitted and read on what the
part before it handed on in the same arm, of the same chip at the same time. What parts hand on and what is fitted in
them lies in files; in memory are one part with its chip, and what one arm hands on.
"""

from __future__ import annotations

import gc
import shutil
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from attention import attach
from calibration.models.blocks import BlockModel
from calibration.models.embedding import Batch, evaluating
from calibration.models.folder_files import FolderFiles
from calibration.models.loading import gives_next_tokens, located
from calibration.models.sharing import shared_copy
from calibration.progress import Progress
from calibration.recipe import Recipe
from calibration.runs.climb import Climb
from calibration.runs.experiment import Experiment
from calibration.runs.journal import Evaluation, Fit, Journal
from calibration.runs.overlap import require_disjoint
from calibration.runs.rehearsal import NoBench, Rehearsal
from calibration.runs.request import Request
from calibration.steps.adc_ranges import AdcRanges
from calibration.steps.affine import AffineCorrection
from calibration.steps.compensation import DriftCompensation
from calibration.steps.digital_lines import DigitalLines
from calibration.steps.drift_targets import DriftTargets
from calibration.steps.lowrank import LowRankAdapter
from calibration.steps.ranges import InputRanges
from calibration.steps.rotation import Rotation
from calibration.steps.weight_ranges import WeightRanges
from calibration.steps.wire_aware import WireAware
from calibration.storage import checked_files
from calibration.tasks import Task
from calibration.tasks.protocol import Split
from crossbar import ConversionReport, InputError, convert
from crossbar.nn.served import served

STEPS = (
    AdcRanges,
    AffineCorrection,
    DigitalLines,
    DriftCompensation,
    DriftTargets,
    InputRanges,
    LowRankAdapter,
    Rotation,
    WeightRanges,
    WireAware,
)
"""Steps that find the same in a layer whether other layers are in memory or not."""
_MOST_A_NUMBER = 60
"""Bytes for each number in a model's files: models for which there are so many free are not measured."""
_DONE = "done.json"

Rise = Callable[[Climb, Request], Any]
"""Takes a climb through all arms of a job."""
Made = Callable[[Path, Climb, Any], None]
"""Called when a part was through all arms: its folder, its climb, and what `Rise` returned."""


@dataclass(frozen=True)
class Way:
    """How a job goes through the parts of a model.

    Attributes:
        folder: keeps what parts hand on and what is found in them; the same job goes on from what is there.
        rise: the job.
        made: looks at each part when its first chip is through.
        staircase: as for `Climb`.
        keeps: whether the folder outlasts the call, so that its files are written through to the disk.
    """

    folder: Path
    rise: Rise
    made: Made | None = None
    staircase: bool = False
    keeps: bool = True


class Stream:
    """A job on a language model, part after part.

    Args:
        request: the job, whose model is a name or a folder.
        progress: as for `Climb`.
        notify: told, in a sentence, of results that were damaged.

    Attributes:
        model: the model's parts.
        whole: the experiment on the model without weights, which knows all names and shapes.

    Raises:
        InputError: for a model, a step or a memory that cannot be streamed.
    """

    def __init__(
        self,
        request: Request,
        progress: Progress | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        require_streamable(request)
        assert isinstance(request.model, str | Path)
        self.model = BlockModel(request.model, progress)
        self.whole = _whole(request, self.model)
        self.request, self.progress, self.notify = request, progress, notify
        if request.recipe is not None:
            require_disjoint(self.whole.task)
        self._calls = _calls(self.whole.task, self.model.without_weights())

    def keys(self, way: Way, request: Request) -> list[str]:
        """The keys of all results that a part has in a request: the job's, or one of fewer chips."""
        keys: list[str] = []
        way.rise(self._climb(self.whole, way, Rehearsal(keys=keys), bench=NoBench), request)
        return keys

    def of_all_parts(self, way: Way) -> Climb:
        """A climb that finds the results of the whole model in those of its parts, which are through."""
        journal = _Whole(parts=[_read_done(part) for part in self.part_folders(way.folder)])
        return self._climb(self.whole, way, journal, bench=NoBench)

    def part_folders(self, folder: Path) -> list[Path]:
        """Where each part keeps what is found in it."""
        return [folder / f"part-{index:04d}" for index in range(len(self.model))]

    def through(self, folder: Path) -> int:
        """How many parts an earlier run took through all arms; 0, and nothing is left, where one of them is damaged."""
        parts = self.part_folders(folder)
        found = 0
        try:
            while found < len(parts) and (parts[found] / _DONE).is_file():
                _read_done(parts[found])
                found += 1
            if 0 < found < len(parts) and not _handed_on(parts[found - 1]).is_dir():
                raise ValueError("what it would go on from is gone")
        except ValueError:
            if self.notify is not None:
                self.notify(f"a block in {str(folder)!r} is damaged, and the job begins again")
            for part in parts:
                shutil.rmtree(part, ignore_errors=True)
            return 0
        return found

    def run_part(self, index: int, way: Way, request: Request) -> PartJournal:
        """Take a part through all arms of a request: the job's, or one of fewer chips, whose first one is the job's.

        Results that are in the part's folder are not computed again.
        """
        part = self.part_folders(way.folder)[index]
        part.mkdir(parents=True, exist_ok=True)
        journal = self._journal(index, way)
        layers = [layer.name for layer in self.whole.conversion.analog if self.model.part_of(layer.name) == index]
        digital = self.model.part(index, journal.enter, journal.leave)
        task = _PartTask(self.whole.task, self._calls, journal.is_last)
        keys = self.keys(way, request)
        if layers:
            experiment = self._experiment(digital, layers, task, is_last=journal.is_last)
            progress = None if self.progress is None else self._told(index, len(keys))
            climb = self._climb(experiment, way, journal, progress=progress, total=len(keys))
            risen = way.rise(climb, request)
            if way.made is not None:
                way.made(part, climb, risen)
        else:
            self._pass_on(digital, keys, task, journal)
        return journal

    def mark_through(self, index: int, way: Way, keys: list[str], journal: PartJournal | None = None) -> None:
        """Say that a part was through all arms, and forget what the part before handed on.

        Args:
            index: of the part.
            way: of the job.
            keys: of the results that the part has.
            journal: with all of them; None: they are read.
        """
        if journal is None:
            journal = self._journal(index, way)
            for key in keys:
                if key.startswith("score "):
                    journal.score(key, _gone)
                else:
                    journal.fit(key, _gone)
        journal.mark_through()
        if journal.before is not None:
            shutil.rmtree(_handed_on(journal.before), ignore_errors=True)
        gc.collect()

    def _journal(self, index: int, way: Way) -> PartJournal:
        parts = self.part_folders(way.folder)
        return PartJournal(
            parts[index],
            notify=self.notify,
            through=way.keeps,
            before=parts[index - 1] if index else None,
            is_last=index == len(parts) - 1,
        )

    def _pass_on(self, digital: nn.Module, keys: list[str], task: _PartTask, journal: PartJournal) -> None:
        """All arms through a part without layers on tiles, which computes the same in each."""

        def scored() -> Evaluation:
            return {"metrics": task.metrics(digital), "counts": {}}

        def fitted() -> Fit:
            with torch.no_grad(), evaluating(digital):
                for _, batch in zip(range(journal.calls), task.batches("calibration"), strict=False):
                    digital(**batch)
            return {"tensors": {}, "counts": {}, "seconds": 0.0}

        for key in keys:
            if key.startswith("score "):
                journal.score(key, scored)
            else:
                journal.fit(key, fitted)

    def _experiment(self, digital: nn.Module, layers: list[str], task: Task, *, is_last: bool) -> Experiment:
        """A part in digital and on tiles."""
        request, whole = self.request, self.whole
        digital = shared_copy(digital).eval()
        if request.pattern is not None and not is_last:
            attach(digital, request.pattern)
        chosen: dict[str, Any] = {"include": [escape(name) for name in layers], "exclude": None, "tied_heads": True}
        analog = shared_copy(digital)
        conversion = convert(analog, request.hardware, **chosen)
        return replace(
            whole, digital=digital, analog=analog, task=task, conversion=conversion, layers=chosen, attends=not is_last
        )

    def _climb(self, experiment: Experiment, way: Way, journal: Journal, **others: Any) -> Climb:
        recipe, wait = self.request.recipe, self.request.wait
        return Climb(experiment, recipe, wait, staircase=way.staircase, journal=journal, checks=False, **others)

    def _told(self, index: int, total: int) -> Progress:
        """Progress within a part as that of the job."""

        def told(done: int, of: int, text: str) -> None:
            assert self.progress is not None
            self.progress(index * total + done, len(self.model) * total, f"{self.name_of(index)}: {text}")

        return told

    def name_of(self, index: int) -> str:
        """A part's name for a reader."""
        blocks = len(self.model) - 1
        return f"block {index + 1} of {blocks}" if index < blocks else "head"


def is_streamed(request: Request, needed: Callable[[], int | None]) -> bool:
    """Whether a job goes block by block: where it is asked to, or where nobody says and memory does not hold the model.

    Args:
        request: the job.
        needed: bytes that it takes at once, which take some time to find; None: not known.

    Warns:
        UserWarning: of the second.
    """
    if request.stream is not None:
        return request.stream
    if not isinstance(request.model, str | Path):
        return False
    try:
        require_streamable(request)
    except InputError:
        return False
    found = located(request.model)
    files = FolderFiles.judged(found.folder)
    free = available()
    if free is None or _MOST_A_NUMBER * files.numbers <= free or not gives_next_tokens(files):
        return False
    measured = needed()
    if measured is None or measured <= free:
        return False
    warnings.warn(
        f"model {found.name!r} would take about {measured / 2**30:.1f} GiB, measured on one of its blocks, and "
        f"{free / 2**30:.1f} GiB of memory are free: it is taken block by block, which stream=False forbids",
        stacklevel=3,
    )
    return True


def available() -> int | None:
    """Bytes of memory that are free for another process; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return sizes[0] if sizes else None


def require_streamable(request: Request) -> None:
    """Refuse what a stream by blocks cannot do.

    Raises:
        InputError: for a model that is in memory already, analog memory, another device, and steps that look at the
            whole model.
    """
    if not isinstance(request.model, str | Path):
        raise InputError(
            f"a {type(request.model).__name__} is in memory already: give the name or the folder of a model to stream "
            "it by blocks, or leave stream out"
        )
    if request.memory is not None:
        raise InputError("a stream by blocks has no analog memory for keys and values: leave memory out, or stream")
    if request.device not in (None, "cpu"):
        raise InputError(f"a stream by blocks is computed on the CPU: leave device {request.device!r} out, or stream")
    for step in _steps(request.recipe):
        if not isinstance(step, STEPS):
            names = ", ".join(sorted(kind.__name__ for kind in STEPS))
            raise InputError(
                f"{type(step).__name__} looks at the whole model, which a stream by blocks never holds: leave it out "
                f"(there are {names}), or leave stream out"
            )


def _steps(recipe: Recipe | None) -> Iterable[Any]:
    return () if recipe is None else recipe.steps


def _whole(request: Request, model: BlockModel) -> Experiment:
    """The experiment on the model without weights."""
    loaded = model.loaded
    task = request.make_task(loaded)
    experiment = Experiment.of(request, loaded.model, task, loaded.name, loaded.fingerprint, loaded.tokenizer)
    return replace(experiment, conversion=_on_cpu(request, experiment.conversion))


def _on_cpu(request: Request, report: ConversionReport) -> ConversionReport:
    """The report of a model that will be computed on the CPU, while its shapes are on torch's device ``meta``."""
    return replace(report, device="cpu", served=served(request.hardware, "cpu"))


# What tasks ask of a model


def _calls(task: Task, model: nn.Module) -> list[dict[str, Any]]:
    """The inputs of each forward pass by which a task scores a model.

    Raises:
        InputError: for a task that passes on anything but named inputs.
    """
    calls: list[dict[str, Any]] = []

    def note(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        if arguments:
            raise InputError(
                f"task {task.name!r} calls the model without the names of its inputs: call model(input_ids=...)"
            )
        calls.append({name: x.clone() if isinstance(x, Tensor) else x for name, x in options.items()})

    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        task.metrics(model)
    finally:
        handle.remove()
    return calls


class _PartTask:
    """A task as one part of a model is put through it: the calls alone, and the score behind the last part."""

    def __init__(self, task: Task, calls: list[dict[str, Any]], is_last: bool) -> None:
        self._task, self._calls, self._is_last = task, calls, is_last

    @property
    def name(self) -> str:
        """The task's."""
        return self._task.name

    @property
    def primary(self) -> str:
        """The task's."""
        return self._task.primary

    def batches(self, split: Split) -> Iterable[Batch]:
        """The task's."""
        return self._task.batches(split)

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """The task's behind the last part; none before it.

        Raises:
            InputError: for a task whose inputs are others than they were: those that depend on what a model says.
        """
        if not self._is_last:
            with torch.inference_mode(), evaluating(model):
                for options in self._calls:
                    model(**options)
            return {}
        made = 0

        def compare(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
            nonlocal made
            known = self._calls[made] if made < len(self._calls) else {}
            made += 1
            if known.keys() != options.keys() or not all(_same(known[name], options[name]) for name in known):
                raise InputError(
                    f"task {self.name!r} gives a model inputs that depend on its outputs, which blocks of it do not "
                    "have: leave stream out"
                )

        handle = model.register_forward_pre_hook(compare, with_kwargs=True)
        try:
            return self._task.metrics(model)
        finally:
            handle.remove()


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return isinstance(one, Tensor) and isinstance(other, Tensor) and torch.equal(one, other)
    return bool(one == other)


# What parts hand on, and what is found in them


@dataclass
class _Arm:
    """What reaches a part in one arm, call by call, and what it hands on; nothing reaches the first part."""

    given: dict[str, Tensor] | None
    handed_on: dict[str, Tensor] = field(default_factory=dict)
    calls: int = 0


@dataclass(frozen=True)
class PartJournal(Journal):
    """The journal of one part, which keeps what each arm of it hands on as well.

    Attributes:
        before: the folder of the part before.
        is_last: whether nothing is handed on.
        scores, fits: all results so far, by key, fits without their tensors.
        arms: the arm that is being computed, if there is one.
    """

    before: Path | None = None
    is_last: bool = False
    scores: dict[str, Evaluation] = field(default_factory=dict)
    fits: dict[str, Fit] = field(default_factory=dict)
    arms: list[_Arm] = field(default_factory=list)

    def score(self, key: str, compute: Callable[[], Evaluation]) -> Evaluation:
        """As `Journal.score`."""
        scored = super().score(key, lambda: self._computed(key, compute))
        self.scores[key] = scored
        return scored

    def fit(self, key: str, compute: Callable[[], Fit]) -> Fit:
        """As `Journal.fit`."""
        fit = super().fit(key, lambda: self._computed(key, compute))
        self.fits[key] = {**fit, "tensors": {}}
        return fit

    def enter(self) -> Tensor | None:
        """The hidden states of the arm's next call; None in the first part.

        Raises:
            InputError: for more calls than reached the part before.
        """
        arm = self.arms[-1]
        arm.calls += 1
        if arm.given is None:
            return None
        if f"{arm.calls - 1}" not in arm.given:
            raise InputError(
                "a block was called more often than the block before it, as experts may be: leave stream out"
            )
        return arm.given[f"{arm.calls - 1}"]

    def leave(self, states: Tensor) -> None:
        """Take in what a call hands on."""
        arm = self.arms[-1]
        arm.handed_on[f"{len(arm.handed_on)}"] = states.detach()

    @property
    def calls(self) -> int:
        """How many calls reach the arm."""
        given = self.arms[-1].given
        assert given is not None or self.before is None
        return _MOST_CALLS if given is None else len(given)

    def mark_through(self) -> None:
        """Say that the part was through all arms."""
        assert self.folder is not None
        values = {"scores": self.scores, "fits": self.fits}
        done = self.folder / _DONE
        self._keep(lambda: checked_files.write_values(done, values, through=self.through))

    def _computed(self, key: str, compute: Callable[[], Any]) -> Any:
        """A result, once what its arm hands on lies on disk."""
        assert self.folder is not None
        name = f"{key.replace(' ', '-')}.safetensors"
        given = None
        if self.before is not None:
            given = self._handed_on_before(name)
        arm = _Arm(given)
        self.arms.append(arm)
        try:
            result = compute()
        finally:
            self.arms.pop()
        if not self.is_last:
            folder = _handed_on(self.folder)

            def write() -> None:
                folder.mkdir(exist_ok=True)
                checked_files.write_tensors(folder / name, arm.handed_on, {}, through=False)

            self._keep(write)
        return result

    def _handed_on_before(self, name: str) -> dict[str, Tensor]:
        assert self.before is not None
        try:
            return checked_files.read_tensors(_handed_on(self.before) / name)[0]
        except (ValueError, KeyError, OSError):  # InputError is a ValueError
            raise InputError(
                f"what a block handed on in {str(_handed_on(self.before))!r} is damaged, as a power failure may leave "
                f"it: remove {str(self.before.parent)!r}, and the same call begins again"
            ) from None


_MOST_CALLS = 2**62


def _gone() -> NoReturn:
    raise InputError("a result of a block is damaged that was just computed: the same call computes it again")


def _handed_on(part: Path) -> Path:
    """Where a part keeps what it hands on."""
    return part / "handed-on"


def _read_done(part: Path) -> dict[str, Any]:
    values: dict[str, Any] = checked_files.read_values(part / _DONE)
    return values


@dataclass(frozen=True)
class _Whole(Journal):
    """The results of the whole model, of those of its parts."""

    parts: list[dict[str, Any]] = field(default_factory=list)

    def score(self, key: str, compute: Callable[[], Evaluation]) -> Evaluation:
        """The metrics behind the last part, and the counts of all."""
        found = [part["scores"][key] for part in self.parts]
        return {"metrics": found[-1]["metrics"], "counts": _summed(each["counts"] for each in found)}

    def fit(self, key: str, compute: Callable[[], Fit]) -> Fit:
        """The counts and seconds of all parts; the tensors stay in their files."""
        found = [part["fits"][key] for part in self.parts if key in part["fits"]]
        return {
            "tensors": {},
            "counts": {part: totals for part, totals in _summed(each["counts"] for each in found).items() if totals},
            "seconds": sum(each["seconds"] for each in found),
        }


def _summed(counts: Iterable[dict[str, dict[str, int]]]) -> dict[str, dict[str, int]]:
    totals: dict[str, dict[str, int]] = {}
    for each in counts:
        for part, numbers in each.items():
            own = totals.setdefault(part, {})
            for name, number in numbers.items():
                own[name] = own.get(name, 0) + number
    return totals
