"""Machines that events run on: geometry, timing, limits and the price book that goes with each."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from crossbar.errors import InputError, require_number, require_whole

TimingModel = Literal["ideal", "fifo", "mesh"]
WhenFull = Literal["wait", "drop_new", "drop_old"]


@dataclass(frozen=True)
class Limits:
    """What a core of a machine holds at most; None: no limit.

    Attributes:
        cores: of the machine; a core is a tile of memory here.
        inputs: sources (queries) whose events a core takes in.
        targets: lines that one source reaches without splitters.
        output_edges: pairs of a source on a core and a core that it reaches.
        neurons: sources that live on a core.
        synapse_bytes: memory for a core's pairs.
        weight_bits: of a pair's strength.
        payload_bits: of an event; 1 is a bare spike.
        reach: hops in one direction.
    """

    cores: int | None = None
    inputs: int | None = None
    targets: int | None = None
    output_edges: int | None = None
    neurons: int | None = None
    synapse_bytes: int | None = None
    weight_bits: int | None = None
    payload_bits: int | None = None
    reach: int | None = None


@dataclass(frozen=True)
class Platform:
    """A machine's description. Times are whole numbers of ``unit`` seconds, so that every sum is exact.

    Attributes:
        name: how reports call it.
        rows: token lines of a memory tile.
        columns: lines of a memory tile across the token lines; a head of more than this many dimensions takes
            several tiles side by side.
        timing: ``ideal``: an event is delivered when it is issued. ``fifo``: each port (a tile's K side, a tile's V
            side) serves its events one after another. ``mesh``: packets leave the query's tile one after another, hop
            in x, then in y, are served as in ``fifo``, and a step starts once all of the last one are served and a
            barrier is passed.
        unit: seconds; 0 for a machine that takes no time.
        step: units between steps: from issue to issue, or, with barriers, the least length of a step.
        service: units that a port takes for an event.
        link: units that a packet takes to leave its tile.
        hop_x, hop_y: units of one hop.
        barrier: units of a barrier on one router; ``barrier_wide`` on ``wide`` routers, and linear in between.
        queue: events that a port holds, the one being served among them; None: any number.
        full: what happens at a full port. ``wait``: the event waits where it comes from (nothing is lost);
            ``drop_new``: it is lost; ``drop_old``: the one that has waited longest is lost.
        width: routers in a row of the mesh.
        share: tiles that share a router.
        limits: what it holds.
        prices: name of its price book.

    Raises:
        InputError: for an impossible value.
    """

    name: str
    rows: int = 256
    columns: int = 256
    timing: TimingModel = "ideal"
    unit: float = 0.0
    step: int = 1
    service: int = 0
    link: int = 0
    hop_x: int = 0
    hop_y: int = 0
    barrier: int = 0
    barrier_wide: int = 0
    wide: int = 32
    queue: int | None = None
    full: WhenFull = "wait"
    width: int = 64
    share: int = 1
    limits: Limits = field(default_factory=Limits)
    prices: str | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "columns", "width", "share"):
            require_whole(f"{self.name} {name}", getattr(self, name), least=1)
        for name in ("step", "service", "link", "hop_x", "hop_y", "barrier", "barrier_wide"):
            require_whole(f"{self.name} {name}", getattr(self, name), least=0)
        require_whole(f"{self.name} wide", self.wide, least=2)
        require_number(f"{self.name} unit", self.unit)
        for name, allowed in (("timing", get_args(TimingModel)), ("full", get_args(WhenFull))):
            if getattr(self, name) not in allowed:
                raise InputError(f"{self.name} {name} = {getattr(self, name)!r}: choose one of {', '.join(allowed)}")
        if self.queue is not None:
            require_whole(f"{self.name} queue", self.queue, least=1)
        if self.full != "wait" and (self.queue is None or self.timing == "ideal" or self.service == 0):
            raise InputError(
                f"{self.name} full = {self.full!r} needs ports that fill up: give a queue, a service time, and timing "
                "fifo or mesh"
            )

    @property
    def lossless(self) -> bool:
        """Whether every event is delivered in the end."""
        return self.full == "wait"


def ideal(rows: int = 256, columns: int = 256) -> Platform:
    """A machine that delivers every event in the step in which it is issued, on as many tiles as it takes."""
    return Platform("ideal", rows, columns)


def truenorth() -> Platform:
    """TrueNorth (Merolla 2014, Akopyan 2015): 64 x 64 cores of 256 axons by 256 neurons, ticks of 1 ms.

    A tick is a barrier. Within it a core serves an axon event a clock of its row loop; packets and service are far
    below a tick, and are taken as 1 µs each.
    """
    limits = Limits(cores=4096, inputs=256, targets=1, neurons=256, weight_bits=9, payload_bits=1, reach=255)
    return Platform(
        "truenorth",
        rows=256,
        columns=256,
        timing="mesh",
        unit=1e-6,
        step=1000,
        service=1,
        link=1,
        width=64,
        limits=limits,
        prices="truenorth",
    )


def loihi1() -> Platform:
    """Loihi (Davies 2018): 128 cores of 1,024 compartments, four to a router, 8 x 4 routers; pre-silicon minimum times.

    Synaptic operation 3.5 ns, hops 4.1 ns east-west and 6.5 ns north-south, barrier 113 ns to 465 ns on 32 tiles.
    """
    limits = _loihi_limits(neurons=1024, payload_bits=1)
    return Platform("loihi1", rows=1024, columns=1024, limits=limits, prices="loihi1", **_loihi_mesh())


def loihi2() -> Platform:
    """Loihi 2: 128 cores of up to 8,192 neurons, payloads of 32 bits. No energies are published, so it has no prices.

    Its times are not published either: those of Loihi stand in for them.
    """
    limits = _loihi_limits(neurons=8192, payload_bits=32)
    return Platform("loihi2", rows=8192, columns=8192, limits=limits, **_loihi_mesh())


def _loihi_limits(*, neurons: int, payload_bits: int) -> Limits:
    return Limits(
        cores=128,
        inputs=4096,
        output_edges=4096,
        neurons=neurons,
        synapse_bytes=128 * 1024,
        weight_bits=9,
        payload_bits=payload_bits,
    )


def _loihi_mesh() -> dict[str, Any]:
    return {
        "timing": "mesh",
        "unit": 1e-10,
        "step": 0,
        "service": 35,
        "link": 35,
        "hop_x": 41,
        "hop_y": 65,
        "barrier": 1130,
        "barrier_wide": 4650,
        "wide": 32,
        "width": 8,
        "share": 4,
    }
