"""Selections on a GPU: schedules of whole ranges of keys, with pairs that the device works out.

Which keys queries chose is on the device, and the host, which cannot know it without waiting, lets all keys be computed
(causal: all past ones) and masks those that were not chosen. Pairs are made block after block, and again in a backward
pass; what is kept is what `attention.patterns.selection.Choice` keeps.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from attention.kernel.chunks import MOST
from attention.kernel.schedule import Group, Schedule
from attention.patterns.base import Pattern
from attention.patterns.on_device import pairs

_QUERIES = 1024  # of a block at most


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
    return pairs(pattern, lengths, offset, device, (first + low, first + high), width)
