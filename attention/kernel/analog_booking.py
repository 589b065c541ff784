"""What analog attention costs in events, counted from its schedule and booked in open ledgers.

The counts are those of docs/physics.md, "Attention"; the counters those of docs/energy.md, "The ledger".
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from attention.counts import Counts, book_attention
from attention.kernel.chunks import Chunk
from attention.kernel.schedule import Schedule
from crossbar.costs.ledger import book, counting
from crossbar.hardware import Hardware


def book_writes(layer: str, k: Tensor, v: Tensor, padding: Tensor | None, hardware: Hardware) -> None:
    """Book a row for each real token of k [B, H_kv, n, D] and of v [B, H_kv, n, D_v], in each tile: one pulse a cell.

    How many pulses write-and-verify takes is not counted: then rows alone are booked.
    """
    if not counting():
        return
    (batch, heads, n, _), sizes = k.shape, (k.shape[3], v.shape[3])
    rows = heads * (batch * n if padding is None else int(padding.sum()))
    book(layer, "row_writes", rows * sum(_across(size, hardware) for size in sizes))
    if hardware.verify is None:
        book(layer, "write_pulses", rows * sum(sizes) * hardware.tile.signs * hardware.tile.pairs)


def real_queries(padding: Tensor | None, queries: int, keys: int, offset: int) -> Tensor | None:
    """Which queries are no padding, bool [B, N_queries]; None: all, or they are not the last of the keys' tokens.

    Args:
        padding: bool [B, N_keys], True for a real token; None: all are.
        queries, keys: how many.
        offset: position of the first query.
    """
    return None if padding is None or offset + queries != keys else padding[:, offset:]


def book_reads(
    layer: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    schedule: Schedule,
    padding: Tensor | None,
    hardware: Hardware,
    *,
    asking: Tensor | None,
    normalised: bool = True,
    capped: bool = False,
    biased: bool = False,
) -> None:
    """Book both stages for queries [B, H, N_queries, D] on keys and values of N_keys tokens; see `read_counts`.

    ``normalised``: also the reciprocal that the softmax takes for each query; ``capped``, ``biased``: also what bends
    each score, and what is added to it.
    """
    if not counting():
        return
    counts = read_counts(q, k, v, schedule, padding, hardware, asking)
    dac, adc = (part.bits if part else None for part in (hardware.dac, hardware.adc))
    book_attention(
        layer,
        counts,
        head_dim=q.shape[3],
        value_dim=v.shape[3],
        queries=askers(q, asking) if normalised else 0,
        columns=hardware.tile.cols,
        pairs=hardware.tile.pairs,
        dac=dac,
        adc=adc,
        capped=capped,
        biased=biased,
    )


def askers(q: Tensor, asking: Tensor | None) -> int:
    """Queries of all heads and sequences that are no padding."""
    return q.shape[:3].numel() if asking is None else q.shape[1] * int(asking.sum())


def read_counts(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    schedule: Schedule,
    padding: Tensor | None,
    hardware: Hardware,
    asking: Tensor | None = None,
) -> Counts:
    """Line drives and conversions of all heads, equal to `attention.controller.tally.tally` of the pairs' events.

    Arguments as `attention.kernel.analog.attend_analog`; ``schedule`` is cut at the tiles' bounds, ``padding`` bool
    [B, N_keys] and ``asking`` bool [B, N_queries] are True for real tokens; None: all are.
    """
    pairs, touched, (batch, heads) = 0, 0, q.shape[:2]
    counted: list[Tensor] = []  # of pairs and touched tiles, on the device until all are summed
    for group in schedule.groups:
        chunk = Chunk(group, 0, len(group.queries), 0, group.queries.shape[1])
        mask, own, real = chunk.mask(), chunk.pairs(), None
        wanted = own[:, :, None] if own is not None else None if mask is None else mask[None, None]
        if padding is not None:
            real = padding.index_select(1, chunk.keys.flatten()).unflatten(1, chunk.keys.shape)[:, None, :, None]
        if asking is not None:
            asked = asking.index_select(1, chunk.queries.flatten()).unflatten(1, chunk.queries.shape)[
                :, None, ..., None
            ]
            real = asked if real is None else real & asked
        blocks, rows, _ = group.shape
        for low, high in pairwise(group.bounds):
            if wanted is None and real is None:
                pairs += batch * heads * blocks * rows * (high - low)
                touched += batch * heads * blocks * rows
                continue
            opened = None if wanted is None else wanted[..., low:high]
            if real is not None:
                opened = real[..., low:high] if opened is None else opened & real[..., low:high]
            assert opened is not None
            opened = opened.expand(batch, -1, blocks, rows, -1)
            counted.append(torch.stack([opened.sum(), opened.any(-1).sum()]) * (heads // opened.shape[1]))
    if counted:
        more = torch.stack(counted).sum(0).tolist()
        pairs, touched = pairs + more[0], touched + more[1]
    size, across = q.shape[3], _across(q.shape[3], hardware)
    value_size = v.shape[3]
    return Counts(
        score_sense_lines=across * pairs,
        score_conversions=across * pairs,
        query_drives=size * touched,
        value_row_drives=_across(value_size, hardware) * pairs,
        value_conversions=value_size * touched,
    )


def _across(size: int, hardware: Hardware) -> int:
    return -(-size // hardware.tile.cols)
