"""Books of chips: how long their parts take and how large they are, each number with its source.

A book is a YAML file as a price book is (`crossbar.costs.prices`); the packaged ones are in
``crossbar/costs/chip_books``, and docs/energy.md, "Chips", says what they assume.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from crossbar.costs.prices import Evidence, Scope, checked_fields
from crossbar.errors import InputError, require_number, require_whole, shown
from crossbar.storage.plain_values import read_text
from crossbar.storage.yaml_values import load_yaml

Converting = Literal["counter", "ramp", "sar"]
Sign = Literal["polarity", "slot", "none"]

DEFAULT = "mesh"
"""The chip of commands."""


class Kind(NamedTuple):
    """What a part's number means: its unit, and what there is one of it for."""

    unit: str
    per: str


PARTS = {
    "slot": Kind("ns", "time slot of an input pulse"),
    "settle": Kind("ns", "phase of a pulse"),
    "convert": Kind("ns", "conversion of a column, or step of a ramp"),
    "latch": Kind("ns", "read of a tile"),
    "control": Kind("ns", "query of an attention head"),
    "compare": Kind("ns", "comparison of a row's line, or step of the ramp that it is compared with"),
    "mac": Kind("ns", "multiply-add of a lane"),
    "special": Kind("ns", "special function of a lane"),
    "hop": Kind("ns", "hop between cores"),
    "link_byte": Kind("ns", "byte on a link between cores"),
    "chip_hop": Kind("ns", "hop between chips"),
    "dram_wait": Kind("ns", "access to DRAM"),
    "dram_byte": Kind("ns", "byte from DRAM"),
    "cell": Kind("mm2", "cell"),
    "row_drive": Kind("mm2", "word line"),
    "sample": Kind("mm2", "bit line"),
    "adc": Kind("mm2", "converter"),
    "tile_logic": Kind("mm2", "tile"),
    "comparator": Kind("mm2", "row that chooses whether it opens"),
    "tile": Kind("mm2", "tile"),
    "buffer": Kind("mm2", "core"),
    "bus": Kind("mm2", "core"),
    "digital_unit": Kind("mm2", "core"),
    "router": Kind("mm2", "core"),
    "chip_link": Kind("mm2", "chip"),
}
"""Every part that a book may have a number for."""

TILE_AREAS = ("cell", "row_drive", "sample", "adc", "tile_logic")
"""Areas of which a tile consists; that of the part ``tile`` is all of them together."""


@dataclass(frozen=True)
class Part:
    """How long a part takes, or how large it is.

    Attributes:
        part: one of `PARTS`.
        value: in ``unit``, of one, 0 or more.
        unit: ``ns`` or ``mm2``, as `PARTS` has it.
        node: technology, such as ``14 nm``.
        source: publication and place in it.
        evidence: as of a `crossbar.Price`.
        scope: ``all-in`` holds everything that it is made of; ``per-term`` one part of it.

    Raises:
        InputError: for an impossible value.
    """

    part: str
    value: float
    unit: str
    node: str | None = None
    source: str = ""
    evidence: Evidence = "assumed"
    scope: Scope = "per-term"

    def __post_init__(self) -> None:
        if self.part not in tuple(PARTS):
            raise InputError(f"a chip has no part {shown(self.part)}: known are {', '.join(PARTS)}")
        require_number(f"part {self.part}, field value", self.value, most=1e9)
        if self.unit != PARTS[self.part].unit:
            raise InputError(f"part {self.part}, field unit = {shown(self.unit)}: give {PARTS[self.part].unit}")
        for name, allowed in (("evidence", get_args(Evidence)), ("scope", get_args(Scope))):
            if getattr(self, name) not in allowed:
                given = shown(getattr(self, name))
                raise InputError(
                    f"part {self.part}, field {name} = {given} is not allowed: choose {', '.join(allowed)}"
                )


