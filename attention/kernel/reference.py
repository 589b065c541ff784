"""Attention as its definition says it, slow and in float64: what every fast path is tested against."""

from __future__ import annotations

import torch
from torch import Tensor


def attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    allowed: Tensor,
    scale: float,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention over the allowed pairs, with the whole score matrix in float64.

    Args:
        q: queries [B, H, N_queries, D].
        k: keys [B, H_kv, N_keys, D]; H is a multiple of H_kv and consecutive query heads share a key head.
        v: values [B, H_kv, N_keys, D_v].
        allowed: bool, broadcast to [B, H, N_queries, N_keys]; True where the query attends the key.
        scale: factor on the scores before the softmax, 1/√D in Vaswani 2017.
        bias: added to the scores, broadcast to [B, H, N_queries, N_keys].
        softcap: c; scores s become c tanh(s / c) before the bias is added (Gemma 2).
        sinks: [H], a score of each head that takes part in the softmax and has no value (gpt-oss).

    Returns:
        Output [B, H, N_queries, D_v] and log-sum-exp of the allowed scores [B, H, N_queries], sinks left out, both
        float64. A query with no allowed key gives output 0 and log-sum-exp −∞.
    """
    group = q.shape[1] // k.shape[1]
    q, k, v = (x.double() for x in (q, k, v))
    k, v = (x.repeat_interleave(group, dim=1) for x in (k, v))
    scores = scale * q @ k.transpose(-1, -2)
    scores = scores if softcap is None else softcap * torch.tanh(scores / softcap)
    scores = (scores if bias is None else scores + bias.double()).masked_fill(~allowed, -torch.inf)
    empty = ~allowed.any(-1, keepdim=True)
    # An empty row has no softmax: give it scores of 0 and take its weights away again, which keeps gradients finite.
    if sinks is None:
        weights = scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0)
    else:
        extra = sinks.double()[None, :, None, None].expand(*scores.shape[:3], 1)
        weights = torch.cat([scores, extra], -1).softmax(-1)[..., :-1]
    lse = scores.masked_fill(empty, 0.0).logsumexp(-1).masked_fill(empty[..., 0].expand(scores.shape[:-1]), -torch.inf)
    return weights @ v, lse
