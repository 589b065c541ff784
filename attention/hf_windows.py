"""Sliding windows that transformers models bring themselves, on all their layers or on some."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from attention.patterns.base import Pattern
from attention.patterns.windows import LocalWindow


def within(pattern: Pattern, window: int | None) -> Pattern:
    """A causal pattern's pairs within a layer's own window: the last ``window`` keys, the query's own among them."""
    return pattern if window is None else (pattern & LocalWindow(window)).causal()


def own_window(module: nn.Module) -> int | None:
    """The sliding window of an attention layer; None: it has none."""
    own = vars(module)
    if "sliding_window" in own:  # of each layer, where they differ
        window = own["sliding_window"]
    else:
        config = own.get("config")
        window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    return window if isinstance(window, int) else None


def masks_only_a_window(mask_function: Callable[..., Any]) -> bool:
    """Whether a rule is transformers' own causal sliding window, and nothing with it (packing, blocks, a user's)."""
    from transformers.masking_utils import (
        causal_mask_function,
        sliding_window_causal_mask_function,
        sliding_window_overlay,
    )

    def parts(rule: Any, like: Any) -> dict[str, Any] | None:
        """What a function closes over, if it has the code of another."""
        alike = inspect.isfunction(rule) and rule.__code__ is like.__code__
        return dict(inspect.getclosurevars(rule).nonlocals) if alike else None

    whole = parts(mask_function, sliding_window_causal_mask_function(1))
    rules = tuple(whole.get("mask_functions", ())) if whole else ()
    if len(rules) != 2 or rules[1] is not causal_mask_function:
        return False
    return parts(rules[0], sliding_window_overlay(1)) is not None
