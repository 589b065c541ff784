"""Weights under the names that a digital model has, for layers that keep their digital layer inside."""

from __future__ import annotations

from typing import Any

from torch import nn

DIGITAL = "digital"
"""Attribute of analog layers with the digital one."""


def as_inside(digital: nn.Module | None, state: dict[str, Any], prefix: str) -> None:
    """Give tensors of a digital layer the names that they have inside an analog one, in place.

    Args:
        digital: the layer inside; None: there is none.
        state: tensors by name, as ``load_state_dict`` hands them down.
        prefix: of the analog layer's own names in it.
    """
    if digital is not None:
        for name in digital.state_dict():
            if prefix + name in state:
                state[f"{prefix}{DIGITAL}.{name}"] = state.pop(prefix + name)
