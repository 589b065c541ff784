"""When each layer of a placed model works on a token, and how many tokens a second that gives.

A layer starts when all that it takes has arrived. Its tiles are read, all of them at once; then the digital units of
its cores do its digital work, each an equal part, while DRAM is read. Reading buffers takes no time beside that, and
links are not contended (docs/energy.md, "Time").
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

from crossbar.costs.chips import Chip
from crossbar.costs.floorplan import FloorPlan
from crossbar.costs.ledger import Counter as Counted
from crossbar.costs.ledger import Ledger
from crossbar.costs.reads import ReadTime, attention_time, read_time, screening_time
from crossbar.errors import require_whole
from crossbar.hardware import Hardware

RESOURCES = ("word lines", "converters", "read-out", "comparators", "digital units", "DRAM", "network")
"""What a token waits for."""

_NEEDED = ("slot", "settle", "latch", "mac", "special", "dram_wait", "dram_byte", "hop", "link_byte", "chip_hop")


class Stage(NamedTuple):
    """One layer's work on one token, nanoseconds.

    ``spent``: of each of `RESOURCES` in turn; ``reading``: after which its tiles can be driven for the next token;
    ``stream``: that DRAM is busy with it.
    """

    name: str
    spent: tuple[float, ...]
    reading: float
    stream: float
    start: float = 0.0
    after: str | None = None

    @property
    def ns(self) -> float:
        """From the last input's arrival to the last output: digital work and DRAM at the same time."""
        *others, digital, dram, network = self.spent
        return sum(others) + max(digital, dram) + network

    @property
    def interval(self) -> float:
        """After which the next token can follow here."""
        return max(self.reading, self.stream, self.spent[RESOURCES.index("digital units")])

    @property
    def end(self) -> float:
        """Since the token's start."""
        return self.start + self.ns


class Rate(NamedTuple):
    """What one schedule gives: nanoseconds a token, tokens a second, and the resource that limits them."""

    ns: float
    tokens_per_second: float
    limit: str


