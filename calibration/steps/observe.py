"""Runs of a converted model over calibration data, with a look at what its layers do."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from calibration.models.embedding import Batch, evaluating
from calibration.models.outputs import device_of
from calibration.steps.norms import digital_norms
from crossbar import analog_layers, bypassed, reset_reads
from crossbar.adapters import OwnForward
from crossbar.nn.module import AnalogModule

See = Callable[[str, Tensor, Tensor], None]
"""Called with a module's name, its inputs ``[tokens, I]`` and its outputs ``[tokens, O]``, padding left out."""

_GOLDEN = (5**0.5 - 1) / 2


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


def some(count: int, most: int, device: torch.device) -> Tensor:
    """Places of at most ``most`` of so many vectors, all over them, rising.

    One lies in each of as many equal parts, at a place in it that goes on by the golden ratio from part to part: at
    regular distances, samples of as many tokens each would show the same few of their positions alone.
    """
    if count <= most:
        return torch.arange(count, device=device)
    starts = torch.arange(most + 1, device=device) * count // most
    within = (torch.arange(most, dtype=torch.float64, device=device) * _GOLDEN).frac()
    return starts[:-1] + (within * starts.diff()).long()


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
    """One forward pass, each call of the given modules shown to ``see``.

    Padding is left out by the place of a vector among the tokens ``[B, N]``, flattened or not. Where a layer sends
    tokens to some of its matrices (experts), its adapter computes once with marks in their place, to follow them.
    """
    device = device_of(model)
    inputs = {name: tensor.to(device) for name, tensor in batch.items()}
    kept = inputs["attention_mask"].bool() if "attention_mask" in inputs else None
    sent: dict[nn.Module, deque[Tensor]] = {}

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def seen(module: nn.Module, arguments: tuple[Tensor, ...], output: Tensor) -> None:
            x = arguments[0]
            chosen = sent[module].popleft() if module in sent else _of_tokens(x, kept)
            vectors = (values.detach().reshape(-1, values.shape[-1]) for values in (x, output))
            see(name, *(values if chosen is None else values[chosen] for values in vectors))

        return seen

    def mark(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        assert isinstance(module, AnalogModule)
        assert kept is not None
        found = _of_parts(module, arguments, options, kept)
        for part, tiles in module.tiles.items():
            sent.pop(tiles, None)
            if found:
                sent[tiles] = deque(found.get(part, ()))

    hooks: list[RemovableHandle] = []
    try:
        hooks += [module.register_forward_hook(hook(name)) for name, module in modules.items()]
        if kept is not None and modules:
            routing = (m for m in model.modules() if isinstance(m, AnalogModule) and isinstance(m.adapter, OwnForward))
            hooks += [module.register_forward_pre_hook(mark, with_kwargs=True) for module in routing]
        model(**inputs)
    finally:
        for handle in hooks:
            handle.remove()


def _of_tokens(x: Tensor, kept: Tensor | None) -> Tensor | None:
    """Which vectors ``[..., I]`` are no padding, if there is one for each token; None: all."""
    if kept is None or x.shape[:-1] not in (kept.shape, (kept.numel(),)):
        return None
    return kept.flatten()


def _of_parts(
    module: AnalogModule, arguments: tuple[Any, ...], options: Mapping[str, Any], kept: Tensor
) -> dict[str, list[Tensor]]:
    """Which vectors are no padding in each product of each matrix of a layer; empty if its inputs are no tokens.

    Padding is NaN in its inputs here, and a product is NaN where its vector has one.
    """
    is_marked = False

    def marked(x: Any) -> Any:
        nonlocal is_marked
        if not isinstance(x, Tensor) or not x.is_floating_point() or _of_tokens(x, kept) is None:
            return x
        is_marked = True
        return x.masked_fill(~kept.view(*x.shape[:-1], 1), math.nan)

    found: dict[str, list[Tensor]] = {}

    def product_of(name: str, outputs: int) -> Callable[[Tensor], Tensor]:
        def product(x: Tensor) -> Tensor:
            padding = x.isnan().any(-1)
            found.setdefault(name, []).append(~padding.flatten())
            return x.new_zeros(*x.shape[:-1], outputs).masked_fill_(padding.unsqueeze(-1), math.nan)

        return product

    given = [marked(x) for x in arguments], {name: marked(x) for name, x in options.items()}
    if not is_marked:
        return {}
    parts = module.adapter.parts(module.digital)
    products = {name: product_of(name, part.shape[0]) for name, part in parts.items()}
    module.adapter.compute(module.digital, products, *given[0], **given[1])
    return found
