"""The spike-gated controller: from attended pairs to the events that open their lines, and on to their delivery."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from attention.controller.capacity import Excess, excesses
from attention.controller.events import Events, Placement
from attention.controller.platforms import Platform
from attention.controller.simulation import Simulation
from attention.controller.timing import Timing
from attention.patterns.base import Pattern
from attention.patterns.rows import CSR
from crossbar.errors import InputError, require_whole

_PART = 2**22  # events that are timed at once: bounds memory
SMALL_PART = 2**16
"""Events that stay in a processor's cache."""


@dataclass(frozen=True)
class Controller:
    """Turns a pattern's rows into events for a platform, and says when these are delivered."""

    platform: Platform

    def events(self, csr: CSR, placement: Placement, first: int = 0) -> Events:
        """Two events for each attended pair: its key's line is sensed, then its value's line is driven.

        Events come in the order of their time and, inside a step, of the CSR. Payloads are 1 until
        `Events.with_weights` sets them. A query that attends nothing makes no event, so its tiles are skipped whole.

        Args:
            csr: rows of a pattern.
            placement: place of each key token.
            first: number of the first row's query.

        Raises:
            InputError: for an attended token without a place and for a line that the platform's tiles do not have.
        """
        self._require_places(csr, placement)
        return _issue(csr, placement, first, _blank(2 * _pairs(csr)))

    def parts(self, csr: CSR, placement: Placement, first: int = 0, *, part: int = SMALL_PART) -> Iterator[Events]:
        """`events` in parts of whole queries, of ``part`` events or one query each.

        Each part is written over the one before: what is to last has to be copied.
        """
        require_whole("part", part, least=1)
        self._require_places(csr, placement)
        blank, row, n_queries = _blank(0), 0, len(csr.indptr) - 1
        while row < n_queries:
            within = int(torch.searchsorted(csr.indptr, int(csr.indptr[row]) + part // 2, right=True)) - 1
            stop = max(within, row + 1)
            rows = CSR(csr.indptr[row : stop + 1], csr.indices)
            length = 2 * _pairs(rows)
            if length > len(blank.time):
                blank = _blank(max(length, min(part, 2 * _pairs(csr))))
            yield _issue(rows, placement, first + row, Events(*(x[:length] for x in blank)))
            row = stop

    def stream(
        self, pattern: Pattern, n: int, placement: Placement | None = None, *, first: int = 0, part: int = _PART
    ) -> Iterator[Events]:
        """The events of a sequence of ``n`` tokens in parts of whole queries, about ``part`` events each.

        Memory follows a part, however long the sequence.

        Args:
            pattern: who attends to whom; static and the same for every head.
            n: tokens.
            placement: of the keys; in order, ``platform.rows`` to a tile, unless given.
            first: queries before this position are left out.
            part: events of a part.
        """
        require_whole("part", part, least=1)
        placement = Placement.sequential(n, self.platform.rows) if placement is None else placement
        step = 1
        start = first
        while start < n:
            rows = min(step, n - start)
            csr = pattern.rows(rows, n, start)
            if 2 * len(csr.indices) > part and rows > 1:  # the pattern grew denser: take fewer queries
                step = max(1, rows // 2)
                continue
            yield self.events(csr, placement, start)
            start += rows
            step = max(1, min(2 * rows, rows * part // max(1, 2 * len(csr.indices))))

    def simulate(self, events: Events | Iterable[Events], until: int | None = None) -> Timing:
        """When events are delivered, and how many are dropped or still in flight after time ``until`` (units).

        Args:
            events: a stream in order of time, or its parts in order (`stream`). Parts keep no departures.
            until: the end, unless given.

        Raises:
            InputError: for events that are not in order of time.
        """
        if until is not None:
            require_whole("until", until, least=0, most=2**62)
        simulation = Simulation(self.platform, until)
        if not isinstance(events, Events):
            for part in events:
                simulation.add(part)
            return simulation.result()
        departures = [simulation.add(part) for part in self._parts(events)]
        return simulation.result(torch.cat(departures) if departures else events.time.clone())

    def check(self, csr: CSR, placement: Placement, weight_bits: int = 8) -> tuple[Excess, ...]:
        """The platform's limits that a pattern exceeds, by how much, and the split it would take to fit."""
        return excesses(self.platform, csr, placement, weight_bits)

    def _require_places(self, csr: CSR, placement: Placement) -> None:
        """Refuse rows that do not fit together or have no place, before a compiled loop trusts them."""
        indptr, token = csr
        n_tokens = len(placement.tile)
        if not (int(indptr[0]) == 0 and bool((indptr.diff() >= 0).all()) and int(indptr[-1]) == len(token)):
            raise InputError(
                f"a CSR's indptr does not bound its {len(token)} indices: let it rise from 0 to their number"
            )
        least, most = (int(x) for x in token.aminmax()) if len(token) else (0, -1)
        if least < 0:
            raise InputError(f"token {least} is attended: number tokens from 0")
        if most >= n_tokens:
            raise InputError(f"token {most} is attended but only {n_tokens} tokens have a place")
        if n_tokens and int(placement.line.max()) >= self.platform.rows:
            raise InputError(
                f"a token is on line {int(placement.line.max())} but tiles of platform {self.platform.name!r} have "
                f"{self.platform.rows} rows: place at most that many tokens a tile"
            )

    def _parts(self, events: Events) -> Iterator[Events]:
        """A long stream in parts, cut between steps; whole where a later event may undo an earlier one."""
        length, low = len(events.time), 0
        if self.platform.full == "drop_old" and length:
            yield events
            return
        while low < length:
            high = min(low + _PART, length)
            if high < length:
                high = int(torch.searchsorted(events.time, events.time[high - 1], right=True))
            yield Events(*(x[low:high] for x in events))
            low = high


def _pairs(csr: CSR) -> int:
    return int(csr.indptr[-1]) - int(csr.indptr[0])


def _blank(length: int) -> Events:
    """Events to be filled in."""
    dtypes = (torch.int64, torch.int32, torch.int32, torch.int8, torch.int32, torch.int32)
    return Events(*(torch.empty(length, dtype=dtype, device="cpu") for dtype in dtypes))


def _issue(csr: CSR, placement: Placement, first: int, events: Events) -> Events:
    """Fill in the events of a CSR's rows."""
    from attention.controller import event_kernels  # numba takes half a second to load

    places = (placement.tile.numpy(), placement.line.numpy())
    event_kernels.issue(csr.indptr.numpy(), csr.indices.numpy(), places, first, tuple(x.numpy() for x in events))
    return events
