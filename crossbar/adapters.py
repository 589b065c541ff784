"""The kinds of digital layers that can become analog: how to find their matrix, their vectors and their outputs."""

from __future__ import annotations

import sys
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from crossbar.errors import InputError, shown


@runtime_checkable
class LayerAdapter(Protocol):
    """What `crossbar.convert` and a layer on tiles need to know of one kind of digital layer.

    Outputs are ``outputs(vectors(x) @ weight.T + bias)``; weights and bias are the layer's own parameters or views of
    them, so that gradients and `crossbar.clip_weights` reach these.

    Attributes:
        name: the kind of layer, with its article, for messages: ``"an nn.Linear"``.
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

    name = "an nn.Linear"

    def matches(self, module: nn.Module) -> bool:
        """Whether it is one, or of a class made from it that computes what it computes."""
        if not isinstance(module, nn.Linear):
            return False
        own, falcon = type(module).forward, sys.modules.get("transformers.models.falcon.modeling_falcon")
        # Falcon's class computes the same in two operations; those of routers and experts do not.
        return own is nn.Linear.forward or (falcon is not None and own is falcon.FalconLinear.forward)


class Conv1D(_Rows):
    """``Conv1D`` of transformers (GPT-2), which stores its weights as ``[I, O]``."""

    name = "a transformers Conv1D"

    def matches(self, module: nn.Module) -> bool:
        """Whether it is one, or of a class made from it that computes what it computes."""
        # A Conv1D exists only once transformers is loaded; crossbar itself never loads it.
        transformers = sys.modules.get("transformers.pytorch_utils")
        if transformers is None or not isinstance(module, transformers.Conv1D):
            return False
        return type(module).forward is transformers.Conv1D.forward

    def weight(self, module: nn.Module) -> Tensor:
        """Its weights, transposed."""
        return super().weight(module).t()


_adapters: dict[str, LayerAdapter] = {adapter.name: adapter for adapter in (Linear(), Conv1D())}


def register_adapter(adapter: LayerAdapter) -> None:
    """Let `crossbar.convert` take another kind of layer, or one that it takes by another adapter of the same name.

    Of several adapters that match a module, the one that was registered last takes it.

    Raises:
        InputError: for what lacks a part of `LayerAdapter`, and for a class in the place of an object.

    ```
    class Pointwise:
        name = "an nn.Conv1d of one tap"

        def matches(self, module):
            return isinstance(module, nn.Conv1d) and module.kernel_size == module.stride == (1,) and module.groups == 1

        def weight(self, module):
            return module.weight.flatten(1)

        def bias(self, module):
            return module.bias

        def vectors(self, module, x):  # [N, I, L]
            fits = x.dim() == 3 and x.shape[1] == module.in_channels
            return x.transpose(1, 2).flatten(0, 1) if fits else None

        def expects(self, module):
            return f"[N, {module.in_channels}, L]"

        def outputs(self, module, y, x):
            return y.view(len(x), x.shape[2], y.shape[1]).transpose(1, 2)


    register_adapter(Pointwise())
    convert(model, hardware)
    ```
    """
    if isinstance(adapter, type) or not isinstance(adapter, LayerAdapter):
        raise InputError(
            f"{shown(adapter)} is not an adapter: give an object with name, matches, weight, bias, vectors, expects "
            "and outputs"
        )
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


def digital_weight(module: nn.Module) -> Tensor:
    """The weights ``[O, I]`` of a layer that can become analog, with gradient.

    Raises:
        InputError: for another kind of module.
    """
    return adapter_of(module).weight(module)


def rows(x: Tensor, size: int) -> Tensor | None:
    """Vectors ``[B, size]`` along the last dimension of inputs; None: it has another size."""
    return x.reshape(-1, size) if x.dim() and x.shape[-1] == size else None
