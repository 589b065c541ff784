"""What analog attention costs in events, counted from its schedule and booked in open ledgers.

The counts are those of docs/physics.md, "Attention"; the counters those of docs/energy.md, "The ledger". Pairs and
padding are counted where they are; ledgers ask for the numbers when they are read.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from attention.counts import Counts, book_attention
from attention.kernel.chunks import Chunk
from attention.kernel.schedule import Schedule
from crossbar.costs.ledger import book, book_later, counting
from crossbar.hardware import Hardware


def book_writes(layer: str, k: Tensor, v: Tensor, padding: Tensor | None, hardware: Hardware) -> None:
    """Book a row for each real token of k [B, H_kv, n, D] and of v [B, H_kv, n, D_v], in each tile: one pulse a cell.

    How many pulses write-and-verify takes is not counted: then rows alone are booked.
    """
    if not counting():
        return
    heads, sizes = k.shape[1], (k.shape[3], v.shape[3])
    across = sum(_across(size, hardware) for size in sizes)
    pulses = sum(sizes) * hardware.tile.signs * hardware.tile.pairs if hardware.verify is None else 0

    def booked(tokens: int) -> None:
        book(layer, "row_writes", heads * tokens * across)
        if pulses:
            book(layer, "write_pulses", heads * tokens * pulses)

    book_tokens(layer, k, padding, booked)


def book_tokens(layer: str, x: Tensor, padding: Tensor | None, booked: Callable[[int], None]) -> None:
    """Have open ledgers book what depends on the number of real tokens.

    Args:
        layer: whose counts they are.
        x: [B, H, n, D], a token each of B n.
        padding: bool [B, n], True for a real token; None: all are.
        booked: books, given the number.
    """
    if padding is None:
        booked(x.shape[0] * x.shape[2])
    else:
        book_later(layer, padding.sum()[None], lambda numbers: booked(*numbers))


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
    """Book both stages for queries [B, H, N_queries, D] on keys and values of N_keys tokens; see `count_reads`.

    ``normalised``: also the reciprocal that the softmax takes for each query; ``capped``, ``biased``: also what bends
    each score, and what is added to it.
    """
    if not counting():
        return
    dac, adc = (part.bits if part else None for part in (hardware.dac, hardware.adc))
    booked = partial(
        book_attention,
        layer,
        head_dim=q.shape[3],
        value_dim=v.shape[3],
        columns=hardware.tile.cols,
        pairs=hardware.tile.pairs,
        dac=dac,
        adc=adc,
        capped=capped,
        biased=biased,
    )
    sizes = q.shape[3], v.shape[3]
    count_reads(
        layer, q, sizes, schedule, padding, hardware, asking,
        lambda counts, queries: booked(counts, queries=queries if normalised else 0),
    )  # fmt: skip


def count_reads(
    layer: str,
    q: Tensor,
    sizes: tuple[int, int],
    schedule: Schedule,
    padding: Tensor | None,
    hardware: Hardware,
    asking: Tensor | None,
    booked: Callable[[Counts, int], None],
) -> None:
    """Have open ledgers book line drives and conversions of all heads: those of `attention.controller.tally.tally`.

    Args:
        layer: whose counts they are.
        q: queries [B, H, N_queries, D].
        sizes: dimensions of keys and of values.
        schedule: the pairs, cut at the tiles' bounds.
        padding: bool [B, N_keys], True for a real token; None: all are.
        hardware: geometry.
        asking: bool [B, N_queries], as ``padding``.
        booked: books, given the counts and how many queries of all heads and sequences are real.
    """
    pairs, touched, (batch, heads) = 0, 0, q.shape[:2]
    counted: list[Tensor] = []  # of pairs and touched tiles, where they are
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
    queries = q.shape[:3].numel()
    across, across_values = (_across(size, hardware) for size in sizes)

    def found(numbers: list[int]) -> None:
        more, more_touched, asked = numbers
        counts = Counts(
            score_sense_lines=across * (pairs + more),
            score_conversions=across * (pairs + more),
            query_drives=sizes[0] * (touched + more_touched),
            value_row_drives=across_values * (pairs + more),
            value_conversions=sizes[1] * (touched + more_touched),
        )
        booked(counts, queries if asking is None else heads * asked)

    if not counted and asking is None:
        found([0, 0, 0])
        return
    more = torch.stack(counted).sum(0) if counted else torch.zeros(2, dtype=torch.int64, device=q.device)
    asked = more[:1] if asking is None else asking.sum()[None]
    book_later(layer, torch.cat([more, asked]), found)


def _across(size: int, hardware: Hardware) -> int:
    return -(-size // hardware.tile.cols)
