"""Masks that transformers models bring themselves: padding, and sliding windows on all their layers or on some."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from attention.patterns.base import Pattern
from attention.patterns.windows import LocalWindow
from crossbar.errors import InputError


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


def padding_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """Padding alone, ``[B, 1, 1, N_k]``, since the pattern brings causality; None where nothing is padded."""
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

    plain = mask_function in (None, causal_mask_function, bidirectional_mask_function)
    if mask_function is not None and not plain and not masks_only_a_window(mask_function):
        raise InputError(
            "the model masks attention by a rule of its own (chunks, packed documents or a window on both sides), "
            "which a pattern would override: run it without a pattern"
        )
    if int(kv_offset) != 0 or (kv_length != q_length and int(q_offset) + q_length != kv_length):
        raise InputError(
            f"a cache of {kv_length} keys with {int(q_offset)} tokens before {q_length} queries does not grow token by "
            "token: use transformers' DynamicCache, without a config where the model has sliding windows"
        )
    if attention_mask is None or bool(attention_mask.all()):
        return None
    if attention_mask.shape != (batch_size, kv_length):
        raise InputError(f"padding mask {list(attention_mask.shape)} does not fit: give [{batch_size}, {kv_length}]")
    return attention_mask[:, None, None, :]


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
