"""The fast path: attention block of queries by block of queries, forward and backward.

Peak memory is that of a few blocks' scores, because the backward pass computes each block again from the log-sum-exp of
its queries instead of keeping its weights (Dao 2022). A query that is in several blocks gets their outputs merged by
their log-sum-exp. Query heads that share a key head are laid side by side as more query rows, so keys and values are
never repeated.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention.activation import Activation, Softmax
from attention.kernel.chunks import Chunk, chunks
from attention.kernel.schedule import Schedule


class Options(NamedTuple):
    """What is done to every block; fields as the arguments of `gated_attention`. Digital attention is softmax alone."""

    scale: float
    mask: Tensor | None
    dropout: float
    seed: int
    return_lse: bool
    activation: Activation = Softmax()
    bias: Tensor | None = None
    softcap: float | None = None

    @property
    def plain(self) -> bool:
        """Whether scores are products alone, as torch's own attention has them."""
        return self.bias is None and self.softcap is None

    def sequence(self, index: int) -> Options:
        """Those of one sequence of the batch."""
        here = slice(index, index + 1)
        mask = None if self.mask is None else self.mask[here]
        return self._replace(
            mask=mask, bias=self.bias[here] if self.bias is not None and len(self.bias) > 1 else self.bias
        )

    def heads(self, index: Tensor) -> Options:
        """Those of some query heads."""
        if self.bias is None or self.bias.shape[1] == 1:
            return self
        return self._replace(bias=self.bias.index_select(1, index))


def attend_blocks(
    q: Tensor, k: Tensor, v: Tensor, schedule: Schedule, options: Options
) -> tuple[Tensor, Tensor | None]:
    """Output [B, H, N_queries, D] and, if asked for, log-sum-exp [B, H, N_queries]; q, k, v as in `gated_attention`."""
    if len(schedule.groups) == 1 and schedule.covered and not schedule.merged and len(schedule.groups[0].queries) == 1:
        only = schedule.groups[0]
        if only.ordered and options.plain and not options.dropout and not options.return_lse:
            # One block holds everything: autograd may keep what it likes, and nothing needs copying together.
            chunk = Chunk(only, 0, 1, 0, only.shape[1])
            return unfold(_fused(_gathered_chunk(q, k, v, chunk, options, None), options), q.shape[1])[:, :, 0], None
    bias, options = options.bias, options._replace(bias=None)
    output, lse = _BlockAttention.apply(q, k, v, bias, schedule, options)  # type: ignore[no-untyped-call]  # torch's own
    return output, lse if options.return_lse else None


def exact_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that scores and log-sum-exps of ``dtype`` are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class ChunkTensors(NamedTuple):
    """One chunk's tensors.

    Attributes:
        chunk: where they come from.
        rows: queries [B, H_kv, G, R, D], where R counts the rows of all heads that share keys.
        keys: [B, H_kv, G, L, D].
        values: [B, H_kv, G, L, D].
        bias: 0 or −∞, [B or 1, H_kv or 1, G or 1, R, L]; None: all attended.
        kept: dropout factors [B, H_kv, G, R, L]; None: no dropout.
        added: what is added to the scores, [B or 1, H_kv or 1, G, R, L]; None: nothing.
    """

    chunk: Chunk
    rows: Tensor
    keys: Tensor
    values: Tensor
    bias: Tensor | None
    kept: Tensor | None
    added: Tensor | None = None


