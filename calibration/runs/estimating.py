"""How long a job will take and how much memory, from doing it with one block of its model on a part of its data.

Measured are one chip at one time. The rest follows from the numbers of blocks, of weights on tiles, of tokens, and from
how often a job has each of its results, which a rehearsal of it says.
"""

from __future__ import annotations

import itertools
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from calibration.console import about
from calibration.models import Loaded
from calibration.models.embedding import Batch
from calibration.models.folder_files import FolderFiles
from calibration.models.loading import located
from calibration.progress import Progress
from calibration.recipe import Recipe
from calibration.runs import one_block
from calibration.runs.climb import Climb
from calibration.runs.experiment import Experiment
from calibration.runs.one_block import Beginning, Piece, Watch, WatchingJournal
from calibration.runs.overlap import require_disjoint
from calibration.runs.rehearsal import NoBench, Rehearsal
from calibration.runs.request import Request
from calibration.runs.streaming import available, require_streamable
from calibration.steps.finetune import Finetune
from calibration.steps.protocol import SamplingStep
from calibration.storage import checked_files
from calibration.tasks import Task
from calibration.tasks.protocol import Split
from crossbar import InputError, convert, new_chip, program

Rise = Callable[[Climb, Request], Any]
"""Takes a climb through all arms of a job."""

_CHIP = re.compile(r" chip \d+.*")
_SAMPLE = 2**24  # numbers that are read, and bytes that are handed on, to time it


@dataclass(frozen=True)
class Estimate:
    """What a job will take: processor time, over all threads, and memory.

    Attributes:
        model: its name.
        seconds: of the processor, the model's loading included, the program's own start not.
        bytes: of memory at most, with what the process has already; None where the system does not tell.
        streamed_seconds, streamed_bytes: the same block by block; None where the model cannot be streamed.
    """

    model: str
    seconds: float
    bytes: int | None
    streamed_seconds: float | None = None
    streamed_bytes: int | None = None

    @property
    def streams(self) -> bool | None:
        """Whether the job would go block by block where nobody says how; None where that cannot be told."""
        free = available()
        if self.bytes is None or free is None:
            return None
        return self.streamed_bytes is not None and self.bytes > free

    def after(self, seconds: float) -> Estimate:
        """The same with so many seconds of the processor before."""
        streamed = None if self.streamed_seconds is None else self.streamed_seconds + seconds
        return replace(self, seconds=self.seconds + seconds, streamed_seconds=streamed)

    def rows(self) -> list[tuple[str, str]]:
        """What it says, a name and a text a line."""
        rows = [("at once", _told(self.seconds, self.bytes))]
        if self.streamed_seconds is not None:
            rows.append(("block by block (--stream true)", _told(self.streamed_seconds, self.streamed_bytes)))
        if (free := available()) is not None and self.streams is not None:
            way = "block by block" if self.streams else "at once"
            rows.append(("without --stream", f"{way}: {free / 2**30:.1f} GiB are free"))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**vars(self), "streams": self.streams}


def _told(seconds: float, bytes_: int | None) -> str:
    memory = "" if bytes_ is None else f" and {bytes_ / 2**30:.1f} GiB of memory"
    return f"about {about(seconds)} of processor time{memory}"


@dataclass(frozen=True)
class Measured:
    """What the pieces of a job take with all blocks and all data.

    Attributes:
        experiment: the one that was measured, with one block, which the keys of all pieces can be told by.
        making: seconds for a twin on tiles.
        programming: seconds for a chip.
        once: seconds that the first use of compiled code took.
        seconds: of each piece on a chip that is programmed, by `kind_of` its key.
        bytes: of memory that each takes, what earlier pieces leave not counted.
        streamed: the same with one part of a stream in memory, a block or the head.
        kept: bytes that each piece leaves, which was measured with the first of each kind.
        tokens: of the task, by split.
    """

    experiment: Experiment
    making: float
    programming: float
    once: float
    seconds: Mapping[str, float]
    bytes: Mapping[str, float]
    streamed: Mapping[str, float]
    kept: Mapping[str, float]
    tokens: Mapping[Split, int]

    def work(self, keys: Iterable[str]) -> float:
        """Seconds for the results of these keys, on chips that are programmed."""
        return sum(self.seconds[kind] * count for kind, count in Counter(map(kind_of, keys)).items())


def kind_of(key: str) -> str:
    """The key of a result without its chip and time, on which what it takes does not depend.

    >>> kind_of("score analog chip 3 at 3600.0 fitted None")
    'score analog'
    """
    return _CHIP.sub("", key)


def keys_of(experiment: Experiment, request: Request, rise: Rise, *, staircase: bool = False) -> list[str]:
    """The keys of all results that a job will have, in their order."""
    keys: list[str] = []
    rise(_climb(experiment, request, staircase, journal=Rehearsal(keys=keys), bench=NoBench), request)
    return keys


