"""The training loop of `calibration.Finetune`: distillation through tiles, resumable, in one process or several.

Under ``torchrun`` each process of the default group takes its share of each step's batches, and DistributedDataParallel
averages their gradients. A batch's noise is keyed by its place in the whole training, not by the process, so the loss
curve is that of one process within rounding.
"""

from __future__ import annotations

import gc
import json
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.models.outputs import device_of, is_generative
from calibration.progress import Progress
from calibration.steps.distillation import distance
from calibration.steps.finetune_parameters import is_range, prepared
from calibration.steps.observe import digital
from calibration.storage import checked_files
from crossbar import analog_layers, clip_weights
from crossbar.errors import InputError
from crossbar.random.streams import uniform

if TYPE_CHECKING:
    from calibration.steps.finetune import Finetune

_READS = 2**20  # reads that a batch may take of a layer: where the next batch's draws start
_KEEP = 60.0  # seconds between two states on disk
_MOMENTS = ("exp_avg", "exp_avg_sq")  # as AdamW calls them


class Trained(NamedTuple):
    """What training found.

    Attributes:
        values: trained tensors by their names in the model.
        losses: of each step, [steps] float64.
    """

    values: dict[str, Tensor]
    losses: Tensor


def train(
    model: nn.Module, batches: list[Batch], options: Finetune, file: Path | None, progress: Progress | None
) -> Trained:
    """Train a converted model; it is left as it was.

    Args:
        model: converted, and for a chip's own adapters programmed and aged.
        batches: keyword inputs of the model.
        options: how.
        file: where the state is kept every minute, and found again; None: nowhere.
        progress: told of each step.
    """
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)
    if not batches:
        raise InputError("Finetune got no batches: give calibration data")
    if options.accumulate % world:
        raise InputError(
            f"Finetune accumulate = {options.accumulate} does not divide among {world} processes: give a multiple"
        )
    with prepared(model, batches, options) as (parameters, parts):
        run = _Run(model, batches, options, parameters, parts, rank, world)
        if file is not None and file.is_file():
            run.load(file)
        began, first, kept = time.monotonic(), len(run.losses), time.monotonic()
        for step in range(first, options.steps):
            if progress is not None and rank == 0:
                progress(step, options.steps, _described(run.losses, step - first, options.steps - step, began))
            run.step(step)
            if file is not None and rank == 0 and (time.monotonic() - kept > _KEEP or step + 1 == options.steps):
                run.save(file)
                kept = time.monotonic()
        values = {name: parameter.detach().clone() for name, parameter in parameters.items()}
        losses = torch.tensor(run.losses, dtype=torch.float64)
        if world > 1:
            # DistributedDataParallel is in a reference cycle and keeps the process group's threads: left to the end of
            # the interpreter, they may abort it.
            del run
            gc.collect()
    return Trained(values, losses)