@dataclass(frozen=True)
class ChipTime:
    """One token's way through a placed model.

    Attributes:
        stages: in the order of work; ``start`` is when the last of what a layer takes arrived, ``after`` which layer
            made that.
        busy: nanoseconds a token that each single resource is taken, by name; the longest bounds tokens a second.
        missing: parts that the book has no time for, and what is not timed; they took 0.
        ways: from layer to layer, nanoseconds on links.
        sent: of these, those after which the next token's numbers can follow.
    """

    stages: tuple[Stage, ...]
    busy: dict[str, float]
    missing: tuple[str, ...] = ()
    ways: dict[tuple[str, str], float] = field(default_factory=dict)
    sent: dict[tuple[str, str], float] = field(default_factory=dict)

    @property
    def latency(self) -> float:
        """Nanoseconds of one token, from its first layer to its last."""
        return max((stage.end for stage in self.stages), default=0.0)

    @property
    def interval(self) -> float:
        """Nanoseconds after which the next token can follow on the busiest resource."""
        return max(self.busy.values(), default=0.0)

    @property
    def path(self) -> tuple[Stage, ...]:
        """The layers that the token waits for, in order: each starts when the one before it has arrived."""
        by_name = {stage.name: stage for stage in self.stages}
        found = [max(self.stages, key=lambda stage: stage.end)] if self.stages else []
        while found and found[-1].after is not None:
            found.append(by_name[found[-1].after])
        return tuple(reversed(found))

    def waited(self) -> dict[str, float]:
        """The latency by resource, nanoseconds; what takes most is first."""
        spent = dict.fromkeys(RESOURCES, 0.0)
        for stage in self.path:
            *others, digital, dram, network = stage.spent
            values = (*others, digital if digital >= dram else 0.0, dram if dram > digital else 0.0, network)
            for name, ns in zip(RESOURCES, values, strict=True):
                spent[name] += ns
            if stage.after is not None:
                spent["network"] += self.ways.get((stage.after, stage.name), 0.0)
        return dict(sorted(spent.items(), key=lambda item: -item[1]))

    def decode(self, batch: int = 1) -> Rate:
        """Sequences that decode side by side, each with one token in flight.

        Raises:
            InputError: for a batch below 1.
        """
        require_whole("batch", batch, least=1)
        step = max(self.latency, batch * self.interval)
        limit = self._busiest() if step > self.latency else next(iter(self.waited()), "")
        return _rate(step / batch, limit)

    def pipelined(self, tokens: int) -> Rate:
        """A prefill whose tokens follow one another as closely as the busiest resource lets them.

        Raises:
            InputError: for fewer tokens than 1.
        """
        require_whole("tokens", tokens, least=1)
        return _rate((self.latency + (tokens - 1) * self.interval) / tokens, self._busiest())

    def layer_by_layer(self, tokens: int) -> Rate:
        """A prefill in which a layer starts when those before it have all tokens.

        Raises:
            InputError: for fewer tokens than 1.
        """
        require_whole("tokens", tokens, least=1)
        own = {stage.name: stage.ns + (tokens - 1) * stage.interval for stage in self.stages}
        end: dict[str, float] = {}
        after: dict[str, str | None] = {}
        sources = defaultdict(list)
        for source, target in self.ways:
            sources[target].append(source)
        for stage in self.stages:
            known = [
                (end[name] + self.ways[name, stage.name] + (tokens - 1) * self.sent.get((name, stage.name), 0.0), name)
                for name in sources[stage.name]
            ]
            start, after[stage.name] = max(known, default=(0.0, None))
            end[stage.name] = start + own[stage.name]
        last = max(end, key=lambda name: end[name], default=None)
        total = 0.0 if last is None else end[last]
        shares: defaultdict[str, float] = defaultdict(float)
        by_name = {stage.name: stage for stage in self.stages}
        while last is not None:
            for name, ns in zip(RESOURCES, by_name[last].spent, strict=True):
                shares[name] += ns
            last = after[last]
        return _rate(total / tokens, max(shares, key=lambda name: shares[name], default=""))

    def _busiest(self) -> str:
        return max(self.busy, key=lambda name: self.busy[name], default="")

    def rates(self, tokens: int, batch: int = 1) -> dict[str, Rate]:
        """By schedule: of a prefill of ``tokens``, or, for one token, of a ``batch`` that decodes."""
        if tokens == 1:
            return {"decode": self.decode(batch)}
        return {"layer_by_layer": self.layer_by_layer(tokens), "pipelined": self.pipelined(tokens)}

    def to_dict(self, tokens: int, batch: int = 1) -> dict[str, Any]:
        """Plain values, nanoseconds, with the `rates`."""
        return {
            "latency_ns": self.latency,
            "waits_ns": self.waited(),
            "schedules": {name: rate._asdict() for name, rate in self.rates(tokens, batch).items()},
            "batch": batch,
            "without_time": list(self.missing),
            "path": [{"layer": stage.name, "start_ns": stage.start, "end_ns": stage.end} for stage in self.path],
        }


def chip_time(
    ledger: Ledger,
    tokens: int,
    plan: FloorPlan,
    hardware: Mapping[str, Hardware],
    events: Mapping[str, float] | None = None,
) -> ChipTime:
    """Time of one token from what was counted for all of them.

    Args:
        ledger: counts of the layers of the plan, in the order of their work.
        tokens: that they are of.
        plan: where layers stand.
        hardware: of the tiles of each layer that has any.
        events: of layers of attention, nanoseconds that a machine's events take a token; in place of reads of tiles.

    Raises:
        InputError: for fewer tokens than 1.
    """
    require_whole("tokens", tokens, least=1)
    made = []
    tiles = {block.name: block.tiles for block in plan.blocks}
    missing: dict[str, None] = {}
    for name, counted in ledger.by_layer.items():
        if name in tiles:
            own = (events or {}).get(name)
            made.append(_stage(name, counted, tokens, plan, tiles[name], hardware.get(name), own))
            if any(counter.name == "comparisons" for counter in counted):
                if own is not None:
                    missing["comparisons of rows"] = None
                elif not plan.chip.has("compare"):
                    missing["compare"] = None
    found = _scheduled(made, plan)
    return replace(found, missing=(*found.missing, *missing))


