"""Gated attention inside transformers models: the only module here that imports transformers.

A model is attached through transformers' AttentionInterface. What to gate lives on the model's own modules, so two
attached models never meet, and copies of a model stay attached.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from attention.counts import book_attention, count
from attention.gated import gated_attention
from attention.patterns.base import Pattern
from attention.patterns.text import parse
from crossbar.errors import InputError
from crossbar.ledger import counting

_INTERFACE = "ohmformer"
_GATE = "_ohmformer_gate"


@dataclass(frozen=True)
class Gate:
    """What one module of an attached model needs to know.

    Attributes:
        pattern: who attends to whom.
        name: the module's path in the model, for the ledger.
        previous: the attention implementation that `detach` puts back.
    """

    pattern: Pattern
    name: str
    previous: str


def attach(model: nn.Module, pattern: Pattern | str) -> None:
    """Gate every attention of a transformers model by ``pattern``, in place; keys and values stay digital.

    A causal model gets the pattern's causal form. Padding is honoured. While a `crossbar.Ledger` is open, each
    attention books the events that open the rows of attended pairs in K and V tiles of 256 x 256 (one token a row).

    Args:
        model: a transformers model whose attention goes through AttentionInterface; attaching again replaces the
            pattern.
        pattern: a pattern or its text form.

    Raises:
        InputError: for a model of another kind.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

    pattern = parse(pattern) if isinstance(pattern, str) else pattern
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"{type(model).__name__} is not a transformers model: attach takes a PreTrainedModel")
    if model.config.is_encoder_decoder and any(vars(module).get("is_decoder") for module in model.modules()):
        raise InputError(f"{type(model).__name__} has cross-attention, which no pattern fits: attach its encoder alone")
    gate = _gate(model)
    previous = gate.previous if gate else model.config._attn_implementation
    if gate is None:
        _own_config(model)
    AttentionInterface.register(_INTERFACE, _attend)
    AttentionMaskInterface.register(_INTERFACE, _padding_mask)
    if model._can_set_attn_implementation():
        model.set_attn_implementation(_INTERFACE)
    if model.config._attn_implementation != _INTERFACE:
        raise InputError(
            f"{type(model).__name__} computes attention in code of its own, not through transformers' "
            "AttentionInterface: run it without a pattern"
        )
    for name, module in model.named_modules():
        module.__dict__[_GATE] = Gate(pattern, name, previous)


def detach(model: nn.Module) -> None:
    """Give an attached model its own attention back, in place; does nothing to a model that is not attached."""
    gate = _gate(model)
    if gate is None:
        return
    cast(Any, model).set_attn_implementation(gate.previous)
    for module in model.modules():
        module.__dict__.pop(_GATE, None)


def attached_pattern(model: nn.Module) -> Pattern | None:
    """The pattern that gates a model, None if it is not attached."""
    gate = _gate(model)
    return gate.pattern if gate else None


def _own_config(model: nn.Module) -> None:
    """Give a model its own configuration, since the attention implementation is part of it and it may be shared."""
    copies: dict[int, Any] = {}
    copy.deepcopy(cast(Any, model).config, copies)
    for module in model.modules():
        config = vars(module).get("config")
        if id(config) in copies:
            cast(Any, module).config = copies[id(config)]


def _gate(module: nn.Module) -> Gate | None:
    return cast("Gate | None", module.__dict__.get(_GATE))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """One attention as AttentionInterface calls it: q ``[B, H, N_q, D]``, k and v ``[B, H_kv, N_k, D]``."""
    gate = _gate(module)
    if gate is None:
        raise InputError(f"{type(module).__name__} has no pattern: call attention.attach on the whole model")
    for option in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(option) is not None:
            raise InputError(
                f"{gate.name} changes its scores by {option!r}, which gated attention has not: detach the model"
            )
    if attention_mask is not None and attention_mask.shape[1:3] != (1, 1):
        raise InputError(f"{gate.name} got a mask of shape {list(attention_mask.shape)}: give padding as [batch, keys]")
    padding = None if attention_mask is None else attention_mask[:, 0, 0].bool()
    if padding is not None and not gate.pattern.shift_invariant and not bool(padding[:, 0].all()):
        raise InputError(f"{gate.name} got padding on the left, where sinks and global tokens stand: pad on the right")
    causal = bool(vars(module).get("is_causal", False)) if is_causal is None else is_causal
    n_queries, n_keys = query.shape[2], key.shape[2]
    pattern, offset = gate.pattern, 0
    if causal:
        pattern, offset = pattern.causal(), n_keys - n_queries
    if counting():
        chosen = pattern.at(n_keys).select(query, key, mask=padding, offset=offset)
        _book(gate.name, chosen, query, key, padding, offset)
    # Drawn as torch's own dropout draws, so that torch.manual_seed repeats a training run.
    seed = int(torch.randint(2**31, ())) if dropout else 0
    output = gated_attention(
        query, key, value, pattern, scale=scaling, mask=padding, dropout=dropout, offset=offset, seed=seed
    )
    return output.transpose(1, 2).contiguous(), None


def _padding_mask(
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

    if mask_function not in (None, causal_mask_function, bidirectional_mask_function):
        raise InputError(
            "the model masks attention by a rule of its own (sliding window, chunks or packed documents), which a "
            "pattern would override: run it without a pattern"
        )
    if int(kv_offset) != 0 or (kv_length != q_length and int(q_offset) + q_length != kv_length):
        raise InputError(
            f"a cache of {kv_length} keys with {int(q_offset)} tokens before {q_length} queries does not grow token by "
            "token: use transformers' DynamicCache"
        )
    if attention_mask is None or bool(attention_mask.all()):
        return None
    if attention_mask.shape != (batch_size, kv_length):
        raise InputError(f"padding mask {list(attention_mask.shape)} does not fit: give [{batch_size}, {kv_length}]")
    return attention_mask[:, None, None, :]


def _book(name: str, pattern: Pattern, query: Tensor, key: Tensor, padding: Tensor | None, offset: int) -> None:
    """Book the events that the attended pairs of each sequence make; padding has no place in memory."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    lengths = [n_keys] * query.shape[0] if padding is None else padding.sum(1).tolist()
    alike = Counter((pattern.sequence(index), length) for index, length in enumerate(lengths))
    for (own, length), sequences in alike.items():
        first = max(0, length - n_queries) if offset else 0
        opened = sequences * count(own, length, first=first, head_dim=query.shape[3], heads=query.shape[1])
        queries = sequences * query.shape[1] * (length - first)
        book_attention(name, opened, head_dim=query.shape[3], queries=queries)
