"""Routing tables: a pattern's pairs by the tile that holds their key."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attention.controller.events import Placement
from attention.patterns.intervals import repeat
from attention.patterns.rows import CSR


@dataclass(frozen=True, eq=False)
class RoutingTables:
    """The pairs of a pattern, tile after tile, in each by query and then by line.

    Attributes:
        bounds: tile t holds entries ``bounds[t] : bounds[t + 1]``, int64 [tiles + 1].
        query: row of the pattern, int64 [pairs].
        line: of the tile, int64 [pairs].
        n_queries: rows of the pattern.
    """

    bounds: Tensor
    query: Tensor
    line: Tensor
    n_queries: int

    @classmethod
    def of(cls, csr: CSR, placement: Placement) -> RoutingTables:
        """Compose a pattern's rows (query → tokens) with a placement (token → tile and line)."""
        n_queries = len(csr.indptr) - 1
        query = repeat(torch.arange(n_queries, device="cpu"), csr.indptr.diff())
        tile, line = placement.tile[csr.indices].long(), placement.line[csr.indices].long()
        tiles = int(placement.tile.max()) + 1 if len(placement.tile) else 0
        order = line.argsort(stable=True)
        order = order[query[order].argsort(stable=True)]
        order = order[tile[order].argsort(stable=True)]
        bounds = torch.zeros(tiles + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(torch.bincount(tile, minlength=tiles), 0, out=bounds[1:])
        return cls(bounds, query[order], line[order], n_queries)

    def slice(self, tile: int) -> CSR:
        """One tile's part: the lines that each query opens in it."""
        low, high = int(self.bounds[tile]), int(self.bounds[tile + 1])
        counts = torch.bincount(self.query[low:high], minlength=self.n_queries)
        return CSR(torch.cat([counts.new_zeros(1), counts.cumsum(0)]), self.line[low:high])

    def links(self) -> tuple[Tensor, Tensor]:
        """Every (tile, query) that has an entry, int64 [links] both, by tile and query."""
        tile = repeat(torch.arange(len(self.bounds) - 1, device="cpu"), self.bounds.diff())
        codes = torch.unique_consecutive(tile * self.n_queries + self.query)
        return codes.div(self.n_queries, rounding_mode="floor"), codes % max(1, self.n_queries)
