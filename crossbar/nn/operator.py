"""Analog layers as operators of torch, so that compiled and exported graphs hold them whole.

`torch.compile` and `torch.export` follow tensors, and a layer's noise, counts and cells are none: inside of a graph it
is one operation, ``ohmformer::analog_layer``, that calls the layer as it is when the graph runs. Its gradient is the
layer's own. What it needs is kept of a layer's last call; for a call before that, the layer is read again, with the
noise that it had.
"""

from __future__ import annotations

import ast
import itertools
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor, nn

from crossbar.costs.ledger import unbooked
from crossbar.errors import InputError


class Matrix(Protocol):
    """What is read of a layer: `crossbar.nn.linear.AnalogLinear`."""

    reads: int
    replaying: bool


class Layer(Protocol):
    """What graphs call: `crossbar.nn.linear.AnalogLinear` and `crossbar.nn.module.AnalogModule`."""

    number: Tensor
    calls: Tensor

    def matrices(self) -> Sequence[Matrix]:
        """What is read of it, in an order of its own."""
        ...

    def trained(self) -> list[nn.Parameter]:
        """The parameters that outputs depend on."""
        ...

    def read(self, *inputs: Any, **options: Any) -> Any:
        """What its ``forward`` gives, computed now."""
        ...


_numbers, _calls = itertools.count(), itertools.count()
_layers: WeakValueDictionary[int, Layer] = WeakValueDictionary()
_last: WeakKeyDictionary[Layer, tuple[int, list[Tensor], list[Tensor]]] = WeakKeyDictionary()
_adding = threading.Lock()


def entered(layer: Layer) -> Tensor:
    """A number for a layer by which graphs call it in this process, int64, 0-d, on the CPU.

    As a tensor it is an input of graphs, which so need not be compiled again for each layer.
    """
    with _adding:
        number = next(_numbers)
        _layers[number] = layer
    return torch.tensor(number, device="cpu")


def call(layer: Layer, shapes: Any, *inputs: Any, **options: Any) -> Any:
    """What a layer computes, as one operation of the graph that is being made.

    Args:
        layer: called.
        shapes: of what it gives: a list of sizes for each tensor, in tuples as ``forward`` gives them.
        inputs, options: tensors in the dtype of the outputs first; other tensors, None, strings and plain numbers.
    """
    layer.calls.add_(1)  # so that two calls with the same inputs are two reads
    given: list[Tensor] = []
    text, flat = _written((inputs, options), given), _flat(shapes)
    recorded = torch.is_grad_enabled()
    trained = [parameter for parameter in layer.trained() if parameter.requires_grad and recorded]
    found = _compute(
        given, trained, layer.number, layer.calls, text, len(layer.matrices()),
        [size for shape in flat for size in shape], [len(shape) for shape in flat],
        [x.requires_grad and recorded for x in given],
    )  # fmt: skip
    return _placed(shapes, iter(found))


def _written(value: Any, tensors: list[Tensor]) -> str:
    """Arguments as a Python literal in which ``{i}`` is tensor i, and the tensors."""
    if isinstance(value, Tensor):
        tensors.append(value)
        return f"{{{len(tensors) - 1}}}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name!r}: {_written(own, tensors)}" for name, own in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + "".join(f"{_written(own, tensors)}, " for own in value) + ")"
    return repr(value)


def _read(value: Any, tensors: Sequence[Tensor]) -> Any:
    """`_written` backwards, of what the literal stands for."""
    if isinstance(value, set):
        return tensors[next(iter(value))]
    if isinstance(value, dict):
        return {name: _read(own, tensors) for name, own in value.items()}
    return tuple(_read(own, tensors) for own in value) if isinstance(value, tuple) else value


def _flat(outputs: Any) -> list[Any]:
    """What tuples hold but None, in order."""
    if isinstance(outputs, tuple):
        return [each for own in outputs for each in _flat(own)]
    return [] if outputs is None else [outputs]


def _placed(shapes: Any, found: Iterator[Tensor]) -> Any:
    """Tensors in the places of their shapes."""
    if isinstance(shapes, tuple):
        return tuple(_placed(own, found) for own in shapes)
    return None if shapes is None else next(found)


