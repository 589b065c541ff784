"""How often a stream of events drives lines and converts (docs/physics.md, "Attention")."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from attention.controller.controller import SMALL_PART, Controller
from attention.controller.events import Axis, Events
from attention.controller.platforms import ideal
from attention.counts import Counts
from attention.patterns.base import Pattern
from crossbar.errors import InputError, require_whole


def tally(
    events: Events, *, head_dim: int, heads: int = 1, columns: int = 256, slices: int = 1, bits: int = 1
) -> Counts:
    """Counts of a stream of events, each issued once a query head.

    With one head, slice and bit, and D <= columns: sense lines, score conversions and row drives are one for each event
    of their stage; a query drives D lines, and D outputs are converted, in each tile that it touches. Further:

    - ``heads``: every head has a query and tiles of its own (query heads that share keys still query by_head).
    - ``columns``: a head of more dimensions than a tile has columns lies across ⌈D / columns⌉ tiles. Each of them
      senses the token's line for its part of the score, and drives the token's row; the D lines of query and output are
      divided among them, not multiplied.
    - ``slices``: a number kept in several slices of cells is driven and converted in each.
    - ``bits``: phases of a bit-serial drive, each converted; 1 for pulse width.

    Raises:
        InputError: for a factor below 1, an unknown axis and a negative tile.
    """
    for name, factor in (
        ("head_dim", head_dim), ("heads", heads), ("columns", columns), ("slices", slices), ("bits", bits)
    ):  # fmt: skip
        require_whole(name, factor, least=1)
    if not len(events.tile):
        return Counts()
    from attention.controller import event_kernels  # numba takes half a second to load

    bounds = [[int(x) for x in field.aminmax()] for field in (events.query, events.axis, events.tile)]
    (first, last), (axis, highest), (tile, furthest) = bounds
    if min(axis, tile) < 0 or highest >= len(Axis):
        raise InputError(f"events have axes {axis} to {highest} and tiles from {tile}: give axes of Axis, tiles from 0")
    seen = np.zeros((last - first + 1, len(Axis), furthest + 1), np.bool_)
    arrays = (x.numpy() for x in (events.tile, events.axis, events.query))
    (driven, sensed), (v_tiles, k_tiles) = event_kernels.counted(*arrays, first, seen).tolist()
    return (heads * slices * bits) * Counts(sensed, sensed, k_tiles, driven, v_tiles).of_head(head_dim, columns)


@lru_cache(maxsize=4096)
def count(
    pattern: Pattern,
    n: int,
    *,
    head_dim: int,
    first: int = 0,
    heads: int = 1,
    rows: int = 256,
    columns: int = 256,
    slices: int = 1,
    bits: int = 1,
) -> Counts:
    """Counts for one sequence of ``n`` tokens, placed in order ``rows`` to a tile, under ``pattern``; cached.

    Queries before position ``first`` are left out: with ``first = n - 1`` it is one step of decoding.

    A pattern that differs by head is counted head by head. ``count(Dense(), n, ...)`` is what the same memory does
    without a pattern.

    Raises:
        InputError: for a negative number, a pattern of another number of heads, and one that is not static.
    """
    require_whole("n", n, least=0)
    require_whole("first", first, least=0)
    if pattern.n_heads is not None:
        if pattern.n_heads != heads:
            raise InputError(f"patterns for {pattern.n_heads} heads do not fit {heads} heads: give one a head")
        by_head = (
            count(
                pattern.head(h), n, head_dim=head_dim, first=first, rows=rows, columns=columns, slices=slices, bits=bits
            )
            for h in range(heads)
        )
        return sum(by_head, Counts())
    counts = Counts()
    for events in Controller(ideal(rows, columns)).stream(pattern, n, first=first, part=SMALL_PART):
        counts += tally(events, head_dim=head_dim, heads=heads, columns=columns, slices=slices, bits=bits)
    return counts  # which add over queries