def _stage(
    name: str,
    counted: Mapping[Counted, int],
    tokens: int,
    plan: FloorPlan,
    tiles: int,
    hardware: Hardware | None,
    events: float | None,
) -> Stage:
    chip = plan.chip
    total: Counter[str] = Counter()
    for counter, n in counted.items():
        total[counter.name] += n
    cores = len(plan.place[name])
    digital = total["digital_macs"] * chip.ns("mac") + total["special_functions"] * chip.ns("special")
    digital /= tokens * chip.lanes * cores
    stream = total["dram_bytes"] / tokens * chip.ns("dram_byte")
    dram = chip.ns("dram_wait") + stream if total["dram_bytes"] else 0.0
    own = [moved for moved in plan.traffic if moved.edge.source == moved.edge.target == name]
    network = sum(_way(plan, moved.hops, moved.chips, moved.bytes / cores) for moved in own)
    read, reads = ReadTime(0.0, 0.0, 0.0, 0.0), 1.0
    pulses, compared = 0.0, 0.0
    if events is None and hardware is not None and total["screening_queries"]:
        pulses, compared = _screening(counted, total, chip, hardware)
    if events is not None:
        read = ReadTime(events, 0.0, 0.0, events)
    elif total["attended_pairs"] and hardware is not None:
        pairs_of_reads = max((total["tile_reads"] - total["screening_reads"]) / 2, 1)
        values = (total["adc_conversions"] - total["attended_pairs"]) / pairs_of_reads
        read = attention_time(chip, hardware, total["attended_pairs"] / pairs_of_reads, values)
    elif tiles and total["tile_reads"] > total["screening_reads"] and hardware is not None:
        dac = hardware.dac
        serial = dac.bits - 1 if dac is not None and dac.coding == "bit_serial" else 1
        read, reads = read_time(chip, hardware), total["tile_reads"] / (tokens * tiles * serial)
    more, part = max(reads - 1, 0.0) * read.interval, min(reads, 1.0)
    drive = part * read.drive + more + pulses
    spent = (drive, part * read.convert, part * read.latch, compared, digital, dram, network)
    return Stage(name, spent, (reads * read.interval if read.ns else 0.0) + pulses + compared, stream)


def _screening(
    counted: Mapping[Counted, int], total: Counter[str], chip: Chip, hardware: Hardware
) -> tuple[float, float]:
    """Pulses and comparisons by which rows of a query are chosen, nanoseconds: the mean of heads that choose."""
    queries, pulses = total["screening_queries"], 0.0
    for counter, n in counted.items():
        if counter.name == "screening_queries" and n:
            drives = counted[Counted("screening_drives", counter.bits)] / n
            pulses += n / queries * screening_time(chip, hardware, counter.bits, drives, 0.0)[0]
    return pulses, screening_time(chip, hardware, None, 0.0, total["waited_comparisons"] / queries)[1]


def _way(plan: FloorPlan, hops: int, chips: int, size: float) -> float:
    chip = plan.chip
    return hops * chip.ns("hop") + chips * chip.ns("chip_hop") + (size * chip.ns("link_byte") if hops else 0.0)


def _scheduled(made: list[Stage], plan: FloorPlan) -> ChipTime:
    order = {stage.name: place for place, stage in enumerate(made)}
    ways: dict[tuple[str, str], float] = {}
    sent: dict[tuple[str, str], float] = {}
    busy: defaultdict[str, float] = defaultdict(float)
    for moved in plan.traffic:
        source, target, size = moved.edge
        sources = plan.place[source]
        leaves = (moved.bytes if source == target else size if moved.hops else 0) / len(sources)
        each = leaves * plan.chip.ns("link_byte")  # one flit goes to all cores that take it
        for core in sources:
            busy[f"links of core {core}"] += each
        if source != target and order.get(source, len(order)) < order.get(target, -1):
            ways[source, target] = _way(plan, moved.hops, moved.chips, size / len(sources))
            sent[source, target] = each
    into = defaultdict(list)
    for source, target in ways:
        into[target].append(source)
    for before, stage in pairwise(made):
        if not into[stage.name]:  # where its inputs come from is not known
            into[stage.name].append(before.name)
            ways[before.name, stage.name] = 0.0
    stages: dict[str, Stage] = {}
    for stage in made:
        arrived = [(stages[name].end + ways[name, stage.name], name) for name in into[stage.name]]
        start, after = max(arrived, default=(0.0, None))
        stages[stage.name] = stage._replace(start=start, after=after)
        busy[f"tiles of {stage.name}"] += stage.reading
        busy["DRAM"] += stage.stream
        for core in plan.place[stage.name]:
            busy[f"digital unit of core {core}"] += stage.spent[RESOURCES.index("digital units")]
    return ChipTime(tuple(stages.values()), dict(busy), plan.chip.missing(_NEEDED), ways, sent)


def _rate(ns: float, limit: str) -> Rate:
    return Rate(ns, 1e9 / ns if ns else float("inf"), limit)
