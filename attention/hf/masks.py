"""Masks that transformers models bring themselves: padding, sliding windows, and whatever else their code asks for."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from attention.patterns.base import Pattern
from attention.patterns.windows import LocalWindow
from crossbar.errors import InputError

_SHUT = -1e4
"""Additive masks shut a pair by this much or more: e^−10000 is 0 in float64, and −100 (Swin's) is not."""

_SLIDING = ("sliding_attention", "hybrid_sliding", "reference_sliding_attention")
"""Names of transformers for layers that have a sliding window."""


class Rule(NamedTuple):
    """A mask in a few words, so that no matrix of all pairs is needed.

    Attributes:
        causal: whether a query attends no later key.
        window: the last keys that it attends, its own among them; None: all.
        padding: bool [B, N_keys], True for a real key; None: all are.
        first: position of the first key, behind those that a cache has dropped.
        query: position of the first query.
    """

    causal: bool
    window: int | None
    padding: Tensor | None
    first: int
    query: int


class ModelMask(torch.Tensor):
    """The mask that a model asked for, bool [B, 1, N_queries, N_keys], made only if its code computes with it.

    Attributes:
        rule: the mask in a few words; None where the model's rule is none of those.
        make: gives the mask.
    """

    rule: Rule | None
    make: Callable[[], Tensor]

    @staticmethod
    def of(rule: Rule | None, make: Callable[[], Tensor], shape: tuple[int, ...], device: Any) -> ModelMask:
        """A mask that holds no numbers."""
        empty = torch.empty((), dtype=torch.bool, device=device).expand(shape)
        mask: ModelMask = torch.Tensor._make_subclass(ModelMask, empty)
        mask.rule, mask.make = rule, make
        return mask

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let shape, dtype and device through, and compute all else with the mask itself."""

        def made(x: Any) -> Any:
            if isinstance(x, ModelMask):
                return x.make()
            return type(x)(made(part) for part in x) if type(x) in (list, tuple) else x

        with torch._C.DisableTorchFunctionSubclass():
            if func.__name__ == "__get__":
                return func(*args, **(kwargs or {}))
            return func(*made(tuple(args)), **{name: made(x) for name, x in (kwargs or {}).items()})


def model_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor:
    """What an attached model gets as its mask: `ModelMask`. Arguments are those of AttentionMaskInterface.

    Raises:
        InputError: for a cache whose tokens do not stand in order behind each other.
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

    mask_function = causal_mask_function if mask_function is None else mask_function
    q_offset, kv_offset = int(q_offset), int(kv_offset)
    known, causal, window = mask_function is bidirectional_mask_function, False, None
    if not known:
        window = window_of(mask_function)
        known = causal = mask_function is causal_mask_function or window is not None
    if causal and q_offset + q_length != kv_offset + kv_length:
        raise InputError(
            f"a cache of {kv_length} keys with {q_offset} tokens before {q_length} queries does not grow token by "
            "token: use transformers' DynamicCache"
        )
    padding = None
    if attention_mask is not None:
        if attention_mask.dim() != 2 or len(attention_mask) != batch_size or attention_mask.shape[1] < kv_length:
            raise InputError(
                f"padding mask {list(attention_mask.shape)} does not fit: give [{batch_size}, {kv_offset + kv_length}]"
            )
        padding = attention_mask.bool()[:, kv_offset : kv_offset + kv_length]
        padding = None if bool(padding.all()) else padding
    rule = Rule(causal, window, padding, kv_offset, q_offset) if known else None
    kwargs |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}

    def make() -> Tensor:
        mask: Tensor = sdpa_mask(
            batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, attention_mask, **kwargs
        )
        return mask

    return ModelMask.of(rule, make, (batch_size, 1, q_length, kv_length), kwargs.get("device"))


def window_of(mask_function: Callable[..., Any]) -> int | None:
    """The width of transformers' own causal sliding window; None for a rule that is anything else or more."""
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
        return None
    overlay = parts(rules[0], sliding_window_overlay(1))
    return int(overlay["sliding_window"]) if overlay else None


class Split(NamedTuple):
    """A mask of numbers or bools as what it is made of.

    Attributes:
        padding: bool [B, N_keys], True for a real key, where that is all that the mask shuts; None: nothing is padding.
        pairs: bool [B or 1, H or 1, N_queries, N_keys], which it leaves open, where it differs from query to query.
        bias: what it adds to scores of open pairs, [B or 1, H or 1, N_queries, N_keys]; None: nothing.
    """

    padding: Tensor | None
    pairs: Tensor | None
    bias: Tensor | None


def split(mask: Tensor, batch: int, queries: int, keys: int) -> Split:
    """A mask as code of models makes it: bool, True for an open pair, or numbers that are added to scores.

    Args:
        mask: [B or 1, H or 1, N_queries or 1, N_keys].
        batch, queries, keys: B, N_queries and N_keys.
    """
    opened, bias = mask, None
    if mask.is_floating_point():
        opened = mask.detach() > _SHUT
        if mask.requires_grad or bool((mask * opened != 0).any()):
            bias = mask.masked_fill(~opened, 0.0).expand(*mask.shape[:2], queries, keys)
    elif mask.dtype != torch.bool:
        opened = mask != 0
    if bool(opened.all()):
        return Split(None, None, bias)
    if opened.shape[1:3] == (1, 1):
        return Split(opened[:, 0, 0].expand(batch, keys), None, bias)
    same = bool((opened == opened[:, :1, :1]).all())
    if same:
        return Split(opened[:, 0, 0].expand(batch, keys), None, bias)
    return Split(None, opened.expand(*opened.shape[:2], queries, keys), bias)


def within(pattern: Pattern, window: int | None) -> Pattern:
    """A causal pattern's pairs within a layer's own window: the last ``window`` keys, the query's own among them."""
    return pattern if window is None else (pattern & LocalWindow(window)).causal()


def own_window(module: nn.Module) -> int | None:
    """The sliding window that an attention layer has by its configuration; None: it has none."""
    own = vars(module)
    config, index = own.get("config"), own.get("layer_idx")
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list | tuple) and isinstance(index, int) and index < len(kinds):
        if kinds[index] not in _SLIDING:
            return None
    elif own.get("is_sliding") is False or not getattr(config, "use_sliding_window", True):
        return None
    window = own["sliding_window"] if "sliding_window" in own else getattr(config, "sliding_window", None)
    return window if isinstance(window, int) else None
