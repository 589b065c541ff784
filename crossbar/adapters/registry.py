"""The adapters there are, and which takes a module."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import nn

from crossbar.adapters.convolution import Convolution
from crossbar.adapters.linear import Conv1D, Linear, Rows, is_of_attention
from crossbar.adapters.multihead import MultiheadAttention
from crossbar.adapters.own_forward import Experts
from crossbar.adapters.protocol import LayerAdapter, Part
from crossbar.adapters.recurrent import Recurrent
from crossbar.errors import InputError, shown

_KNOWN: tuple[LayerAdapter, ...] = (
    Linear(),
    Conv1D(),
    Convolution(),
    MultiheadAttention(),
    Recurrent(),
    Experts(),
)
_adapters: dict[str, LayerAdapter] = {adapter.name: adapter for adapter in _KNOWN}


def register_adapter(adapter: LayerAdapter) -> None:
    """Let `crossbar.convert` take another kind of layer, or one that it takes by another adapter of the same name.

    Of several adapters that match a module, the one that was registered last takes it: register the general before
    the special.

    Raises:
        InputError: for what lacks a part of `LayerAdapter`, and for a class in the place of an object.

    ```
    class Bilinear:
        name = "an nn.Bilinear whose second input is fixed"

        def matches(self, module):
            return isinstance(module, FixedBilinear)

        def parts(self, module):
            return {"weight": Part(module.weight.flatten(1), module.bias)}

        def compute(self, module, products, x):  # [N, I1]
            return products["weight"]((x[:, :, None] * module.second).flatten(1))


    register_adapter(Bilinear())
    convert(model, hardware)
    ```
    """
    if isinstance(adapter, type) or not isinstance(adapter, LayerAdapter):
        raise InputError(f"{shown(adapter)} is not an adapter: give an object with name, matches, parts and compute")
    _adapters.pop(adapter.name, None)
    _adapters[adapter.name] = adapter


def find_adapter(module: nn.Module) -> LayerAdapter | None:
    """The adapter for a module; None: it stays digital."""
    return next((adapter for adapter in reversed(_adapters.values()) if adapter.matches(module)), None)


def adapter_of(module: nn.Module) -> LayerAdapter:
    """The adapter for a module.

    Raises:
        InputError: for a module of a kind that no adapter takes.
    """
    adapter = find_adapter(module)
    if adapter is None:
        raise InputError(f"a {type(module).__name__} cannot become analog: give {' or '.join(_adapters)}")
    return adapter


def is_convertible(module: nn.Module) -> bool:
    """Whether a module is of a kind that can become analog."""
    return find_adapter(module) is not None


def why_digital(module: nn.Module) -> str:
    """Why a module that no adapter takes stays digital, for the report of `crossbar.convert`."""
    for adapter in _adapters.values():
        reason: str = getattr(adapter, "why_not", _no_reason)(module)
        if reason:
            return reason
    kind = type(module)
    if is_of_attention(module):
        return "nn.MultiheadAttention reads the weight without calling the layer"
    if isinstance(module, nn.Linear):
        return "its class computes otherwise than nn.Linear: register an adapter"
    if kind.__name__.endswith(("Router", "Gate", "Gating")):
        return f"a router of experts, digital unless registered: crossbar.adapters.OwnForward({kind.__name__})"
    if isinstance(module, nn.Embedding) or kind.__name__.endswith(("Embedding", "Embeddings")):
        return "a look-up, no matrix product"
    if any(sum(size > 1 for size in parameter.shape) > 1 for parameter in module.parameters(recurse=False)):
        return "it has a matrix and no adapter takes it: register one if inputs are multiplied with it"
    return "no matrix product"


def _no_reason(module: nn.Module) -> str:
    return ""


def is_rows(adapter: LayerAdapter) -> bool:
    """Whether its layers are one product with the last dimension of their inputs, and nothing else."""
    return getattr(type(adapter), "compute", None) is Rows.compute


def digital_parts(module: nn.Module) -> dict[str, Part]:
    """The matrices of a layer that can become analog, by name.

    Raises:
        InputError: for another kind of module.
    """
    return adapter_of(module).parts(module)


def digital_products(parts: Mapping[str, Part]) -> dict[str, Any]:
    """The products of matrices in digital, by name."""
    return {name: partial(_product, part) for name, part in parts.items()}


def _product(part: Part, x: Any) -> Any:
    return F.linear(x, part.matrix, part.bias)
