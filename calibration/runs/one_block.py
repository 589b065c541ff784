"""A model with a single block, the beginning of a task, and how long and how much memory each piece of a job takes.

What takes long in a job grows with the blocks of a model and the tokens of a task, so one block and a few batches of
the whole sizes say what all of them will take.
"""

from __future__ import annotations

import copy
import gc
import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch, evaluating
from calibration.models.outputs import device_of
from calibration.runs.journal import Evaluation, Fit, Journal
from calibration.tasks import Task
from calibration.tasks.protocol import Split

_FEW = 8  # tokens
_T = TypeVar("_T")


def with_one_block(model: nn.Module) -> tuple[nn.Module, int]:
    """A model of the same class and sizes with one block and random weights, and how many blocks there are.

    A model that is not of transformers is taken as it is, in memory of its own, as one block.
    """
    if not _is_of_transformers(model):
        return copy.deepcopy(model).eval(), 1
    config: Any = copy.deepcopy(model.config)
    blocks = int(getattr(config, "num_hidden_layers", 1))
    if blocks > 1:
        config.num_hidden_layers = 1
        if isinstance(getattr(config, "layer_types", None), list):
            config.layer_types = config.layer_types[:1]
    config.dtype = torch.float32
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return type(model)(config).float().eval(), blocks


def without_numbers(model: nn.Module) -> nn.Module:
    """A model of the same class and sizes on torch's device ``meta``."""
    if not _is_of_transformers(model):
        return model
    with torch.device("meta"):
        return type(model)(copy.deepcopy(model.config)).eval()


def _is_of_transformers(model: nn.Module) -> bool:
    from transformers import PreTrainedModel

    return isinstance(model, PreTrainedModel)


def tokens_of(batches: Iterable[Batch]) -> int:
    """How many tokens, or vectors, batches hold."""
    return sum(_tokens(batch.values()) for batch in batches)


def _tokens(inputs: Iterable[Any]) -> int:
    shape = next((value.shape for value in inputs if isinstance(value, Tensor)), ())
    return int(shape[0]) * (int(shape[1]) if len(shape) > 1 else 1) if shape else 0


def _first_few(batch: Batch) -> Batch:
    """The first row of a batch, and of whole numbers, which are tokens, the first few of it."""
    row = {name: values[:1] for name, values in batch.items()}
    if any(values.is_floating_point() or values.dim() != 2 for values in row.values()):
        return row
    return {name: values[:, :_FEW] for name, values in row.items()}


@dataclass
class Call:
    """One forward pass.

    Attributes:
        inside: processor seconds in the block.
        outside: all others, and of a score what the task makes of the outputs.
        tokens: that went in.
    """

    inside: float = 0.0
    outside: float = 0.0
    tokens: int = 0


@dataclass
class Piece:
    """One result of a job: a score or a fit.

    Attributes:
        seconds: processor seconds in all.
        calls: the forward passes. Of a score, one with few tokens, in which cells are made, and one like the task's.
        alive: bytes of tensors between two of them.
        held: bytes of memory at that time that hold no tensor: compiled code, and pieces that were freed, which the C
            library keeps for the next of their size. Of these there are as many for many layers as for one, since a
            layer takes those that the one before has freed.
        beyond: bytes of memory that were taken beyond these at most.
        kept: bytes of what was fitted.
    """

    seconds: float = 0.0
    calls: list[Call] = field(default_factory=list)
    alive: int = 0
    held: int = 0
    beyond: int = 0
    kept: int = 0

    @property
    def rest(self) -> float:
        """Processor seconds outside of forward passes."""
        return max(0.0, self.seconds - sum(call.inside + call.outside for call in self.calls))


class _EnoughError(Exception):
    """Ends a score behind its first forward pass."""


