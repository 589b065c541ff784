"""Schedules of patterns that each head of each sequence has for itself, all made at once.

What queries and keys select is new at every step, so that making schedules head by head costs more than attending. Here
the heads of all sequences stand one after another as a single long head, whose blocks never reach over a head's end.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attention.kernel.layout import inside, union
from attention.kernel.schedule import QUERY_BLOCK, Group, Schedule, rounded
from attention.patterns.base import Pattern
from attention.patterns.composition import Compound
from attention.patterns.composition import Union as PatternUnion
from attention.patterns.intervals import Spans
from attention.patterns.selection import Selected

_AT_ONCE = 2**22  # intervals, or pairs, that exist at once while blocks are built


def apart(pattern: Pattern) -> tuple[Pattern, Pattern | None]:
    """What heads or sequences have for themselves, and what is the same for all of them (None: nothing is)."""
    if not isinstance(pattern, PatternUnion):
        return pattern, None
    own = tuple(part for part in pattern.parts if part.n_heads is not None or part.n_sequences is not None)
    common = tuple(part for part in pattern.parts if part not in own)
    return PatternUnion(own), PatternUnion(common) if common else None


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
        pending: list[tuple[int, Spans, Tensor]] = []
        reached = 0
        for b in range(batch):
            of_sequence = pattern.sequence(b)
            for h in range(heads):
                own = of_sequence.head(h)
                start, stop = (x.clamp(0, n_keys) for x in own.spans(position, n_keys))
                order = _order(own)
                pending.append((b * heads + h, Spans(start, stop), position - offset if order is None else order))
                last = b == batch - 1 and h == heads - 1
                if last or len(pending) * start.numel() >= _AT_ONCE:
                    for group, count in _groups(pending, without, shape, offset, device):
                        groups.append(group)
                        reached += count
                    pending = []
        return Schedule(tuple(groups), merged=False, covered=reached == batch * heads * n_queries)


def _groups(
    segments: list[tuple[int, Spans, Tensor]],
    without: Pattern | None,
    shape: tuple[int, int, int, int, int],
    offset: int,
    device: torch.device,
) -> Iterator[tuple[Group, int]]:
    """Groups of blocks of some heads, each with the number of its queries."""
    _, heads, kv_heads, n_queries, n_keys = shape
    intervals = max(spans.start.shape[1] for _, spans, _ in segments)
    start, stop = (
        torch.stack([torch.nn.functional.pad(spans[k], (0, intervals - spans[k].shape[1])) for _, spans, _ in segments])
        for k in (0, 1)
    )
    order = torch.stack([order for _, _, order in segments])
    number = torch.tensor([number for number, _, _ in segments], device="cpu")
    key_base = (number // heads * kv_heads + number % heads // (heads // kv_heads)) * n_keys
    # Blocks of whole height first, then one smaller block of each head.
    whole = n_queries // QUERY_BLOCK * QUERY_BLOCK
    for low, high in ((0, whole), (whole, n_queries)):
        height = min(QUERY_BLOCK, high - low)
        if not height:
            continue
        rows = order[:, low:high]  # [S, rows]
        place = rows[:, :, None].expand(-1, -1, intervals)
        bounds = [x.gather(1, place).reshape(-1, height, intervals) for x in (start, stop)]
        blocks = (high - low) // height
        queries = rows.reshape(-1, height)
        bases = (number * n_queries).repeat_interleave(blocks), key_base.repeat_interleave(blocks)
        at_once = max(1, _AT_ONCE // (height * max(intervals, n_keys)))
        for members in torch.arange(len(queries), device="cpu").split(at_once):
            own = [x[members] for x in bounds]
            keys, counts = union(own[0].flatten(1), own[1].flatten(1), n_keys)
            pairs = inside(keys, *own)
            if without is not None:
                taken = without.allowed(
                    *torch.broadcast_tensors(queries[members][:, :, None] + offset, keys[:, None, :])
                )
                pairs &= ~taken
            yield from _by_width(queries[members], keys, counts, pairs, [x[members] for x in bases], n_keys, device)


def _by_width(
    queries: Tensor,
    keys: Tensor,
    counts: Tensor,
    pairs: Tensor,
    bases: list[Tensor],
    n_keys: int,
    device: torch.device,
) -> Iterator[tuple[Group, int]]:
    """Blocks whose numbers of keys are alike, together; those that attend nothing are left out."""
    counts = torch.where(pairs.any(2).any(1), counts, 0)
    widths = torch.tensor([min(rounded(int(count)), keys.shape[1]) for count in counts], device="cpu")
    for width in widths.unique().tolist():
        if not width:
            continue
        chosen = (widths == width).nonzero()[:, 0]
        group = Group(
            queries=(queries[chosen] + bases[0][chosen, None]).to(device),
            keys=(keys[chosen, :width].clamp(max=n_keys - 1) + bases[1][chosen, None]).to(device),
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
