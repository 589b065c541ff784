"""The kinds of digital layers that can become analog: how to find their matrix, their vectors and their outputs."""

from __future__ import annotations

import sys
from typing import Protocol

from torch import Tensor, nn

from crossbar.errors import InputError


class LayerAdapter(Protocol):
    """What `crossbar.convert` and a layer on tiles need to know of one kind of digital layer.

    Attributes:
        name: of the kind of layer, for messages.
    """

    name: str

    def matches(self, module: nn.Module) -> bool:
        """Whether a module is of this kind."""
        ...

    def weight(self, module: nn.Module) -> Tensor:
        """Its weights as a matrix ``[O, I]``, a view of its parameter, with gradient."""
        ...

    def bias(self, module: nn.Module) -> Tensor | None:
        """What is added to its outputs, ``[O]``; None: nothing."""
        ...

    def vectors(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """The input vectors of its inputs, ``[B, I]``; None: the inputs do not fit it."""
        ...

    def expects(self, module: nn.Module) -> str:
        """The shape of inputs that fit it, for messages."""
        ...

    def outputs(self, module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        """Its outputs for inputs ``x``, of output vectors ``[B, O]``."""
        ...


class _Rows:
    """Layers whose vectors are the last dimension of their inputs."""

    def weight(self, module: nn.Module) -> Tensor:
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight

    def bias(self, module: nn.Module) -> Tensor | None:
        bias = module.bias
        return bias if isinstance(bias, Tensor) else None

    def vectors(self, module: nn.Module, x: Tensor) -> Tensor | None:
        return rows(x, self.weight(module).shape[1])

    def expects(self, module: nn.Module) -> str:
        return f"[..., {self.weight(module).shape[1]}]"

    def outputs(self, module: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        return y.view(*x.shape[:-1], y.shape[1])


class Linear(_Rows):
    """``nn.Linear``."""

    name = "nn.Linear"

    def matches(self, module: nn.Module) -> bool:
        """Whether it is one, or of a class made from it."""
        return isinstance(module, nn.Linear)


class Conv1D(_Rows):
    """``Conv1D`` of transformers (GPT-2), which stores its weights as ``[I, O]``."""

    name = "a transformers Conv1D"

    def matches(self, module: nn.Module) -> bool:
        """Whether it is one."""
        # A Conv1D exists only once transformers is loaded; crossbar itself never loads it.
        transformers = sys.modules.get("transformers.pytorch_utils")
        return transformers is not None and isinstance(module, transformers.Conv1D)

    def weight(self, module: nn.Module) -> Tensor:
        """Its weights, transposed."""
        return super().weight(module).t()


_adapters: list[LayerAdapter] = [Conv1D(), Linear()]


def register_adapter(adapter: LayerAdapter) -> None:
    """Let `crossbar.convert` take another kind of layer; the adapter is asked before those that are there."""
    _adapters.insert(0, adapter)


def find_adapter(module: nn.Module) -> LayerAdapter | None:
    """The adapter for a module; None: it stays digital."""
    return next((adapter for adapter in _adapters if adapter.matches(module)), None)


def adapter_of(module: nn.Module) -> LayerAdapter:
    """The adapter for a module.

    Raises:
        InputError: for a module of a kind that no adapter takes.
    """
    adapter = find_adapter(module)
    if adapter is None:
        kinds = " or ".join(known.name for known in reversed(_adapters))
        raise InputError(f"a {type(module).__name__} cannot become analog: give an {kinds}")
    return adapter


def is_convertible(module: nn.Module) -> bool:
    """Whether a module is of a kind that can become analog."""
    return find_adapter(module) is not None


def digital_weight(module: nn.Module) -> Tensor:
    """The weights ``[O, I]`` of a layer that can become analog, with gradient.

    Raises:
        InputError: for another kind of module.
    """
    return adapter_of(module).weight(module)


def rows(x: Tensor, size: int) -> Tensor | None:
    """Vectors ``[B, size]`` along the last dimension of inputs; None: it has another size."""
    return x.reshape(-1, size) if x.dim() and x.shape[-1] == size else None
