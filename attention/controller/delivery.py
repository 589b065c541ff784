"""What a controller lets through: attention over the pairs whose events were delivered, and their counts."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from attention.controller.controller import SMALL_PART, Controller
from attention.controller.counted import Totals, count_pairs
from attention.controller.events import DROPPED, Axis, Placement
from attention.controller.simulation import Simulation
from attention.controller.tally import tally
from attention.controller.timing import Timing
from attention.counts import Counts, book_attention
from attention.patterns.base import Pattern
from attention.patterns.family import Constant
from attention.patterns.heads import PerHead, per_sequence
from attention.patterns.intervals import padded, repeat
from attention.patterns.on_device import is_chosen
from attention.patterns.rows import CSR
from attention.patterns.selection import Selected
from crossbar.costs.ledger import book, book_later, counting
from crossbar.errors import InputError
from crossbar.hardware import Hardware


class EventsDropped(UserWarning):
    """A controller lost events, so attention was computed without the pairs that they belong to."""


@dataclass(frozen=True, eq=False)
class HeadDelivery:
    """What became of one head's events in one sequence.

    Attributes:
        scored: pairs whose score event was delivered: those that the softmax is taken over.
        valued: of them, those whose value event was delivered too: those that reach the output.
        timing: of the head's own memory; heads work at the same time.
        counts: of its delivered events, for a head of one dimension; 0 unless a ledger was open.
        queries: that were sent, which is all but padding.
    """

    scored: Pattern
    valued: Pattern
    timing: Timing
    counts: Counts
    queries: int


@dataclass(frozen=True)
class Delivery:
    """`HeadDelivery` of a whole batch, as patterns.

    Attributes:
        scored, valued: as in `HeadDelivery`, of each sequence and head.
        parts: the different results, and of how many heads each is; none where events were counted on a GPU.
        numbers: what `attention.controller.counted.count_pairs` counted there; None: nothing.
    """

    scored: Pattern
    valued: Pattern
    parts: tuple[tuple[HeadDelivery, int], ...] = ()
    numbers: Tensor | None = None

    @property
    def lossy(self) -> bool:
        """Whether a value was lost whose score counts."""
        return self.valued != self.scored

    def count(self, layer: str, booked: Callable[[Totals], None]) -> None:
        """Have open ledgers book what was delivered: now, or where a GPU has the numbers, once they are read."""
        if self.numbers is not None:
            book_later(layer, self.numbers, lambda numbers: booked(Totals.of(numbers)))
        elif self.parts:
            booked(self._totals())

    def _totals(self) -> Totals:
        each = [(heads, part, part.timing) for part, heads in self.parts]
        return Totals(
            counts=sum((heads * part.counts for heads, part, _ in each), Counts()),
            queries=sum(heads * part.queries for heads, part, _ in each),
            events=sum(heads * timing.injected for heads, _, timing in each),
            dropped=sum(heads * timing.dropped for heads, _, timing in each),
            hops_x=sum(heads * timing.hops_x for heads, _, timing in each),
            hops_y=sum(heads * timing.hops_y for heads, _, timing in each),
            barriers=max(timing.barriers for _, _, timing in each),
        )

    def book(
        self, layer: str, q: Tensor, v: Tensor, hardware: Hardware | None, capped: bool = False, biased: bool = False
    ) -> None:
        """Book the delivered events of queries [B, H, N, D] on values [B, H_kv, N_keys, D_v] in open ledgers."""
        if not counting():
            return
        size, value_size, columns = q.shape[3], v.shape[3], hardware.tile.cols if hardware else 256
        dac, adc = (part.bits if part else None for part in (hardware.dac, hardware.adc)) if hardware else (None,) * 2

        def booked(totals: Totals) -> None:
            for name, number in (
                ("events", totals.events),
                ("events_dropped", totals.dropped),
                ("hops_x", totals.hops_x),
                ("hops_y", totals.hops_y),
                ("barriers", totals.barriers),
            ):
                book(layer, name, number)
            book_attention(
                layer,
                totals.counts.of_head(size, columns, value_size),
                head_dim=size,
                value_dim=value_size,
                queries=totals.queries,
                columns=columns,
                pairs=hardware.tile.pairs if hardware else 1,
                dac=dac,
                adc=adc,
                capped=capped,
                biased=biased,
            )

        self.count(layer, booked)

    def warn(self) -> None:
        """Say how many events were lost, if any."""
        lost, all_ = (sum(n * count(p.timing) for p, n in self.parts) for count in (_dropped, _injected))
        if lost:
            warnings.warn(
                f"the controller dropped {lost:,} of {all_:,} events ({lost / all_:.1%}): their pairs are missing from "
                "this attention",
                EventsDropped,
                stacklevel=3,
            )


def _dropped(timing: Timing) -> int:
    return timing.dropped


def _injected(timing: Timing) -> int:
    return timing.injected


def require_rows(controller: Controller, hardware: Hardware) -> None:
    """Refuse a platform whose tiles have other rows than the memory's."""
    if controller.platform.rows != hardware.tile.rows:
        raise InputError(
            f"platform {controller.platform.name!r} has {controller.platform.rows} rows and the hardware's tiles have "
            f"{hardware.tile.rows}: give both the same"
        )