class Watch:
    """Clocks and scales for a model and its copies, which must be made after it.

    Args:
        network: whose block is its one list of one block; a model without one is its own block.
        base: bytes of memory that held no tensor before anything was done.

    Attributes:
        pieces: what was watched, by key.
    """

    def __init__(self, network: nn.Module, base: int) -> None:
        self.pieces: dict[str, Piece] = {}
        self._base = base
        self._piece: Piece | None = None
        self._began = self._paused = 0.0
        self._call_began = self._block_began = 0.0
        self._resident = 0
        self._last: int | None = None  # calls after which a score ends
        lists = (part for part in network.modules() if isinstance(part, nn.ModuleList) and len(part) == 1)
        block = next((part[0] for part in lists), network)
        # Functions, which copies of the model share; methods would be copied with all that they know.
        network.register_forward_pre_hook(lambda _, given, named: self._enter(given, named), with_kwargs=True)
        block.register_forward_pre_hook(lambda *_: self._enter_block())
        block.register_forward_hook(lambda *_: self._leave_block())
        network.register_forward_hook(lambda *_: self._leave())

    def of(self, key: str, compute: Callable[[], _T]) -> _T:
        """Watch what a piece of a job computes."""
        self._piece = piece = Piece()
        self._paused, self._resident, before = 0.0, 0, resident()
        reset_peak()
        self._began = time.process_time()
        try:
            return compute()
        finally:
            piece.seconds = time.process_time() - self._began - self._paused
            piece.beyond = max(0, peak() - (self._resident or before))
            self._piece = None
            self.pieces[key] = piece

    def to_the_first_call(self, score: Callable[[], object]) -> None:
        """Compute a score until a model is called again, all of it as one call."""
        piece = self._piece
        if piece is None:
            score()
            return
        calls, began = len(piece.calls), time.process_time() - self._paused
        self._last = calls + 1
        try:
            with suppress(_EnoughError):
                score()
        finally:
            self._last = None
        if len(piece.calls) == calls:
            piece.calls.append(Call())
        call = piece.calls[-1]
        call.outside = time.process_time() - self._paused - began - call.inside

    def _enter(self, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        piece = self._piece
        if piece is None:
            return
        if self._last is not None and len(piece.calls) >= self._last:
            raise _EnoughError
        looked = time.process_time()
        self._resident, piece.alive = resident(), alive()
        piece.held = max(0, self._resident - self._base - piece.alive)
        piece.calls.append(Call(tokens=_tokens([*given, *named.values()])))
        self._paused += time.process_time() - looked
        self._call_began = time.process_time()

    def _enter_block(self) -> None:
        self._block_began = time.process_time()

    def _leave_block(self) -> None:
        if self._piece is not None and self._piece.calls:
            self._piece.calls[-1].inside += time.process_time() - self._block_began

    def _leave(self) -> None:
        if self._piece is not None and self._piece.calls:
            call = self._piece.calls[-1]
            call.outside = max(0.0, time.process_time() - self._call_began - call.inside)


@dataclass(frozen=True)
class WatchingJournal(Journal):
    """Has each result of a job watched; keeps nothing."""

    watch: Watch | None = None

    def score(self, key: str, compute: Callable[[], Evaluation]) -> Evaluation:
        """Computed and watched."""
        assert self.watch is not None
        return self.watch.of(key, compute)

    def fit(self, key: str, compute: Callable[[], Fit]) -> Fit:
        """Computed and watched."""
        assert self.watch is not None
        fit = self.watch.of(key, compute)
        self.watch.pieces[key].kept = sum(tensor.nbytes for tensor in fit["tensors"].values())
        return fit


class Beginning:
    """A task with the first two batches of its calibration data, whose scores end behind a model's first call."""

    def __init__(self, task: Task, watch: Watch) -> None:
        self.name, self.primary = task.name, task.primary
        self._task, self._watch = task, watch
        calibration = [*task.batches("calibration")]
        self._some = calibration[:2]
        self.sizes = [tokens_of([batch]) for batch in self._some]
        scored = [tokens_of([batch]) for batch in task.batches("evaluation")]
        self.largest = max(scored, default=0)
        self.tokens: dict[Split, int] = {"calibration": tokens_of(calibration), "evaluation": sum(scored)}

    def __len__(self) -> int:
        """Number of calibration batches."""
        return len(self._some)

    def batches(self, split: Split) -> Iterable[Batch]:
        """Two of the task's for calibration."""
        return self._some if split == "calibration" else self._task.batches(split)

    def share(self, split: Split, tokens: int) -> float:
        """How often so many tokens go into a split, without the first batch of calibration data."""
        if not tokens:
            return 1.0
        first = self.sizes[0] if split == "calibration" and len(self) > 1 else 0
        return (self.tokens[split] - first) / tokens

    def warm_up(self, model: nn.Module) -> None:
        """Run a model on few tokens."""
        batch = _first_few(self._some[0])
        with torch.inference_mode(), evaluating(model):
            model(**{name: values.to(device_of(model)) for name, values in batch.items()})

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """Runs the model on few tokens and on its first batch."""
        self.warm_up(model)
        self._watch.to_the_first_call(lambda: self._task.metrics(model))
        return {self.primary: 0.0}


# Memory, as Linux tells it


def resident() -> int:
    """Bytes of memory that this process has; 0 where the system does not say."""
    return _status("VmRSS")


def peak() -> int:
    """The most since `reset_peak`; 0 where the system does not say."""
    return _status("VmHWM")


def reset_peak() -> None:
    """Begin again with `peak`."""
    with suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")


def _status(name: str) -> int:
    with suppress(OSError), open("/proc/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith(f"{name}:"):
                return int(line.split()[1]) * 1024
    return 0


def alive() -> int:
    """Bytes of all tensors that are alive on the CPU, shared memory once."""
    storages: dict[int, int] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for found in gc.get_objects():
            if type(found) not in (Tensor, nn.Parameter) or found.device.type != "cpu":
                continue
            if found.layout == torch.strided:
                storage = found.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())
