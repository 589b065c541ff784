"""Attention through averages as its definition says it, slow and in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def hierarchical_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    block: int,
    levels: int,
    causal: bool,
    scale: float,
    mask: Tensor | None = None,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    """H-Transformer-1D (`attention.Hierarchical`), one query and one coarse token after another.

    Args:
        q: queries [B, H, N_queries, D]; not causal, those of the keys' tokens.
        k: keys [B, H_kv, N_keys, D]; H is a multiple of H_kv.
        v: values, shaped like k.
        block: coarse tokens of a block.
        levels: how many.
        causal: whether only the past is attended, by fine queries at all levels.
        scale: factor on the scores.
        mask: padding, bool [B, N_keys], True for a real key.
        offset: position of the first query.

    Returns:
        Output [B, H, N_queries, D] and log-sum-exp [B, H, N_queries], both float64; 0 and −∞ where nothing is attended.
    """
    group, n_keys = q.shape[1] // k.shape[1], k.shape[2]
    q, k, v = (x.double() for x in (q, k, v))
    outputs, sums = [], []
    for b in range(q.shape[0]):
        real = [True] * n_keys if mask is None else [bool(x) for x in mask[b]]
        for h in range(q.shape[1]):
            queries, keys, values = q[b, h], k[b, h // group], v[b, h // group]
            for i in range(q.shape[2]):
                scores, means = [], []
                for level in range(levels):
                    size = 2**level
                    query = queries[i]
                    if not causal and level:
                        own = [t for t in range(i // size * size, min(i // size * size + size, n_keys)) if real[t]]
                        query = queries[own].mean(0) if own else torch.zeros_like(query)
                    for coarse in range(math.ceil(n_keys / size)):
                        tokens = [t for t in range(coarse * size, min(coarse * size + size, n_keys)) if real[t]]
                        last = level == levels - 1
                        if tokens and _attends(offset + i, coarse, level, block, causal, last):
                            scores.append(scale * query @ keys[tokens].mean(0) + math.log(len(tokens)))
                            means.append(values[tokens].mean(0))
                if scores:
                    all_scores = torch.stack(scores)
                    outputs.append(all_scores.softmax(0) @ torch.stack(means))
                    sums.append(all_scores.logsumexp(0))
                else:
                    outputs.append(torch.zeros_like(queries[i]))
                    sums.append(queries.new_tensor(-math.inf))
    return torch.stack(outputs).view(q.shape), torch.stack(sums).view(q.shape[:3])


def _attends(query: int, coarse: int, level: int, block: int, causal: bool, last: bool) -> bool:
    """Whether the token at ``query`` attends a coarse token of a level."""
    size = 2**level
    if causal and coarse * size > query:
        return False
    if level and abs(query // (block * size // 2) - coarse * size // (block * size // 2)) <= 1:
        return False  # the level before had it
    return last or abs(query // (block * size) - coarse // block) <= 1
