"""What analog attention costs in events, counted from its schedule and booked in open ledgers (gating.md)."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from attention.counts import Counts, book_attention
from attention.kernel.gather import Step
from attention.kernel.schedule import Schedule
from crossbar.hardware import Hardware
from crossbar.ledger import book, counting


def book_writes(layer: str, k: Tensor, padding: Tensor | None, hardware: Hardware) -> None:
    """Book that a key and a value row are written for each real token of k [B, H_kv, N, D], in each of its tiles."""
    if counting():
        tokens = k.shape[0] * k.shape[2] if padding is None else int(padding.sum())
        book(layer, "row_writes", 2 * k.shape[1] * tokens * _across(k.shape[3], hardware))


def book_reads(layer: str, q: Tensor, k: Tensor, work: Schedule, padding: Tensor | None, hardware: Hardware) -> None:
    """Book both stages for queries [B, H, N_queries, D] on keys [B, H_kv, N_keys, D]; see `read_counts`."""
    if not counting():
        return
    counts = read_counts(q, k, work, padding, hardware)
    dac, adc = (part.bits if part else None for part in (hardware.dac, hardware.adc))
    book_attention(
        layer,
        counts,
        head_dim=q.shape[3],
        queries=q.shape[:3].numel(),
        columns=hardware.tile.cols,
        pairs=hardware.tile.pairs,
        dac=dac,
        adc=adc,
    )


def read_counts(q: Tensor, k: Tensor, work: Schedule, padding: Tensor | None, hardware: Hardware) -> Counts:
    """Line drives and conversions of all heads, equal to `attention.counts.tally` of the events of attended pairs.

    Arguments as `attention.kernel.analog.attend_analog`; ``work`` is cut at the tiles' bounds.
    """
    pairs = touched = 0
    for group in work.groups:
        step = Step(group, 0, len(group.queries), 0, group.queries.shape[1])
        mask, real = step.mask(), None
        if padding is not None:
            real = padding[:, None].index_select(2, step.keys.flatten()).unflatten(2, step.keys.shape)[:, 0, :, None]
        blocks, rows, _ = group.shape
        for low, high in pairwise(group.bounds):
            if mask is None and real is None:
                pairs += len(q) * blocks * rows * (high - low)
                touched += len(q) * blocks * rows
                continue
            opened = None if mask is None else mask[None, :, :, low:high]
            if real is not None:
                opened = real[..., low:high] if opened is None else opened & real[..., low:high]
            assert opened is not None
            opened = opened.expand(len(q), blocks, rows, -1)
            pairs += int(opened.sum())
            touched += int(opened.any(-1).sum())
    heads, size, across = q.shape[1], q.shape[3], _across(q.shape[3], hardware)
    return heads * Counts(
        score_sense_lines=across * pairs,
        score_conversions=across * pairs,
        query_drives=size * touched,
        value_row_drives=across * pairs,
        value_conversions=size * touched,
    )


def _across(size: int, hardware: Hardware) -> int:
    return -(-size // hardware.tile.cols)
