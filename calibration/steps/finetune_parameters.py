"""What `calibration.Finetune` trains in a model: its parameters, the size of their steps, and the way back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from calibration.models.embedding import Batch
from calibration.steps.observe import digital, observe
from crossbar import AnalogLinear, analog_layers, replayed_reads
from crossbar.nn.corrections import CORRECTIONS
from crossbar.nn.weight_errors import weight_errors
from crossbar.random.streams import normal

if TYPE_CHECKING:
    from calibration.steps.finetune import Finetune

_RANGES = ("input_range", "adc_range")


@contextmanager
def prepared(
    model: nn.Module, batches: list[Batch], options: Finetune
) -> Iterator[tuple[dict[str, nn.Parameter], dict[str, Tensor]]]:
    """The parameters to train, by name, and what to multiply the rate by; afterwards the model is as it was."""
    layers = analog_layers(model)
    parts: dict[str, Tensor] = {}
    sizes = _sizes(model, batches[: options.accumulate]) if options.train == "adapters" else {}
    modes = {module: module.training for module in model.modules()}
    wanted = {parameter: parameter.requires_grad for parameter in model.parameters()}
    before = {name: _Before.of(layer) for name, layer in layers.items()}
    original = {
        name: parameter.detach().clone() for name, parameter in model.named_parameters() if options.train == "weights"
    }
    try:
        for module in modes:
            module.training = False
        for parameter in wanted:
            parameter.requires_grad_(options.train == "weights")
        for name, layer in layers.items():
            layer.training = options.chip == "any"
            if options.train == "weights":
                # Of no chip, so that draws do not depend on which one was programmed before.
                layer.seed, layer.seconds = None, float(options.age)
                if options.compensated:
                    layer.column_gain = layer.column_gain * weight_errors(layer.hardware, options.age).gain
            elif name in sizes:
                parts |= _add_corrections(layer, name, sizes[name], options)
            if options.ranges:
                layer.learn_ranges()
            if layer.input_range is not None and options.train == "adapters":
                layer.input_range.requires_grad_(False)  # it belongs to what was written, not to a chip's age
        parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        parts |= {name: p.detach().abs().mean() for name, p in parameters.items() if is_range(name)}
        with _checkpointed(model) if options.checkpoint else nullcontext():
            yield parameters, parts
    finally:
        for name, value in original.items():
            model.get_parameter(name).data.copy_(value)
        for name, layer in layers.items():
            before[name].put_back(layer)
        for module, training in modes.items():
            module.training = training
        for parameter, grad in wanted.items():
            parameter.requires_grad_(grad)
            parameter.grad = None


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

    @classmethod
    def of(cls, layer: AnalogLinear) -> _Before:
        names = (*_RANGES, *CORRECTIONS, "column_gain", "seed", "seconds", "reads")
        return cls(*(getattr(layer, name) for name in names))

    def put_back(self, layer: AnalogLinear) -> None:
        layer.fix_ranges()
        for name in _RANGES:
            setattr(layer, name, getattr(self, name))
        layer.set_output_correction(self.output_gain, self.output_offset)
        layer.set_adapter(self.adapter_down, self.adapter_up)
        layer.column_gain, layer.seed = self.column_gain, self.seed
        if layer.seed is not None and layer.seconds != self.seconds:
            layer.age(self.seconds)
        layer.seconds, layer.reads = self.seconds, self.reads


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
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    blocks = max(([block for block in blocks if _is_analog(block)] for blocks in lists), key=len, default=[])
    try:
        for block in blocks:
            again = partial(
                checkpoint,
                block.forward,
                use_reentrant=False,
                preserve_rng_state=False,
                context_fn=replayed_reads(block),
            )
            block.forward = again
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


def _is_analog(block: nn.Module) -> bool:
    return any(isinstance(module, AnalogLinear) for module in block.modules())


def is_range(name: str) -> bool:
    """Whether the parameter of this name is the range of a converter."""
    return name.rpartition(".")[2] in _RANGES
