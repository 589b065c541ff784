"""A chunk of work: a few blocks of one group, with their rows taken out of tensors and put back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from attention.kernel.schedule import Group, Schedule
from crossbar.native.sizes import at_once

SCORES = 2**20
"""Scores of a chunk on a CPU: 4 MiB of float32, so that passes over them stay in cache and few calls wake threads."""

MOST = 2**26
"""Scores of a chunk on any other device: bounds its memory, for caches do not matter there."""


class Chunk(NamedTuple):
    """Blocks ``first`` to ``last`` of a group, of each the query rows ``low`` to ``high``.

    Shapes: G is the number of the chunk's blocks, R that of its query rows, L the keys of a block.
    """

    group: Group
    first: int
    last: int
    low: int
    high: int

    @property
    def queries(self) -> Tensor:
        """Rows of the query tensor, int64 [G, R]."""
        return self.group.queries[self.first : self.last, self.low : self.high]

    @property
    def keys(self) -> Tensor:
        """Rows of the key tensor, int64 [G, L]."""
        return self.group.keys[self.first : self.last]

    def mask(self) -> Tensor | None:
        """Attended pairs, bool [G or 1, R, L]; None where all are."""
        masks, which = self.group.masks, self.group.which
        if masks is None or which is None:
            return None
        which = which[self.first : self.last]
        rows = masks[:, self.low : self.high]
        if bool((which == which[0]).all()):
            return rows[int(which[0])][None]
        return rows.index_select(0, which.to(rows.device))

    def pairs(self) -> Tensor | None:
        """Attended pairs of each head, bool [B or 1, H or 1, R, L]; None where heads do not differ, as `mask` says."""
        return None if self.group.pairs is None else self.group.pairs(self.low, self.high)

    def take_queries(self, x: Tensor) -> Tensor:
        """Query rows of ``x`` [B, H, N_queries, ·]: [B, H, G, R, ·], a view where they are one range."""
        place = self._range()
        shape = (self.last - self.first, self.high - self.low)
        if place is not None:
            return _split(x[:, :, place], shape)
        return _split(x.index_select(2, self.queries.flatten()), shape)

    def put_queries(self, total: Tensor, part: Tensor) -> None:
        """`take_queries` backwards: overwrite the rows of ``total`` with ``part`` [B, H, G, R, ·]."""
        place = self._range()
        if place is not None:
            total[:, :, place].unflatten(2, part.shape[2:4]).copy_(part)
        else:
            total.index_copy_(2, self.queries.flatten(), part.flatten(2, 3).to(total.dtype))

    def add_queries(self, total: Tensor, part: Tensor) -> None:
        """Add ``part`` [B, H, G, R, ·] to the rows of ``total``."""
        place = self._range()
        if place is not None:
            total[:, :, place].unflatten(2, part.shape[2:4]).add_(part)
        else:
            total.index_add_(2, self.queries.flatten(), part.flatten(2, 3).to(total.dtype))

    def take_keys(self, x: Tensor) -> Tensor:
        """Keys of ``x`` [B, H, N_keys, ·]: [B, H, G, L, ·], a view where each block's are one range."""
        blocks, width = self.keys.shape
        shared, step = self.group.shared, self.group.step
        if step is None:
            return _split(x.index_select(2, self.keys.flatten()), (blocks, width))
        start = self.group.first_keys[self.first]
        span = width - shared + step * (blocks - 1)
        ranges = x[:, :, start : start + span].unfold(2, width - shared, step).transpose(-1, -2)
        if not shared:
            return ranges
        leading = x.index_select(2, self.group.keys[self.first, :shared])
        return torch.cat((leading[:, :, None].expand(-1, -1, blocks, -1, -1), ranges), 3)

    def add_keys(self, total: Tensor, part: Tensor) -> None:
        """Add ``part`` [B, H, G, L, ·] to the rows of ``total``: `take_keys` backwards."""
        if self.group.step is None:
            total.index_add_(2, self.keys.flatten(), part.flatten(2, 3).to(total.dtype))
            return
        shared, width = self.group.shared, self.keys.shape[1]
        if shared:
            leading = part[:, :, :, :shared].sum(2)
            total.index_add_(2, self.group.keys[self.first, :shared], leading.to(total.dtype))
        for g, start in enumerate(self.group.first_keys[self.first : self.last]):
            total[:, :, start : start + width - shared].add_(part[:, :, g, shared:])

    def _range(self) -> slice | None:
        rows = self.group.queries.shape[1]
        if not self.group.ordered or (self.high - self.low != rows and self.last - self.first > 1):
            return None
        start = self.group.first_queries[self.first] + self.low
        return slice(start, start + (self.last - self.first - 1) * rows + self.high - self.low)


def _split(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """[B, H, G · R, ·] to [B, H, G, R, ·]."""
    split: Tensor = x.unflatten(2, shape)
    return split


def chunks(schedule: Schedule, heads: int) -> Iterator[Chunk]:
    """The schedule's work in an order and in sizes that depend on nothing but shapes and the device.

    Args:
        schedule: the work.
        heads: query heads times sequences, which each chunk computes together.
    """
    for group in schedule.groups:
        most = min(at_once(SCORES, group.queries.device), MOST)
        blocks, rows, keys = group.shape
        together = max(1, most // (heads * rows * keys))
        height = rows if together > 1 else max(1, min(rows, 8 * most // (heads * keys)))
        for first in range(0, blocks, together):
            for low in range(0, rows, height):
                yield Chunk(group, first, min(first + together, blocks), low, min(low + height, rows))
