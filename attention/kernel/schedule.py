"""From a pattern to work: blocks of queries with the keys that they need, equal shapes together.

A block is a set of queries with every key that any of them attends, gathered, and a mask that says which of those pairs
are attended. Which queries share a block decides how many pairs are computed in vain: neighbours share the keys of
windows and global tokens, queries that stand a stride apart share those of strides. So a pattern is taken in the pieces
that it knows (`Pattern.pieces`), each laid out by residue, with pairs of earlier pieces left out; and queries that
attend many times more keys than most others get blocks of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Protocol

import torch
from torch import Tensor

from attention.kernel.query_blocks import Block, blocks_of
from attention.patterns.base import Intersection, Pattern, Piece, Union
from crossbar.native import gpu


class Tiles(Protocol):
    """Where a memory puts tokens; hashable."""

    def tile(self, position: Tensor) -> Tensor:
        """The tile of each token, int64."""


QUERY_BLOCK = 64
"""Queries to a block: large enough for matrix products, small enough to skip keys under windows of 64 and more."""

_WORTHWHILE = 0.75
# Two blocks that read more than this share of all pairs cost more than one block of everything.

_SHAPES = 32
# Blocks of more key counts than this are padded to counts of 1/16 steps, so that fewer groups hold them.

_SMALL = 256 * 256
# Fewer pairs than this are computed in position order: merging pieces would cost more.


@dataclass(frozen=True, eq=False)
class Group:
    """Blocks of one shape, G of them.

    Attributes:
        queries: rows of the query tensor, int64 [G, R].
        keys: rows of the key tensor, int64 [G, L], rising in a block or, where `Tiles` are given, tile after tile and
            rising in each; padded with the last one.
        masks: the different masks, bool [M, R, L], True where the pair is attended; None: all pairs of all blocks are.
        which: the mask of each block, int64 [G]; None where ``masks`` is.
        bounds: tile t of a block holds its keys ``bounds[t] : bounds[t + 1]``.
        shared: leading keys that all blocks have.
        step: from a block's other keys to the next block's, which are unbroken ranges; None if they are not.
        ordered: whether the queries are one unbroken range, block after block.
        first_queries: of each block, where they are ordered: the host knows without asking the device.
        first_keys: of each block after the shared ones, where there is a step.
        pairs: of a group of one block whose pairs are made when they are needed: those of its rows ``low`` to ``high``
            (excluded), bool [B or 1, H or 1, rows, L]; None: they are in ``masks``.
    """

    queries: Tensor
    keys: Tensor
    masks: Tensor | None
    which: Tensor | None
    bounds: tuple[int, ...]
    shared: int
    step: int | None
    ordered: bool
    first_queries: tuple[int, ...] = ()
    first_keys: tuple[int, ...] = ()
    pairs: Callable[[int, int], Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Blocks, queries of a block and keys of a block."""
        return len(self.queries), self.queries.shape[1], self.keys.shape[1]

    def to(self, device: torch.device) -> Group:
        """The group with what chunks take of tensors on a device."""
        masks = None if self.masks is None else gpu.sent(self.masks, device)
        return replace(self, queries=gpu.sent(self.queries, device), keys=gpu.sent(self.keys, device), masks=masks)


@dataclass(frozen=True, eq=False)
class Schedule:
    """All the work of a pattern.

    Attributes:
        groups: the blocks.
        merged: whether some query is in several blocks, whose outputs merge by their log-sum-exp.
        covered: whether every query is in some block; the others attend nothing.
    """

    groups: tuple[Group, ...]
    merged: bool
    covered: bool

    @property
    def pairs(self) -> int:
        """Pairs computed, attended or not."""
        return sum(blocks * rows * keys for blocks, rows, keys in (group.shape for group in self.groups))


