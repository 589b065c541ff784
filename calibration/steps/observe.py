"""Runs of a converted model over calibration data, with a look at what its layers do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch, evaluating
from calibration.models.outputs import device_of
from calibration.steps.norms import digital_norms
from crossbar import analog_layers, bypassed, reset_reads

See = Callable[[str, Tensor, Tensor], None]
"""Called with a module's name, its inputs ``[tokens, I]`` and its outputs ``[tokens, O]``, padding left out."""


@dataclass(frozen=True)
class Instants:
    """When batches are read, so that what is fitted is not one snapshot of the chip's 1/f noise.

    A calibration of a chip takes some time, and looks at data as they come: batch ``k`` is read
    ``(k mod count) · spacing`` before the model's present age, at 0 s at the earliest.

    Attributes:
        count: different instants.
        spacing: seconds between them.
    """

    count: int = 1
    spacing: float = 60.0


@contextmanager
def digital(model: nn.Module) -> Iterator[None]:
    """Compute as the digital model for a while: analog layers are bypassed, recalibrated norms as they were."""
    with bypassed(model), digital_norms(model):
        yield


def observe(
    model: nn.Module,
    batches: Iterable[Batch],
    modules: Mapping[str, nn.Module],
    see: See,
    *,
    instants: Instants | None = None,
) -> None:
    """Run the model over all batches and show each call of the given modules to ``see``.

    Leaves the model as it was: mode, age, and the index of the next read, which starts from 0 here.
    """
    with visiting(model, instants or Instants()) as visit:
        for index, batch in enumerate(batches):
            visit(index)
            run(model, batch, modules, see)


@contextmanager
def visiting(model: nn.Module, instants: Instants) -> Iterator[Callable[[int], None]]:
    """A function that takes the model to the instant of a batch; afterwards the model is as it was before."""
    layers = analog_layers(model).values()
    before = [(layer, layer.seconds, layer.reads) for layer in layers]

    def visit(index: int) -> None:
        for layer, seconds, _ in before:
            instant = max(seconds - index % instants.count * instants.spacing, 0.0)
            if layer.seed is not None and layer.seconds != instant:
                layer.age(instant)

    reset_reads(model)
    try:
        with torch.no_grad(), evaluating(model):
            yield visit
    finally:
        visit(0)
        for layer, _, reads in before:
            layer.reads = reads


def run(model: nn.Module, batch: Batch, modules: Mapping[str, nn.Module], see: See) -> None:
    """One forward pass, each call of the given modules shown to ``see``."""
    device = device_of(model)
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    kept = inputs["attention_mask"].bool() if "attention_mask" in inputs else None

    def rows(x: Tensor) -> Tensor:
        chosen = x[kept] if kept is not None and x.shape[:-1] == kept.shape else x
        return chosen.detach().reshape(-1, x.shape[-1])

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        return lambda _, arguments, output: see(name, rows(arguments[0]), rows(output))

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.enter_context(_hooked(module, hook(name)))
        model(**inputs)


@contextmanager
def _hooked(module: nn.Module, hook: Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]) -> Iterator[None]:
    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
