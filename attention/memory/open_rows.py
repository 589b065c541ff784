"""Which rows a write takes and a read opens: the same for all layers of a model, so found once a token."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from attention.kernel.analog import Places
from attention.kernel.fused import Chunks, placed_chunks
from attention.kernel.schedule import Group, Schedule, placed, run_of
from attention.memory.address_map import AddressMap
from attention.patterns.base import Pattern
from attention.patterns.on_device import pairs
from attention.patterns.resident import Resident
from crossbar.backends.protocol import RowNumbers
from crossbar.native import gpu
from crossbar.random.streams import Key

_PAIRS = 2**22  # of a group, which a schedule cuts further: bounds the keys that its queries have in vain


@dataclass(frozen=True, eq=False)
class OpenRows:
    """The rows that queries open.

    Attributes:
        positions: of their tokens, int64 [L], rising.
        schedule: the schedule, with places in ``positions`` as its keys.
        slots: `AddressMap.slot` of each.
        tiles: numbers of the tiles that are touched.
        tile: which of ``tiles`` each row is in, int64 [L].
        line: the row of its tile, int64 [L].
        lines: rows of a tile.
        places: the same of each row, as a read's noise wants it.
    """

    positions: Tensor
    schedule: Schedule
    slots: Tensor
    tiles: tuple[int, ...]
    tile: Tensor
    line: Tensor
    lines: int
    places: Places

    def numbers(self, key: Key) -> RowNumbers:
        """The random numbers of these rows."""
        return RowNumbers(key, self.tiles, self.tile, self.line, self.lines)


@dataclass(frozen=True, eq=False)
class TakenRows:
    """The rows that new tokens are written into.

    Attributes:
        chosen: which of the tokens still have theirs when all are written, int64; None: all.
        slots: `AddressMap.slot` of each of these, int64.
        needed: rows that there must be.
        written: `AddressMap.slot` of each new token, int64, on the host.
        once: 1 for each of these, int64, on the host.
    """

    chosen: Tensor | None
    slots: Tensor
    needed: int
    written: Tensor
    once: Tensor


@lru_cache(maxsize=64)
def taken_rows(first: int, end: int, device: torch.device, addresses: AddressMap) -> TakenRows:
    """What tokens ``first`` to ``end`` (excluded) take; found on the host, which so need not wait for the device."""
    with torch.inference_mode(False):
        position = torch.arange(first, end, device="cpu")
        kept = (position < addresses.sinks) | (position >= end - addresses.ring)
        written = addresses.slot(position)
        slots = written[kept]
        chosen = None if bool(kept.all()) else gpu.sent(kept.nonzero()[:, 0], device)
        return TakenRows(chosen, gpu.sent(slots, device), int(slots.max()) + 1, written, torch.ones_like(written))


@lru_cache(maxsize=64)
def open_rows(pattern: Pattern, queries: int, tokens: int, device: torch.device, addresses: AddressMap) -> OpenRows:
    """What the last ``queries`` of ``tokens`` open by a static causal pattern; kept for the next call."""
    positions, schedule = placed(pattern, queries, tokens, tokens - queries, device, addresses)
    with torch.inference_mode(False):
        number, line = addresses.tile(positions), addresses.line(positions)
        touched, tile = number.unique(return_inverse=True)
        numbers, slots = tuple(touched.tolist()), addresses.slot(positions)
        positions, slots, tile, line, number = (gpu.sent(x, device) for x in (positions, slots, tile, line, number))
        places = Places(number, line, addresses.tiles)
        return OpenRows(positions, schedule, slots, numbers, tile, line, addresses.rows, places)


def candidates(queries: int, tokens: int, first: int, device: torch.device, addresses: AddressMap) -> Tensor:
    """Positions whose rows some of the last ``queries`` of ``tokens`` find, tile after tile, int64 [L].

    ``first``: position before which rows were given up, but for sinks.
    """
    low = max(first, tokens - queries + 1 - addresses.ring, addresses.sinks)
    sinks = torch.arange(min(addresses.sinks, tokens), device="cpu")
    position = torch.cat([sinks, torch.arange(low, max(low, tokens), device="cpu")])
    order = (addresses.tile(position) * addresses.rows + addresses.line(position)).argsort(stable=True)
    return gpu.sent(position[order], device)


def chosen_rows(pattern: Pattern, queries: int, tokens: int, positions: Tensor, addresses: AddressMap) -> OpenRows:
    """What the last ``queries`` of ``tokens`` open of rows by pairs that were chosen (`attention.patterns.on_device`).

    ``positions`` are `candidates`. Nothing is kept for the next call, which chooses anew.
    """
    offset = tokens - queries
    number, line = addresses.tile(positions), addresses.line(positions)
    touched, tile = number.unique(return_inverse=True)
    groups, first = [], 0
    while first < queries:
        last = min(queries, first + max(1, _PAIRS // max(tokens, 1)))
        place = (positions < offset + last).nonzero()[:, 0]
        if len(place):
            groups.append(_chosen_group(pattern, queries, tokens, (first, last), positions, place, number))
        first = last
    covered = len(groups) > 0
    places = Places(number, line, addresses.tiles)
    slots, numbers = addresses.slot(positions), tuple(touched.tolist())
    schedule = Schedule(tuple(groups), merged=False, covered=covered)
    return OpenRows(positions, schedule, slots, numbers, tile, line, addresses.rows, places)


def _chosen_group(
    pattern: Pattern,
    queries: int,
    tokens: int,
    rows: tuple[int, int],
    positions: Tensor,
    place: Tensor,
    number: Tensor,
) -> Group:
    first, last = rows
    device, offset = positions.device, tokens - queries
    bounds = (0, *(number[place].diff().nonzero()[:, 0] + 1).tolist(), len(place))
    shared, step = run_of(place[None])

    def own(low: int, high: int) -> Tensor:
        found = pairs(pattern, (queries, tokens), offset, device, (first + low, first + high), tokens)
        return found[..., positions[place]]

    return Group(
        queries=torch.arange(first, last, device=device)[None],
        keys=place[None],
        masks=None,
        which=None,
        bounds=bounds,
        shared=shared,
        step=step,
        ordered=True,
        first_queries=(first,),
        first_keys=(int(place[shared]),),
        pairs=own,
    )


@lru_cache(maxsize=64)
def open_chunks(
    pattern: Pattern,
    queries: int,
    tokens: int,
    device: torch.device,
    addresses: AddressMap,
    block: tuple[int, int],
) -> Chunks:
    """The same rows as the kernels of GPUs take them; arguments as in `open_rows` and `placed_chunks`."""
    positions, _ = placed(pattern, queries, tokens, tokens - queries, device, addresses)
    places = positions, addresses.tile(positions), addresses.line(positions)
    return placed_chunks(pattern, queries, tokens, places, addresses.rows, device, block)


@lru_cache(maxsize=64)
def resident_pairs(
    pattern: Pattern, queries: int, tokens: int, first: int, addresses: AddressMap
) -> tuple[Pattern, int]:
    """The pattern's pairs whose key's row has not been taken or given up when the query reads, and how many are lost.

    Args:
        pattern: who attends to whom; causal.
        queries: the last tokens, which read.
        tokens: that there are.
        first: position before which rows were given up, but for sinks.
        addresses: whose row is taken by whom.
    """
    left = pattern
    if tokens > addresses.capacity:
        left = left & addresses.resident()
    if first > addresses.sinks:
        left = left & Resident(addresses.sinks, first).causal()
    if left is pattern:
        return pattern, 0

    def pairs(own: Pattern) -> int:
        heads = range(own.n_heads or 1)
        return sum(int(own.head(h).rows(queries, tokens, tokens - queries).indptr[-1]) for h in heads)

    return left, pairs(pattern) - pairs(left)