def make(
    pattern: Pattern,
    n_queries: int,
    n_keys: int,
    offset: int = 0,
    device: torch.device | None = None,
    tile: int | Tiles | None = None,
) -> Schedule:
    """The schedule of a static pattern that is the same for every head and sequence.

    Memory while building follows the blocks worked on at once, never n². Kept: the keys of each block and each
    different mask once, such as that of a window's inner blocks.

    Args:
        pattern: who attends to whom.
        n_queries: number of queries, at positions ``offset`` on.
        n_keys: number of keys.
        offset: position of the first query.
        device: where the indices and masks go.
        tile: tokens of a tile of memory, or which tile each token is in. Given, a query's keys all stay in one block,
            cut at the tiles' bounds: what a tile adds up must not be taken apart.
    """
    # Built for keeps: tensors made inside torch.inference_mode() could not be used in training later.
    with torch.inference_mode(False), torch.no_grad():
        whole = tile is not None or n_queries * n_keys <= _SMALL
        pieces = (_Restriction(Piece(pattern)),) if whole else _restrictions(pattern)
        size = QUERY_BLOCK
        blocks = _blocks(pieces, n_queries, n_keys, offset, size)
        if len(pieces) == 1 and size < n_queries <= 2 * size:
            read = sum(block.mask.numel() for block in blocks)
            if read >= _WORTHWHILE * n_queries * n_keys:
                blocks = _blocks(pieces, n_queries, n_keys, offset, n_queries)
        reached = torch.zeros(n_queries, dtype=torch.int64, device="cpu")
        for block in blocks:
            reached[block.queries] += 1
        merged = bool((reached > 1).any())
        groups = tuple(_groups(blocks, tile, device or torch.device("cpu")))
        return Schedule(groups, merged, bool((reached > 0).all()))


schedule = lru_cache(maxsize=64)(make)
"""`make`, kept for the next call with the same arguments."""


@lru_cache(maxsize=64)
def placed(
    pattern: Pattern, n_queries: int, n_keys: int, offset: int, device: torch.device, tiles: Tiles
) -> tuple[Tensor, Schedule]:
    """The positions that are attended at all, int64 [M] on the CPU, and the schedule with places in them; kept."""
    work = make(pattern, n_queries, n_keys, offset, torch.device("cpu"), tiles)
    with torch.inference_mode(False):
        if not work.groups:
            return torch.empty(0, dtype=torch.int64, device="cpu"), work
        if len(work.groups) == 1 and len(work.groups[0].keys) == 1:
            positions = work.groups[0].keys[0]
        else:
            positions = torch.cat([group.keys.flatten() for group in work.groups]).unique()
        groups = []
        for group in work.groups:
            keys, shared, step = group.keys, group.shared, group.step
            if len(keys) == 1 and len(work.groups) == 1:
                keys, shared, step = torch.arange(len(positions), device="cpu")[None], 0, 1
            elif len(positions) < n_keys:
                keys = torch.searchsorted(positions, keys)
                shared, step = run_of(keys)
            firsts = tuple(keys[:, shared].tolist())
            placed = replace(group, keys=keys, shared=shared, step=step, first_keys=firsts)
            groups.append(placed.to(device))
        return positions, replace(work, groups=tuple(groups))


@dataclass(frozen=True)
class _Restriction:
    """A piece's pairs, of them those ``within`` all of some patterns and outside some other pieces."""

    piece: Piece
    within: tuple[Pattern, ...] = ()
    without: tuple[Piece, ...] = ()

    def wanted(self, query: Tensor, key: Tensor) -> Tensor:
        """Which of the piece's pairs are the restriction's; positions of one shape."""
        pairs = torch.ones_like(query, dtype=torch.bool)
        for pattern in self.within:
            pairs &= pattern.allowed(query, key)
        for piece in self.without:
            pairs &= ~_holds(piece, query, key)
        return pairs