class _BlockAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, schedule: Schedule, options: Options
    ) -> tuple[Tensor, Tensor | None]:
        ctx.schedule, ctx.options = schedule, options
        options = options._replace(bias=bias)
        ctx.set_materialize_grads(False)
        (batch, heads, n_queries, _), size = q.shape, v.shape[3]
        trained = any(ctx.needs_input_grad[:4])
        plain = options.plain and not (trained or schedule.merged or options.return_lse or options.dropout)
        # Laid out [B, N, H, D], as models merge heads next. Queries of no block attend nothing and stay 0.
        dtype = exact_dtype(q.dtype) if schedule.merged else q.dtype
        ready = schedule.covered and not schedule.merged
        output = (q.new_empty if ready else q.new_zeros)(batch, n_queries, heads, size, dtype=dtype).transpose(1, 2)
        if plain:
            for part in _gathered(q, k, v, schedule, options):
                part.chunk.put_queries(output, unfold(_fused(part, options), heads))
            return output, None
        lse = q.new_full((*q.shape[:3], 1), -torch.inf, dtype=exact_dtype(q.dtype))
        for part in _gathered(q, k, v, schedule, options):
            out, out_lse = (unfold(x, heads) for x in _attend(part, options))
            if schedule.merged:
                out, out_lse = merge(part.chunk.take_queries(output), part.chunk.take_queries(lse), out, out_lse)
            part.chunk.put_queries(output, out)
            part.chunk.put_queries(lse, out_lse)
        output = output.to(q.dtype)
        if trained:
            ctx.save_for_backward(q, k, v, bias, output, lse)
        return output, lse[..., 0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_output: Tensor | None, grad_lse: Tensor | None = None) -> tuple[Tensor | None, ...]:
        q, k, v, bias, output, lse = ctx.saved_tensors
        options: Options = ctx.options._replace(bias=bias)
        dtype, heads, kv_heads = exact_dtype(q.dtype), q.shape[1], k.shape[1]
        grad_output = torch.zeros_like(output) if grad_output is None else grad_output
        # What softmax's Jacobian takes off every pair's gradient, the same for all keys of a query.
        common = (grad_output.to(dtype) * output.to(dtype)).sum(-1, keepdim=True)
        if grad_lse is not None:
            common = common - grad_lse[..., None]
        lse = lse.masked_fill(lse == -torch.inf, 0.0) * math.log2(math.e)
        # Many blocks add to one key, so low precision would lose their sum.
        grad_q, grad_k, grad_v = (torch.zeros_like(x, dtype=dtype) for x in (q, k, v))
        grad_bias = None if bias is None or not ctx.needs_input_grad[3] else torch.zeros_like(bias, dtype=dtype)
        for part in _gathered(q, k, v, ctx.schedule, options):
            chunk, scale = part.chunk, options.scale
            rows, keys, values = (x.to(dtype) for x in (part.rows, part.keys, part.values))
            scores, slope = _scores(rows, keys, part, options)
            weights = scores.sub_(fold(chunk.take_queries(lse), kv_heads)).exp2_()
            grad = fold(chunk.take_queries(grad_output), kv_heads).to(dtype)
            grad_weights = grad @ values.transpose(-1, -2)
            dropped = weights
            if part.kept is not None:
                grad_weights, dropped = grad_weights.mul_(part.kept), weights * part.kept
            chunk.add_keys(grad_v, dropped.transpose(-1, -2) @ grad)
            grad_scores = grad_weights.sub_(fold(chunk.take_queries(common), kv_heads)).mul_(weights)
            if grad_bias is not None:
                add_pairs(chunk, grad_bias, unfold(grad_scores, heads))
            grad_scores = grad_scores.mul_(scale) if slope is None else grad_scores.mul_(slope).mul_(scale)
            chunk.add_keys(grad_k, grad_scores.transpose(-1, -2) @ rows)
            chunk.add_queries(grad_q, unfold(grad_scores @ keys, heads))
        grad_bias = None if grad_bias is None else grad_bias.to(bias.dtype)
        return grad_q.to(q.dtype), grad_k.to(k.dtype), grad_v.to(v.dtype), grad_bias, None, None


def _gathered(q: Tensor, k: Tensor, v: Tensor, schedule: Schedule, options: Options) -> Iterator[ChunkTensors]:
    """The chunks' tensors, always in the same order.

    Dropout draws from one generator along that order, so that the backward pass meets the forward pass's draws.
    """
    generator = torch.Generator(q.device).manual_seed(options.seed) if options.dropout else None
    for chunk in chunks(schedule, q.shape[0] * q.shape[1]):
        yield _gathered_chunk(q, k, v, chunk, options, generator)


