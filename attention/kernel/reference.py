"""Attention as its definition says it, slow and in float64: what every fast path is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_reference(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Softmax attention over the allowed pairs, with the whole score matrix in float64.

    Args:
        q: queries [B, H, N_queries, D].
        k: keys [B, H_kv, N_keys, D]; H is a multiple of H_kv and consecutive query heads share a key head.
        v: values, shaped like k.
        allowed: bool, broadcast to [B, H, N_queries, N_keys]; True where the query attends the key.
        scale: factor on the scores before the softmax, 1/√D in Vaswani 2017.

    Returns:
        Output [B, H, N_queries, D] and log-sum-exp of the allowed scores [B, H, N_queries], both float64. A query with
        no allowed key gives output 0 and log-sum-exp −∞.
    """
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = (scale * q @ k.transpose(-1, -2)).masked_fill(~allowed, -torch.inf)
    empty = ~allowed.any(-1, keepdim=True)
    # An empty row has no softmax: give it scores of 0 and take its weights away again, which keeps gradients finite.
    weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    lse = scores.masked_fill(empty, 0.0).logsumexp(-1).masked_fill(empty[..., 0].expand(scores.shape[:-1]), -torch.inf)
    return weights @ v, lse
