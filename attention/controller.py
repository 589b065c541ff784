"""The spike-gated controller: from attended pairs to the events that open their lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from attention.events import Axis, Events, Placement
from attention.patterns.base import CSR
from attention.patterns.intervals import repeat
from attention.platforms import Platform
from crossbar.errors import InputError, require_whole


class Timing(NamedTuple):
    """What became of a stream of events: ``injected = delivered + dropped + in_flight``."""

    injected: int
    delivered: int
    dropped: int
    in_flight: int


@dataclass(frozen=True)
class Controller:
    """Turns a pattern's rows into events for a platform."""

    platform: Platform

    def events(self, csr: CSR, placement: Placement) -> Events:
        """Two events for each attended pair: its key's line is sensed, then its value's line is driven.

        Events come in the order of their time and, inside a step, of the CSR. Payloads are 1 until
        `Events.with_weights` sets them. A query that attends nothing makes no event, so its tiles are skipped whole.

        Args:
            csr: rows of a pattern.
            placement: place of each key token.

        Raises:
            InputError: for an attended token without a place and for a line that the platform's tiles do not have.
        """
        indptr, token = csr
        n_pairs = len(token)
        if n_pairs and int(token.max()) >= len(placement.tile):
            raise InputError(f"token {int(token.max())} is attended but only {len(placement.tile)} tokens have a place")
        if len(placement.line) and int(placement.line.max()) >= self.platform.rows:
            raise InputError(
                f"a token is on line {int(placement.line.max())} but tiles of platform {self.platform.name!r} have "
                f"{self.platform.rows} rows: place at most that many tokens a tile"
            )
        # Row i of the CSR comes twice: its pairs' score events at time 2i, its pairs' value events at time 2i + 1.
        # (index_select, not brackets: small streams are common, and brackets wake all of torch's threads for any size.)
        stages = torch.arange(2 * len(indptr) - 2, device="cpu")
        time = repeat(stages, torch.stack([indptr.diff()] * 2, dim=1).flatten())
        skipped = torch.stack([indptr[:-1], indptr[1:]], dim=1).flatten()
        pair = torch.arange(2 * n_pairs, device="cpu") - skipped.index_select(0, time)
        attended = token.index_select(0, pair)
        return Events(
            time=time,
            tile=placement.tile.index_select(0, attended),
            line=placement.line.index_select(0, attended),
            axis=int(Axis.COL) - (time & 1).to(torch.int8),
            payload=torch.ones(2 * n_pairs, dtype=torch.int32, device="cpu"),
            query=(time >> 1).int(),
        )

    def simulate(self, events: Events, until: int | None = None) -> Timing:
        """Counts of events after step ``until`` (after the last step, unless given).

        The ideal platform delivers an event in its own step and drops none; events of later steps are in flight.
        """
        injected = len(events.time)
        if until is None:
            return Timing(injected, injected, 0, 0)
        require_whole("until", until, least=0)
        delivered = int((events.time <= until).sum())
        return Timing(injected, delivered, 0, injected - delivered)
