"""Hardware-aware finetuning: the last step of a recipe that needs gradients.

First the step with its options, then the training loop, then what is trained in a model and the way back.

Under ``torchrun`` each process of the default group takes its share of each step's batches. DistributedDataParallel
averages their gradients, or FSDP2 does where the processes share out what is trained (`calibration.steps.sharding`).
A batch's noise is keyed by its place in the whole training, not by the process, so the loss curve is that of one
process within rounding.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from calibration.models.embedding import Batch
from calibration.models.outputs import device_of, is_generative
from calibration.progress import Progress
from calibration.steps.distillation import distance
from calibration.steps.observe import digital, observe
from calibration.steps.own_text import own_text
from calibration.steps.protocol import Fitted, Stage
from calibration.storage import checked_files
from crossbar import AnalogLinear, analog_layers, clip_weights, replayed_reads
from crossbar.errors import MOST_SEED, InputError, require_number, require_whole
from crossbar.nn.linear import CORRECTIONS
from crossbar.random.streams import normal, uniform
from crossbar.tiles.weight_errors import weight_errors

if TYPE_CHECKING:
    from calibration.steps.sharding import Shards

Train = Literal["adapters", "weights"]
Chip = Literal["own", "any"]

_WEIGHT = "weight of "
_RANGES = ("input_range", "adc_range")
READS = 2**20  # reads that a batch may take of a layer: where the next batch's draws start
_KEEP = 60.0  # seconds between two states on disk
_MOMENTS = ("exp_avg", "exp_avg_sq")  # as AdamW calls them
_KEPT = ("value", *_MOMENTS)


@dataclass(frozen=True)
class Finetune:
    """Training through the tiles, to give what the digital model gives on the calibration data.

    What is minimised is the distance to the digital model's own outputs: the Kullback-Leibler divergence between next-
    token distributions at temperature 1 (distillation: Hinton 2015; for analog hardware: Büchel 2025), or for models
    that return vectors the mean squared error as a part of the teacher's mean square. No labels are needed. Gradients
    go straight through converters and cells. AdamW with gradients clipped at norm 1; the rate rises over the first
    tenth of the steps and falls to 0 in a line. Every draw is keyed by the step, so the same options give the same
    curve, in one process or several, stopped and resumed or not.

    Analog foundation models (Büchel et al., arXiv 2505.09663) are trained so for any chip: with ``weights``,
    ``clip``, and ``own_texts`` that the digital model writes itself, since it is that model which is to be kept.

    Attributes:
        train: ``adapters``: a digital low-rank adapter beside each layer and a gain and an offset of each output, at
            each age of a chip (from what is there, as `LowRankAdapter` and `AffineCorrection` leave it); ``weights``:
            all parameters, once, before chips are programmed.
        chip: whose errors are trained with. ``own``: the cells of the chip at hand, read anew at each step, at several
            instants before its age; ``any``: errors drawn anew at each step from the device's statistics, so that any
            chip is served. Weights are trained for any.
        steps: of the optimizer.
        accumulate: batches of the data whose gradients make a step.
        rate: highest learning rate. Of weights it is AdamW's; adapters, gains, offsets and ranges move by it as a part
            of the size that they have, or that the digital layer's inputs and outputs give them.
        rank: of adapters that are not there yet.
        ranges: also learn the ranges of the ADCs, and with ``weights`` those of the DACs where they are static.
        clip: weights beyond so many deviations from 0 are clipped after each step (Joshi 2020 takes 2.5); None: not.
            Outliers carry pretrained transformers: without enough training clipping does harm.
        errors: with ``any``: what deviations of the errors that are drawn are multiplied by; 0: cells have the mean
            of their errors. Converters and output noise are as they are.
        own_texts: so many texts that the digital model writes (`own_text`) are trained on in the place of the data; 0:
            the data.
        age: with ``weights``: seconds since programming, at which errors are drawn.
        compensated: with ``weights``: the errors are those that are left when the mean drift of that age is
            compensated (`crossbar.tiles.weight_errors`), for recipes that go on with `DriftCompensation`.
        instants: with ``own``: how many, spread over the steps.
        spacing: seconds between them.
        checkpoint: compute the activations of each block again in the backward pass instead of keeping them.
        shards: where several processes train, each keeps a part of the trained parameters, of their gradients and of
            the optimizer's state (FSDP2), and not all of them (DDP).
        seed: key of the order of batches and of new adapters.

    Raises:
        InputError: for a value that is not allowed, and for weights with ``chip="own"``.
    """

    train: Train = "adapters"
    chip: Chip = "own"
    steps: int = 100
    accumulate: int = 1
    rate: float = 5e-4
    rank: int = 16
    ranges: bool = True
    clip: float | None = None
    errors: float = 1.0
    own_texts: int = 0
    age: float = 86400.0
    compensated: bool = True
    instants: int = 8
    spacing: float = 60.0
    checkpoint: bool = True
    shards: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, allowed in (("train", self.train, get_args(Train)), ("chip", self.chip, get_args(Chip))):
            if value not in allowed:
                raise InputError(f"Finetune {name} = {value!r} is not allowed: choose {' or '.join(allowed)}")
        require_whole("Finetune steps", self.steps, least=1, most=10_000_000)
        for name in ("accumulate", "rank", "instants"):
            require_whole(f"Finetune {name}", getattr(self, name), least=1, most=10_000)
        for name in ("rate", "spacing"):
            require_number(f"Finetune {name}", getattr(self, name), above=0, most=1e9)
        if self.clip is not None:
            require_number("Finetune clip", self.clip, above=0, most=1e9)
        require_whole("Finetune seed", self.seed, least=0, most=MOST_SEED)
        require_number("Finetune age", self.age, most=1e12)
        require_number("Finetune errors", self.errors, most=100)
        require_whole("Finetune own_texts", self.own_texts, least=0, most=1_000_000)
        if self.chip == "own" and self.errors != 1:
            raise InputError("Finetune trains with the errors that a chip has: give errors: 1, or chip: any")
        if self.train == "weights" and self.chip == "own":
            raise InputError(
                "Finetune cannot train weights for one chip, whose cells are written with them: chip='any'"
            )

    @property
    def stage(self) -> Stage:
        """Weights before programming, adapters at each age of each chip."""
        return Stage.BEFORE_PROGRAMMING if self.train == "weights" else Stage.IN_USE

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """What training found: adapters, ranges and parameters by layer, and ``losses [steps]``."""
        return self.fit_long(model, batches, None, None)

    def fit_long(
        self, model: nn.Module, batches: Iterable[Batch], file: Path | None, progress: Progress | None
    ) -> Fitted:
        """`fit` that keeps its state in a file, goes on from there after it was stopped, and says how far it is.

        Raises:
            InputError: for a loss that is not finite, and a file of another training.
        """
        return self._fitted(train(model, list(batches), self, file, progress))

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Put the trained values into the model."""
        layers = analog_layers(model)
        weights = {name.removeprefix(_WEIGHT): value for name, value in fitted.items() if name.startswith(_WEIGHT)}
        for name, value in weights.items():
            parameter = model.get_parameter(name)
            parameter.data = value.to(parameter.data, copy=True)  # a digital twin has the old memory
        for name, layer in layers.items():
            if weights:
                layer.map_anew()
            if f"{name}.adapter_down" in fitted:
                layer.set_adapter(fitted[f"{name}.adapter_down"], fitted[f"{name}.adapter_up"])
                layer.set_output_correction(fitted[f"{name}.output_gain"], fitted[f"{name}.output_offset"])
            for field in ("input_range", "adc_range"):
                if f"{name}.{field}" in fitted:
                    layer.fix_ranges()
                    setattr(layer, field, fitted[f"{name}.{field}"])

    def _fitted(self, trained: Trained) -> Fitted:
        fitted: Fitted = {"losses": trained.losses}
        for name, value in trained.values.items():
            learned = name.rpartition(".")[2] in ("input_range", "adc_range", *CORRECTIONS)
            fitted[name if learned else f"{_WEIGHT}{name}"] = value
        return fitted


