"""What a study varies: a grid and random samples over dotted fields, read from YAML and checked."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from calibration.studies.fields import DEFAULTS, SECTIONS, look_up, put
from crossbar import InputError, to_seconds
from crossbar.errors import require_whole, shown
from crossbar.random.streams import uniform
from crossbar.storage.plain_values import read_yaml

MOST_CELLS = 1_000_000
MOST_SEED = 2**63 - 1
"""What SQLite holds."""
_MOST_AXES = 100
_MOST_GRIDS = 1000
_LARGEST = 16 << 20  # bytes of a design as JSON
_DEEPEST = 50
_LONGEST = {"title": 200, "grid axis": 80}  # letters
_COLUMNS = {
    "setting", "setup", "digital_setup", "steps", "before", "after", "fields", "counts", "digital_counts", "time",
    "seconds", "seed", "arm", "metric", "value", "mean", "low", "high", "n", "std", "needed", "digital", "energy",
    "token_ns", "mm2",
    "density", "best", "good", "good_first", "good_second", "level", "x",
}  # fmt: skip
"""Columns of tables beside the axes."""
_KEYS = ("title", *SECTIONS, "staircase", "grid", "random")
_RANGE = re.compile(r"\s*([0-9]{1,19})\s*\.\.\s*([0-9]{1,19})\s*")


@dataclass(frozen=True)
class Axis:
    """One thing that varies.

    Attributes:
        name: what tables call it; the field's, unless several fields vary together.
        fields: dotted; each gets the axis's value.
        values: of a grid; in the order that tables and pictures keep. Of random samples: those drawn.
    """

    name: str
    fields: tuple[str, ...]
    values: tuple[Any, ...]


class Combination(NamedTuple):
    """One choice of everything but time and seed.

    Attributes:
        labels: values by axis name.
        values: of all fields.
        times: since programming, each with each seed.
        seeds: of chips.
    """

    labels: dict[str, Any]
    values: dict[str, Any]
    times: tuple[Any, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Design:
    """A study as it is written, with every list checked.

    Attributes:
        title: of the report.
        base: the values of fields that do not vary, and those that others are compared with.
        grids: axes of which every combination is a cell; the study is all grids together.
        drawn: axes whose values come in samples.
        samples: values of the drawn axes, by axis name; one empty sample where nothing is drawn.
        staircase: score after each step of a recipe too.
        written: the configuration as it was given.
        folder: that relative paths in it start from: the file's.
    """

    title: str
    base: dict[str, Any]
    grids: tuple[tuple[Axis, ...], ...]
    drawn: tuple[Axis, ...]
    samples: tuple[dict[str, Any], ...]
    staircase: bool
    written: dict[str, Any]
    folder: Path = Path()

    @cached_property
    def axes(self) -> tuple[Axis, ...]:
        """All axes, each with its values on any grid; those of grids first.

        Where a grid does not vary a field that another does, it has the base's value, which is then among the axis's.
        """
        names = dict.fromkeys(axis.name for grid in self.grids for axis in grid)
        return tuple(self._joined(name) for name in names) + self.drawn

    @property
    def points(self) -> int:
        """Number of combinations, before those that come out the same are joined."""
        return sum(math.prod(len(axis.values) for axis in grid) for grid in self.grids) * len(self.samples)

    def combinations(self) -> Iterator[Combination]:
        """Each choice, grid by grid."""
        for grid in self.grids:
            on_grid = {axis.name: axis for axis in grid}
            times, seeds = (on_grid.pop(name, None) for name in ("time", "seed"))
            held = {axis.name: self.base_value(axis) for axis in self.axes if axis.name not in ("time", "seed")}
            for chosen in itertools.product(*(axis.values for axis in on_grid.values())):
                for sample in self.samples:
                    varied = {**dict(zip(on_grid, chosen, strict=True)), **sample}
                    values = copy.deepcopy(self.base)
                    assigned = [
                        (field, varied[axis.name]) for axis in self.axes if axis.name in varied for field in axis.fields
                    ]
                    for field, value in sorted(assigned, key=lambda pair: pair[0].count(".")):  # a whole, then parts
                        put(values, field, value, self.folder)
                    yield Combination(
                        {**held, **varied},
                        values,
                        (values["time"],) if times is None else times.values,
                        (values["seed"],) if seeds is None else seeds.values,
                    )

    def base_value(self, axis: Axis) -> Any:
        """What the fields of an axis are where they do not vary."""
        value = look_up(self.base, axis.fields[0], self.folder)
        return to_seconds(value) if axis.name == "time" else value

    def _joined(self, name: str) -> Axis:
        found = [axis for grid in self.grids for axis in grid if axis.name == name]
        if any(axis.fields != found[0].fields for axis in found):
            raise InputError(f"grid axis {shown(name)} has different fields in different grids: give it the same")
        values = [value for axis in found for value in axis.values]
        if len(found) < len(self.grids):
            values.append(self.base_value(found[0]))
        joined: dict[Any, Any] = {}
        for value in values:
            if _same(joined.setdefault(plain(value), value)) != _same(value):
                raise InputError(
                    f"grid axis {shown(name)} has two values called {shown(plain(value))}: give one another name"
                )
        return Axis(name, found[0].fields, tuple(joined.values()))

    def reference(self, axis: Axis) -> Any:
        """The level that pictures hold an axis at: the base's own value where it is one, else the first."""
        value = self.base_value(axis)
        return value if value in axis.values else axis.values[0]

    def describe(self) -> list[dict[str, Any]]:
        """The axes as plain values."""
        return [
            {
                "name": axis.name,
                "fields": list(axis.fields),
                "values": list(axis.values),
                "reference": self.reference(axis),
                "drawn": axis in self.drawn,
            }
            for axis in self.axes
        ]


