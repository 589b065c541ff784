"""The fast path: attention block of queries by block of queries, forward and backward.

Peak memory is one block's scores, because the backward pass computes each block again instead of keeping it (Dao 2022).
Query heads that share a key head are laid side by side as more query rows, so keys and values are never repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention.schedule import Block


class Options(NamedTuple):
    """What `attend_blocks` does to every block; fields as the arguments of `gated_attention`."""

    scale: float
    mask: Tensor | None
    dropout: float
    seed: int
    return_lse: bool


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, blocks: tuple[Block, ...], options: Options
) -> tuple[Tensor, Tensor | None]:
    """Output [B, H, N_queries, D] and, if asked for, log-sum-exp [B, H, N_queries]; q, k, v as in `gated_attention`."""
    if len(blocks) == 1 and blocks[0].n_queries == q.shape[2]:
        # One block holds everything: autograd may keep what it likes, and nothing needs copying together.
        part = next(_steps(q, k, v, blocks, options))
        output, lse = _attend(part, options)
        heads = q.shape[1]
        return _unfold(output, heads), None if lse is None else _unfold(lse, heads)[..., 0]
    return _BlockAttention.apply(q, k, v, blocks, options)  # type: ignore[no-untyped-call, no-any-return]  # torch


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that scores and log-sum-exps of ``dtype`` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class _Part(NamedTuple):
    """One block's tensors: rows [B, H_kv, R, D], keys and values [B, H_kv, L, D], what is added to and kept of scores.

    ``bias`` is 0 or −∞, [B or 1, 1, R, L] (None: all attended); ``kept`` the dropout factors, [B, H_kv, R, L].
    """

    block: Block
    rows: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor | None
    kept: Tensor | None


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, blocks: tuple[Block, ...], options: Options
    ) -> tuple[Tensor, Tensor | None]:
        ctx.save_for_backward(q, k, v)
        ctx.blocks, ctx.options = blocks, options
        ctx.set_materialize_grads(False)
        batch, heads, n_queries, size = q.shape
        # Laid out [B, N, H, D], as models merge heads next. Queries of no block attend nothing and stay 0.
        covered = sum(block.n_queries for block in blocks) == n_queries
        output = (q.new_empty if covered else q.new_zeros)(batch, n_queries, heads, size).transpose(1, 2)
        lse = q.new_full(q.shape[:3], -torch.inf, dtype=exact_dtype(q.dtype)) if options.return_lse else None
        for part in _steps(q, k, v, blocks, options):
            out, out_lse = _attend(part, options)
            output[:, :, part.block.queries] = _unfold(out, heads)
            if lse is not None and out_lse is not None:
                lse[:, :, part.block.queries] = _unfold(out_lse, heads)[..., 0]
        return output, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor | None, grad_lse: Tensor | None = None) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        heads, kv_heads = q.shape[1], k.shape[1]
        grad_q = torch.zeros_like(q)
        # Many blocks add to one key, so low precision would lose their sum.
        grad_k, grad_v = (torch.zeros_like(x, dtype=exact_dtype(x.dtype)) for x in (k, v))
        for part in _steps(q, k, v, ctx.blocks, ctx.options):
            inputs = [x.detach().requires_grad_() for x in (part.rows, part.keys, part.values)]
            with torch.enable_grad():
                results = _attend(part._replace(rows=inputs[0], keys=inputs[1], values=inputs[2]), ctx.options)
            outputs, grads = [], []
            for result, grad in zip(
                results, (grad_output, None if grad_lse is None else grad_lse[..., None]), strict=True
            ):
                if result is not None and grad is not None:
                    outputs.append(result)
                    grads.append(_fold(grad[:, :, part.block.queries], kv_heads))
            rows, keys, values = torch.autograd.grad(outputs, inputs, grads, materialize_grads=True)
            grad_q[:, :, part.block.queries] = _unfold(rows, heads)
            part.block.add(grad_k, keys, 2)
            part.block.add(grad_v, values, 2)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def _steps(q: Tensor, k: Tensor, v: Tensor, blocks: tuple[Block, ...], options: Options) -> Iterator[_Part]:
    """The blocks' tensors, always in the same order.

    Dropout draws from one generator along that order, so that the backward pass meets the forward pass's draws.
    """
    batch, kv_heads, n_keys, _ = k.shape
    group = q.shape[1] // kv_heads
    padding = None
    if options.mask is not None:
        padding = _bias(options.mask, q.dtype).view(batch, 1, 1, n_keys)
    generator = torch.Generator(q.device).manual_seed(options.seed) if options.dropout else None
    for block in blocks:
        rows = _fold(q[:, :, block.queries], kv_heads)
        keys = block.take(k, 2)
        bias = None
        if block.allowed is not None:
            bias = _bias(block.allowed, q.dtype).repeat(group, 1)[None, None]
        if padding is not None:
            real = block.take(padding, 3)
            bias = real.expand(-1, -1, rows.shape[2], -1) if bias is None else bias + real
        kept = None
        if generator is not None:
            shape = (batch, kv_heads, rows.shape[2], keys.shape[2])
            draws = torch.rand(shape, generator=generator, dtype=exact_dtype(q.dtype), device=q.device)
            kept = (draws >= options.dropout).to(draws.dtype).div_(1 - options.dropout)
        yield _Part(block, rows, keys, block.take(v, 2), bias, kept)


def _attend(part: _Part, options: Options) -> tuple[Tensor, Tensor | None]:
    """A block's output [B, H_kv, R, D] and, if asked for, log-sum-exp [B, H_kv, R, 1]; differentiable."""
    if part.kept is None and not options.return_lse:
        # SDPA gives rows without any attended key output 0 and gradient 0 (torch 2.5 and later; tested).
        return F.scaled_dot_product_attention(part.rows, part.keys, part.values, part.bias, scale=options.scale), None
    dtype = exact_dtype(part.rows.dtype)
    scores = (part.rows.to(dtype) * options.scale) @ part.keys.to(dtype).transpose(-1, -2)
    if part.bias is not None:
        scores = scores + part.bias
    # Any finite number may be subtracted before exp; an empty row's maximum is −∞, and −∞ − −∞ would be NaN.
    largest = scores.detach().amax(-1, keepdim=True).clamp_(min=torch.finfo(dtype).min)
    weights = (scores - largest).exp()
    total = weights.sum(-1, keepdim=True)
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    lse = (largest + total.log()).masked_fill(empty, -torch.inf)
    weights = weights / total
    if part.kept is not None:
        weights = weights * part.kept
    output = weights @ part.values.to(dtype)
    return output.to(part.rows.dtype), lse if options.return_lse else None


def _bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where allowed, −∞ elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)


def _fold(x: Tensor, kv_heads: int) -> Tensor:
    """[B, H, n, ·] to [B, H_kv, (H / H_kv) · n, ·]: heads that share keys become more rows."""
    return x if x.shape[1] == kv_heads else x.reshape(x.shape[0], kv_heads, -1, x.shape[3])


def _unfold(x: Tensor, heads: int) -> Tensor:
    """`_fold` backwards."""
    return x if x.shape[1] == heads else x.reshape(x.shape[0], heads, -1, x.shape[3])
