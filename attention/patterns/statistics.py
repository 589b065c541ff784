"""What a pattern costs a sequence, counted from its rows."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from attention.patterns.intervals import repeat
from attention.patterns.rows import LARGEST, Rows
from crossbar.errors import require_whole


@dataclass(frozen=True)
class Statistics:
    """Counts for one sequence of n tokens.

    Attributes:
        n: tokens.
        pairs: attended pairs; each opens one key's row and one value's row.
        density: pairs / n².
        rows_opened: keys that a query attends, on average over queries.
        most_rows_opened: keys of the query that attends most.
        tile: tokens to a tile.
        touched_tiles: squares of tile x tile pairs that hold an attended pair.
        tiles: all squares.
        cost: how pairs grow with n.
    """

    n: int
    pairs: int
    density: float
    rows_opened: float
    most_rows_opened: int
    tile: int
    touched_tiles: int
    tiles: int
    cost: str

    def __str__(self) -> str:
        return (
            f"{self.pairs:,} of {self.n:,}² pairs ({self.density:.2%}), {self.rows_opened:.1f} rows a query (most "
            f"{self.most_rows_opened:,}), {self.touched_tiles:,} of {self.tiles:,} tiles of {self.tile} "
            f"({self.touched_tiles / self.tiles:.1%}), {self.cost}"
        )


def statistics(rows: Rows, cost: str, n: int, tile: int) -> Statistics:
    """See `Pattern.stats`."""
    require_whole("n", n, least=1, most=LARGEST)
    require_whole("tile", tile, least=1, most=LARGEST)
    across = -(-n // tile)
    together = max(1, 1024 // tile) * tile  # whole tiles of queries at a time
    pairs = most = touched = 0
    for first in range(0, n, together):
        indptr, indices = rows(min(together, n - first), n, first)
        lengths = indptr.diff()
        pairs += len(indices)
        most = max(most, int(lengths.max()))
        tile_row = repeat(torch.arange(len(lengths), device="cpu") // tile, lengths)
        holds = torch.zeros(-(-len(lengths) // tile) * across, dtype=torch.bool, device="cpu")
        touched += int(holds.index_fill_(0, tile_row * across + indices // tile, True).sum())
    return Statistics(n, pairs, pairs / n**2, pairs / n, most, tile, touched, across**2, cost)
