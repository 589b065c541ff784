"""When events arrive: queues at ports, hops through a mesh, barriers; exact in whole units of time.

A stream may come in parts, of any number of events, as long as the parts are in order of time and, for a mesh, each
holds whole steps. What is carried from part to part is one number a port.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from attention.controller.events import MOST_TILES, Axis, Events
from attention.controller.platforms import Platform
from crossbar.errors import InputError


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

    ``depart_i = max(arrive_i, depart_(i-1)) + s`` at each port. Ties are served in the order of the stream.

    Args:
        arrive: int64 [E], 0 or more.
        port: integers from 0, [E].
        service: s.
        last: int64 [ports], each port's last departure in earlier parts of the stream; overwritten. None: none.
    """
    from attention.controller import event_kernels  # numba takes half a second to load

    served, last = _empty(arrive), _begun(port) if last is None else last
    event_kernels.fifo(*_arrays(arrive, port), service, last.numpy(), *(x.numpy() for x in served))
    return served


def drop_new(arrive: Tensor, port: Tensor, service: int, queue: int, last: Tensor | None = None) -> Served:
    """`fifo` with ports that hold ``queue`` events at most and lose what comes to a full one."""
    from attention.controller import event_kernels

    served, last = _empty(arrive), _begun(port) if last is None else last
    event_kernels.drop_new(*_arrays(arrive, port), service, queue, last.numpy(), *(x.numpy() for x in served))
    return served


def drop_old(arrive: Tensor, port: Tensor, service: int, queue: int) -> Served:
    """`fifo` with ports that hold ``queue`` events at most; a new one drives out the one that has waited longest.

    The event that is being served is never lost.
    """
    from attention.controller import event_kernels

    served, ports = _empty(arrive), len(_begun(port))
    event_kernels.drop_old(*_arrays(arrive, port), service, queue, ports, *(x.numpy() for x in served))
    return served


def _empty(arrive: Tensor) -> Served:
    return Served(torch.empty_like(arrive), torch.empty_like(arrive))


def _begun(port: Tensor) -> Tensor:
    """Last departures of ports that have served nothing yet."""
    return torch.zeros(int(port.max()) + 1 if len(port) else 0, dtype=torch.int64, device="cpu")


def _arrays(arrive: Tensor, port: Tensor) -> tuple[Any, Any, Any]:
    """The order of events by arrival, ties as they stand, and both inputs, as a kernel takes them."""
    from attention.controller import event_kernels

    ordered = event_kernels.rises(arrive.numpy())
    order = arrive.new_empty(0) if ordered else arrive.argsort(stable=True)
    return order.numpy(), arrive.numpy(), port.numpy()


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
    """The port that each event goes to: a tile has one for keys and one for values.

    Raises:
        InputError: for a tile that is negative, or beyond the most that there may be.
    """
    port = events.tile.long() * len(Axis) + events.axis
    if len(port) and int(port.min()) < 0:
        raise InputError("an event is on a negative tile: number tiles from 0")
    if len(port) and int(port.max()) >= MOST_TILES * len(Axis):
        raise InputError(f"an event is on tile {int(events.tile.max())}: number tiles from 0 to {MOST_TILES - 1}")
    return port


def barrier(platform: Platform, routers: Tensor) -> Tensor:
    """Units of a barrier over so many routers."""
    slope = max(0, platform.barrier_wide - platform.barrier)
    return platform.barrier + slope * (routers - 1).clamp(min=0) // (platform.wide - 1)
