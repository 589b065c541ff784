"""Which rows a read opens: the same for all layers of a model, so found once a token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from attention.kernel.schedule import Schedule, placed
from attention.memory.address_map import Layout
from attention.patterns.base import Pattern
from attention.patterns.resident import Present
from crossbar.backends.protocol import RowNumbers
from crossbar.random.streams import Key


@dataclass(frozen=True, eq=False)
class Opening:
    """The rows that queries open.

    Attributes:
        positions: of their tokens, int64 [L], rising.
        work: the schedule, with places in ``positions`` as its keys.
        slots: `Layout.slot` of each.
        tiles: numbers of the tiles that are touched.
        tile: which of ``tiles`` each row is in, int64 [L].
        line: the row of its tile, int64 [L].
        lines: rows of a tile.
    """

    positions: Tensor
    work: Schedule
    slots: Tensor
    tiles: tuple[int, ...]
    tile: Tensor
    line: Tensor
    lines: int

    def numbers(self, key: Key) -> RowNumbers:
        """The random numbers of these rows."""
        return RowNumbers(key, self.tiles, self.tile, self.line, self.lines)


@lru_cache(maxsize=64)
def opening(pattern: Pattern, queries: int, tokens: int, device: torch.device, layout: Layout) -> Opening:
    """What the last ``queries`` of ``tokens`` open by a static causal pattern; kept for the next call."""
    positions, work = placed(pattern, queries, tokens, tokens - queries, device, layout)
    with torch.inference_mode(False):
        touched, tile = layout.tile(positions).unique(return_inverse=True)
        slots, line = layout.slot(positions), layout.line(positions)
        return Opening(positions, work, slots, tuple(touched.tolist()), tile, line, layout.rows)


@lru_cache(maxsize=64)
def present(pattern: Pattern, queries: int, tokens: int, first: int, layout: Layout) -> tuple[Pattern, int]:
    """The pattern's pairs whose key's row has not been taken or given up when the query reads, and how many have.

    Args:
        pattern: who attends to whom; causal.
        queries: the last tokens, which read.
        tokens: that there are.
        first: position before which rows were given up, but for sinks.
        layout: whose row is taken by whom.
    """
    left = pattern
    if tokens > layout.capacity:
        left = left & layout.held()
    if first > layout.sinks:
        left = left & Present(layout.sinks, first).causal()
    if left is pattern:
        return pattern, 0

    def pairs(own: Pattern) -> int:
        heads = range(own.n_heads or 1)
        return sum(int(own.head(h).rows(queries, tokens, tokens - queries).indptr[-1]) for h in heads)

    return left, pairs(pattern) - pairs(left)
