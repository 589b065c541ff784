"""What a model computes in digital beside its analog layers, counted layer by layer while it runs.

Numbers are taken to have 16 bits. A layer streams a matrix from DRAM once a call, however many vectors it multiplies,
and not at all without one, as an expert without tokens; an embedding reads one row a token. Every layer reads its
inputs from SRAM and writes its outputs there. What a model does between its layers (residual sums, gating products,
rotary embedding) has no layer and isn't counted, nor is what ``nn.MultiheadAttention``, ``nn.LSTM`` and ``nn.GRU`` do
between their matrices.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crossbar.adapters import Convolution, Part, adapter_of, find_adapter, is_rows

Add = Callable[[str, str, int], None]

BYTES = 2  # of a number of 16 bits


def watch(model: nn.Module, add: Add) -> tuple[list[RemovableHandle], dict[str, str]]:
    """Count a model's digital layers by ``add(layer, counter, count)`` until the hooks are removed.

    Returns:
        The hooks, and the layers with parameters of their own whose kind is not known, by name.
    """
    hooks: list[RemovableHandle] = []
    unknown: dict[str, str] = {}
    with_matrices = dict(convertible(model))
    whole = [m for m in model.modules() if getattr(m, "books_itself", False)] + [*with_matrices.values()]
    within = {id(part) for m in whole for part in m.modules()}
    for name, module in model.named_modules():
        count = _counter_of(module)
        if name in with_matrices:
            hooks.append(module.register_forward_hook(_hook_of_matrices(name or "(model)", add), with_kwargs=True))
        elif count is not None:
            hooks.append(module.register_forward_hook(_hook(name or "(model)", count, add)))
        elif id(module) not in within and next(module.parameters(recurse=False), None) is not None:
            unknown[name or "(model)"] = type(module).__name__
    return hooks, unknown


def convertible(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers that could become analog and are not, by name, without those within one another."""
    analog = [module for module in model.modules() if getattr(module, "books_itself", False)]
    within = {id(part) for module in analog for part in module.modules()}
    for name, module in model.named_modules():
        if id(module) not in within and find_adapter(module) is not None:
            within.update(id(part) for part in module.modules())
            yield name, module


_counting: list[None] = []
"""An entry for each layer that computes a call once more to be counted, in which nothing else is counted."""


def vectors(module: nn.Module, inputs: tuple[Any, ...], options: Mapping[str, Any], output: Any) -> dict[str, int]:
    """How many vectors each matrix of a digital layer was multiplied with in a call, by the matrix's name.

    Of a layer that is one product for each of its outputs, its outputs say it. The adapter of any other layer computes
    the call once more, with products that cost nothing and give 0.
    """
    adapter = adapter_of(module)
    parts = adapter.parts(module)
    if is_rows(adapter) or isinstance(adapter, Convolution):
        return dict.fromkeys(parts, output.numel() // sum(part.shape[0] for part in parts.values()))
    met = dict.fromkeys(parts, 0)

    def product_of(name: str, part: Part) -> Callable[[Tensor], Tensor]:
        outputs, size = part.shape

        def product(x: Tensor) -> Tensor:
            met[name] += x.numel() // size
            return x.new_zeros(*x.shape[:-1], outputs)

        return product

    products = {name: product_of(name, part) for name, part in parts.items()}
    with _silent(), torch.no_grad(), torch.random.fork_rng(enabled=module.training):
        adapter.compute(module, products, *inputs, **options)
    return met


@contextmanager
def _silent() -> Iterator[None]:
    _counting.append(None)
    try:
        yield
    finally:
        _counting.pop()


Count = Callable[[nn.Module, Tensor, Tensor], dict[str, int]]


def _hook(name: str, count: Count, add: Add) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def booked(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not _counting and inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            for counter, number in count(module, inputs[0], output).items():
                add(name, counter, number)

    return booked


def _hook_of_matrices(name: str, add: Add) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
    def booked(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        if _counting:
            return
        parts, met = adapter_of(module).parts(module), vectors(module, inputs, options, output)
        read = sum(part.weight.numel() for name, part in parts.items() if met[name])
        others = sum(p.numel() for p in module.parameters()) - sum(part.weight.numel() for part in parts.values())
        add(name, "digital_macs", sum(met[name] * part.weight.numel() for name, part in parts.items()))
        add(name, "dram_bytes", BYTES * (read + others))
        add(name, "sram_bytes", BYTES * sum(x.numel() for x in (*_tensors((inputs, options)), *_tensors(output))))

    return booked


def _tensors(values: Any) -> list[Tensor]:
    """The floating point tensors among inputs or outputs, each once."""
    found: dict[int, Tensor] = {}

    def look(value: Any) -> None:
        if isinstance(value, Tensor):
            if value.is_floating_point():
                found[id(value)] = value
        elif isinstance(value, Mapping):
            look(tuple(value.values()))
        elif isinstance(value, tuple | list):
            for part in value:
                look(part)

    look(values)
    return [*found.values()]


def _counter_of(module: nn.Module) -> Count | None:
    if isinstance(module, nn.Embedding):
        return _embedding
    if isinstance(module, nn.LayerNorm):
        return _layer_norm
    if type(module).__name__.endswith("RMSNorm"):  # each family of transformers models has a class of its own
        return _rms_norm
    activations = sys.modules.get("transformers.activations")
    if isinstance(module, _ACTIVATIONS) or type(module).__module__ == getattr(activations, "__name__", None):
        return _activation
    return None


_ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softmax)


def _embedding(module: nn.Module, x: Tensor, y: Tensor) -> dict[str, int]:
    return {"dram_bytes": BYTES * y.numel(), "sram_bytes": BYTES * y.numel()}


def _layer_norm(module: nn.Module, x: Tensor, y: Tensor) -> dict[str, int]:
    """Mean, square, scale and shift of each number; a root and its reciprocal for each vector."""
    return {"digital_macs": 4 * x.numel(), "special_functions": 2 * (x.numel() // x.shape[-1]), **_buffers(x, y)}


def _rms_norm(module: nn.Module, x: Tensor, y: Tensor) -> dict[str, int]:
    """Square, scale and gain of each number; a root and its reciprocal for each vector."""
    return {"digital_macs": 3 * x.numel(), "special_functions": 2 * (x.numel() // x.shape[-1]), **_buffers(x, y)}


def _activation(module: nn.Module, x: Tensor, y: Tensor) -> dict[str, int]:
    return {"special_functions": x.numel(), **_buffers(x, y)}


def _buffers(x: Tensor, y: Tensor) -> dict[str, int]:
    return {"sram_bytes": BYTES * (x.numel() + y.numel())}