def read(config: str | Path | Mapping[str, Any]) -> Design:
    """The design that a YAML file or a mapping describes.

    Relative paths in a file start from its folder, those in a mapping from the working directory.

    Raises:
        InputError: for a missing file, text that is not YAML, an unknown key, an empty or repeated list, a field that
            cannot exist, a name or number that a store or a report could not hold, and more than a million cells.
    """
    written, folder = (_load(config), Path(config).parent) if isinstance(config, str | Path) else (config, Path())
    written = _plain_values(written)
    for key in written:
        if key not in _KEYS:
            raise InputError(f"study has no key {shown(key)}: allowed are {', '.join(_KEYS)}")
    title, staircase = written.get("title", "Study"), written.get("staircase", False)
    if not isinstance(title, str) or not isinstance(staircase, bool):
        raise InputError("study keys title and staircase are a text and true or false: give them so")
    _require_printable("title", title)
    given = written.get("grid")
    mappings = given if isinstance(given, list) and given else [given]
    if len(mappings) > _MOST_GRIDS or sum(len(_mapping("grid", grid)) for grid in mappings) > _MOST_AXES * _MOST_GRIDS:
        raise InputError(f"the study has more than {_MOST_GRIDS} grids of {_MOST_AXES} fields: give fewer")
    grids = tuple(tuple(_axis(name, values) for name, values in _mapping("grid", grid).items()) for grid in mappings)
    drawn, samples = _random(_mapping("random", written.get("random")))
    base = {**DEFAULTS, **{name: written[name] for name in SECTIONS if name in written}}
    require_whole("seed", base["seed"], least=0, most=MOST_SEED)
    design = Design(title, base, grids, drawn, samples, staircase, written, folder)
    if design.points > MOST_CELLS:
        raise InputError(
            f"the study has {design.points:,} cells: take values away until there are at most {MOST_CELLS:,}"
        )
    _require_distinct(design)
    return design


def plain(value: Any) -> Any:
    """Something that tables can sort and group by: numbers and texts stay, nothing at all is ``"none"``.

    A recipe that is written out goes by its name.
    """
    if value is None:
        return "none"
    if isinstance(value, dict) and value.keys() == {"name", "steps"}:
        return str(value["name"])
    return _same(value) if isinstance(value, dict | list) else value


