"""How often lines are driven and converted: integers counted from events (docs/physics.md, "Attention")."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from attention.controller.controller import SMALL_PART, Controller
from attention.controller.events import Axis, Events
from attention.controller.platforms import ideal
from attention.patterns.base import Pattern
from crossbar.costs.ledger import book
from crossbar.errors import InputError, require_whole


@dataclass(frozen=True)
class Counts:
    """Line drives and conversions of attention; add counts of parts, multiply by a number of repetitions.

    Attributes:
        score_sense_lines: K-tile token lines opened for sensing.
        score_conversions: analog-to-digital conversions of scores.
        query_drives: K-tile lines that queries drive.
        value_row_drives: V-tile token rows driven by attention weights.
        value_conversions: analog-to-digital conversions of outputs.
    """

    score_sense_lines: int = 0
    score_conversions: int = 0
    query_drives: int = 0
    value_row_drives: int = 0
    value_conversions: int = 0

    def __add__(self, other: Counts) -> Counts:
        if not isinstance(other, Counts):
            return NotImplemented
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: int) -> Counts:
        if isinstance(times, bool) or not isinstance(times, int):
            return NotImplemented
        return Counts(*(getattr(self, f.name) * times for f in fields(self)))

    __rmul__ = __mul__

    def of_head(self, head_dim: int, columns: int = 256) -> Counts:
        """Counts for a head of one dimension as those for one of ``head_dim``, in tiles of ``columns`` columns."""
        across = -(-head_dim // columns)
        return Counts(
            score_sense_lines=across * self.score_sense_lines,
            score_conversions=across * self.score_conversions,
            query_drives=head_dim * self.query_drives,
            value_row_drives=across * self.value_row_drives,
            value_conversions=head_dim * self.value_conversions,
        )


def book_attention(
    layer: str,
    counts: Counts,
    *,
    head_dim: int,
    queries: int,
    columns: int = 256,
    pairs: int = 1,
    dac: int | None = None,
    adc: int | None = None,
) -> None:
    """Book counts of attention in open ledgers, with the digital work that goes with them.

    Digital logic scales and adds each conversion; the softmax subtracts the largest score of each attended pair, adds
    its exponential, and takes a reciprocal for each query.

    Args:
        layer: whose they are.
        counts: of all heads and sequences.
        head_dim: D.
        queries: all heads' and sequences' together.
        columns: of a tile.
        pairs: copies of each number in the cells.
        dac, adc: the converters' bits.
    """
    across = -(-head_dim // columns)
    attended = counts.score_conversions // across
    conversions = counts.score_conversions + counts.value_conversions
    book(layer, "column_activations", counts.score_sense_lines)
    book(layer, "row_activations", counts.value_row_drives)
    book(layer, "query_drives", counts.query_drives)
    book(layer, "dac_conversions", counts.query_drives + counts.value_row_drives, dac)
    book(layer, "adc_conversions", conversions, adc)
    book(layer, "cell_macs", 2 * attended * head_dim * pairs)
    book(layer, "tile_reads", across * (counts.query_drives + counts.value_conversions) // head_dim)
    book(layer, "attended_pairs", attended)
    book(layer, "digital_macs", conversions + attended)
    book(layer, "special_functions", attended + queries)


def tally(
    events: Events, *, head_dim: int, heads: int = 1, columns: int = 256, slices: int = 1, bits: int = 1
) -> Counts:
    """Counts of a stream of events, each issued once a query head.

    With one head, slice and bit, and D <= columns: sense lines, score conversions and row drives are one for each event
    of their stage; a query drives D lines, and D outputs are converted, in each tile that it touches. Further:

    - ``heads``: every head has a query and tiles of its own (query heads that share keys still query apart).
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
    without gating.

    Raises:
        InputError: for a negative number, a pattern of another number of heads, and one that is not static.
    """
    require_whole("n", n, least=0)
    require_whole("first", first, least=0)
    if pattern.n_heads is not None:
        if pattern.n_heads != heads:
            raise InputError(f"patterns for {pattern.n_heads} heads do not fit {heads} heads: give one a head")
        apart = (
            count(
                pattern.head(h), n, head_dim=head_dim, first=first, rows=rows, columns=columns, slices=slices, bits=bits
            )
            for h in range(heads)
        )
        return sum(apart, Counts())
    counts = Counts()
    for events in Controller(ideal(rows, columns)).stream(pattern, n, first=first, part=SMALL_PART):
        counts += tally(events, head_dim=head_dim, heads=heads, columns=columns, slices=slices, bits=bits)
    return counts  # which add over queries
