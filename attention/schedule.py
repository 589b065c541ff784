"""From a pattern to work: for each block of queries, the keys that it needs and which of those pairs are attended."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from attention.patterns import CSR, Pattern, repeat

QUERY_BLOCK = 64
"""Queries to a block: large enough for matrix products, small enough to skip keys under windows of 64 and more."""

_WIDEST = 1.25
# Reading an unbroken range of keys costs no copy, so a few unneeded keys inside it are cheaper than gathering the rest.


_WORTHWHILE = 0.75
# Two blocks that read more than this share of all pairs cost more than one block of everything.


@dataclass(frozen=True, eq=False)
class Block:
    """One block of queries with all the keys that any of them attends.

    Attributes:
        queries: rows of the query tensor.
        keys: the keys, rising: a slice where they are (nearly) contiguous, else int64 indices [L].
        allowed: bool [queries, L], True where the pair is attended; None where all are.
    """

    queries: slice
    keys: slice | Tensor
    allowed: Tensor | None

    @property
    def n_queries(self) -> int:
        """Rows of the block."""
        return int(self.queries.stop - self.queries.start)

    @property
    def n_keys(self) -> int:
        """Keys L that the block reads."""
        return int(self.keys.stop - self.keys.start) if isinstance(self.keys, slice) else len(self.keys)

    def take(self, x: Tensor, dim: int) -> Tensor:
        """This block's keys out of ``x`` along ``dim``: a view for a slice, a copy for indices."""
        if isinstance(self.keys, slice):
            return x.narrow(dim, self.keys.start, self.n_keys)
        return x.index_select(dim, self.keys)

    def add(self, total: Tensor, part: Tensor, dim: int) -> None:
        """Add ``part`` to this block's keys of ``total`` along ``dim``, in place: `take` backwards."""
        if isinstance(self.keys, slice):
            total.narrow(dim, self.keys.start, self.n_keys).add_(part)
        else:
            total.index_add_(dim, self.keys, part.to(total.dtype))


@lru_cache(maxsize=64)
def schedule(
    pattern: Pattern,
    n_queries: int,
    n_keys: int,
    offset: int = 0,
    block: int = QUERY_BLOCK,
    device: torch.device | None = None,
) -> tuple[Block, ...]:
    """The pattern's blocks of ``block`` queries; blocks that attend nothing are left out.

    Rows are listed a block at a time, so building takes O(pairs of a block) memory, never n². Kept: a byte for each
    pair of a block that is not full, and equal masks, such as a window's inner blocks, once.
    """
    device = device or torch.device("cpu")
    # Built for keeps: tensors made inside torch.inference_mode() could not be used in training later.
    with torch.inference_mode(False):
        blocks = _blocks(pattern, n_queries, n_keys, offset, block, device)
        if block < n_queries <= 2 * block:
            read = sum(part.n_queries * part.n_keys for part in blocks)
            if read >= _WORTHWHILE * n_queries * n_keys:
                return _blocks(pattern, n_queries, n_keys, offset, n_queries, device)
        return blocks


def _blocks(
    pattern: Pattern, n_queries: int, n_keys: int, offset: int, block: int, device: torch.device
) -> tuple[Block, ...]:
    blocks: list[Block] = []
    masks: dict[bytes, Tensor] = {}
    for first in range(0, n_queries, block):
        csr = pattern.rows(min(block, n_queries - first), n_keys, offset + first)
        if len(csr.indices):
            blocks.append(_block(csr, first, n_keys, masks, device))
    return tuple(blocks)


def _block(csr: CSR, first: int, n_keys: int, masks: dict[bytes, Tensor], device: torch.device) -> Block:
    rows = len(csr.indptr) - 1
    needed = torch.zeros(n_keys, dtype=torch.bool, device="cpu").index_fill_(0, csr.indices, True)
    index = needed.nonzero()[:, 0]
    low, high = int(index[0]), int(index[-1]) + 1
    queries = slice(first, first + rows)
    keys: slice | Tensor
    if high - low <= _WIDEST * len(index):
        keys, width, column = slice(low, high), high - low, csr.indices - low
    else:
        keys, width, column = index.to(device), len(index), (needed.cumsum(0) - 1).index_select(0, csr.indices)
    if len(csr.indices) == rows * width:
        return Block(queries, keys, None)
    row = repeat(torch.arange(rows, device="cpu"), csr.indptr.diff())
    allowed = torch.zeros(rows, width, dtype=torch.bool, device="cpu")
    allowed.view(-1).index_fill_(0, row * width + column, True)
    content = repr(allowed.shape).encode() + allowed.numpy().tobytes()
    return Block(queries, keys, masks.setdefault(content, allowed.to(device)))
