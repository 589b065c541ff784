"""Who attends to whom, worked out on a device for a few queries at a time, so that the host learns of no choice."""

from __future__ import annotations

from functools import lru_cache, reduce

import torch
from torch import Tensor

from attention.patterns.base import Compound, Intersection, Pattern, Union
from attention.patterns.heads import PerHead, PerSequence
from attention.patterns.intervals import Spans
from attention.patterns.selection import Chosen, held
from crossbar.native import gpu


def is_chosen(pattern: Pattern) -> bool:
    """Whether some of a pattern's pairs are on a device, where a selection left them."""
    return isinstance(pattern, Chosen) or (isinstance(pattern, Compound) and any(map(is_chosen, pattern.parts)))


def pairs(
    pattern: Pattern, lengths: tuple[int, int], offset: int, device: torch.device, rows: tuple[int, int], width: int
) -> Tensor:
    """Pairs of a static pattern, bool [B or 1, H or 1, rows, width]: 1 where all of them have the same.

    Args:
        pattern: who attends to whom.
        lengths: N_queries and N_keys.
        offset: position of the first query.
        device: where the pairs are to be, and a selection's are.
        rows: the first of the queries, and the one after the last.
        width: the keys from 0 on.
    """
    if isinstance(pattern, Chosen):
        return pattern.choice.pairs(*rows, width)
    if isinstance(pattern, Union | Intersection | PerHead | PerSequence):
        found = [pairs(part, lengths, offset, device, rows, width) for part in pattern.parts]
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