def losses(fitted: Fitted) -> Tensor:
    """The loss of each step, ``[steps]`` float64."""
    return fitted["losses"]


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
    texts = None if file is None else file.with_suffix(f"{file.suffix}.texts")
    batches = _trained_on(model, batches, options, texts)
    if options.accumulate % world:
        raise InputError(
            f"Finetune accumulate = {options.accumulate} does not divide among {world} processes: give a multiple"
        )
    with prepared(model, batches, options) as (parameters, parts, teacher):
        run = _Run(model, batches, options, parameters, parts, teacher, rank, world)
        if file is not None and file.is_file():
            run.load(file)
        began, first, kept = time.monotonic(), len(run.losses), time.monotonic()
        for step in range(first, options.steps):
            if progress is not None and rank == 0:
                progress(step, options.steps, _described(run.losses, step - first, options.steps - step, began))
            run.step(step)
            if file is not None and run.agrees(time.monotonic() - kept > _KEEP or step + 1 == options.steps):
                run.save(file)
                kept = time.monotonic()
        values = run.values()
        losses = torch.tensor(run.losses, dtype=torch.float64, device="cpu")
        if world > 1:
            # DistributedDataParallel is in a reference cycle and keeps the process group's threads: left to the end of
            # the interpreter, they may abort it.
            del run
            gc.collect()
    if texts is not None and rank == 0:
        texts.unlink(missing_ok=True)
    return Trained(values, losses)


