"""``nn.MultiheadAttention``, which multiplies with the weights of its projections instead of calling layers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from crossbar.adapters.protocol import Part, Product

_INPUTS = ("query", "key", "value")
OUT = "out"
"""The name of the matrix of the output projection."""


class MultiheadAttention:
    """``nn.MultiheadAttention``: a matrix for queries, one for keys, one for values and one for outputs.

    Scores, softmax and the sum of values are digital. The fused matrix of inputs is three parts, each with scales and
    converter ranges of its own.
    """

    name = "an nn.MultiheadAttention"

    def matches(self, module: nn.Module) -> bool:
        """Whether it is one, or of a class made from it that keeps its ``forward``."""
        if not isinstance(module, nn.MultiheadAttention) or "forward" in vars(module):
            return False
        return type(module).forward is nn.MultiheadAttention.forward

    def parts(self, module: nn.Module) -> dict[str, Part]:
        """Of queries, keys, values and outputs."""
        own = cast(nn.MultiheadAttention, module)
        if own._qkv_same_embed_dim:
            weights = own.in_proj_weight.chunk(3)
        else:
            weights = (own.q_proj_weight, own.k_proj_weight, own.v_proj_weight)
        biases = (None,) * 3 if own.in_proj_bias is None else own.in_proj_bias.chunk(3)
        found = {name: Part(w, b) for name, w, b in zip(_INPUTS, weights, biases, strict=True)}
        return {**found, OUT: Part(own.out_proj.weight, own.out_proj.bias)}

    def compute(
        self,
        module: nn.Module,
        products: Mapping[str, Product],
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch's: outputs and, if asked for, attention weights. ``is_causal`` is a hint; the mask says it too."""
        own = cast(nn.MultiheadAttention, module)
        if query.dim() == 2:
            padding = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
            place = 0 if own.batch_first else 1
            y, weights = self.compute(
                module, products, query.unsqueeze(place), key.unsqueeze(place), value.unsqueeze(place), padding,
                need_weights, attn_mask, average_attn_weights, is_causal,
            )  # fmt: skip
            return y.squeeze(place), None if weights is None else weights.squeeze(0)
        if not own.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = (products[name](x) for name, x in zip(_INPUTS, (query, key, value), strict=True))
        values, weights = attend(
            q, k, v, own.num_heads, bias_k=own.bias_k, bias_v=own.bias_v, add_zero=own.add_zero_attn,
            dropout=own.dropout if own.training else 0.0, attn_mask=attn_mask, key_padding_mask=key_padding_mask,
            need_weights=need_weights, average=average_attn_weights,
        )  # fmt: skip
        y = products[OUT](values)
        return y if own.batch_first else y.transpose(0, 1), weights

    def shapes(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[list[int], list[int] | None] | None:
        """See `crossbar.adapters.Shaped`; None where attention weights are dropped out."""
        own = cast(nn.MultiheadAttention, module)
        if own.training and own.dropout:
            return None
        outputs = [*query.shape[:-1], own.embed_dim]
        if not need_weights:
            return outputs, None
        place = -2 if query.dim() == 2 or own.batch_first else 0
        length, seen = query.shape[place], key.shape[place] + (own.bias_k is not None) + own.add_zero_attn
        batch = [] if query.dim() == 2 else [query.shape[0 if own.batch_first else 1]]
        return outputs, [*batch, *([] if average_attn_weights else [own.num_heads]), length, seen]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    *,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero: bool,
    dropout: float,
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    need_weights: bool,
    average: bool,
) -> tuple[Tensor, Tensor | None]:
    """Torch's attention between its projections: values ``[N, L, E]``, and weights ``[N, L, S]`` if asked for.

    Args:
        q: ``[N, L, E]``.
        k: ``[N, S, E]``.
        v: ``[N, S, E]``.
        heads: H.
        bias_k, bias_v: one more key and value.
        add_zero: one more key and value of zeros.
        dropout: of attention weights.
        attn_mask: ``[L, S]`` or ``[N H, L, S]``, as torch's.
        key_padding_mask: ``[N, S]``, as torch's.
        need_weights: compute them, which keeps the scores.
        average: over the heads; otherwise they are ``[N, H, L, S]``.
    """
    batch, length, size = q.shape
    extra = 0
    if bias_k is not None and bias_v is not None:
        k = torch.cat([k, bias_k.expand(batch, 1, size)], 1)
        v = torch.cat([v, bias_v.expand(batch, 1, size)], 1)
        extra += 1
    if add_zero:
        k, v = (torch.cat([x, x.new_zeros(batch, 1, size)], 1) for x in (k, v))
        extra += 1
    mask = _mask(attn_mask, key_padding_mask, batch, heads, extra, q.dtype)
    q, k, v = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (q, k, v))  # [N, H, L, D]
    if not need_weights:
        attended = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        return attended.transpose(1, 2).reshape(batch, length, size), None
    scores = (q * math.sqrt(1 / q.shape[-1])) @ k.transpose(-1, -2)
    weights = (scores if mask is None else scores + mask).softmax(-1)
    weights = F.dropout(weights, dropout) if dropout else weights
    values = (weights @ v).transpose(1, 2).reshape(batch, length, size)
    return values, weights.mean(1) if average else weights


def _mask(
    attn_mask: Tensor | None, padding: Tensor | None, batch: int, heads: int, extra: int, dtype: torch.dtype
) -> Tensor | None:
    """What is added to scores ``[N, H, L, S + extra]``; True in a mask means that a key is left out."""
    found = None
    for mask, shape in ((attn_mask, None), (padding, (batch, 1, 1, -1))):
        if mask is None:
            continue
        if mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -math.inf)
        if shape is not None:
            mask = mask.view(shape)
        elif mask.dim() == 3:
            mask = mask.view(batch, heads, *mask.shape[1:])
        found = mask if found is None else found + mask
    return found if found is None or not extra else F.pad(found, (0, extra))