def deliver(
    controller: Controller, pattern: Pattern, q: Tensor, n_keys: int, offset: int, mask: Tensor | None, fixed: bool
) -> Delivery:
    """Send the events of a pattern's pairs to the memory and see which arrive.

    Keys stand in order, ``platform.rows`` to a tile; padding has no place, and sends nothing where queries and keys are
    the same tokens. Every query head of every sequence has tiles of its own, so that streams of different heads never
    meet.

    Args:
        controller: with the platform.
        pattern: static; may differ by head and sequence.
        q: queries [B, H, N_queries, D].
        n_keys: number of keys.
        offset: position of the first query.
        mask: bool [B, N_keys], True for a real key.
        fixed: whether the same will be asked again.

    Where pairs or padding are on a GPU and the platform loses nothing, what arrives is the pattern, and what a ledger
    counts is counted there. A platform that loses events is given a copy of the pairs, for which the host waits.
    """
    there = is_chosen(pattern) or (mask is not None and mask.device.type != "cpu")
    if there and controller.platform.lossless:
        given = controller.platform, pattern, q, n_keys, offset, mask
        return Delivery(pattern, pattern, numbers=count_pairs(*given) if counting() else None)
    ask = _deliver_head_cached if fixed else _deliver_head
    found: Counter[HeadDelivery] = Counter()

    def of_sequence(b: int) -> list[HeadDelivery]:
        real = None if mask is None or bool(mask[b].all()) else Constant(mask[b])
        own = pattern.sequence(b)
        alone = [own.head(h) for h in range(own.n_heads)] if own.n_heads else [own]
        delivered = [ask(controller, each, q.shape[2], n_keys, offset, real, counting()) for each in alone]
        for each in delivered:
            found[each] += q.shape[1] // len(delivered)
        return delivered

    def joined(heads: list[Pattern]) -> Pattern:
        return heads[0] if len(heads) == 1 else PerHead(heads)

    sequences = [of_sequence(b) for b in range(q.shape[0])]
    scored, valued = (
        [joined([part.scored if stage else part.valued for part in delivered]) for delivered in sequences]
        for stage in (True, False)
    )
    return Delivery(_alike(scored), _alike(valued), tuple(found.items()))


def _alike(patterns: list[Pattern]) -> Pattern:
    if all(each == patterns[0] for each in patterns):
        return patterns[0]
    return per_sequence(len(patterns), lambda b: patterns[b])


def _deliver_head(
    controller: Controller,
    pattern: Pattern,
    n_queries: int,
    n_keys: int,
    offset: int,
    real: Constant | None,
    counted: bool,
) -> HeadDelivery:
    csr = pattern.rows(n_queries, n_keys, offset)
    sent = real.tensor[offset:] if real is not None and offset + n_queries == n_keys else None
    wanted = csr if real is None else _only(csr, _real(csr, real.tensor, sent))
    placement = Placement.sequential(n_keys, controller.platform.rows)
    # A part is made, timed and counted while it is in cache; a later event may drive out one of an earlier part.
    whole = 2 * len(wanted.indices) if controller.platform.full == "drop_old" else 0
    simulation, counts = Simulation(controller.platform), Counts()
    scored, reached = [], []
    for events in controller.parts(wanted, placement, offset, part=max(SMALL_PART, whole)):
        depart = simulation.add(events)
        if not controller.platform.lossless:
            arrived = depart != DROPPED
            scored.append(arrived[events.axis == Axis.COL])  # pairs in the CSR's order
            reached.append(arrived[events.axis == Axis.ROW])
            events = events.where(arrived)
        if counted:
            counts += tally(events, head_dim=1)
    timing = simulation.result()
    queries = n_queries if sent is None else int(sent.sum())
    if not timing.dropped:
        return HeadDelivery(pattern, pattern, timing, counts, queries)
    kept = torch.cat(scored)
    scored_pairs, valued_pairs = (
        _pattern(_only(wanted, x), pattern, n_keys, offset) for x in (kept, kept & torch.cat(reached))
    )
    return HeadDelivery(scored_pairs, valued_pairs, timing, counts, queries)


_deliver_head_cached = lru_cache(maxsize=16)(_deliver_head)


def _real(csr: CSR, keys: Tensor, queries: Tensor | None) -> Tensor:
    """Which entries of rows have a real key, and a real query where these are told apart."""
    kept = keys[csr.indices]
    return kept if queries is None else kept & repeat(queries, csr.indptr.diff())


def _only(csr: CSR, kept: Tensor) -> CSR:
    """The entries of rows that a bool mask keeps."""
    before = torch.zeros(len(kept) + 1, dtype=torch.int64, device=kept.device)
    torch.cumsum(kept, 0, out=before[1:])
    return CSR(before[csr.indptr], csr.indices[kept])


def _pattern(csr: CSR, of: Pattern, n_keys: int, offset: int) -> Pattern:
    """Rows as a pattern."""
    n_queries = len(csr.indptr) - 1
    row = repeat(torch.arange(n_queries, device="cpu"), csr.indptr.diff())
    starts = torch.ones(len(row), dtype=torch.bool, device="cpu")
    starts[1:] = (row[1:] != row[:-1]) | (csr.indices[1:] != csr.indices[:-1] + 1)
    stops = torch.cat([starts[1:], starts.new_ones(1)])[: len(starts)]
    spans = padded(row[starts], csr.indices[starts], csr.indices[stops] + 1, n_queries, n_keys)
    return Selected(spans.start, spans.stop, offset, is_causal=of.is_causal)