def _trained_on(model: nn.Module, batches: list[Batch], options: Finetune, beside: Path | None) -> list[Batch]:
    """The data, or the model's own texts, which lie in a file beside the state while the training runs."""
    if not options.own_texts:
        return batches
    told = json.dumps([repr(options), [list(batch["input_ids"].shape) for batch in batches]])
    if beside is not None and beside.is_file():
        with suppress(ValueError):  # damaged: written again
            tensors, found = checked_files.read_tensors(beside)
            if found.get("options") == told:
                return [{"input_ids": text.unsqueeze(0)} for text in tensors["texts"]]
    texts = own_text(model, batches, options.own_texts, options.seed)
    if beside is not None:
        beside.parent.mkdir(parents=True, exist_ok=True)
        checked_files.write_tensors(beside, {"texts": texts}, {"options": told})
    return [{"input_ids": text.unsqueeze(0)} for text in texts]


class _Run:
    """A training: the optimizer, and the losses of the steps that were taken."""

    def __init__(
        self,
        model: nn.Module,
        batches: list[Batch],
        options: Finetune,
        parameters: dict[str, nn.Parameter],
        parts: dict[str, Tensor],
        teacher: dict[str, Tensor],
        rank: int,
        world: int,
    ) -> None:
        self._model, self._batches, self._options = model, batches, options
        self._parameters, self._parts, self._teacher = parameters, parts, teacher
        self._rank, self._world = rank, world
        self._shapes = {name: list(parameter.shape) for name, parameter in parameters.items()}
        self._device = device_of(model)
        self._run: nn.Module = model
        self._shards: Shards | None = None
        if world > 1 and options.shards:
            self._shards = self._shared_out()
            self._run, self._parameters = self._shards.model, self._shards.own
            self._parts = {name: self._shards.part_of(name, part) for name, part in parts.items()}
        elif world > 1:
            unused = options.train == "weights"  # there may be some that the outputs do not depend on
            self._run = nn.parallel.DistributedDataParallel(
                model, broadcast_buffers=False, find_unused_parameters=unused
            )
        self._layers = analog_layers(model if self._shards is None else self._shards.model)
        self._ages = {name: layer.seconds for name, layer in self._layers.items()}
        self._optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=options.rate, betas=(0.9, 0.98), weight_decay=0.0
        )
        self.losses: list[float] = []

    def _shared_out(self) -> Shards:
        """A copy to train; the model has the teacher's weights again, which take no memory of their own."""
        from calibration.steps.sharding import Shards  # torch's FSDP takes a while to import

        blocks = _checkpointable(self._model)
        shards = Shards(self._model, self._parameters, blocks)
        for name, value in self._teacher.items():
            self._model.get_parameter(name).data = value
        for name in blocks:  # it would compute again what the model's own block computes
            shards.model.get_submodule(name).__dict__.pop("forward", None)
        if self._options.checkpoint:
            _checkpoint(shards.model)
        return shards

    def agrees(self, due: bool) -> bool:
        """Whether a state is to be written: what the first process says, with which all gather where they share."""
        if self._shards is None:
            return due and self._rank == 0
        said = torch.tensor(int(due), device=self._device)
        dist.broadcast(said, 0)
        return bool(said)

    def values(self) -> dict[str, Tensor]:
        """The trained parameters as they are now."""
        return {name: self._whole(name, parameter) for name, parameter in self._parameters.items()}

    def _whole(self, name: str, tensor: Tensor) -> Tensor:
        return tensor.detach().clone() if self._shards is None else self._shards.gathered(name, tensor)

    def _own(self, name: str, tensor: Tensor) -> Tensor:
        return tensor if self._shards is None else self._shards.part_of(name, tensor)

    def step(self, step: int) -> None:
        """One step of the optimizer."""
        options, total = self._options, torch.zeros((), dtype=torch.float64, device="cpu")
        self._visit(step)
        own = range(self._rank, options.accumulate, self._world)
        for place in own:
            index = step * options.accumulate + place
            inputs = {name: x.to(self._device) for name, x in self._batch(index).items()}
            call = {**inputs, "use_cache": False} if is_generative(self._model) else inputs
            with torch.no_grad(), digital(self._model):
                wanted = torch.func.functional_call(self._model, self._teacher, kwargs=call)
            for layer in self._layers.values():
                layer.reads = index * READS
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
        if self._shards is not None:
            self._shards.collect()
        for name, part in self._parts.items():
            gradient = self._parameters[name].grad
            if gradient is not None:
                gradient.mul_(part)
        if self._shards is None:
            nn.utils.clip_grad_norm_(self._parameters.values(), 1.0)
        else:
            self._shards.limit_gradients(1.0)
        warm = min(1.0, (step + 1) / max(1, options.steps // 10))
        for group in self._optimizer.param_groups:
            group["lr"] = options.rate * warm * (1 - step / options.steps)
        before = {name: self._parameters[name].detach().clone() for name in self._parts}
        with torch.device("cpu"):  # where torch's optimizers read their count of steps without waiting for a GPU
            self._optimizer.step()
        self._optimizer.zero_grad()
        with torch.no_grad():
            for name, part in self._parts.items():
                parameter = self._parameters[name]
                parameter.copy_(torch.lerp(before[name], parameter, part))
                if is_range(name):
                    keep_above_0(parameter)
        if options.train == "weights" and options.clip is not None:
            clip = partial(clip_weights, self._model) if self._shards is None else self._shards.clip_weights
            clip(options.clip)

    def save(self, file: Path) -> None:
        """Write parameters, optimizer and losses."""
        tensors: dict[str, Tensor] = {"losses": torch.tensor(self.losses, dtype=torch.float64, device="cpu")}
        for name, parameter in self._parameters.items():
            tensors |= {f"{name}|value": self._whole(name, parameter)}
            # None for what the outputs do not depend on, such as an encoder's pooler.
            state = self._optimizer.state.get(parameter, {})
            tensors |= {f"{name}|{key}": self._whole(name, state[key]) for key in _MOMENTS if key in state}
        if self._rank:
            return
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
            found = {key: self._own(name, tensors[f"{name}|{key}"]) for key in _KEPT if f"{name}|{key}" in tensors}
            parameter.data.copy_(found.pop("value"))
            state = {key: tensor.to(parameter) for key, tensor in found.items()}
            if state:
                self._optimizer.state[parameter] = {
                    "step": torch.tensor(float(len(self.losses)), device="cpu"),
                    **state,
                }

    def _identity(self) -> str:
        sums = [[float(x.double().sum()) for x in batch.values()] for batch in self._batches]
        return json.dumps([repr(self._options), self._shapes, sums, list(self._ages.values())])

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


@contextmanager
def prepared(
    model: nn.Module, batches: list[Batch], options: Finetune
) -> Iterator[tuple[dict[str, nn.Parameter], dict[str, Tensor], dict[str, Tensor]]]:
    """The parameters to train, by name, what to multiply the rate by, and the teacher's, where training changes them.

    Afterwards the model is as it was.
    """
    layers = analog_layers(model)
    parts: dict[str, Tensor] = {}
    sizes = _sizes(model, batches[: options.accumulate]) if options.train == "adapters" else {}
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    before = {name: _Before.of(layer) for name, layer in layers.items()}
    original = {name: parameter.data for name, parameter in model.named_parameters() if options.train == "weights"}
    try:
        for module in modes:
            module.training = False
        for name in original:
            parameter = model.get_parameter(name)
            parameter.data = parameter.data.clone()  # a digital twin has the old memory
        for parameter in wanted:
            parameter.requires_grad_(options.train == "weights")
        for name, layer in layers.items():
            layer.training = options.chip == "any"
            layer.cells.error_spread = float(options.errors)
            if options.train == "weights":
                stand_for_any(layer, options.age, options.compensated)
            elif name in sizes:
                parts |= _add_corrections(layer, name, sizes[name], options)
            if options.ranges:
                layer.learn_ranges()
            if layer.input_range is not None and options.train == "adapters":
                layer.input_range.requires_grad_(False)  # it belongs to what was written, not to a chip's age
        parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        parts |= {name: p.detach().abs().mean() for name, p in parameters.items() if is_range(name)}
        with _checkpointed(model) if options.checkpoint else nullcontext():
            yield parameters, parts, original
    finally:
        for name, value in original.items():
            model.get_parameter(name).data = value
        for name, layer in layers.items():
            before[name].put_back(layer)
        for module, training in modes.items():
            module.training = training
        for parameter, grad in wanted.items():
            parameter.requires_grad_(grad)
            parameter.grad = None


def stand_for_any(layer: AnalogLinear, seconds: float, compensated: bool) -> None:
    """Make errors that a layer draws in train mode those of an age, behind a gain that takes back the mean drift.

    They are of no chip, so that they do not depend on which one was programmed before.
    """
    layer.cells.seed, layer.cells.seconds = None, float(seconds)
    if compensated:
        layer.column_gain = layer.column_gain * weight_errors(layer.hardware, float(seconds)).gain


def keep_above_0(parameter: Tensor) -> None:
    """Keep a learned range above 0, in place."""
    parameter.clamp_(min=torch.finfo(parameter.dtype).tiny)


class _Before(NamedTuple):
    """What of a layer training changes."""

    input_range: Tensor | None
    adc_range: Tensor | None
    output_gain: Tensor | None
    output_offset: Tensor | None
    adapter_down: Tensor | None
    adapter_up: Tensor | None
    column_gain: Tensor
    seed: int | None
    seconds: float
    reads: int
    error_spread: float

    @classmethod
    def of(cls, layer: AnalogLinear) -> _Before:
        names = (*_RANGES, *CORRECTIONS, "column_gain", "seed", "seconds", "reads", "cells.error_spread")
        return cls(*attrgetter(*names)(layer))

    def put_back(self, layer: AnalogLinear) -> None:
        layer.fix_ranges()
        for name in _RANGES:
            setattr(layer, name, getattr(self, name))
        layer.set_output_correction(self.output_gain, self.output_offset)
        layer.set_adapter(self.adapter_down, self.adapter_up)
        layer.column_gain, layer.cells.seed = self.column_gain, self.seed
        if layer.seed is not None and layer.seconds != self.seconds:
            layer.age(self.seconds)
        layer.cells.seconds, layer.reads = self.seconds, self.reads
        layer.cells.error_spread = self.error_spread


class _Sizes(NamedTuple):
    """Mean sizes of what a layer gets and gives: inputs ``[I]``, outputs ``[O]``, values within its adapter ``[r]``."""

    inputs: Tensor
    outputs: Tensor
    middle: Tensor


def _sizes(model: nn.Module, batches: list[Batch]) -> dict[str, _Sizes]:
    """Of the layers that the batches reach. Means of magnitudes, in which few massive activations weigh less."""
    layers = analog_layers(model)
    seen: dict[str, list[_Sizes]] = {}

    def see(name: str, x: Tensor, y: Tensor) -> None:
        down = layers[name].adapter_down
        middle = x.new_zeros(0) if down is None else (x @ down).abs().mean(0)
        seen.setdefault(name, []).append(_Sizes(x.abs().mean(0), y.abs().mean(0), middle))

    with digital(model):
        observe(model, batches, layers, see)
    return {
        name: _Sizes(*(_floored(torch.stack(x).mean(0)) for x in zip(*some, strict=True)))
        for name, some in seen.items()
    }


def _floored(size: Tensor) -> Tensor:
    """Without zeros, by which steps are divided."""
    return size.clamp(min=torch.finfo(size.dtype).tiny + 1e-3 * float(size.sum()) / max(1, size.numel()))


def _add_corrections(layer: AnalogLinear, name: str, sizes: _Sizes, options: Finetune) -> dict[str, Tensor]:
    """Make adapter, gain and offset of a layer parameters; parts of the rate that make steps relative to sizes."""
    down, up = layer.adapter_down, layer.adapter_up
    if down is None or up is None:
        rank = min(options.rank, layer.in_features, layer.out_features)
        drawn = normal((layer.in_features, rank), (options.seed, name, "adapter"), layer.scales.device)
        down = drawn.to(layer.scales.dtype) / layer.in_features**0.5 / sizes.inputs.unsqueeze(1)
        up = down.new_zeros(rank, layer.out_features)
    else:
        down, up = down / sizes.middle, up * sizes.middle.unsqueeze(1)
    gain = torch.ones_like(sizes.outputs) if layer.output_gain is None else layer.output_gain
    offset = torch.zeros_like(sizes.outputs) if layer.output_offset is None else layer.output_offset
    layer.set_adapter(*(nn.Parameter(value.detach().clone()) for value in (down, up)))
    layer.set_output_correction(*(nn.Parameter(value.detach().clone()) for value in (gain, offset)))
    return {
        f"{name}.adapter_down": 1 / (layer.in_features**0.5 * sizes.inputs.unsqueeze(1)),
        f"{name}.adapter_up": sizes.outputs,
        f"{name}.output_gain": gain.new_ones(()),
        f"{name}.output_offset": sizes.outputs,
    }


@contextmanager
def _checkpointed(model: nn.Module) -> Iterator[None]:
    """Gradient checkpointing of the blocks of the longest list of blocks with analog layers, such as a decoder's."""
    blocks = _checkpoint(model)
    try:
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _checkpointable(model: nn.Module) -> list[str]:
    """The names of the blocks with analog layers in the longest list of them."""
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    found = [[f"{name}.{place}" for place, block in enumerate(blocks) if _is_analog(block)] for name, blocks in lists]
    return max(found, key=len, default=[])


def _checkpoint(model: nn.Module) -> list[nn.Module]:
    """Have blocks compute their activations again in the backward pass, until their own ``forward`` is removed."""
    blocks = [model.get_submodule(name) for name in _checkpointable(model)]
    for block in blocks:
        again = partial(
            checkpoint,
            block.forward,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=replayed_reads(block),
        )
        block.forward = again
    return blocks


def _is_analog(block: nn.Module) -> bool:
    return any(isinstance(module, AnalogLinear) for module in block.modules())


def is_range(name: str) -> bool:
    """Whether the parameter of this name is the range of a converter."""
    return name.rpartition(".")[2] in _RANGES
