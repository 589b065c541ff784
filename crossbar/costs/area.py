"""How large chips are, by part; a part without an area is named, never free."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from crossbar.costs.chips import PARTS, TILE_AREAS, Chip
from crossbar.costs.reads import converters
from crossbar.hardware import Hardware

_CORE_AREAS = ("buffer", "bus", "digital_unit", "router")


class AreaLine(NamedTuple):
    """So many of one part: ``mm2`` together."""

    part: str
    number: int
    mm2: float
    evidence: str
    scope: str


@dataclass(frozen=True)
class AreaReport:
    """Area of whole chips, whatever part of them is used.

    Attributes:
        chip: the book's name.
        lines: every part with an area.
        missing: parts without one, and how many of them there are; they are in no sum.
    """

    chip: str
    lines: tuple[AreaLine, ...]
    missing: dict[str, int] = field(default_factory=dict)

    @property
    def mm2(self) -> float:
        """Of all that has an area."""
        return sum(line.mm2 for line in self.lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, mm²."""
        return {
            "chip": self.chip,
            "mm2": self.mm2,
            "by_part": {line.part: line.mm2 for line in self.lines},
            "without_area": self.missing,
        }


def area(
    chip: Chip, hardware: Hardware, *, cores: int | None = None, chips: int = 1, comparators: int = 0
) -> AreaReport:
    """Area of chips, or of a part of one.

    A tile has the all-in area of the book if it is of the size that this holds for; else its cells, drivers, holds,
    converters and logic are added up. A book that has neither for it lacks an area.

    Args:
        chip: parts and their areas.
        hardware: geometry; cells are counted with their signs and copies.
        cores: of one chip; None: all. With fewer than all, links between chips are left out.
        chips: how many.
        comparators: at rows of keys that choose what opens; no tile has these in its area.
    """
    tile = hardware.tile
    n_cores = chips * chip.cores if cores is None else cores
    tiles = n_cores * chip.tiles
    whole = chip.has("tile") and (tile.rows, tile.cols) == (chip.rows, chip.cols)
    within = {
        "cell": tiles * tile.rows * tile.cols * tile.signs * tile.pairs,
        "row_drive": tiles * tile.rows,
        "sample": tiles * tile.cols,
        "adc": tiles * converters(chip, hardware),
        "tile_logic": tiles,
    }
    numbers = {"tile": tiles} if whole else {part: within[part] for part in TILE_AREAS}
    numbers |= dict.fromkeys(_CORE_AREAS, n_cores)
    if cores is None:
        numbers["chip_link"] = chips
    if comparators:
        numbers["comparator"] = comparators
    known = {part.part: part for part in chip.parts if PARTS[part.part].unit == "mm2"}
    lines = [
        AreaLine(name, number, number * known[name].value, known[name].evidence, known[name].scope)
        for name, number in numbers.items()
        if name in known
    ]
    return AreaReport(chip.name, tuple(lines), {name: n for name, n in numbers.items() if name not in known})
