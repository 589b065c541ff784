"""Attended keys in compressed rows: what patterns give, and what their statistics and pictures are made from."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from attention.patterns.intervals import Spans, disjoint, repeat

LARGEST = 2**31 - 1
"""Greatest parameter of a pattern: positions are summed and multiplied as int64, and event lines are int32."""

_AT_A_TIME = 4096  # queries whose intervals exist at once while rows are made: bounds memory


class CSR(NamedTuple):
    """Attended keys in compressed rows: query i attends ``indices[indptr[i] : indptr[i + 1]]``, in rising order.

    Shapes: ``indptr`` int64 [N_queries + 1], ``indices`` int64 [attended pairs].
    """

    indptr: Tensor
    indices: Tensor


Rows = Callable[[int, int, int], CSR]
"""Rows of so many queries on so many keys, the first query at a position: `Pattern.rows`."""


def compressed(spans: Callable[[Tensor, int], Spans], n_queries: int, n_keys: int, offset: int) -> CSR:
    """The keys that intervals hold, in O(attended pairs) memory, on the CPU.

    Args:
        spans: intervals of the queries at some positions, int64 [N], among so many keys: `Pattern.spans`.
        n_queries: number of queries.
        n_keys: number of keys.
        offset: position of the first query.
    """
    lengths, indices = [], []
    for first in range(0, n_queries, _AT_A_TIME):
        query = torch.arange(first, min(first + _AT_A_TIME, n_queries), device="cpu") + offset
        start, stop = disjoint(spans(query, n_keys), n_keys)
        length = stop - start
        lengths.append(length.sum(1))
        # A position of the output lies in one interval; its key is the position less where that interval begins in the
        # output, plus the interval's start.
        length = length.flatten()
        key = repeat(start.flatten() - (length.cumsum(0) - length), length)
        indices.append(key.add_(torch.arange(len(key), device="cpu")))
    indptr = torch.zeros(n_queries + 1, dtype=torch.int64, device="cpu")
    torch.cumsum(torch.cat(lengths), 0, out=indptr[1:])
    return CSR(indptr, indices[0] if len(indices) == 1 else torch.cat(indices))