class _Run:
    """A training: the optimizer, and the losses of the steps that were taken."""

    def __init__(
        self,
        model: nn.Module,
        batches: list[Batch],
        options: Finetune,
        parameters: dict[str, nn.Parameter],
        parts: dict[str, Tensor],
        rank: int,
        world: int,
    ) -> None:
        self._model, self._batches, self._options = model, batches, options
        self._parameters, self._parts = parameters, parts
        self._rank, self._world = rank, world
        self._layers = analog_layers(model)
        self._ages = {name: layer.seconds for name, layer in self._layers.items()}
        self._device = device_of(model)
        # The teacher's parameters, where training changes them.
        self._teacher = {
            name: parameter.detach().clone() for name, parameter in parameters.items() if options.train == "weights"
        }
        self._run: nn.Module = model
        if world > 1:
            unused = options.train == "weights"  # there may be some that the outputs do not depend on
            self._run = nn.parallel.DistributedDataParallel(
                model, broadcast_buffers=False, find_unused_parameters=unused
            )
        self._optimizer = torch.optim.AdamW(parameters.values(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.0)
        self.losses: list[float] = []

    def step(self, step: int) -> None:
        """One step of the optimizer."""
        options, total = self._options, torch.zeros((), dtype=torch.float64)
        self._visit(step)
        own = range(self._rank, options.accumulate, self._world)
        for place in own:
            index = step * options.accumulate + place
            inputs = {name: x.to(self._device) for name, x in self._batch(index).items()}
            call = {**inputs, "use_cache": False} if is_generative(self._model) else inputs
            with torch.no_grad(), digital(self._model):
                wanted = torch.func.functional_call(self._model, self._teacher, kwargs=call)
            for layer in self._layers.values():
                layer.reads = index * _READS
            with self._unsynchronised(last=place == own[-1]):
                loss = distance(self._run(**call), wanted, inputs.get("attention_mask"))
                (loss * (self._world / options.accumulate)).backward()
            total += loss.detach().double().cpu()
        if self._world > 1:
            dist.all_reduce(total)
        mean = float(total) / options.accumulate
        if not torch.isfinite(total):
            raise InputError(f"Finetune has a loss of {mean} at step {step}: give a lower rate")
        self._move(step)
        self.losses.append(mean)

    def _move(self, step: int) -> None:
        options = self._options
        for name, part in self._parts.items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                gradient.mul_(part)
        nn.utils.clip_grad_norm_(self._parameters.values(), 1.0)
        warm = min(1.0, (step + 1) / max(1, options.steps // 10))
        for group in self._optimizer.param_groups:
            group["lr"] = options.rate * warm * (1 - step / options.steps)
        before = {name: self._parameters[name].detach().clone() for name in self._parts}
        self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for name, part in self._parts.items():
                parameter = self._parameters[name]
                parameter.copy_(torch.lerp(before[name], parameter, part))
                if is_range(name):
                    parameter.clamp_(min=torch.finfo(parameter.dtype).tiny)
        if options.train == "weights" and options.clip is not None:
            clip_weights(self._model, options.clip)

    def save(self, file: Path) -> None:
        """Write parameters, optimizer and losses."""
        tensors: dict[str, Tensor] = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        for name, parameter in self._parameters.items():
            tensors |= {f"{name}|value": parameter}
            # None for what the outputs do not depend on, such as an encoder's pooler.
            state = self._optimizer.state.get(parameter, {})
            tensors |= {f"{name}|{key}": state[key] for key in _MOMENTS if key in state}
        file.parent.mkdir(parents=True, exist_ok=True)
        checked_files.write_tensors(file, tensors, {"options": self._identity()})

    def load(self, file: Path) -> None:
        """Go on from what `save` wrote."""
        try:
            tensors, told = checked_files.read_tensors(file)
        except ValueError:
            file.unlink()  # damaged: the training starts again
            return
        if told.get("options") != self._identity():
            raise InputError(f"{str(file)!r} holds another training: remove it, or give another file")
        self.losses = tensors["losses"].tolist()
        for name, parameter in self._parameters.items():
            parameter.data.copy_(tensors[f"{name}|value"])
            state = {key: tensors[f"{name}|{key}"].to(parameter) for key in _MOMENTS if f"{name}|{key}" in tensors}
            if state:
                self._optimizer.state[parameter] = {"step": torch.tensor(float(len(self.losses))), **state}

    def _identity(self) -> str:
        shapes = {name: list(parameter.shape) for name, parameter in self._parameters.items()}
        sums = [[float(x.double().sum()) for x in batch.values()] for batch in self._batches]
        return json.dumps([repr(self._options), shapes, sums, list(self._ages.values())])

    def _batch(self, index: int) -> Batch:
        """Each epoch meets all batches in an order of its own."""
        epoch, place = divmod(index, len(self._batches))
        order = uniform((len(self._batches),), (self._options.seed, "finetune order", epoch)).argsort()
        return self._batches[int(order[place])]

    def _visit(self, step: int) -> None:
        """Go to the instant of a step: a chip's 1/f noise must not be learned from one snapshot."""
        options = self._options
        if options.chip == "any":
            return
        instant = step // max(1, options.steps // options.instants) % options.instants
        for name, layer in self._layers.items():
            seconds = max(self._ages[name] - instant * options.spacing, 0.0)
            if layer.seed is not None and layer.seconds != seconds:
                layer.age(seconds)

    def _unsynchronised(self, last: bool) -> AbstractContextManager[Any]:
        if isinstance(self._run, nn.parallel.DistributedDataParallel) and not last:
            averaged_later: AbstractContextManager[Any] = self._run.no_sync()
            return averaged_later
        return nullcontext()


def _described(losses: list[float], taken: int, left: int, began: float) -> str:
    if not taken:
        return "finetuning"
    seconds = (time.monotonic() - began) / taken * left
    rest = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
    return f"finetuning, loss {losses[-1]:.4g}, {rest} left"
