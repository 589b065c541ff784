"""A stream of events on a platform, part by part."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from attention.controller.events import DROPPED, Events
from attention.controller.platforms import Platform
from attention.controller.timing import Served, Timing, barrier, fifo, ports, routes, serve
from crossbar.errors import InputError

_LARGEST = 2**62


@dataclass
class Simulation:
    """Adds up what becomes of the parts of a stream.

    Attributes:
        platform: the machine.
        until: last unit of time that is observed; None: the end.
    """

    platform: Platform
    until: int | None = None
    totals: dict[str, int] = field(default_factory=dict)
    _last: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64, device="cpu"))
    _clock: int = 0
    _step: int = -1

    def add(self, events: Events) -> Tensor:
        """Departures of the next part's events, int64 [E].

        Raises:
            InputError: for a part that goes back in time, or that takes up a mesh's step again.
        """
        from attention.controller import event_kernels  # numba takes half a second to load

        time = events.time
        if not len(time):
            return time.clone()
        first, final = int(time[0]), int(time[-1])
        if self._step >= 0 and self.platform.full == "drop_old" and self.platform.timing == "fifo":
            raise InputError("a later event may drive out one of an earlier part: give the stream whole, or drop_new")
        if first < self._step or (self.platform.timing == "mesh" and first == self._step):
            raise InputError(f"a part of the stream starts at step {first} after step {self._step}: give whole steps")
        if not event_kernels.rises(time.numpy()):
            raise InputError("events are not in order of time: sort them by it")
        self._step = final
        if self.platform.timing == "ideal":
            return self._ideal(time)
        if self.platform.timing == "fifo":
            issued, served = self._fifo(events)
            self._clock = max(self._clock, int(served.depart.max()))
        else:
            issued, served = self._mesh(events)
        self._count(issued, served)
        return served.depart

    def _ideal(self, time: Tensor) -> Tensor:
        """Every event is delivered when it is issued and never waits."""
        issued = time if self.platform.step == 1 else time * self.platform.step
        self._clock = int(issued[-1])
        done = len(time) if self.until is None else int(torch.searchsorted(issued, self.until, right=True))
        self._add("injected", len(time))
        self._add("delivered", done)
        self._most("depth", 1)
        return issued

    def _fifo(self, events: Events) -> tuple[Tensor, Served]:
        issued, port = events.time * self.platform.step, ports(events)
        missing = int(port.max()) + 1 - len(self._last)
        if missing > 0:
            self._last = torch.cat([self._last, torch.zeros(missing, dtype=torch.int64, device=self._last.device)])
        return issued, serve(self.platform, issued, port, self._last)

    def _mesh(self, events: Events) -> tuple[Tensor, Served]:
        """Steps never meet, since a barrier ends each: they are served as if they were far from each other."""
        platform, way = self.platform, routes(self.platform, events)
        step, place = torch.unique_consecutive(events.time, return_inverse=True)
        longest = int((way.x * platform.hop_x + way.y * platform.hop_y).max())
        spacing = longest + len(place) * (platform.link + platform.service) + 1  # so that no step meets the one before
        if spacing * len(step) > _LARGEST:
            raise InputError("a part of this stream takes too long to be summed exactly: give shorter parts")
        begin = place * spacing
        sent = fifo(begin, way.source, platform.link).depart
        arrive = sent + way.x * platform.hop_x + way.y * platform.hop_y
        served = serve(platform, arrive, ports(events))
        served = served._replace(depart=torch.where(served.depart == DROPPED, DROPPED, served.depart - begin))
        arrive -= begin
        busy = torch.zeros(len(step), dtype=torch.int64, device=place.device)
        busy.scatter_reduce_(0, place, torch.maximum(served.depart, arrive), "amax")
        length = busy.clamp(min=platform.step) + barrier(platform, _routers(events, place, len(step), platform.share))
        start = length.cumsum(0) - length + self._clock
        self._clock = int(start[-1] + length[-1])
        issued = start.index_select(0, place)
        lost = served.depart == DROPPED
        self._add("hops_x", int(way.x.sum()))
        self._add("hops_y", int(way.y.sum()))
        self._add("barriers", len(step))
        return issued, Served(torch.where(lost, DROPPED, served.depart + issued), served.depth)

    def _count(self, issued: Tensor, served: Served) -> None:
        from attention.controller import event_kernels

        until = _LARGEST if self.until is None else self.until
        arrays = (x.numpy() for x in (issued, served.depart, served.depth))
        delivered, dropped, waited, longest, depth, beyond = event_kernels.totals(
            *arrays, until, self.platform.queue or _LARGEST
        )
        self._add("injected", len(issued))
        self._add("delivered", delivered)
        self._add("dropped", dropped)
        self._add("waited", waited)
        self._most("longest", longest)
        self._most("depth", depth)
        if self.platform.lossless:
            self._add("stalled", beyond)

    def result(self, depart: Tensor | None = None) -> Timing:
        """What became of all parts so far."""
        counts = dict(self.totals)
        in_flight = counts.get("injected", 0) - counts.get("delivered", 0) - counts.get("dropped", 0)
        return Timing(**counts, in_flight=in_flight, unit=self.platform.unit, duration=self._clock, depart=depart)

    def _add(self, name: str, number: int) -> None:
        self.totals[name] = self.totals.get(name, 0) + number

    def _most(self, name: str, number: int) -> None:
        self.totals[name] = max(self.totals.get(name, 0), number)


def _routers(events: Events, place: Tensor, steps: int, share: int) -> Tensor:
    """Different routers that each step's events go to."""
    router = events.tile.long().div(share, rounding_mode="floor")
    each = int(router.max()) + 1
    return torch.bincount((place * each + router).unique().div(each, rounding_mode="floor"), minlength=steps)
