"""Attention through averages (`attention.Hierarchical`): each level in blocks, levels merged by their log-sum-exp."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.kernel.blocks import exact_dtype, merge
from attention.patterns.hierarchical import Hierarchical
from crossbar.errors import InputError


def attend_hierarchical(
    q: Tensor, k: Tensor, v: Tensor, pattern: Hierarchical, scale: float, mask: Tensor | None, offset: int
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N_queries, D] and log-sum-exp [B, H, N_queries]; arguments as in `gated_attention`.

    Raises:
        InputError: for a bidirectional pattern where queries are not the tokens of the keys.
    """
    require_own_queries(pattern, q, k, offset)
    if pattern.block > (longest := max(k.shape[2], offset + q.shape[2])):
        pattern = replace(pattern, block=longest + longest % 2)  # one block all the same, without its empty places
    dtype, (n_queries, n_keys) = exact_dtype(q.dtype), (q.shape[2], k.shape[2])
    counts = k.new_ones(1, 1, n_keys, 1, dtype=dtype) if mask is None else mask[:, None, :, None].to(dtype)
    sums = _Sums(k.to(dtype) * counts, v.to(dtype) * counts, counts)
    rows = q.to(dtype).unflatten(1, (k.shape[1], -1)) * scale  # heads that share keys in a dimension of their own
    asked = rows
    query_sums, query_counts = rows * counts[:, :, None] if n_queries == n_keys else rows, counts
    output, lse = torch.zeros_like(rows), rows.new_full((*rows.shape[:4], 1), -torch.inf)
    for level in range(pattern.levels):
        if level and blocks_of(pattern, level - 1, max(n_keys, offset + n_queries)) <= 2:
            break  # the level before had neighbours only
        if level:
            sums = _Sums(*(_paired(x, 2) for x in sums))
        if level and not pattern.is_causal:
            query_sums, query_counts = _paired(query_sums, 3), _paired(query_counts, 2)
            asked = query_sums / query_counts.clamp(min=1)[:, :, None]
        found, more = _level(asked, sums, pattern, level, offset)
        if level and not pattern.is_causal:
            found, more = (x.repeat_interleave(2**level, 3)[:, :, :, :n_queries] for x in (found, more))
        output, lse = merge(output, lse, found, more)
    return output.flatten(1, 2).to(q.dtype), lse.flatten(1, 2)[..., 0]


def require_own_queries(pattern: Hierarchical, q: Tensor, k: Tensor, offset: int) -> None:
    """Refuse queries that are not the tokens of the keys where the pattern averages them."""
    if not pattern.is_causal and (offset or q.shape[2] != k.shape[2]):
        raise InputError(
            f"pattern {str(pattern)!r} averages queries: give all {k.shape[2]} queries at offset 0, or make it causal"
        )


def blocks_of(pattern: Hierarchical, level: int, n: int) -> int:
    """How many blocks a level has over ``n`` tokens."""
    return -(-n // (pattern.block << level))


class _Sums(NamedTuple):
    """Of each coarse token's tokens: sums of keys and values [B, H_kv, M, D], their numbers [B or 1, 1, M, 1]."""

    keys: Tensor
    values: Tensor
    counts: Tensor


def _level(asked: Tensor, sums: _Sums, pattern: Hierarchical, level: int, offset: int) -> tuple[Tensor, Tensor]:
    """One level's output and log-sum-exp for queries [B, H_kv, H / H_kv, Q, D], fine or (bidirectional) coarse."""
    block, n = pattern.block, asked.shape[3]
    fine = level if pattern.is_causal else 0  # how much finer than keys queries are, in powers of 2
    # Queries in chunks of a block's size that no key block's end divides.
    front = offset % block
    chunks = -(-(front + n) // block)
    rows = F.pad(asked, (0, 0, front, chunks * block - front - n)).unflatten(3, (chunks, block))
    position = torch.arange(chunks * block, device=asked.device).view(chunks, block) + (offset - front)
    share = sums.counts.clamp(min=1)
    tensors = [sums.keys / share, sums.values / share, sums.counts]
    n_coarse = sums.keys.shape[2]
    blocks = -(-n_coarse // block)
    key = torch.arange(blocks * block, device=asked.device)
    if level == pattern.levels - 1:
        tensors, key = [x[:, :, None] for x in tensors], key[None, :n_coarse]
    else:
        own = (position[:, :1] >> fine) // block  # [chunks, 1]
        near = [-1] + [0] * (level == 0) + [1] * (not pattern.is_causal)  # further levels have had their own block
        chosen = own + torch.tensor(near, device=asked.device)
        there = (chosen >= 0) & (chosen < blocks)
        chosen = chosen.clamp(0, blocks - 1)
        key = torch.where(there[:, :, None], key.view(blocks, block)[chosen], -1).flatten(1)
        gathered = (_blocks(x, blocks, block).index_select(2, chosen.flatten()) for x in tensors)
        tensors = [x.unflatten(2, chosen.shape).flatten(3, 4) for x in gathered]
    keys, values, counts = (x[:, :, None] for x in tensors)
    allowed = key[:, None, :] >= 0
    if level:  # beyond the neighbouring blocks of the level before
        half = (position << (1 - fine) if fine < 1 else position >> (fine - 1)) // block
        behind = half[:, :, None] - (2 * key // block)[:, None, :]
        allowed = allowed & ((behind > 1) if pattern.is_causal else (behind.abs() > 1))
    elif pattern.is_causal:
        allowed = allowed & (key[:, None, :] <= position[:, :, None])
    bias = counts.log().transpose(-1, -2).masked_fill(~allowed, -torch.inf)
    scores = rows @ keys.transpose(-1, -2) + bias
    # Any finite number may be subtracted; a row that attends nothing has largest score −∞.
    largest = scores.detach().amax(-1, keepdim=True)
    largest = largest.masked_fill(largest == -torch.inf, 0.0)
    weights = (scores - largest).exp()
    total = weights.sum(-1, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    lse = (largest + total.log()).masked_fill(empty, -torch.inf)
    output, lse = (x.flatten(3, 4)[:, :, :, front : front + n] for x in (weights @ values / total, lse))
    return output, lse


def _blocks(x: Tensor, blocks: int, block: int) -> Tensor:
    """[B, H, M, D] to [B, H, blocks, block, D], filled up with zeros."""
    filled: Tensor = F.pad(x, (0, 0, 0, blocks * block - x.shape[2])).unflatten(2, (blocks, block))
    return filled


def _paired(x: Tensor, dim: int) -> Tensor:
    """Sums of neighbours along the dimension before the last."""
    n = x.shape[dim]
    summed: Tensor = F.pad(x, (0, 0, 0, n % 2)).unflatten(dim, ((n + 1) // 2, 2)).sum(dim + 1)
    return summed
