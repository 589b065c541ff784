"""Attention over a sparse pattern: the one function that models call."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from attention.blocks import Options, attend_blocks, exact_dtype
from attention.patterns import Pattern, require_integer
from attention.reference import attention_reference
from attention.schedule import schedule
from crossbar.errors import InputError

Impl = Literal["auto", "blocks", "reference"]
_IMPLS = ("auto", "blocks", "reference")
_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@overload
def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    offset: int = 0,
    seed: int = 0,
    return_lse: Literal[False] = False,
    impl: Impl = "auto",
) -> Tensor: ...
@overload
def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    offset: int = 0,
    seed: int = 0,
    return_lse: Literal[True],
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]: ...
def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    offset: int = 0,
    seed: int = 0,
    return_lse: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention over the pairs of ``pattern``, with work and memory that follow those pairs.

    Pairs outside the pattern get score −∞ before the softmax. A query that attends no real key gives exactly 0, and
    gradients of exactly 0.

    Args:
        q: queries [B, H, N_queries, D]; float32, float64, bfloat16 or float16.
        k: keys [B, H_kv, N_keys, D]; H is a multiple of H_kv, and H / H_kv consecutive query heads share a key head.
        v: values, shaped like k.
        pattern: who attends to whom.
        scale: factor on the scores; 1/√D unless given (Vaswani 2017).
        mask: padding, bool [B, N_keys], True for a real key.
        dropout: probability of dropping a weight after the softmax.
        offset: position of the first query; keys start at position 0.
        seed: key of the dropout draws: the same seed drops the same weights, so training varies it from step to step.
        return_lse: also return the log-sum-exp of each query's attended scores, −∞ where there are none.
        impl: ``"blocks"`` computes blocks of queries with the keys that they need; ``"reference"`` computes the whole
            matrix in float64, without dropout; ``"auto"`` is ``"blocks"``.

    Returns:
        Output [B, H, N_queries, D] in q's dtype, and with ``return_lse`` also [B, H, N_queries] (float32, or float64
        for float64 inputs).

    Raises:
        InputError: for shapes, dtypes, devices or options that do not fit together.
    """
    _validate(q, k, v, pattern, scale, mask, dropout, offset, seed, impl)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    n_queries, n_keys = q.shape[2], k.shape[2]
    if impl == "reference":
        position = torch.arange(offset, offset + n_queries, device=q.device)
        key = torch.arange(n_keys, device=q.device)
        allowed = pattern.allowed(*torch.broadcast_tensors(position[:, None], key[None, :]))[None, None]
        if mask is not None:
            allowed = allowed & mask[:, None, None, :]
        output, lse = attention_reference(q, k, v, allowed, scale)
        return (output.to(q.dtype), lse.to(exact_dtype(q.dtype))) if return_lse else output.to(q.dtype)
    blocks = schedule(pattern, n_queries, n_keys, offset, device=q.device)
    output, blocks_lse = attend_blocks(q, k, v, blocks, Options(scale, mask, dropout, seed, return_lse))
    return output if blocks_lse is None else (output, blocks_lse)


def _validate(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    scale: float | None,
    mask: Tensor | None,
    dropout: float,
    offset: int,
    seed: int,
    impl: str,
) -> None:
    if not isinstance(pattern, Pattern):
        raise InputError(f"pattern {pattern!r} is not a Pattern: make one, or parse a text with attention.parse")
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if not q.dim() == k.dim() == v.dim() == 4:
        raise InputError(f"attention cannot take {shapes}: give four dimensions [B, H, N, D] each")
    if k.shape != v.shape or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise InputError(f"attention cannot take {shapes}: give one B and D to all, and k and v the same shape")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise InputError(f"attention cannot take {shapes}: give q a whole multiple of the heads of k and v")
    if not (q.dtype == k.dtype == v.dtype and q.dtype in _DTYPES):
        raise InputError(
            f"attention cannot take q {q.dtype}, k {k.dtype}, v {v.dtype}: "
            f"give all one of {', '.join(str(d).removeprefix('torch.') for d in _DTYPES)}"
        )
    if not q.device == k.device == v.device:
        raise InputError(f"attention cannot take q on {q.device}, k on {k.device}, v on {v.device}: put all on one")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (k.shape[0], k.shape[2])):
        raise InputError(
            f"padding mask {mask.dtype} {list(mask.shape)} does not fit: "
            f"give bool [{k.shape[0]}, {k.shape[2]}] ([B, N_keys]), True for a real key"
        )
    if mask is not None and mask.device != q.device:
        raise InputError(f"padding mask is on {mask.device} and q on {q.device}: put both on one device")
    if scale is not None and not math.isfinite(scale):
        raise InputError(f"scale {scale!r} is not usable: give a finite factor, or None for 1/√D")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout {dropout!r} is not usable: give a probability from 0 up to, not including, 1")
    require_integer("attention", "offset", offset, least=0)
    require_integer("attention", "seed", seed, least=0)
    if impl not in _IMPLS:
        raise InputError(f"impl {impl!r} is not known: choose one of {', '.join(_IMPLS)}")
    if impl == "reference" and dropout:
        raise InputError(f"impl 'reference' cannot have dropout {dropout!r}: give dropout=0 or impl='blocks'")
