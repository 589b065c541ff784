"""Selections on a GPU: schedules of whole ranges of keys, with pairs that the device works out.

Which keys queries chose is on the device, and the host, which cannot know it without waiting, lets all keys be computed
(causal: all past ones) and masks those that were not chosen. Pairs are made block after block, and again in a backward
pass; what is kept is what `attention.patterns.selection.Choice` keeps.
"""

from __future__ import annotations

from functools import lru_cache, partial, reduce

import torch
from torch import Tensor

from attention.kernel.chunks import MOST
from attention.kernel.schedule import Group, Schedule
from attention.patterns.base import Compound, Intersection, Pattern, Union
from attention.patterns.heads import PerHead, PerSequence
from attention.patterns.intervals import Spans
from attention.patterns.selection import Chosen, held
from crossbar.native import gpu

_QUERIES = 1024  # of a block at most


def is_chosen(pattern: Pattern) -> bool:
    """Whether some of a pattern's pairs are on a device, where a selection left them."""
    return isinstance(pattern, Chosen) or (isinstance(pattern, Compound) and any(map(is_chosen, pattern.parts)))


def make_masked(
    pattern: Pattern,
    shape: tuple[int, int, int, int],
    offset: int,
    device: torch.device,
    tile: int | None = None,
) -> Schedule:
    """The schedule of a static pattern of all heads and sequences.

    Args:
        pattern: who attends to whom.
        shape: B, H, N_queries and N_keys.
        offset: position of the first query.
        device: where the pairs are.
        tile: tokens of a tile of memory; None: there are none.
    """
    batch, heads, n_queries, n_keys = shape
    groups: list[Group] = []
    first = 0
    while first < n_queries:
        rows = max(1, min(_QUERIES, MOST // (batch * heads * n_keys), n_queries - first))
        last = first + rows
        width = min(n_keys, offset + last) if pattern.is_causal else n_keys
        groups.append(
            Group(
                queries=torch.arange(first, last, device=device)[None],
                keys=torch.arange(width, device=device)[None],
                masks=None,
                which=None,
                bounds=(*range(0, width, tile or width), width),
                shared=0,
                step=1,
                ordered=True,
                first_queries=(first,),
                first_keys=(0,),
                pairs=partial(_of_block, pattern, (n_queries, n_keys), offset, device, first, width),
            )
        )
        first = last
    return Schedule(tuple(groups), merged=False, covered=True)


def _of_block(
    pattern: Pattern,
    lengths: tuple[int, int],
    offset: int,
    device: torch.device,
    first: int,
    width: int,
    low: int,
    high: int,
) -> Tensor:
    """Pairs of a block's rows ``low`` to ``high`` with its ``width`` keys, bool [B or 1, H or 1, rows, width]."""
    return _pairs(pattern, lengths, offset, device, (first + low, first + high), width)


def _pairs(
    pattern: Pattern, lengths: tuple[int, int], offset: int, device: torch.device, rows: tuple[int, int], width: int
) -> Tensor:
    if isinstance(pattern, Chosen):
        return pattern.choice.pairs(*rows, width)
    if isinstance(pattern, Union | Intersection | PerHead | PerSequence):
        found = [_pairs(part, lengths, offset, device, rows, width) for part in pattern.parts]
        if isinstance(pattern, Union):
            return reduce(torch.logical_or, found)
        if isinstance(pattern, Intersection):
            return reduce(torch.logical_and, found)
        if isinstance(pattern, PerHead):
            return torch.cat(found, 1)
        heads = max(own.shape[1] for own in found)
        return torch.cat([own.expand(-1, heads, -1, -1) for own in found], 0)
    start, stop = (x[rows[0] : rows[1]] for x in _spans(pattern, *lengths, offset, device))
    return held(start, stop, width)[None, None]


@lru_cache(maxsize=64)
def _spans(pattern: Pattern, n_queries: int, n_keys: int, offset: int, device: torch.device) -> Spans:
    """The intervals of a pattern that needs no choice, on a device; kept."""
    with torch.inference_mode(False):
        position = torch.arange(offset, offset + n_queries, device="cpu")
        return Spans(*(gpu.sent(x, device) for x in pattern.spans(position, n_keys)))