def require_name(name: Any, fields: Sequence[str]) -> None:
    """Refuse a name of an axis that tables, files and pictures could not have.

    Raises:
        InputError: saying which names there may be.
    """
    _require_printable("grid axis", name)
    if fields != [name] and (name in _COLUMNS or name.split(".")[0] in SECTIONS):
        raise InputError(f"grid axis {shown(name)} is called like a field or a column of the tables: give another name")


def _require_printable(what: str, name: Any) -> None:
    most = _LONGEST[what]
    if not isinstance(name, str) or not name.strip() or not name.isprintable() or len(name) > most:
        raise InputError(f"{what} {shown(name, most)} is not usable: give it 1 to {most} letters that can be printed")


def _load(path: str | Path) -> dict[str, Any]:
    values = read_yaml("study", path)
    if not isinstance(values, dict):
        raise InputError(f"study file {str(path)!r} holds no mapping: write keys such as 'model: minilm' and 'grid:'")
    return values


def _plain_values(written: Mapping[str, Any]) -> dict[str, Any]:
    """The same as JSON holds it, refused where a store or a table could not hold a value."""
    level: list[tuple[str, Any]] = [("", dict(written))]
    for _ in range(_DEEPEST):
        inside: list[tuple[str, Any]] = []
        for where, value in level:
            inside += [(where, key) for key in value] if isinstance(value, Mapping) else []
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
            inside += [(f"{where}.{key}"[-200:].lstrip("."), part) for key, part in pairs]
        for where, value in inside:
            _require_plain(where, value)
        level = [(where, value) for where, value in inside if isinstance(value, Mapping | list | tuple)]
        if not level:
            break
    else:
        raise InputError(f"the study is nested deeper than {_DEEPEST}: write it flatter")
    text = json.dumps(written)
    if len(text) > _LARGEST:
        raise InputError(f"the study has {len(text):,} bytes: take values away until there are at most {_LARGEST:,}")
    values: dict[str, Any] = json.loads(text)
    return values


def _require_plain(where: str, value: Any) -> None:
    if isinstance(value, str):
        fits = all(part.isprintable() for part in value.split("\n"))
        wanted = "letters that can be printed"
    elif isinstance(value, int) and not isinstance(value, bool):
        fits, wanted = -MOST_SEED <= value <= MOST_SEED, f"a whole number up to {MOST_SEED}"
    elif isinstance(value, float):
        fits, wanted = math.isfinite(value), "a finite number"
    else:
        fits, wanted = value is None or isinstance(value, bool | Mapping | list | tuple), "plain values"
    if not fits:
        raise InputError(f"study value {where} = {shown(value, 60)} is not allowed: give {wanted}")


def _mapping(key: str, given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InputError(f"{key} = {shown(given)} is not allowed: give a mapping of fields to lists of values")
    return given


def _axis(name: str, given: Any) -> Axis:
    """``field: [values]``, ``seed: 0..9``, or ``name: {fields: [...], values: [...]}`` for several together."""
    fields: Any = [name]
    values = given
    if isinstance(given, dict) and set(given) == {"fields", "values"}:
        fields, values = given["fields"], given["values"]
        if not isinstance(fields, list) or not fields or not all(isinstance(field, str) for field in fields):
            raise InputError(f"grid axis {shown(name)} has fields {shown(fields)}: give a list of dotted field names")
    values = _numbers(values) if isinstance(values, str) else values
    if not isinstance(values, list) or not values:
        raise InputError(f"grid field {shown(name)} = {shown(given)} varies nothing: give a list of one value or more")
    if len(fields) > _MOST_AXES:
        raise InputError(f"grid axis {shown(name)} varies {len(fields)} fields: give at most {_MOST_AXES}")
    _check_fields(fields)
    require_name(name, fields)
    if name not in ("time", "seed") and {"time", "seed"} & set(fields):
        raise InputError(f"grid axis {shown(name)} varies time or seed with others: give them lists of their own")
    if "time" in fields:
        values = [to_seconds(value) for value in values]
    for value in values if "seed" in fields else []:
        require_whole("seed", value, least=0, most=MOST_SEED)
    _require_once(f"grid field {shown(name)}", values)
    return Axis(name, tuple(fields), tuple(values))


def _require_once(where: str, values: list[Any]) -> None:
    """Refuse values that tables could not tell apart."""
    seen: dict[Any, Any] = {}
    for value in values:
        if plain(value) in seen:
            other = "" if _same(seen[plain(value)]) == _same(value) else f" (once as {shown(seen[plain(value)])})"
            raise InputError(f"{where} lists {shown(value)} twice{other}: give each value once")
        seen[plain(value)] = value


def _numbers(text: str) -> list[int] | None:
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2])
    if last - first >= MOST_CELLS:
        raise InputError(f"{shown(text)} is more than {MOST_CELLS:,} values: give fewer")
    return list(range(first, last + 1))


