"""An analog layer as an operator of torch, so that compiled and exported graphs hold it whole.

`torch.compile` and `torch.export` follow tensors, and a layer's noise, counts and cells are none: inside of a graph it
is one operation, ``ohmformer::analog_linear``, that calls the layer as it is when the graph runs. Its gradient is the
layer's own. What it needs is kept of a layer's last call; for a call before that, the layer is read again, with the
noise that it had.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn

from crossbar.costs.ledger import unbooked
from crossbar.errors import InputError


class Layer(Protocol):
    """What graphs call: `crossbar.nn.linear.AnalogLinear`."""

    number: Tensor
    calls: Tensor
    reads: int
    replaying: bool

    @property
    def name(self) -> str:
        """Of the layer, for messages."""
        ...

    @property
    def out_features(self) -> int:
        """O."""
        ...

    def trained(self) -> list[nn.Parameter]:
        """The parameters that outputs depend on."""
        ...

    def read(self, x: Tensor) -> Tensor:
        """Outputs ``[..., O]`` for inputs ``[..., I]``, computed now."""
        ...


_numbers, _calls = itertools.count(), itertools.count()
_layers: WeakValueDictionary[int, Layer] = WeakValueDictionary()
_last: WeakKeyDictionary[Layer, tuple[int, Tensor, Tensor]] = WeakKeyDictionary()
_adding = threading.Lock()


def entered(layer: Layer) -> Tensor:
    """A number for a layer by which graphs call it in this process, int64, 0-d, on the CPU.

    As a tensor it is an input of graphs, which so need not be compiled again for each layer.
    """
    with _adding:
        number = next(_numbers)
        _layers[number] = layer
    return torch.tensor(number, device="cpu")


def call(layer: Layer, x: Tensor) -> Tensor:
    """What a layer computes, as one operation of the graph that is being made."""
    layer.calls.add_(1)  # so that two calls with the same inputs are two reads
    recorded = torch.is_grad_enabled()
    trained = [parameter for parameter in layer.trained() if parameter.requires_grad and recorded]
    of_inputs = x.requires_grad and recorded
    outputs: Tensor = _multiply(x, trained, layer.number, layer.calls, layer.out_features, of_inputs)[0]
    return outputs


@torch.library.custom_op("ohmformer::analog_linear", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _multiply(
    x: Tensor, trained: list[Tensor], number: Tensor, calls: Tensor, outputs: int, of_inputs: bool
) -> tuple[Tensor, Tensor]:
    """Outputs ``[..., O]`` in the dtype of ``x``, and int64 [2]: the index of the read, and a number of this call.

    Args:
        x: ``[..., I]``.
        trained: the parameters that are asked for a gradient.
        number: `entered` of the layer.
        calls: how often a graph called it: not looked at.
        outputs: O.
        of_inputs: whether ``x`` is asked for a gradient.
    """
    layer, which = _layer(number), next(_calls)
    read = torch.tensor([layer.reads, which], device="cpu")
    if not of_inputs and not trained:
        return layer.read(x), read
    with _recorded():
        own = x.detach().requires_grad_(of_inputs)
        y = layer.read(own)
    _last[layer] = which, own, y
    return y.detach(), read


@_multiply.register_fake
def _(
    x: Tensor, trained: list[Tensor], number: Tensor, calls: Tensor, outputs: int, of_inputs: bool
) -> tuple[Tensor, Tensor]:
    return x.new_empty((*x.shape[:-1], outputs)), torch.empty(2, dtype=torch.int64, device="cpu")


@torch.library.custom_op("ohmformer::analog_linear_backward", mutates_args=())
def _backward(
    grad: Tensor, x: Tensor, trained: list[Tensor], number: Tensor, read: Tensor, of_inputs: bool
) -> list[Tensor]:
    """Gradients of inputs (if ``of_inputs``) and of parameters, of the call that gave ``read``."""
    layer, (index, which) = _layer(number), read.tolist()
    wanted = [parameter for parameter in layer.trained() if parameter.requires_grad]
    if len(wanted) != len(trained):
        raise InputError(
            f"{layer.name} has {len(wanted)} parameters to train and was called with {len(trained)}: do not freeze or "
            "add parameters between a forward pass and its backward pass"
        )
    last = _last.pop(layer, None)
    with _recorded():
        own, y = last[1:] if last is not None and last[0] == which else _again(layer, x, index, of_inputs)
        inputs = [*([own] if of_inputs else []), *wanted]
        return [found.clone() for found in torch.autograd.grad(y, inputs, grad, materialize_grads=True)]


def _again(layer: Layer, x: Tensor, index: int, of_inputs: bool) -> tuple[Tensor, Tensor]:
    """Inputs, and outputs that are recorded, of a read that was not the layer's last one."""
    before = layer.reads, layer.replaying
    layer.reads, layer.replaying = index, True
    try:
        with unbooked():
            own = x.detach().requires_grad_(of_inputs)
            return own, layer.read(own)
    finally:
        layer.reads, layer.replaying = before


@_backward.register_fake
def _(grad: Tensor, x: Tensor, trained: list[Tensor], number: Tensor, read: Tensor, of_inputs: bool) -> list[Tensor]:
    return [torch.empty_like(own) for own in ([x, *trained] if of_inputs else trained)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, trained, number, _, _, of_inputs = inputs
    ctx.save_for_backward(x, number, output[1], *trained)
    ctx.of_inputs = of_inputs


def _differentiate(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Any, ...]:
    x, number, read, *trained = ctx.saved_tensors
    found = _backward(grad, x, trained, number, read, ctx.of_inputs)
    of_x = found.pop(0) if ctx.of_inputs else None
    return of_x, found, None, None, None, None


_multiply.register_autograd(_differentiate, setup_context=_keep)


def _layer(number: Tensor) -> Layer:
    layer = _layers.get(int(number))
    if layer is None:
        raise InputError(
            f"the graph calls analog layer {int(number)}, which is not in this process: keep the model that was "
            "compiled or exported, since its chip is not in the graph"
        )
    return layer


@contextmanager
def _recorded() -> Iterator[None]:
    """Let autograd record, which is switched off inside of an operator."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor", "ADInplaceOrView"):
        excluded = excluded.remove(torch._C.DispatchKey.__members__[key])
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield
