"""What a pattern's events come to, counted where its pairs are: on a GPU no pair is copied and no event made.

For machines that lose nothing, where every event is delivered and the counts follow from the pairs alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.controller.platforms import Platform
from attention.counts import Counts
from attention.patterns.base import Pattern
from attention.patterns.on_device import pairs

_PAIRS = 2**26  # that exist at once: bounds memory


class Totals(NamedTuple):
    """What is booked of all heads and sequences.

    Attributes:
        counts: of heads of one dimension.
        queries: that were sent, which is all but padding.
        events, dropped: issued ones, and of them those that were lost.
        hops_x, hops_y: of all events.
        barriers: of the head that passed most.
    """

    counts: Counts
    queries: int
    events: int
    dropped: int
    hops_x: int
    hops_y: int
    barriers: int

    @classmethod
    def of(cls, numbers: list[int]) -> Totals:
        """What `count_pairs` counted."""
        attended, touched, queries, hops_x, hops_y, barriers = numbers
        counts = Counts(attended, attended, touched, attended, touched)
        return cls(counts, queries, 2 * attended, 0, hops_x, hops_y, barriers)


def count_pairs(
    platform: Platform, pattern: Pattern, q: Tensor, n_keys: int, offset: int, mask: Tensor | None
) -> Tensor:
    """Attended pairs, tiles that queries touch, queries, hops in x and in y, and barriers: int64 [6], where q is.

    Args:
        platform: the machine, which loses nothing; keys stand in order, ``platform.rows`` to a tile.
        pattern: static; may differ by head and sequence.
        q: queries [B, H, N_queries, D].
        n_keys: number of keys.
        offset: position of the first query.
        mask: bool [B, N_keys], True for a real key, and where queries and keys are the same tokens for a real query.
    """
    (batch, heads, n_queries, _), rows, device = q.shape, platform.rows, q.device
    asking = mask[:, offset:] if mask is not None and offset + n_queries == n_keys else None
    tiles = -(-n_keys // rows)
    total = torch.zeros(4, dtype=torch.int64, device=device)
    steps = torch.zeros(1, 1, dtype=torch.int64, device=device)  # of each head
    most = max(1, _PAIRS // (batch * heads * n_keys))
    for first in range(0, n_queries, most):
        last = min(first + most, n_queries)
        found = pairs(pattern, (n_queries, n_keys), offset, device, (first, last), n_keys)
        found = found if mask is None else found & mask[:, None, None]
        found = found if asking is None else found & asking[:, None, first:last, None]
        each = F.pad(found, (0, tiles * rows - n_keys)).unflatten(3, (tiles, rows)).sum(4)  # pairs of a tile
        touched = each > 0
        alike = batch // found.shape[0] * (heads // found.shape[1])
        across, down = _hops(platform, torch.arange(first, last, device=device) + offset, tiles)
        total += alike * torch.stack([each.sum(), touched.sum(), *((2 * each * hops).sum() for hops in (across, down))])
        steps = steps + 2 * touched.any(3).sum(2)
    queries = q.shape[:3].numel() if asking is None else heads * asking.sum()
    sent = torch.zeros_like(total[:1]) + queries
    barriers = steps.max()[None] if platform.timing == "mesh" else torch.zeros_like(sent)
    return torch.cat([total[:2], sent, total[2:], barriers])


def _hops(platform: Platform, query: Tensor, tiles: int) -> tuple[Tensor, Tensor]:
    """Hops in x and in y from where queries [N] stand to each tile: [N, tiles], as `timing.routes`; 0 off a mesh."""
    source = query.div(platform.rows * platform.share, rounding_mode="floor")[:, None]
    target = torch.arange(tiles, device=query.device).div(platform.share, rounding_mode="floor")
    if platform.timing != "mesh":
        return torch.zeros_like(source), torch.zeros_like(source)
    across = (target % platform.width - source % platform.width).abs()
    down = (target // platform.width - source // platform.width).abs()
    return across, down
