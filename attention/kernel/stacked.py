"""Schedules of patterns that each head of each sequence has for itself, all made at once.

What queries and keys select is new at every step, so that making schedules head by head costs more than attending. Here
the heads of all sequences stand one after another as a single long head, whose blocks never reach over a head's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.kernel.query_blocks import inside, union
from attention.kernel.schedule import QUERY_BLOCK, Group, Schedule, rounded
from attention.patterns.base import Compound, Pattern
from attention.patterns.base import Union as PatternUnion
from attention.patterns.intervals import Spans
from attention.patterns.routing import Clustered
from attention.patterns.selection import Selected

_AT_ONCE = 2**22  # intervals, or pairs, that exist at once while blocks are built


def split_shared(pattern: Pattern) -> tuple[Pattern, Pattern | None]:
    """What heads or sequences have for themselves, and what is the same for all of them (None: nothing is)."""
    if not isinstance(pattern, PatternUnion):
        return pattern, None
    own = tuple(part for part in pattern.parts if part.n_heads is not None or part.n_sequences is not None)
    common = tuple(part for part in pattern.parts if part.n_heads is None and part.n_sequences is None)
    return own[0] if len(own) == 1 else PatternUnion(own), PatternUnion(common) if common else None


def make_stacked(
    pattern: Pattern,
    without: Pattern | None,
    shape: tuple[int, int, int, int, int],
    offset: int = 0,
    device: torch.device | None = None,
) -> Schedule:
    """The schedule of a static pattern, each head's and sequence's own, over heads laid end to end.

    Row ``(b H + h) N_queries + i`` is query i of head h of sequence b, and row ``(b H_kv + h) N_keys + j`` is key j.

    Args:
        pattern: who attends to whom.
        without: pairs to leave out, which are computed elsewhere.
        shape: B, H, H_kv, N_queries and N_keys.
        offset: position of the first query.
        device: where the indices and masks go.
    """
    batch, heads, _, n_queries, n_keys = shape
    device = device or torch.device("cpu")
    position = torch.arange(offset, offset + n_queries, device="cpu")
    with torch.inference_mode(False), torch.no_grad():
        groups: list[Group] = []
        pending: list[_Segment] = []
        reached = 0
        for b in range(batch):
            of_sequence = pattern.sequence(b)
            for h in range(heads):
                pending.append(_segment(of_sequence.head(h), b * heads + h, position, n_keys))
                last = b == batch - 1 and h == heads - 1
                if last or len(pending) * pending[-1].spans.start.numel() >= _AT_ONCE:
                    for group, count in _groups(pending, without, shape, offset, device):
                        groups.append(group)
                        reached += count
                    pending = []
        return Schedule(tuple(groups), merged=False, covered=reached == batch * heads * n_queries)


class _Segment(NamedTuple):
    """A head of a sequence.

    Attributes:
        number: which, of all heads of all sequences.
        spans: places of the keys that each query attends.
        keys: the key at each place, int64 [N_keys].
        order: queries in an order in which neighbours share keys.
    """

    number: int
    spans: Spans
    keys: Tensor
    order: Tensor


def _segment(pattern: Pattern, number: int, position: Tensor, n_keys: int) -> _Segment:
    if isinstance(pattern, Clustered) and len(pattern.keys) == n_keys and len(pattern.begin) == len(position):
        return _Segment(number, Spans(pattern.begin[:, None], pattern.end[:, None]), pattern.keys, pattern.order)
    start, stop = (x.clamp(0, n_keys) for x in pattern.spans(position, n_keys))
    order = _order(pattern)
    rows = torch.arange(len(position), device="cpu") if order is None else order
    return _Segment(number, Spans(start, stop), torch.arange(n_keys, device="cpu"), rows)


def _groups(
    segments: list[_Segment],
    without: Pattern | None,
    shape: tuple[int, int, int, int, int],
    offset: int,
    device: torch.device,
) -> Iterator[tuple[Group, int]]:
    """Groups of blocks of some heads, each with the number of its queries."""
    _, heads, kv_heads, n_queries, n_keys = shape
    intervals = max(segment.spans.start.shape[1] for segment in segments)
    start, stop = (
        torch.stack([F.pad(x, (0, intervals - x.shape[1])) for x in bounds])
        for bounds in zip(*(segment.spans for segment in segments), strict=True)
    )
    key_at = torch.stack([segment.keys for segment in segments])
    order = torch.stack([segment.order for segment in segments])
    number = torch.tensor([segment.number for segment in segments], device="cpu")
    key_base = (number // heads * kv_heads + number % heads // (heads // kv_heads)) * n_keys
    # Blocks of whole height first, then one smaller block of each head.
    whole = n_queries // QUERY_BLOCK * QUERY_BLOCK
    for low, high in ((0, whole), (whole, n_queries)):
        height = min(QUERY_BLOCK, high - low)
        if not height:
            continue
        chosen = order[:, low:high]  # [S, queries]
        place = chosen[:, :, None].expand(-1, -1, intervals)
        bounds = [x.gather(1, place).reshape(-1, height, intervals) for x in (start, stop)]
        blocks = (high - low) // height
        queries = chosen.reshape(-1, height)
        own_segment = torch.arange(len(segments), device="cpu").repeat_interleave(blocks)
        at_once = max(1, _AT_ONCE // (height * max(intervals, n_keys)))
        for members in torch.arange(len(queries), device="cpu").split(at_once):
            own = [x[members] for x in bounds]
            places, counts = union(own[0].flatten(1), own[1].flatten(1), n_keys)
            pairs = inside(places, *own)
            segment = own_segment[members]
            keys = key_at[segment].gather(1, places.clamp(max=n_keys - 1))
            if without is not None:
                taken = without.allowed(
                    *torch.broadcast_tensors(queries[members][:, :, None] + offset, keys[:, None, :])
                )
                pairs &= ~taken
            rows = queries[members] + (number * n_queries)[segment, None]
            yield from _by_width(rows, keys + key_base[segment, None], counts, pairs, device)


def _by_width(
    queries: Tensor, keys: Tensor, counts: Tensor, pairs: Tensor, device: torch.device
) -> Iterator[tuple[Group, int]]:
    """Blocks whose numbers of keys are alike, together; those that attend nothing are left out."""
    counts = torch.where(pairs.any(2).any(1), counts, 0)
    widths = torch.tensor([min(rounded(int(count)), keys.shape[1]) for count in counts], device="cpu")
    for width in widths.unique().tolist():
        if not width:
            continue
        chosen = (widths == width).nonzero()[:, 0]
        group = Group(
            queries=queries[chosen].to(device),
            keys=keys[chosen, :width].to(device),
            masks=pairs[chosen, :, :width].to(device),
            which=torch.arange(len(chosen), device="cpu"),
            bounds=(0, width),
            shared=0,
            step=None,
            ordered=False,
        )
        yield group, queries[chosen].numel()


def _order(pattern: Pattern) -> Tensor | None:
    """Queries in an order in which neighbours share keys, where a part of the pattern knows one."""
    if isinstance(pattern, Selected):
        return pattern.order
    found = [_order(part) for part in pattern.parts] if isinstance(pattern, Compound) else []
    return next((order for order in found if order is not None), None)