def _gathered_chunk(
    q: Tensor, k: Tensor, v: Tensor, chunk: Chunk, options: Options, generator: torch.Generator | None
) -> ChunkTensors:
    rows, keys = fold(chunk.take_queries(q), k.shape[1]), chunk.take_keys(k)
    kept = None
    if generator is not None:
        shape = (*rows.shape[:4], keys.shape[3])
        draws = torch.rand(shape, generator=generator, dtype=exact_dtype(q.dtype), device=q.device)
        kept = (draws >= options.dropout).to(draws.dtype).div_(1 - options.dropout)
    added = None if options.bias is None else take_pairs(chunk, options.bias, q.shape[1], k.shape[1])
    return ChunkTensors(chunk, rows, keys, chunk.take_keys(v), bias_of(chunk, q, k, options.mask), kept, added)


def take_pairs(chunk: Chunk, bias: Tensor, heads: int, kv_heads: int) -> Tensor:
    """A bias [B or 1, H or 1, N_queries, N_keys] of a chunk's pairs, with heads laid as `fold` lays rows.

    Returns:
        [B or 1, H_kv or 1, G, R, L].
    """
    own = bias[:, :, chunk.queries[:, :, None], chunk.keys[:, None, :]]
    return own.repeat(1, 1, 1, heads // kv_heads, 1) if own.shape[1] == 1 else fold(own, kv_heads)


def add_pairs(chunk: Chunk, total: Tensor, part: Tensor) -> None:
    """Add ``part`` [B, H, G, R, L] to a bias's gradient [B or 1, H or 1, N_queries, N_keys]: `take_pairs` backwards."""
    for dim in (0, 1):
        part = part.sum(dim, keepdim=True) if total.shape[dim] == 1 else part
    place = chunk.queries[:, :, None] * total.shape[3] + chunk.keys[:, None, :]
    total.view(*total.shape[:2], -1).index_add_(2, place.flatten(), part.flatten(2))


def bias_of(chunk: Chunk, q: Tensor, k: Tensor, padding: Tensor | None) -> Tensor | None:
    """`ChunkTensors.bias` of a chunk: pairs outside the pattern, and padding keys (bool [B, N_keys], False)."""
    mask, pairs, bias = chunk.mask(), chunk.pairs(), None
    if pairs is not None:
        group = q.shape[1] // k.shape[1]
        if pairs.shape[1] == 1:
            bias = _bias(pairs, q.dtype).repeat(1, 1, group, 1)[:, :, None]
        else:
            bias = fold(_bias(pairs, q.dtype)[:, :, None], k.shape[1])
    elif mask is not None:
        bias = _bias(mask, q.dtype).repeat(1, q.shape[1] // k.shape[1], 1)[None, None]
    if padding is not None:
        real = chunk.take_keys(_bias(padding, q.dtype)[:, None, :, None])[..., 0][:, :, :, None, :]  # [B, 1, G, 1, L]
        bias = real if bias is None else bias + real
    return bias


def _fused(part: ChunkTensors, options: Options) -> Tensor:
    """A chunk's output [B, H_kv, G, R, D] by torch's own attention; differentiable."""
    tensors, bias = (part.rows, part.keys, part.values), part.bias
    batch, kv_heads, blocks, height, _ = part.rows.shape
    # SDPA knows two dimensions before rows: B · H_kv and G, or, where a mask is a sequence's own, B and H_kv.
    if blocks == 1 and batch > 1:
        q, k, v = (x[:, :, 0] for x in tensors)
        bias = None if bias is None else bias[:, :, 0]
    else:
        q, k, v = (x[0] if batch == 1 else x.flatten(0, 1) for x in tensors)
        if bias is not None and len(bias) > 1:
            bias = bias.expand(-1, kv_heads, blocks, height, -1).flatten(0, 1)
        elif bias is not None:
            bias = bias[0]
    bias = None if bias is None else bias.expand(-1, -1, height, -1)
    # It gives rows without any attended key output 0 and gradient 0 (torch 2.5 and later; tested).
    output = F.scaled_dot_product_attention(q, k, v, bias, scale=options.scale)
    return output.reshape(*part.rows.shape[:4], -1)


def _attend(part: ChunkTensors, options: Options) -> tuple[Tensor, Tensor]:
    """A chunk's output [B, H_kv, G, R, D] and log-sum-exp [B, H_kv, G, R, 1]."""
    dtype = exact_dtype(part.rows.dtype)
    scores, _ = _scores(part.rows.to(dtype), part.keys.to(dtype), part, options)
    # Any finite number may be subtracted before exp; an empty row's maximum is −∞, and −∞ − −∞ would be NaN.
    largest = scores.amax(-1, keepdim=True).clamp_(min=torch.finfo(dtype).min)
    weights = scores.sub_(largest).exp2_()
    total = weights.sum(-1, keepdim=True)
    empty = total == 0
    total.masked_fill_(empty, 1.0)
    lse = (largest + total.log2()).mul_(math.log(2.0)).masked_fill_(empty, -torch.inf)
    if part.kept is not None:
        weights = weights.mul_(part.kept)
    return (weights @ part.values.to(dtype)).div_(total), lse


def _scores(rows: Tensor, keys: Tensor, part: ChunkTensors, options: Options) -> tuple[Tensor, Tensor | None]:
    """Scores times log₂ e, and how they follow the products where a soft cap bends them; None: as they are.

    Weights are powers of 2, which cost a quarter of those of e.
    """
    scores, slope = (rows * (options.scale * math.log2(math.e))) @ keys.transpose(-1, -2), None
    if options.softcap is not None:
        cap = options.softcap * math.log2(math.e)
        bent = scores.div_(cap).tanh_()
        slope = 1 - bent.square()
        scores = bent.mul_(cap)
    if part.added is not None:
        scores.add_(part.added.to(scores.dtype), alpha=math.log2(math.e))
    return scores if part.bias is None else scores.add_(part.bias), slope


def merge(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> tuple[Tensor, Tensor]:
    """Attention over two sets of keys, from that over each: outputs [..., D] and log-sum-exps [..., 1].

    Differentiable, also where both log-sum-exps are −∞.
    """
    largest = torch.maximum(lse, more_lse).detach()
    largest = largest.masked_fill(largest == -torch.inf, 0.0)
    weight, more_weight = (lse - largest).exp(), (more_lse - largest).exp()
    total = weight + more_weight
    empty = total == 0
    total = total.masked_fill(empty, 1.0)
    merged = (largest + total.log()).masked_fill(empty, -torch.inf)
    return torch.addcmul(out * (weight / total), more, more_weight / total), merged


def _bias(allowed: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where allowed, −∞ elsewhere."""
    return torch.zeros(allowed.shape, dtype=dtype, device=allowed.device).masked_fill_(~allowed, -torch.inf)


def fold(x: Tensor, kv_heads: int) -> Tensor:
    """[B, H, G, R, ·] to [B, H_kv, G, (H / H_kv) · R, ·]: heads that share keys become more rows."""
    if x.shape[1] == kv_heads:
        return x
    folded: Tensor = x.unflatten(1, (kv_heads, -1)).transpose(2, 3).flatten(3, 4)
    return folded


def shared_heads(heads: list[int], group: int) -> Tensor:
    """Key heads for some query heads, each as often as its query heads need it apart, int64 on the CPU.

    Args:
        heads: query heads.
        group: query heads that share a key head in the whole.
    """
    shared = sorted({h // group for h in heads})
    if len(shared) * group != len(heads):
        shared = [h // group for h in heads]
    return torch.tensor(shared, device="cpu")


def unfold(x: Tensor, heads: int) -> Tensor:
    """`fold` backwards."""
    if x.shape[1] == heads:
        return x
    unfolded: Tensor = x.unflatten(3, (heads // x.shape[1], -1)).transpose(2, 3).flatten(1, 2)
    return unfolded
