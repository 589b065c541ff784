"""Where a model's tiles stand: layers on tiles, tiles in cores, cores in meshes, chips in a row; and what moves.

A placer says the core of each tile. Cores are numbered along the rows of a chip's mesh, chip after chip; chips stand
side by side, so that a core has one place ``(x, y)`` on the joined meshes, and a hop leads to a neighbour of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from crossbar.costs.chips import Chip
from crossbar.errors import InputError, shown


class Block(NamedTuple):
    """One layer on the chips.

    Attributes:
        name: of the layer.
        tiles: that it takes; 0 for a layer of digital logic alone, which stands in one core.
        across: of these tiles, those along the outputs; the others add to their sums. Tiles are in order of outputs
            within inputs.
        out_bytes: of its outputs for one token.
    """

    name: str
    tiles: int
    across: int = 1
    out_bytes: int = 0


class Edge(NamedTuple):
    """Numbers that one layer makes for another: ``bytes`` a token."""

    source: str
    target: str
    bytes: int


class Traffic(NamedTuple):
    """What an edge moves for one token.

    ``bytes`` leave their cores, those that stay within one not counted; ``byte_hops`` are bytes times hops; ``hops``
    is the longest way; ``chips`` how many borders between chips that way crosses.
    """

    edge: Edge
    bytes: float
    byte_hops: float
    hops: int
    chips: int


Placer = Callable[[Sequence[Block], Chip], Sequence[Sequence[int]]]
"""Says the core of each tile: for each block so many cores as it has tiles."""


def row_major(blocks: Sequence[Block], chip: Chip) -> list[list[int]]:
    """Tile after tile in the order of layers, each core filled before the next."""
    placed, place = [], 0
    for block in blocks:
        placed.append([(place + k) // chip.tiles for k in range(block.tiles)])
        place += block.tiles
    return placed


def balanced(blocks: Sequence[Block], chip: Chip) -> list[list[int]]:
    """Tile after tile to the next core, over all cores of as many chips as it takes: each layer has many cores.

    Digital units share a layer's work where it stands in several cores; its numbers then go further.
    """
    total = sum(block.tiles for block in blocks)
    cores = chip.cores * max(-(-total // (chip.tiles * chip.cores)), 1)
    placed, place = [], 0
    for block in blocks:
        placed.append([(place + k) % cores for k in range(block.tiles)])
        place += block.tiles
    return placed


PLACERS: dict[str, Placer] = {"row_major": row_major, "balanced": balanced}
"""Placers by name."""


@dataclass(frozen=True)
class FloorPlan:
    """A placed model.

    Attributes:
        chip: what cores hold.
        blocks: layers in the order of their work.
        edges: what they make for one another.
        cores: of each block's tiles; of a block without tiles the one core that computes it.
    """

    chip: Chip
    blocks: tuple[Block, ...]
    edges: tuple[Edge, ...]
    cores: tuple[tuple[int, ...], ...]

    @property
    def tiles(self) -> int:
        """That hold something."""
        return sum(block.tiles for block in self.blocks)

    @property
    def chips(self) -> int:
        """That it takes, the last one whole."""
        return max((max(cores) for cores in self.cores if cores), default=0) // self.chip.cores + 1

    @property
    def utilisation(self) -> float:
        """Of all tiles of the chips, the part that holds something."""
        return self.tiles / (self.chips * self.chip.cores * self.chip.tiles)

    @cached_property
    def filled(self) -> Counter[int]:
        """Tiles in use of each core that has any."""
        pairs = zip(self.blocks, self.cores, strict=True)
        return Counter(core for block, cores in pairs if block.tiles for core in cores)

    @cached_property
    def place(self) -> dict[str, tuple[int, ...]]:
        """Cores of each layer, each once, by name."""
        pairs = zip(self.blocks, self.cores, strict=True)
        return {block.name: tuple(dict.fromkeys(cores)) for block, cores in pairs}

    def at(self, core: int) -> tuple[int, int]:
        """Place of a core on the joined meshes, ``(x, y)``."""
        chip, within = divmod(core, self.chip.cores)
        return chip * self.chip.width + within % self.chip.width, within // self.chip.width

    def hops(self, a: int, b: int) -> int:
        """From core to core, first along x, then along y."""
        (ax, ay), (bx, by) = self.at(a), self.at(b)
        return abs(ax - bx) + abs(ay - by)

    @cached_property
    def traffic(self) -> tuple[Traffic, ...]:
        """Of each edge, and of each layer whose row tiles stand in several cores: their sums go to its first core.

        The core of a layer's inputs gets all of them; each core of the layer that makes them sends an equal part.
        """
        found = []
        for edge in self.edges:
            sources, targets = self.place[edge.source], self.place[edge.target]
            found.append(self._moved(edge, edge.bytes / len(sources), sources, targets))
        for block, cores in zip(self.blocks, self.cores, strict=True):
            rows = block.tiles // block.across
            if rows > 1 and len(set(cores)) > 1:
                each = Counter(core for core in cores[block.across :])  # the first row tile's sums start the others'
                part = block.out_bytes / block.across
                home = cores[0]
                ways = [(n * part, self.hops(core, home), core) for core, n in each.items() if core != home]
                found.append(
                    Traffic(
                        Edge(block.name, block.name, block.out_bytes * (rows - 1)),
                        sum(size for size, _, _ in ways),
                        sum(size * hops for size, hops, _ in ways),
                        max((hops for _, hops, _ in ways), default=0),
                        max((self._borders(core, home) for _, _, core in ways), default=0),
                    )
                )
        return tuple(found)

    def _moved(self, edge: Edge, part: float, sources: Iterable[int], targets: Sequence[int]) -> Traffic:
        ways = [(self.hops(a, b), self._borders(a, b)) for a in sources for b in targets if a != b]
        hops = [hops for hops, _ in ways]
        borders = max((border for _, border in ways), default=0)
        return Traffic(edge, part * len(ways), part * sum(hops), max(hops, default=0), borders)

    def _borders(self, a: int, b: int) -> int:
        return abs(a // self.chip.cores - b // self.chip.cores)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "chip": self.chip.name,
            "chips": self.chips,
            "tiles": self.tiles,
            "cores": len(self.filled),
            "utilisation": self.utilisation,
            "layers": [
                {"name": block.name, "tiles": block.tiles, "cores": list(self.place[block.name])}
                for block in self.blocks
            ],
            "traffic": [
                {**moved.edge._asdict(), **{k: v for k, v in moved._asdict().items() if k != "edge"}}
                | {"bytes_made": moved.edge.bytes}
                for moved in self.traffic
            ],
        }


def floor_plan(
    blocks: Sequence[Block], edges: Sequence[Edge], chip: Chip, placer: str | Placer = "row_major"
) -> FloorPlan:
    """Place layers on chips.

    A layer without tiles stands in the first core of the layer after it that has tiles, or else of the last before it.

    Args:
        blocks: layers in the order of their work.
        edges: between them, by name.
        chip: what a core holds.
        placer: a name of `PLACERS`, or a function.

    Raises:
        InputError: for an unknown placer, one that gives a block another number of cores than it has tiles, fills a
            core beyond its tiles, or numbers one below 0; and for an edge of an unknown layer.
    """
    if isinstance(placer, str) and placer not in PLACERS:
        raise InputError(f"placer {placer!r} is unknown: choose one of {', '.join(PLACERS)}, or give a function")
    own = PLACERS[placer] if isinstance(placer, str) else placer
    placed = [list(cores) for cores in own(blocks, chip)]
    if [len(cores) for cores in placed] != [block.tiles for block in blocks]:
        raise InputError("the placer gives a layer another number of cores than it has tiles: give each tile one core")
    wrong = next((core for cores in placed for core in cores if not isinstance(core, int) or core < 0), None)
    if wrong is not None:
        raise InputError(f"the placer gives a tile the core {shown(wrong)}: number cores from 0")
    full = Counter(core for cores in placed for core in cores)
    core, most = max(full.items(), key=lambda item: item[1], default=(0, 0))
    if most > chip.tiles:
        raise InputError(f"the placer puts {most} tiles into core {core}, which has {chip.tiles}: spread them")
    known = {block.name for block in blocks}
    for edge in edges:
        for name in (edge.source, edge.target):
            if name not in known:
                raise InputError(f"an edge names layer {shown(name)}, which is not placed: give blocks for all layers")
    first = next((cores[0] for cores in reversed(placed) if cores), 0)
    for cores in reversed(placed):
        first = cores[0] if cores else first
        if not cores:
            cores.append(first)
    return FloorPlan(chip, tuple(blocks), tuple(edges), tuple(tuple(cores) for cores in placed))
