"""What a model computes in digital beside its analog layers, counted layer by layer while it runs.

Numbers are taken to have 16 bits. A linear layer streams its parameters from DRAM once a call, however many vectors it
multiplies; an embedding reads one row a token. Every layer reads its inputs from SRAM and writes its outputs there.
What a model does between its layers (residual sums, gating products, rotary embedding) has no layer and isn't counted.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crossbar.adapters import digital_parts, find_adapter

Add = Callable[[str, str, int], None]

BYTES = 2  # of a number of 16 bits


def watch(model: nn.Module, add: Add) -> tuple[list[RemovableHandle], dict[str, str]]:
    """Count a model's digital layers by ``add(layer, counter, count)`` until the hooks are removed.

    Returns:
        The hooks, and the layers with parameters of their own whose kind is not known, by name.
    """
    hooks: list[RemovableHandle] = []
    unknown: dict[str, str] = {}
    own = [m for m in model.modules() if getattr(m, "books_itself", False)]
    own += [m for m in model.modules() if find_adapter(m) is not None and next(m.children(), None) is not None]
    within = {id(part) for m in own for part in m.modules() if getattr(m, "books_itself", False) or part is not m}
    for name, module in model.named_modules():
        if id(module) in within:
            continue
        count = _counter_of(module)
        if count is not None:
            hooks.append(module.register_forward_hook(_hook(name or "(model)", count, add)))
        elif next(module.parameters(recurse=False), None) is not None:
            unknown[name or "(model)"] = type(module).__name__
    return hooks, unknown


Count = Callable[[nn.Module, Tensor, Tensor], dict[str, int]]


def _hook(name: str, count: Count, add: Add) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    def booked(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor):
            for counter, number in count(module, inputs[0], output).items():
                add(name, counter, number)

    return booked


def _counter_of(module: nn.Module) -> Count | None:
    if find_adapter(module) is not None:
        return _products
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


def _products(module: nn.Module, x: Tensor, y: Tensor) -> dict[str, int]:
    """Of a layer that is the same product for each of its outputs, such as a linear layer or a convolution."""
    parts = digital_parts(module).values()
    parameters = sum(p.numel() for p in module.parameters(recurse=False))
    weights, outputs = sum(part.weight.numel() for part in parts), sum(part.shape[0] for part in parts)
    return {"digital_macs": y.numel() // outputs * weights, "dram_bytes": BYTES * parameters, **_buffers(x, y)}


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