def _random(given: dict[str, Any]) -> tuple[tuple[Axis, ...], tuple[dict[str, Any], ...]]:
    """``random: {samples: 40, seed: 0, fields: {field: [choices] or {low, high, scale}}}``."""
    if not given:
        return (), ({},)
    for key in given:
        if key not in ("samples", "seed", "fields"):
            raise InputError(f"random has no key {shown(key)}: allowed are samples, seed, fields")
    count, seed = given.get("samples"), given.get("seed", 0)
    require_whole("random.samples", count, least=1, most=MOST_CELLS)
    require_whole("random.seed", seed, least=0, most=MOST_SEED)
    assert isinstance(count, int)
    fields = _mapping("random.fields", given.get("fields"))
    if not fields:
        raise InputError("random.fields is empty: give a mapping of fields to choices or to low and high")
    if count * len(fields) > MOST_CELLS or len(fields) > _MOST_AXES:
        raise InputError(f"random draws {count:,} samples of {len(fields)} fields: give at most {MOST_CELLS:,} numbers")
    _check_fields(list(fields))
    for name in fields:
        require_name(name, [name])
    columns = {name: _draw(name, spread, count, seed) for name, spread in fields.items()}
    samples = tuple({name: column[k] for name, column in columns.items()} for k in range(count))
    return tuple(Axis(name, (name,), tuple(column)) for name, column in columns.items()), samples


def _draw(name: str, spread: Any, count: int, seed: int) -> list[Any]:
    given = f"random field {shown(name)} = {shown(spread)}"
    part = uniform((count,), (seed, name, "random design")).double().tolist()
    if isinstance(spread, list) and spread:
        _require_once(f"random field {shown(name)}", spread)
        return [spread[int(u * len(spread))] for u in part]
    if not isinstance(spread, dict) or not {"low", "high"} <= set(spread) <= {"low", "high", "scale"}:
        raise InputError(
            f"random field {shown(name)} = {shown(spread)} is not allowed: give a list, or low, high and scale"
        )
    low, high, scale = spread["low"], spread["high"], spread.get("scale", "linear")
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in (low, high))
    if (
        not numbers
        or low >= high
        or not math.isfinite(high - low)
        or scale not in ("linear", "log")
        or (scale == "log" and low <= 0)
    ):
        raise InputError(f"{given} is not allowed: give numbers low < high, and scale linear or, above 0, log")
    whole = isinstance(low, int) and isinstance(high, int)
    top = high + 1 if whole else high
    drawn = [low * (top / low) ** u if scale == "log" else low + (top - low) * u for u in part]
    return [min(int(value), high) for value in drawn] if whole else drawn


def _check_fields(fields: list[str]) -> None:
    """Refuse fields that cannot exist."""
    for field in fields:
        put(copy.deepcopy({**DEFAULTS, "pattern": {"text": ""}, "memory": "ideal"}), field, None)


def _require_distinct(design: Design) -> None:
    if len(design.axes) > _MOST_AXES:
        raise InputError(f"the study varies {len(design.axes)} fields: vary at most {_MOST_AXES}")
    fields = [field for axis in design.axes for field in axis.fields]
    twice = next((field for field in fields if fields.count(field) > 1), None)
    if twice is not None:
        raise InputError(f"field {twice!r} varies twice: put all its values into one list")
    if design.base["recipe"] is None and "recipe" not in fields:
        part = next((field for field in fields if field.startswith("recipe.")), None)
        if part is not None:
            raise InputError(f"field {shown(part)} needs a recipe: give 'recipe: fast' too")


def _same(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