@dataclass(frozen=True)
class Chip:
    """A chip: a mesh of cores, each with tiles, a buffer and a digital unit.

    Attributes:
        name: of the book.
        parts: no two for the same.
        title: one line on what it stands for.
        notes: what a reader of its totals has to know.
        tiles: of a core.
        width, height: cores of the mesh.
        converter: ``counter``: each column's converter counts while the pulse lasts; ``ramp``: all columns of a tile
            are compared, after their sign, with a ramp of ``2^(bits-1)`` steps; ``sar``: one conversion after another.
        columns: of a tile that share a converter.
        phases: pulses of a read: 4 where signs of inputs and weights are read apart.
        sign: of inputs. ``polarity`` of the pulse; ``slot``: one more slot of a bit-serial input (two's complement);
            ``none``: inputs have no sign, and a pulse all ``2^bits - 1`` levels.
        overlapped: whether columns are held, so that they are converted while the next pulse is driven.
        chained: whether scores of keys leave their tiles as the pulses that drive values, without a conversion.
        lanes: multiply-adds that a core's digital unit does at once.
        rows, cols: of the tiles that all-in areas hold for.

    Raises:
        InputError: for an impossible value, and two numbers of one part.
    """

    name: str
    parts: tuple[Part, ...] = ()
    title: str = ""
    notes: tuple[str, ...] = ()
    tiles: int = 1
    width: int = 8
    height: int = 8
    converter: Converting = "counter"
    columns: int = 1
    phases: int = 1
    sign: Sign = "polarity"
    overlapped: bool = False
    chained: bool = False
    lanes: int = 64
    rows: int = 256
    cols: int = 256

    def __post_init__(self) -> None:
        what = f"chip {shown(self.name)}"
        for name in ("tiles", "width", "height", "columns", "phases", "lanes", "rows", "cols"):
            require_whole(f"{what}, field {name}", getattr(self, name), least=1, most=1 << 20)
        for name, allowed in (("converter", get_args(Converting)), ("sign", get_args(Sign))):
            if getattr(self, name) not in allowed:
                given = shown(getattr(self, name))
                raise InputError(f"{what}, field {name} = {given} is not allowed: choose {', '.join(allowed)}")
        for name in ("overlapped", "chained"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{what}, field {name} = {shown(getattr(self, name))}: give true or false")
        names = [part.part for part in self.parts]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise InputError(f"{what} has part {twice} twice: keep one of them")

    @property
    def cores(self) -> int:
        """Of the mesh."""
        return self.width * self.height

    @cached_property
    def _numbers(self) -> dict[str, float]:
        return {part.part: part.value for part in self.parts}

    def has(self, part: str) -> bool:
        """Whether the book has a number for a part."""
        return part in self._numbers

    def ns(self, part: str) -> float:
        """Nanoseconds of a part; 0 where the book has none, which results name (`missing`)."""
        return self._numbers.get(part, 0.0)

    def missing(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        """Which of some parts the book has no number for."""
        return tuple(part for part in parts if not self.has(part))

    @classmethod
    def get(cls, name: str) -> Chip:
        """A packaged chip, or one of a YAML file with the fields of this class.

        Raises:
            InputError: for an unknown name, a missing file, unknown fields and impossible values.
        """
        if name in names():
            text = (_folder() / f"{name}.yaml").read_text(encoding="utf-8")
        elif Path(name).suffix in (".yaml", ".yml"):
            text = read_text("chip", name)
        else:
            raise InputError(f"chip {name!r} does not exist: give one of {', '.join(names())}, or a YAML file")
        return cls.from_dict(load_yaml(f"chip {name!r}", text), name)

    @classmethod
    def from_dict(cls, values: Any, name: str = "mapping") -> Chip:
        """A chip from plain values; ``name`` is how errors call them.

        Raises:
            InputError: for unknown fields and impossible values.
        """
        fields = checked_fields(values, cls, f"chip {name!r}")
        if not isinstance(fields.get("name"), str) or not isinstance(fields.get("parts"), list):
            raise InputError(f"chip {name!r} lacks its name or its list of parts: give both")
        parts = [checked_fields(entry, Part, f"chip {name!r}") for entry in fields["parts"]]
        lacking = next((entry for entry in parts if not {"part", "value", "unit"} <= entry.keys()), None)
        if lacking is not None:
            raise InputError(f"chip {name!r} has a part without part, value or unit, {shown(lacking)}: give all three")
        notes = tuple(fields.pop("notes", ()))
        return cls(**{**fields, "notes": notes, "parts": tuple(Part(**entry) for entry in parts)})

    def to_dict(self) -> dict[str, Any]:
        """Plain values, of which `from_dict` makes the same chip."""
        return {**dataclasses.asdict(self), "notes": list(self.notes), "parts": [vars(part) for part in self.parts]}


def names() -> tuple[str, ...]:
    """The packaged chips."""
    return tuple(sorted(e.name.removesuffix(".yaml") for e in _folder().iterdir() if e.name.endswith(".yaml")))


def _folder() -> Any:
    return resources.files("crossbar.costs") / "chip_books"
