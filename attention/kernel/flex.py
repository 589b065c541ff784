"""Sparse attention by torch's FlexAttention: inference in one fused kernel, where torch has one."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from attention.patterns.base import MaskMod, Pattern
from crossbar.errors import InputError


def attend_flex(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    scale: float,
    padding: Tensor | None = None,
    offset: int = 0,
    return_lse: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Output [B, H, N_queries, D] and, if asked for, log-sum-exp [B, H, N_queries]; arguments as `gated_attention`.

    The kernel is compiled once for each pattern and shape, which takes tens of seconds on a CPU.

    Raises:
        InputError: where torch has no such kernel: float64, and on a CPU training and log-sum-exp.
    """
    if q.dtype == torch.float64:
        raise InputError("impl 'flex' cannot have float64, which FlexAttention does not compile: give impl='blocks'")
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if trained and q.device.type == "cpu":
        raise InputError("impl 'flex' cannot train on a CPU, where FlexAttention has no backward: give impl='blocks'")
    if return_lse and q.device.type == "cpu":
        raise InputError("impl 'flex' has no log-sum-exp on a CPU: give impl='blocks'")
    if q.device.type == "cpu":  # from torch 2.11 it refuses inputs that require a gradient even where none is taken
        q, k, v = q.detach(), k.detach(), v.detach()
    from torch.nn.attention.flex_attention import create_block_mask

    mask_mod = _placed(pattern.mask_mod, padding, offset)
    batch = None if padding is None and pattern.n_sequences is None else q.shape[0]
    heads = None if pattern.n_heads is None else q.shape[1]
    block_mask = create_block_mask(mask_mod, batch, heads, q.shape[2], k.shape[2], device=str(q.device))
    grouped = q.shape[1] != k.shape[1]
    attend = _compiled()
    if not return_lse:
        return attend(q, k, v, block_mask=block_mask, scale=scale, enable_gqa=grouped), None
    output, lse = attend(q, k, v, block_mask=block_mask, scale=scale, enable_gqa=grouped, return_lse=True)
    return output, lse.float()


def _placed(mask_mod: MaskMod, padding: Tensor | None, offset: int) -> MaskMod:
    """A mask over rows of the query tensor, which start at position ``offset``, and without padding keys."""

    def placed(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        pairs = mask_mod(b, h, q_idx + offset, kv_idx)
        return pairs if padding is None else pairs & padding[b, kv_idx]

    return placed


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False)
    return compiled