def estimate(request: Request, rise: Rise, *, staircase: bool = False, progress: Progress | None = None) -> Estimate:
    """What a job would take, of which one block on one chip is done.

    Args:
        request: the job.
        rise: takes a climb through its arms.
        staircase: as for `Climb`.
        progress: called while a model is converted for the first time.

    Raises:
        InputError: for what the job would refuse before its weights are read.
    """
    began = time.process_time()
    loaded = request.load_model(progress, weights=False)
    task = request.make_task(loaded)
    if request.recipe is not None:
        require_disjoint(task)
    loading = time.process_time() - began + _reading(request)
    model = loaded.model if isinstance(loaded, Loaded) else loaded
    before = one_block.resident()
    measured = measure(request, model, task, rise, staircase=staircase)
    keys = keys_of(measured.experiment, request, rise, staircase=staircase)
    programming = measured.programming * len(request.chips)
    seconds = loading + measured.once + measured.making + programming + measured.work(keys)
    most, least = (max(kinds[kind_of(key)] for key in keys) for kinds in (measured.bytes, measured.streamed))
    # What the first of each kind leaves is among the tensors that were alive then.
    left = sum(measured.kept[kind] * (count - 1) for kind, count in Counter(map(kind_of, keys)).items())
    name = loaded.name if isinstance(loaded, Loaded) else type(loaded).__name__
    found = Estimate(name, seconds, int(before + most + left) if before else None)
    if not isinstance(loaded, Loaded) or loaded.gives != "next tokens":
        return found
    try:
        require_streamable(request)
    except InputError:
        return found
    width = int(cast(Any, model.config).get_text_config().hidden_size) * 4
    tokens = {"score": measured.tokens["evaluation"], "fit": measured.tokens["calibration"]}
    handed = sum(tokens[key.partition(" ")[0]] for key in keys) * width * (_blocks_of(model) + 1)
    at_hand = 2 * max(tokens.values()) * width
    return replace(
        found,
        streamed_seconds=seconds + handed * _handing_on(),
        streamed_bytes=int(before + least + at_hand) if before else None,
    )


def measure(request: Request, model: nn.Module, task: Task, rise: Rise, *, staircase: bool = False) -> Measured:
    """Do a job with one block of a model, random weights in it, on one chip at one time.

    Args:
        request: the job.
        model: of transformers, whose numbers are not looked at, or any other, which is then one block.
        task: all of it.
        rise: takes a climb through the job's arms.
        staircase: as for `Climb`.

    Raises:
        InputError: for what the job would refuse.
    """
    recipe = request.recipe
    short = replace(
        request,
        times=request.times[:1],
        chips=request.chips[:1],
        population=None if request.population is None else 2,
        recipe=None if recipe is None else replace(recipe, steps=tuple(map(_shortened, recipe.steps))),
    )
    base = one_block.resident() - one_block.alive()
    once = _first_use(short, rise, staircase)
    before = one_block.alive()
    network, blocks = one_block.with_one_block(model)
    if request.place is not None:
        network.to(request.place)
    digital = one_block.alive() - before
    watch = Watch(network, base)
    part = Beginning(task, watch)
    began = time.process_time()
    experiment = _experiment(short, network, part)
    making = time.process_time() - began
    began = time.process_time()
    part.warm_up(experiment.digital)
    once += time.process_time() - began
    rise(_climb(experiment, short, staircase, journal=WatchingJournal(watch=watch)), short)
    began = time.process_time()
    new_chip(experiment.analog)
    program(experiment.analog, short.chips[0] + 1)
    programming = time.process_time() - began
    ratio = _weights(model, request, experiment) / sum(layer.weights for layer in experiment.conversion.analog)
    parts = _parts(network, digital, experiment)
    seconds, sizes, streamed, kept = {}, {}, {}, {}
    for key, piece in watch.pieces.items():
        kind = kind_of(key)
        took = _scaled(key, piece, part, blocks, ratio, recipe)
        seconds[kind] = max(0.0, took - programming * ratio) if kind == "score analog" else took
        extra, beyond = max(0, piece.alive - before - digital), float(piece.beyond)
        if key.startswith("score") and piece.calls and piece.calls[-1].tokens:
            beyond *= max(1.0, part.largest / piece.calls[-1].tokens)
        beyond += piece.held
        sizes[kind] = _digital_bytes(model) + extra * ratio + beyond
        streamed[kind] = max(part_bytes + extra * share for part_bytes, share in parts) + beyond
        kept[kind] = piece.kept * ratio
    return Measured(
        experiment=experiment,
        making=making * ratio,
        programming=programming * ratio,
        once=once,
        seconds=seconds,
        bytes=sizes,
        streamed=streamed,
        kept=kept,
        tokens=part.tokens,
    )


def _scaled(key: str, piece: Piece, part: Beginning, blocks: int, ratio: float, recipe: Recipe | None) -> float:
    """Seconds of a piece with all blocks and all data."""
    what, _, of = kind_of(key).partition(" ")
    count, repeats = len(piece.calls), 1
    if what == "score":
        factors = [1.0] * (count - 1) + [part.share("evaluation", piece.calls[-1].tokens if count else 0)]
    else:
        assert recipe is not None
        step = recipe.steps[int(of.split()[0])]
        rest = part.share("calibration", part.sizes[-1])
        if isinstance(step, SamplingStep):
            rest = min(rest, max(1.0, step.batches_of(part.sizes[-1]) + 1.0 - len(part)))
        factors = [1.0 if isinstance(step, Finetune) or k % len(part) == 0 else rest for k in range(count)]
        repeats = step.steps if isinstance(step, Finetune) else 1
    calls = zip(piece.calls, factors, strict=True)
    return repeats * (piece.rest * ratio + sum(factor * (c.outside + blocks * c.inside) for c, factor in calls))


