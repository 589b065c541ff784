"""Sparse attention by torch's FlexAttention: one fused kernel that skips the blocks in which no pair is attended.

Its mask is a list of blocks of 128 queries and 128 keys: those that are attended whole, and those where each pair is
asked for. The lists are counted from a pattern's intervals, never from all pairs, and kept, as schedules are. Patterns
whose rule is arithmetic of positions (`Pattern.traceable`) bring it into the kernel; the others have their different
partial blocks in a table that the kernel looks pairs up in.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from attention.patterns.base import MaskMod, Pattern
from attention.patterns.hierarchical import Hierarchical
from attention.patterns.intervals import disjoint
from crossbar.errors import InputError

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128
"""Queries and keys to a side of a block: what FlexAttention's kernels are made for."""

_QUERIES = 2**12  # whose intervals exist at once while blocks are counted
_MOST_MASKS = 2**16  # different partial blocks of a table: 1 GiB of bool
_MOST_VERSIONS = 2**16  # of the compiled kernel in a process
_LEAST_QUERIES = 128  # for fewer, as in decoding, the kernel would be compiled again and again
_SIZES = range(16, 257)  # dimensions of a head that its kernels take on a GPU


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
    """Output [B, H, N_queries, D] and, if asked for, log-sum-exp [B, H, N_queries]; arguments as in `gated_attention`.

    Raises:
        InputError: where torch has no such kernel: float64, and on a CPU training and log-sum-exp; and for a pattern
            that is no set of pairs or has too many different blocks.
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
    mask = block_mask(pattern, q.shape[2], k.shape[2], offset, q.device, padding)
    grouped = q.shape[1] != k.shape[1]
    attend = _compiled()
    if not return_lse:
        return attend(q, k, v, block_mask=mask, scale=scale, enable_gqa=grouped), None
    output, lse = attend(q, k, v, block_mask=mask, scale=scale, enable_gqa=grouped, return_lse=True)
    return output, lse.float()


def suits(q: Tensor, n_keys: int, pattern: Pattern, offset: int, dropout: float) -> bool:
    """Whether FlexAttention computes these queries unasked: on CUDA, where its kernels have all that is asked for."""
    possible = (
        q.device.type == "cuda"
        and q.dtype != torch.float64
        and not dropout
        and q.shape[2] >= _LEAST_QUERIES
        and q.shape[3] in _SIZES
        and not any(isinstance(own, Hierarchical) for own in _parts(pattern)[0])
    )
    return possible and _kept(pattern, q.shape[2], n_keys, offset, q.device) is not None


def block_mask(
    pattern: Pattern, n_queries: int, n_keys: int, offset: int, device: torch.device, padding: Tensor | None = None
) -> BlockMask:
    """A pattern as FlexAttention's block mask. Made once for a pattern without padding, and then kept.

    Memory follows the intervals of some queries and the number of blocks, ``N_queries N_keys / 16,384``.

    Args:
        pattern: static; may differ by head and sequence.
        n_queries: number of queries, at positions ``offset`` on.
        n_keys: number of keys.
        offset: position of the first query.
        device: of queries and keys.
        padding: bool [B, N_keys], True for a real key.

    Raises:
        InputError: for a pattern that is no set of pairs, or has more than 65,536 different partial blocks.
    """
    kept = _kept(pattern, n_queries, n_keys, offset, device)
    if kept is None:
        raise InputError(
            f"pattern {str(pattern)!r} has more than {_MOST_MASKS:,} different blocks, too many for FlexAttention's "
            "mask: give impl='blocks'"
        )
    if padding is None:
        return kept.mask
    real, rule = padding, kept.mask.mask_mod

    def padded(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return rule(b, h, q_idx, kv_idx) & real[b, kv_idx]

    return _listed(kept.touched, None, padded, (n_queries, n_keys))


class Blocks(NamedTuple):
    """Blocks of a pattern that is the same for all heads and sequences, on the CPU.

    Attributes:
        touched: whether some pair of a block is attended, bool [N_queries / 128, N_keys / 128], rounded up.
        full: whether all are.
        which: place in ``masks`` of each block, int32, shaped alike; None where no table was wanted.
        masks: the different blocks, bool [M, 128, 128], an empty one and a full one first; None likewise.
    """

    touched: Tensor
    full: Tensor
    which: Tensor | None
    masks: Tensor | None


@lru_cache(maxsize=64)
def blocks(pattern: Pattern, n_queries: int, n_keys: int, offset: int, table: bool) -> Blocks | None:
    """The blocks of a pattern, with or without a table (None: too large a one); arguments as in `block_mask`."""
    with torch.inference_mode(False), torch.no_grad():
        pattern.require_pairs()
        counts = torch.cat(
            [
                _counts(pattern, torch.arange(first, min(first + _QUERIES, n_queries), device="cpu") + offset, n_keys)
                for first in range(0, n_queries, _QUERIES)
            ]
        )
        touched, full = counts > 0, counts == BLOCK * BLOCK
        if not table:
            return Blocks(touched, full, None, None)
        found = _table(pattern, touched & ~full, n_queries, n_keys, offset)
        return None if found is None else Blocks(touched, full, torch.where(full, 1, found[0]), found[1])


def _counts(pattern: Pattern, query: Tensor, n_keys: int) -> Tensor:
    """Attended pairs in each block of neighbouring queries, int64 [⌈N / 128⌉, ⌈N_keys / 128⌉]."""
    columns = -(-n_keys // BLOCK)
    row = torch.arange(len(query), device="cpu") // BLOCK * (columns + 1)
    # The keys before a bound x are 128 of each block before its own, and x mod 128 of that one.
    whole, rest = torch.zeros(2, -(-len(query) // BLOCK) * (columns + 1), dtype=torch.int64, device="cpu")
    for bound, sign in zip(disjoint(pattern.spans(query, n_keys), n_keys), (-1, 1), strict=True):
        place = (row[:, None] + bound // BLOCK).flatten()
        whole.index_add_(0, place, torch.full_like(place, sign))
        rest.index_add_(0, place, sign * (bound % BLOCK).flatten())
    whole, rest = (x.view(-1, columns + 1) for x in (whole, rest))
    after = whole.flip(1).cumsum(1).flip(1)[:, 1:]
    counts: Tensor = rest[:, :columns] + BLOCK * after
    return counts


def _table(pattern: Pattern, partial: Tensor, n_queries: int, n_keys: int, offset: int) -> tuple[Tensor, Tensor] | None:
    """`Blocks.which` and `Blocks.masks`; None: there are too many."""
    masks = [torch.zeros(BLOCK, BLOCK, dtype=torch.bool, device="cpu")]
    masks.append(~masks[0])
    found: dict[bytes, int] = {}
    which = torch.zeros(partial.shape, dtype=torch.int32, device="cpu")
    for row, chosen in enumerate(partial):
        columns = chosen.nonzero()[:, 0]
        if not len(columns):
            continue
        query = torch.arange(row * BLOCK, min((row + 1) * BLOCK, n_queries), device="cpu") + offset
        bounds = (x.clamp(0, n_keys) - columns[:, None, None] * BLOCK for x in pattern.spans(query, n_keys))
        start, stop = (x.clamp_(0, BLOCK) for x in bounds)  # in each block [columns, queries, S]
        change = torch.zeros(len(columns), BLOCK, BLOCK + 1, dtype=torch.int16, device="cpu")
        there = (stop > start).to(torch.int16)
        change[:, : len(query)].scatter_add_(2, start, there).scatter_add_(2, stop, -there)
        for column, mask in zip(columns.tolist(), change.cumsum(2, dtype=torch.int16)[:, :, :BLOCK] > 0, strict=True):
            number = found.setdefault(mask.numpy().tobytes(), len(masks))
            if number == len(masks):
                masks.append(mask.clone())
            which[row, column] = number
        if len(masks) > _MOST_MASKS:
            return None
    return which, torch.stack(masks)


class _Kept(NamedTuple):
    mask: BlockMask
    touched: Tensor  # bool [B or 1, H or 1, query blocks, key blocks], on the device


@lru_cache(maxsize=64)
def _kept(pattern: Pattern, n_queries: int, n_keys: int, offset: int, device: torch.device) -> _Kept | None:
    with torch.inference_mode(False):
        parts, shape = _parts(pattern)
        found: list[Blocks] = []
        left = _MOST_MASKS
        for own in parts:
            each = blocks(own, n_queries, n_keys, offset, not pattern.traceable)
            left -= 0 if each is None or each.masks is None else len(each.masks)
            if each is None or left < 0:
                return None
            found.append(each)

        touched, full = (
            torch.stack(own).unflatten(0, shape).to(device)
            for own in zip(*((each.touched, each.full) for each in found), strict=True)
        )
        rule = _rule(pattern, offset) if pattern.traceable else _looked_up(found, shape, device)
        return _Kept(_listed(touched & ~full, full, rule, (n_queries, n_keys)), touched)


def _parts(pattern: Pattern) -> tuple[list[Pattern], tuple[int, int]]:
    """The patterns of all heads of all sequences that are told apart, and how many sequences and heads these are."""
    shape = pattern.n_sequences or 1, pattern.n_heads or 1
    return [pattern.sequence(b).head(h) for b in range(shape[0]) for h in range(shape[1])], shape


def _listed(partial: Tensor, full: Tensor | None, rule: MaskMod, lengths: tuple[int, int]) -> BlockMask:
    """The block mask of bool [B or 1, H or 1, query blocks, key blocks]: where pairs are asked for, and where not."""
    from torch.nn.attention.flex_attention import BlockMask

    def lists(chosen: Tensor) -> tuple[Tensor, Tensor]:
        """How many blocks of each row are chosen, and which: these first."""
        order = chosen.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
        return chosen.sum(-1, dtype=torch.int32), order.int()

    counts, order = lists(partial)
    full_counts, full_order = (None, None) if full is None else lists(full)
    mask: BlockMask = BlockMask.from_kv_blocks(counts, order, full_counts, full_order, BLOCK, rule, lengths)
    return mask


def _rule(pattern: Pattern, offset: int) -> MaskMod:
    """The pattern's own rule, for query rows that start at position ``offset``."""
    mask_mod = pattern.mask_mod

    def rule(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        return mask_mod(b, h, q_idx + offset, kv_idx)

    return rule


def _looked_up(found: list[Blocks], shape: tuple[int, int], device: torch.device) -> MaskMod:
    """Whether a pair is attended, from the tables of all heads' blocks."""
    tables, masks, before = [], [], 0
    for own in found:
        assert own.which is not None
        assert own.masks is not None
        tables.append(own.which + before)
        masks.append(own.masks)
        before += len(own.masks)
    which, pairs = torch.stack(tables).unflatten(0, shape).to(device), torch.cat(masks).to(device)
    by_sequence, by_head = shape[0] > 1, shape[1] > 1

    def rule(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
        sequence, head = b if by_sequence else b * 0, h if by_head else h * 0
        block = which[sequence, head, q_idx // BLOCK, kv_idx // BLOCK]
        return pairs[block, q_idx % BLOCK, kv_idx % BLOCK]

    return rule


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    """FlexAttention, compiled anew for each shape and each pattern's rule."""
    import torch._dynamo.config as settings
    from torch.nn.attention.flex_attention import flex_attention

    compiled: Callable[..., Any] = torch.compile(flex_attention, dynamic=False, fullgraph=True)

    def attend(*args: Any, **kwargs: Any) -> Any:
        # Beyond its limit of versions torch would compute all pairs, uncompiled.
        with settings.patch(recompile_limit=_MOST_VERSIONS, accumulated_recompile_limit=_MOST_VERSIONS):
            return compiled(*args, **kwargs)

    return attend
