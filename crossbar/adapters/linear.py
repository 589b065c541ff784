"""Linear layers, whose vectors are the last dimension of their inputs."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from crossbar.adapters.protocol import Part, Product

WEIGHT = "weight"
"""The name of the matrix of a layer that has a single one."""


class Rows:
    """Layers that are one product with the last dimension of their inputs."""

    def parts(self, module: nn.Module) -> dict[str, Part]:
        """Its weight and bias."""
        bias = module.bias
        return {WEIGHT: Part(self.weight(module), bias if isinstance(bias, Tensor) else None)}

    def weight(self, module: nn.Module) -> Tensor:
        """``[O, I]``."""
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight

    def compute(self, module: nn.Module, products: Mapping[str, Product], x: Tensor) -> Tensor:
        """``[..., I]`` to ``[..., O]``."""
        return products[WEIGHT](x)


class Linear(Rows):
    """``nn.Linear``."""

    name = "an nn.Linear"

    def matches(self, module: nn.Module) -> bool:
        """Whether it is one, or of a class made from it that computes what it computes."""
        if not isinstance(module, nn.Linear) or "forward" in vars(module) or is_of_attention(module):
            return False
        own, falcon = type(module).forward, sys.modules.get("transformers.models.falcon.modeling_falcon")
        # Falcon's class computes the same in two operations; those of routers and experts do not.
        return own is nn.Linear.forward or (falcon is not None and own is falcon.FalconLinear.forward)


def is_of_attention(module: nn.Module) -> bool:
    """Whether it is the output projection of ``nn.MultiheadAttention``, which reads its weight without calling it."""
    return isinstance(module, NonDynamicallyQuantizableLinear)


class Conv1D(Rows):
    """``Conv1D`` of transformers (GPT-2), which stores its weights as ``[I, O]``."""

    name = "a transformers Conv1D"

    def matches(self, module: nn.Module) -> bool:
        """Whether it is one, or of a class made from it that computes what it computes."""
        # A Conv1D exists only once transformers is loaded; crossbar itself never loads it.
        transformers = sys.modules.get("transformers.pytorch_utils")
        if transformers is None or not isinstance(module, transformers.Conv1D) or "forward" in vars(module):
            return False
        return type(module).forward is transformers.Conv1D.forward

    def weight(self, module: nn.Module) -> Tensor:
        """Its weights, transposed."""
        return super().weight(module).t()