def _holds(piece: Piece, query: Tensor, key: Tensor) -> Tensor:
    """Whether a piece holds pairs of positions, int64 of one shape."""
    if piece.stride == 1:
        return piece.pattern.allowed(query, key)
    stride = piece.stride
    return piece.pattern.allowed(query // stride, key // stride) & (query % stride == key % stride)


def _restrictions(pattern: Pattern) -> tuple[_Restriction, ...]:
    """A pattern in restrictions without common pairs, those in position order together and first."""
    if isinstance(pattern, Union):
        found = [part for member in pattern.parts for part in _restrictions(member)]
    elif isinstance(pattern, Intersection):
        # One member brings the layout, the one with the widest stride; the others thin it out.
        split = [_restrictions(member) for member in pattern.parts]
        chosen = max(range(len(split)), key=lambda i: max(part.piece.stride for part in split[i]))
        others = tuple(member for i, member in enumerate(pattern.parts) if i != chosen)
        if all(part.piece.stride == 1 for part in split[chosen]):
            return (_Restriction(Piece(pattern)),)
        found = [_Restriction(part.piece, part.within + others, part.without) for part in split[chosen]]
        return tuple(found)
    else:
        pieces = pattern.pieces()
        near = [piece.pattern for piece in pieces if piece.stride == 1]
        found = [_Restriction(Piece(near[0] if len(near) == 1 else Union(tuple(near))))] if near else []
        return (*found, *(_Restriction(piece) for piece in pieces if piece.stride > 1))
    plain = [part for part in found if part.piece.stride == 1 and not part.within and not part.without]
    parts: list[_Restriction] = []
    if plain:
        patterns = tuple(part.piece.pattern for part in plain)
        parts.append(_Restriction(Piece(patterns[0] if len(patterns) == 1 else Union(patterns))))
    for part in found:
        if part not in plain:
            # Pairs of a thinned-out earlier part are not all attended there, so it may not be left out whole.
            if any(earlier.within for earlier in parts):
                return (_Restriction(Piece(pattern)),)
            parts.append(_Restriction(part.piece, part.within, part.without + tuple(p.piece for p in parts)))
    return tuple(parts)


def _blocks(parts: tuple[_Restriction, ...], n_queries: int, n_keys: int, offset: int, size: int) -> list[Block]:
    blocks: list[Block] = []
    for part in parts:
        mask = part.wanted if part.within or part.without else None
        blocks += blocks_of(part.piece, mask, n_queries, n_keys, offset, size)
    return blocks


def _groups(blocks: list[Block], tile: int | Tiles | None, device: torch.device) -> list[Group]:
    exact = len({block.mask.shape[1] for block in blocks}) <= _SHAPES
    shapes: dict[tuple[int, ...], list[Block]] = {}
    for block in blocks:
        rows, keys = block.mask.shape
        if tile is not None:
            number = block.keys.div(tile, rounding_mode="floor") if isinstance(tile, int) else tile.tile(block.keys)
            if not isinstance(tile, int) and bool((number.diff() < 0).any()):
                number, order = number.sort(stable=True)
                block = Block(block.queries, block.keys[order], block.mask[:, order])
            bounds = (0, *(number.diff().nonzero()[:, 0] + 1).tolist(), keys)
        else:
            bounds = (0, keys if exact else rounded(keys))
        shapes.setdefault((rows, *bounds), []).append(block)
    return [_group(members, shape[1:], device) for shape, members in shapes.items()]


def _group(blocks: list[Block], bounds: tuple[int, ...], device: torch.device) -> Group:
    width = bounds[-1]
    queries = torch.stack([block.queries for block in blocks])
    keys = torch.stack([_padded(block.keys, width) for block in blocks])
    found: dict[bytes, int] = {}
    masks: list[Tensor] = []
    which: list[int] = []
    for block in blocks:
        mask = torch.nn.functional.pad(block.mask, (0, width - block.mask.shape[1]))
        place = found.setdefault(mask.numpy().tobytes(), len(masks))
        if place == len(masks):
            masks.append(mask)
        which.append(place)
    full = all(bool(mask.all()) for mask in masks)
    shared, step = run_of(keys)
    flat = queries.flatten()
    return Group(
        queries=gpu.sent(queries, device),
        keys=gpu.sent(keys, device),
        masks=None if full else gpu.sent(torch.stack(masks), device),
        which=None if full else torch.tensor(which, device="cpu"),
        bounds=bounds,
        shared=shared,
        step=step,
        ordered=bool((flat.diff() == 1).all()),
        first_queries=tuple(queries[:, 0].tolist()),
        first_keys=tuple(keys[:, shared].tolist()),
    )


def run_of(keys: Tensor) -> tuple[int, int | None]:
    """`Group.shared` and `Group.step` of keys [G, L]."""
    rising = (keys.diff(dim=1) == 1).all(0)
    broken = (~rising).nonzero()[:, 0]
    first = int(broken[-1]) + 1 if len(broken) else 0  # the keys from here on are one range in every block
    if len(keys) == 1:
        return first, 1
    steps = keys[:, -1].diff()
    constant = bool((keys[:, :first] == keys[:1, :first]).all())
    if not constant or not bool((steps == steps[0]).all()) or int(steps[0]) < 1:
        return 0, None
    return first, int(steps[0])


def _padded(keys: Tensor, width: int) -> Tensor:
    return torch.cat((keys, keys[-1:].expand(width - len(keys)))) if len(keys) < width else keys


def rounded(keys: int) -> int:
    """Up to the next multiple of about a sixteenth."""
    step = max(1, 1 << max(0, keys.bit_length() - 5))
    return -(-keys // step) * step