@torch.library.custom_op("ohmformer::analog_layer", mutates_args=(), tags=(torch.Tag.nondeterministic_seeded,))
def _compute(
    given: list[Tensor],
    trained: list[Tensor],
    number: Tensor,
    calls: Tensor,
    text: str,
    matrices: int,
    sizes: list[int],
    dims: list[int],
    asked: list[bool],
) -> list[Tensor]:
    """Outputs in the dtype of the first input, and int64 [1 + matrices]: a number of this call, and read indices.

    Args:
        given: tensors among the arguments.
        trained: the parameters that are asked for a gradient.
        number: `entered` of the layer.
        calls: how often a graph called it: not looked at.
        text: the arguments, as `_written` has them.
        matrices: how many are read.
        sizes, dims: of all outputs, one after another, and how many of them each has.
        asked: which of ``given`` are asked for a gradient.
    """
    layer, which = _layer(number), next(_calls)
    call = torch.tensor([which, *(matrix.reads for matrix in layer.matrices())], device="cpu")
    if not any(asked) and not trained:
        found = _outputs(layer, text, given)
    else:
        with _recorded():
            own = _own(given, asked)
            found = _outputs(layer, text, own)
        _last[layer] = which, own, found
    assert [size for y in found for size in y.shape] == sizes, f"{text}: {[list(y.shape) for y in found]}, not {sizes}"
    return [*(y.detach() for y in found), call]


@_compute.register_fake
def _(
    given: list[Tensor],
    trained: list[Tensor],
    number: Tensor,
    calls: Tensor,
    text: str,
    matrices: int,
    sizes: list[int],
    dims: list[int],
    asked: list[bool],
) -> list[Tensor]:
    remaining = iter(sizes)
    outputs = [given[0].new_empty([next(remaining) for _ in range(count)]) for count in dims]
    return [*outputs, torch.empty(1 + matrices, dtype=torch.int64, device="cpu")]


def _outputs(layer: Layer, text: str, given: list[Tensor]) -> list[Tensor]:
    """What a layer gives, as its shapes say: contiguous, in the dtype of the first input."""
    inputs, options = _read(ast.literal_eval(text), given)
    return [y.to(given[0].dtype).contiguous() for y in _flat(layer.read(*inputs, **options))]


def _own(given: list[Tensor], asked: list[bool]) -> list[Tensor]:
    return [x.detach().requires_grad_(wanted) for x, wanted in zip(given, asked, strict=True)]


@torch.library.custom_op("ohmformer::analog_layer_backward", mutates_args=())
def _backward(
    grads: list[Tensor],
    given: list[Tensor],
    trained: list[Tensor],
    number: Tensor,
    call: Tensor,
    text: str,
    asked: list[bool],
) -> list[Tensor]:
    """Gradients of the inputs that are asked for one, and of parameters, of the call that gave ``call``."""
    layer, (which, *reads) = _layer(number), call.tolist()
    wanted = [parameter for parameter in layer.trained() if parameter.requires_grad]
    if len(wanted) != len(trained):
        raise InputError(
            f"an analog layer has {len(wanted)} parameters to train and was called with {len(trained)}: do not freeze "
            "or add parameters between a forward pass and its backward pass"
        )
    last = _last.pop(layer, None)
    with _recorded():
        own, found = last[1:] if last is not None and last[0] == which else _again(layer, text, given, reads, asked)
        inputs = [*(x for x, of in zip(own, asked, strict=True) if of), *wanted]
        gradients = torch.autograd.grad(found, inputs, grads, materialize_grads=True)
    # In the strides that compiled graphs were promised.
    return [torch.empty_like(x).copy_(grad) for x, grad in zip(inputs, gradients, strict=True)]


def _again(
    layer: Layer, text: str, given: list[Tensor], reads: list[int], asked: list[bool]
) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs, and outputs that are recorded, of a read that was not the layer's last one."""
    matrices = layer.matrices()
    before = [(matrix.reads, matrix.replaying) for matrix in matrices]
    for matrix, index in zip(matrices, reads, strict=True):
        matrix.reads, matrix.replaying = index, True
    try:
        with unbooked():
            own = _own(given, asked)
            return own, _outputs(layer, text, own)
    finally:
        for matrix, was in zip(matrices, before, strict=True):
            matrix.reads, matrix.replaying = was


@_backward.register_fake
def _(
    grads: list[Tensor],
    given: list[Tensor],
    trained: list[Tensor],
    number: Tensor,
    call: Tensor,
    text: str,
    asked: list[bool],
) -> list[Tensor]:
    return [torch.empty_like(own) for own in [*(x for x, of in zip(given, asked, strict=True) if of), *trained]]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    given, trained, number, _, ctx.text, _, _, _, ctx.asked = inputs
    *outputs, call = output
    ctx.inputs, ctx.shapes = len(given), [y.shape for y in outputs]
    ctx.save_for_backward(number, call, *given, *trained)


def _differentiate(ctx: Any, grads: list[Tensor | None]) -> tuple[Any, ...]:
    number, call, *rest = ctx.saved_tensors
    given, trained = rest[: ctx.inputs], rest[ctx.inputs :]
    each = [
        given[0].new_zeros(shape) if grad is None else grad for grad, shape in zip(grads[:-1], ctx.shapes, strict=True)
    ]
    found = iter(_backward(each, given, trained, number, call, ctx.text, ctx.asked))
    of_given = [next(found) if of else None for of in ctx.asked]
    return of_given, list(found), *[None] * 7


_compute.register_autograd(_differentiate, setup_context=_keep)


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