def _climb(experiment: Experiment, request: Request, staircase: bool, **others: Any) -> Climb:
    return Climb(experiment, request.recipe, request.wait, staircase=staircase, checks=False, **others)


def _experiment(request: Request, network: nn.Module, task: Task) -> Experiment:
    def made(request: Request) -> Experiment:
        return Experiment.of(request, network, task, type(network).__name__, None, None)

    try:
        return made(request)
    except InputError:  # names of layers that the one block does not have
        if request.include is None and request.exclude is None:
            raise
        return made(replace(request, include=None, exclude=None))


def _shortened(step: Any) -> Any:
    """A step that takes one of its many repetitions."""
    return replace(step, steps=1, own_texts=0) if isinstance(step, Finetune) else step


class _Few:
    """A task of few vectors."""

    name = primary = "few"

    def __init__(self) -> None:
        inputs = torch.linspace(-1.0, 1.0, 2048, device="cpu").cos().view(2, 32, 32)
        self._batches: list[Batch] = [{"input": inputs}] * 2

    def batches(self, split: Split) -> list[Batch]:
        """The same for both."""
        return self._batches

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """Runs the model."""
        with torch.inference_mode():
            model(**self._batches[0])
        return {self.primary: 0.0}


def _first_use(request: Request, rise: Rise, staircase: bool) -> float:
    """Seconds of the job on a single small layer: what is loaded and compiled by a first use of it."""
    began = time.process_time()
    plain = replace(request, pattern=None, memory=None, include=None, exclude=None, device=None)
    small = nn.Sequential(nn.Linear(32, 32))
    with suppress(InputError):  # of a step that needs more of a model
        rise(_climb(_experiment(plain, small, _Few()), plain, staircase), plain)
    return time.process_time() - began


def _blocks_of(model: nn.Module) -> int:
    """How many blocks a model of transformers has."""
    return int(getattr(model.config, "num_hidden_layers", 1))


def _weights(model: nn.Module, request: Request, one: Experiment) -> int:
    """How many weights of the whole model are on tiles."""
    whole = one_block.without_numbers(model)
    if whole is model:
        return sum(layer.weights for layer in one.conversion.analog)
    names = {name: getattr(request, name) for name in ("include", "exclude", "tied_heads")}
    return sum(layer.weights for layer in convert(whole, request.hardware, **names).analog)


def _digital_bytes(model: nn.Module) -> int:
    """Of a model's parameters in float32."""
    return 4 * sum(parameter.numel() for parameter in model.parameters())


def _parts(network: nn.Module, digital: int, one: Experiment) -> list[tuple[int, float]]:
    """Of each part of a stream, digital bytes and the share of what is on tiles: a block with embeddings, and the head.

    Args:
        network: with one block.
        digital: its bytes.
        one: the experiment on it.
    """
    model: Any = network
    try:
        ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    except (AttributeError, NotImplementedError):
        ends = []
    if not ends or not all(isinstance(end, nn.Module) for end in ends):
        return [(digital, 1.0)]
    weights = [cast(torch.Tensor, end.weight) for end in ends]
    head = 4 * weights[1].numel()
    on_tiles = {layer.name: layer.weights for layer in one.conversion.analog}
    name = next(name for name, module in network.named_modules() if module is ends[1])
    share = on_tiles.get(name, 0) / sum(on_tiles.values())
    is_one = weights[0].data_ptr() == weights[1].data_ptr()
    return [(digital if is_one else digital - head, 1 - share), (head, share)]


def _reading(request: Request) -> float:
    """Seconds for reading the weights of a model in files, from reading some of them."""
    if not isinstance(request.model, str | Path):
        return 0.0
    files = FolderFiles.judged(located(request.model).folder)
    began, sizes = time.process_time(), {name: torch.Size(shape).numel() for name, shape in files.shapes.items()}
    before = [0, *itertools.accumulate(sizes.values())]
    names = {name for name, numbers in zip(sizes, before, strict=False) if numbers < _SAMPLE}
    for tensor in files.some(names).values():
        torch.isfinite(tensor.float()).all()
    return (time.process_time() - began) / max(1, sum(sizes[name] for name in names)) * files.numbers


def _handing_on() -> float:
    """Seconds for a byte that one block hands on to the next, from doing it."""
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="ohmformer-") as folder:
        file = Path(folder) / "handed-on.safetensors"
        checked_files.write_tensors(file, {"0": torch.zeros(_SAMPLE // 4, device="cpu")}, {}, through=False)
        checked_files.read_tensors(file)
    return (time.process_time() - began) / _SAMPLE
