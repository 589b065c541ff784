"""The digital layers that can become analog."""

from __future__ import annotations

import sys

from torch import Tensor, nn

from crossbar.errors import InputError


def is_linear(module: nn.Module) -> bool:
    """Whether a module is an ``nn.Linear`` or a transformers ``Conv1D``."""
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def digital_weight(linear: nn.Module) -> Tensor:
    """The weight ``[O, I]`` of a linear layer; transformers' ``Conv1D`` (GPT-2) stores its transpose.

    Raises:
        InputError: for another kind of module.
    """
    return raw_weight(linear).detach()


def raw_weight(linear: nn.Module) -> Tensor:
    """`digital_weight` with its gradient."""
    if not is_linear(linear):
        raise InputError(f"a {type(linear).__name__} cannot become analog: give an nn.Linear or a transformers Conv1D")
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight.t() if _is_conv1d(linear) else weight


def _is_conv1d(module: nn.Module) -> bool:
    # A Conv1D exists only once transformers is loaded; crossbar itself never loads it.
    transformers = sys.modules.get("transformers.pytorch_utils")
    return transformers is not None and isinstance(module, transformers.Conv1D)
