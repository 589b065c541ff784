"""Blocks of queries with the keys that they attend: one piece of a pattern, laid out by residue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attention.patterns.base import Piece
from attention.patterns.intervals import repeat

_HEAVY = 4
# A query that attends this many times more keys than the median query (and 64) gets a block with its like.

_AT_ONCE = 2**22  # intervals, or pairs, that exist at once while blocks are built


Mask = Callable[[Tensor, Tensor], Tensor]
"""Whether pairs of positions are wanted: query and key, int64 of one shape, to bool."""


class Block(NamedTuple):
    """Queries with the keys that any of them attends.

    Attributes:
        queries: rows of the query tensor, int64 [R].
        keys: int64 [L], rising.
        mask: bool [R, L], True where the pair is attended.
    """

    queries: Tensor
    keys: Tensor
    mask: Tensor


def blocks_of(piece: Piece, mask: Mask | None, n_queries: int, n_keys: int, offset: int, size: int) -> list[Block]:
    """Blocks of at most ``size`` queries; blocks that attend nothing are left out.

    Args:
        piece: the piece; who attends to whom.
        mask: which of the piece's pairs are wanted; None: all.
        n_queries: number of queries, at positions ``offset`` on.
        n_keys: number of keys.
        offset: position of the first query.
        size: queries to a block.
    """
    position = torch.arange(offset, offset + n_queries, device="cpu")
    reach = -(-n_keys // piece.stride)  # keys of the longest class
    if n_queries == 1 and mask is None and piece.stride == 1:  # decoding makes a new schedule at every step
        start, stop = (x.clamp(0, reach) for x in piece.pattern.spans(position, reach))
        keys = union(start, stop, reach)[0][0]
        keys = keys[keys < reach]
        return [Block(position - offset, keys, keys[None] >= 0)] if len(keys) else []
    counts = torch.cat([_counts(piece, part, reach) for part in position.split(2**12)])
    heavy = counts > _HEAVY * int(counts.median()) + size
    blocks: list[Block] = []
    for chosen in (~heavy, heavy):
        rows = chosen.nonzero()[:, 0]
        if len(rows):
            order = (position[rows] % piece.stride).argsort(stable=True) if piece.stride > 1 else slice(None)
            for members in _chunks(piece, position, rows[order], size, reach):
                blocks += _filled(piece, mask, position, members, n_keys, reach)
    return blocks


def _counts(piece: Piece, position: Tensor, reach: int) -> Tensor:
    """About how many keys each query attends: overlaps count twice."""
    start, stop = piece.pattern.spans(position // piece.stride, reach)
    return (stop.clamp(0, reach) - start.clamp(0, reach)).clamp(min=0).sum(1)


def _chunks(piece: Piece, position: Tensor, rows: Tensor, size: int, reach: int) -> Iterator[Tensor]:
    """Query rows of blocks [G, R], -1 where a block has fewer, as many blocks as may exist at once."""
    if piece.stride == 1:
        lengths = torch.tensor([len(rows)], device="cpu")
    else:
        lengths = (position[rows] % piece.stride).unique_consecutive(return_counts=True)[1]
    each = (lengths + size - 1) // size  # blocks of a class
    share = (lengths + each - 1) // each if piece.stride > 1 else torch.full_like(lengths, size)
    # Block b of a class holds its queries share * b up to share * (b + 1).
    start = repeat(lengths.cumsum(0) - lengths, each)
    number = torch.arange(int(each.sum()), device="cpu") - repeat(each.cumsum(0) - each, each)
    begin = start + number * repeat(share, each)
    end = torch.minimum(begin + repeat(share, each), start + repeat(lengths, each))
    width = int((end - begin).max())
    index = begin[:, None] + torch.arange(width, device="cpu")
    members = torch.where(index < end[:, None], rows[index.clamp(max=len(rows) - 1)], -1)
    intervals = piece.pattern.spans(position[-1:] // piece.stride, reach).start.shape[1]
    yield from members.split(max(1, _AT_ONCE // max(1, width * intervals)))


def _filled(
    piece: Piece,
    mask: Mask | None,
    position: Tensor,
    members: Tensor,
    n_keys: int,
    reach: int,
) -> list[Block]:
    """The blocks with these queries [G, R]."""
    real = members >= 0
    queries = position[members.clamp(min=0)]
    start, stop = (x.clamp(0, reach) for x in piece.pattern.spans((queries // piece.stride).flatten(), reach))
    stop = torch.where(real.flatten()[:, None], torch.maximum(start, stop), start)
    keys, counts = union(start.reshape(len(members), -1), stop.reshape(len(members), -1), reach)
    start, stop = (x.view(*members.shape, -1) for x in (start, stop))
    blocks: list[Block] = []
    at_once = max(1, _AT_ONCE // max(1, members.shape[1] * keys.shape[1]))
    for rows, own, query, place, count, *bounds in zip(
        *(x.split(at_once) for x in (members, real, queries, keys, counts, start, stop)), strict=True
    ):
        place = place[:, : max(1, int(count.max()))].contiguous()
        pairs = inside(place, *bounds)
        key = place * piece.stride + query[:, :1] % piece.stride
        pairs &= (key < n_keys)[:, None, :]
        if mask is not None:
            pairs &= mask(*torch.broadcast_tensors(query[:, :, None], key.clamp(max=n_keys - 1)[:, None, :]))
        needed = pairs.any(1)
        for g, empty in enumerate((~needed.any(1)).tolist()):
            if not empty:
                filled, attended = own[g], needed[g]
                block, chosen = pairs[g], key[g]
                if not bool(filled.all()):
                    block = block[filled]
                if not bool(attended.all()):
                    block, chosen = block[:, attended], chosen[attended]
                blocks.append(Block(rows[g][filled], chosen.clone(), block.clone()))
    return blocks


def inside(keys: Tensor, start: Tensor, stop: Tensor) -> Tensor:
    """Which of a block's keys [G, L] (rising) each query's intervals [G, R, S] hold, bool [G, R, L]."""
    blocks, rows, _ = start.shape
    if start.shape[2] > 1 and bool((stop - start <= 1).all()):  # single keys, as selections list them
        column = torch.searchsorted(keys, start.flatten(1)).view_as(start)
        column = torch.where(stop > start, column, keys.shape[1])
        pairs = torch.zeros(blocks, rows, keys.shape[1] + 1, dtype=torch.bool, device="cpu")
        return pairs.scatter_(2, column, True)[:, :, :-1]
    change = torch.zeros(blocks, rows, keys.shape[1] + 1, dtype=torch.int16, device="cpu")
    one = torch.ones((), dtype=torch.int16, device="cpu")
    for bound, sign in ((start, one), (stop, -one)):
        column = torch.searchsorted(keys, bound.flatten(1)).view_as(bound)
        change.scatter_add_(2, column, sign.expand_as(column))
    return change.cumsum(2, dtype=torch.int16)[:, :, :-1] > 0


def union(start: Tensor, stop: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Keys in any interval of a row [G, I]: rising [G, L], filled up with ``reach``, and their numbers [G]."""
    if start.shape[1] > reach // 8:  # many intervals: mark the keys
        change = torch.zeros(len(start), reach + 1, dtype=torch.int32, device="cpu")
        one = torch.ones((), dtype=torch.int32, device="cpu").expand_as(start)
        there = (stop > start).to(torch.int32)
        change.scatter_add_(1, start, one * there).scatter_add_(1, stop, -there)
        row, key = (change.cumsum(1)[:, :reach] > 0).nonzero(as_tuple=True)
        counts = torch.bincount(row, minlength=len(start))
    else:  # few: sort them and take off what earlier ones have
        stop = torch.maximum(start, stop)
        start, order = start.sort(1)
        stop = stop.gather(1, order)
        claimed = torch.cummax(stop, 1).values
        start[:, 1:] = torch.maximum(start[:, 1:], claimed[:, :-1])
        length = (stop - start).clamp(min=0)
        counts = length.sum(1)
        length = length.flatten()
        key = repeat(start.flatten() - (length.cumsum(0) - length), length)
        key += torch.arange(len(key), device="cpu")
        row = repeat(torch.arange(len(start), device="cpu"), counts)
    width = max(1, int(counts.max()))
    column = torch.arange(len(key), device="cpu") - repeat(counts.cumsum(0) - counts, counts)
    keys = torch.full((len(start), width), reach, dtype=torch.int64, device="cpu")
    return keys.index_put_((row, column), key), counts
