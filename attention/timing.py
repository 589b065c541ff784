"""When events arrive: queues at ports, hops through a mesh, barriers; exact in whole units of time.

A stream may come in parts, of any number of events, as long as the parts are in order of time and, for a mesh, each
holds whole steps. What is carried from part to part is one number a port.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from attention.events import Axis, Events
from attention.platforms import Platform
from crossbar.errors import InputError

DROPPED = -1
"""The departure of an event that is lost."""

_LARGEST = 2**62


@dataclass(frozen=True, eq=False)
class Timing:
    """What became of a stream of events: ``injected = delivered + dropped + in_flight``.

    Attributes:
        injected: events of the stream.
        delivered: served by the end of the observation.
        dropped: lost at full ports.
        in_flight: neither yet.
        hops_x, hops_y: hops of all events, dropped ones too, which are lost at their port.
        barriers: passed.
        unit: seconds of a unit of time.
        duration: units from 0 until the last event is served and its barrier passed.
        waited: units between issue and delivery, summed over delivered events.
        longest: of these, the largest.
        depth: most events that a port held, with those that waited for it where queues are limited.
        stalled: events that had to wait before their port's queue.
        depart: int64 [E], units at which each event is served, −1 if it is lost; None for streams in parts.
    """

    injected: int = 0
    delivered: int = 0
    dropped: int = 0
    in_flight: int = 0
    hops_x: int = 0
    hops_y: int = 0
    barriers: int = 0
    unit: float = 0.0
    duration: int = 0
    waited: int = 0
    longest: int = 0
    depth: int = 0
    stalled: int = 0
    depart: Tensor | None = field(default=None, repr=False)

    @property
    def hops(self) -> int:
        """Hops in either direction."""
        return self.hops_x + self.hops_y

    @property
    def seconds(self) -> float:
        """How long the stream takes."""
        return self.duration * self.unit

    @property
    def latency(self) -> float:
        """Mean seconds from issue to delivery."""
        return self.waited * self.unit / self.delivered if self.delivered else 0.0

    @property
    def throughput(self) -> float:
        """Delivered events a second; infinite on a machine that takes no time."""
        return self.delivered / self.seconds if self.seconds else float("inf") if self.delivered else 0.0


class Served(NamedTuple):
    """Of each event, int64 [E]: ``depart`` (`DROPPED` if lost) and how many its port held once it had come."""

    depart: Tensor
    depth: Tensor


def fifo(arrive: Tensor, port: Tensor, service: int, last: Tensor | None = None) -> Served:
    """Departures from ports that serve one event in ``service`` units, each in the order of arrival.

    ``depart_i = max(arrive_i, depart_(i-1)) + s``, unrolled to ``s (i + 1) + cummax(arrive_i − s i)`` with i counted at
    each port: no loop over events. Ties are served in the order of the stream.

    Args:
        arrive: int64 [E].
        port: integers from 0, [E].
        service: s.
        last: int64 [ports], each port's last departure in earlier parts of the stream; overwritten. None: none.
    """
    if not len(arrive):
        return Served(arrive.clone(), torch.zeros_like(arrive))
    order = _by_port(arrive, port)
    port, came = port.index_select(0, order).long(), arrive.index_select(0, order)
    place = torch.arange(len(came), device=came.device)
    first = torch.ones_like(port, dtype=torch.bool)
    torch.ne(port[1:], port[:-1], out=first[1:])
    run = first.cumsum(0).sub_(1)
    place -= place[first].index_select(0, run)  # i, counted from each port's first event
    ready = came - service * place
    span = int(ready.max()) - int(ready.min()) + 1
    if span * (int(run[-1]) + 1) > _LARGEST:
        raise InputError("events of this stream are too far apart in time to be summed exactly: give shorter parts")
    ready += run * span  # a later port's numbers are all larger, so that one running maximum serves all ports
    depart = ready.cummax(0).values.sub_(run * span)
    if last is not None:
        torch.maximum(depart, last.index_select(0, port), out=depart)
    depart += service * (place + 1)
    if last is not None:
        end = torch.cat([first[1:], first.new_ones(1)])
        last.index_copy_(0, port[end], depart[end])
    held = _held(depart - came, service)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return Served(depart.index_select(0, back), held.index_select(0, back))


def _held(spent: Tensor, service: int) -> Tensor:
    """Events at a port that works without a break until it has served this one, ``spent`` units after it came."""
    return (spent + service - 1).div_(service, rounding_mode="floor") if service else torch.ones_like(spent)


def _by_port(arrive: Tensor, port: Tensor) -> Tensor:
    """Order of events by port and, within a port, by arrival, ties as they stand."""
    if bool((arrive.diff() >= 0).all()):
        return port.argsort(stable=True)
    order = arrive.argsort(stable=True)
    return order.index_select(0, port.index_select(0, order).argsort(stable=True))


def drop_new(arrive: Tensor, port: Tensor, service: int, queue: int, last: Tensor | None = None) -> Served:
    """`fifo` with ports that hold ``queue`` events at most and lose what comes to a full one.

    Which event is lost depends on all that were lost before, so this is a loop over events.
    """
    order = _by_port(arrive, port)
    depart, depth = [DROPPED] * len(order), [0] * len(order)
    free = dict(enumerate(last.tolist())) if last is not None else {}
    columns = (order, port.index_select(0, order), arrive.index_select(0, order))
    for event, where, came in zip(*(x.tolist() for x in columns), strict=True):
        work = max(0, free.get(where, 0) - came)
        held = -(-work // service)
        if held < queue:
            free[where] = depart[event] = came + work + service
        depth[event] = min(held + 1, queue)
    if last is not None:
        last.copy_(torch.tensor([free[where] for where in range(len(last))], dtype=torch.int64))
    return Served(torch.tensor(depart, dtype=torch.int64), torch.tensor(depth, dtype=torch.int64))


def drop_old(arrive: Tensor, port: Tensor, service: int, queue: int) -> Served:
    """`fifo` with ports that hold ``queue`` events at most; a new one drives out the one that has waited longest.

    The event that is being served is never lost. A loop over events, as `drop_new`.
    """
    order = _by_port(arrive, port)
    depart, depth = [DROPPED] * len(order), [0] * len(order)
    free: dict[int, int] = {}
    waiting: dict[int, deque[int]] = {}

    def serve_until(where: int, now: float) -> None:
        while waiting[where] and free[where] <= now:
            free[where] += service
            depart[waiting[where].popleft()] = free[where]

    columns = (order, port.index_select(0, order), arrive.index_select(0, order))
    for event, where, came in zip(*(x.tolist() for x in columns), strict=True):
        line = waiting.setdefault(where, deque())
        serve_until(where, came) if line else None
        if free.get(where, came) <= came:
            free[where] = depart[event] = came + service
        elif queue > 1:
            if len(line) + 1 == queue:
                line.popleft()
            line.append(event)
        depth[event] = len(line) + 1
    for where in waiting:
        serve_until(where, float("inf"))
    return Served(torch.tensor(depart, dtype=torch.int64), torch.tensor(depth, dtype=torch.int64))


def serve(platform: Platform, arrive: Tensor, port: Tensor, last: Tensor | None = None) -> Served:
    """Departures by the platform's queues; a port that is full and loses nothing makes events wait before it."""
    if platform.lossless:
        return fifo(arrive, port, platform.service, last)
    assert platform.queue is not None  # as Platform requires
    if platform.full == "drop_new":
        return drop_new(arrive, port, platform.service, platform.queue, last)
    return drop_old(arrive, port, platform.service, platform.queue)


class Routes(NamedTuple):
    """Of each event, int64 [E]: hops in x and in y, and the source's router."""

    x: Tensor
    y: Tensor
    source: Tensor


def routes(platform: Platform, events: Events) -> Routes:
    """Hops from the tile where an event's query stands (query i with token i's tile, in order) to the event's tile.

    Tiles are numbered along the rows of the mesh; ``hops = |dx| + |dy|``.
    """
    source = events.query.long().div(platform.rows * platform.share, rounding_mode="floor")
    target = events.tile.long().div(platform.share, rounding_mode="floor")
    dx = (target % platform.width - source % platform.width).abs()
    dy = (target // platform.width - source // platform.width).abs()
    return Routes(dx, dy, source)


def ports(events: Events) -> Tensor:
    """The port that each event goes to: a tile has one for keys and one for values."""
    return events.tile.long() * len(Axis) + events.axis


def barrier(platform: Platform, routers: Tensor) -> Tensor:
    """Units of a barrier over so many routers."""
    slope = max(0, platform.barrier_wide - platform.barrier)
    return platform.barrier + slope * (routers - 1).clamp(min=0) // (platform.wide - 1)
