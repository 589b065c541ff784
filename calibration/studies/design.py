"""What a study varies: a grid and random samples over dotted fields, read from YAML and checked."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from calibration.studies.fields import DEFAULTS, SECTIONS, look_up, put
from crossbar import InputError, to_seconds
from crossbar.errors import require_whole
from crossbar.plain_values import read_yaml
from crossbar.streams import uniform

MOST_CELLS = 1_000_000
_KEYS = ("title", *SECTIONS, "staircase", "grid", "random")
_RANGE = re.compile(r"\s*(\d+)\s*\.\.\s*(\d+)\s*")


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
    """

    title: str
    base: dict[str, Any]
    grids: tuple[tuple[Axis, ...], ...]
    drawn: tuple[Axis, ...]
    samples: tuple[dict[str, Any], ...]
    staircase: bool
    written: dict[str, Any]

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
                        put(values, field, value)
                    yield Combination(
                        {**held, **varied},
                        values,
                        (values["time"],) if times is None else times.values,
                        (values["seed"],) if seeds is None else seeds.values,
                    )

    def base_value(self, axis: Axis) -> Any:
        """What the fields of an axis are where they do not vary."""
        value = look_up(self.base, axis.fields[0])
        return to_seconds(value) if axis.name == "time" else value

    def _joined(self, name: str) -> Axis:
        found = [axis for grid in self.grids for axis in grid if axis.name == name]
        if any(axis.fields != found[0].fields for axis in found):
            raise InputError(f"grid axis {name!r} has different fields in different grids: give it the same")
        values = [value for axis in found for value in axis.values]
        if len(found) < len(self.grids):
            values.append(self.base_value(found[0]))
        return Axis(name, found[0].fields, tuple({_same(value): value for value in values}.values()))

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

    Raises:
        InputError: for a missing file, text that is not YAML, an unknown key, an empty or repeated list, a field that
            cannot exist, and more than a million cells.
    """
    written = _load(config) if isinstance(config, str | Path) else json.loads(json.dumps(dict(config)))
    for key in written:
        if key not in _KEYS:
            raise InputError(f"study has no key {key!r}: allowed are {', '.join(_KEYS)}")
    title, staircase = written.get("title", "Study"), written.get("staircase", False)
    if not isinstance(title, str) or not isinstance(staircase, bool):
        raise InputError("study keys title and staircase are a text and true or false: give them so")
    given = written.get("grid")
    grids = tuple(
        tuple(_axis(name, values) for name, values in _mapping("grid", grid).items())
        for grid in (given if isinstance(given, list) and given else [given])
    )
    drawn, samples = _random(_mapping("random", written.get("random")))
    base = {**DEFAULTS, **{name: written[name] for name in SECTIONS if name in written}}
    design = Design(title, base, grids, drawn, samples, staircase, written)
    if design.points > MOST_CELLS:
        raise InputError(
            f"the study has {design.points:,} cells: take values away until there are at most {MOST_CELLS:,}"
        )
    _require_distinct(design)
    return design


def _load(path: str | Path) -> dict[str, Any]:
    values = read_yaml("study", path)
    if not isinstance(values, dict):
        raise InputError(f"study file {str(path)!r} holds no mapping: write keys such as 'model: minilm' and 'grid:'")
    try:
        plain: dict[str, Any] = json.loads(json.dumps(values))
    except TypeError as error:
        raise InputError(f"study file {str(path)!r} holds a value that is not plain: {error}") from None
    return plain


def _mapping(key: str, given: Any) -> dict[str, Any]:
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise InputError(f"{key} = {given!r} is not allowed: give a mapping of fields to lists of values")
    return given


def _axis(name: str, given: Any) -> Axis:
    """``field: [values]``, ``seed: 0..9``, or ``name: {fields: [...], values: [...]}`` for several together."""
    fields: Any = [name]
    values = given
    if isinstance(given, dict) and set(given) == {"fields", "values"}:
        fields, values = given["fields"], given["values"]
        if not isinstance(fields, list) or not fields or not all(isinstance(field, str) for field in fields):
            raise InputError(f"grid axis {name!r} has fields {fields!r}: give a list of dotted field names")
    values = _numbers(values) if isinstance(values, str) else values
    if not isinstance(values, list) or not values:
        raise InputError(f"grid field {name!r} = {given!r} varies nothing: give a list of one value or more")
    _check_fields(fields)
    if name not in ("time", "seed") and {"time", "seed"} & set(fields):
        raise InputError(f"grid axis {name!r} varies time or seed with others: give them lists of their own")
    if "time" in fields:
        values = [to_seconds(value) for value in values]
    for value in values if "seed" in fields else []:
        require_whole("seed", value, least=0)
    seen: set[str] = set()
    for value in values:
        if _same(value) in seen:
            raise InputError(f"grid field {name!r} lists {value!r} twice: give each value once")
        seen.add(_same(value))
    return Axis(name, tuple(fields), tuple(values))


def _numbers(text: str) -> list[int] | None:
    match = _RANGE.fullmatch(text)
    if match is None:
        return None
    first, last = int(match[1]), int(match[2])
    if last - first >= MOST_CELLS:
        raise InputError(f"{text!r} is more than {MOST_CELLS:,} values: give fewer")
    return list(range(first, last + 1))


def _random(given: dict[str, Any]) -> tuple[tuple[Axis, ...], tuple[dict[str, Any], ...]]:
    """``random: {samples: 40, seed: 0, fields: {field: [choices] or {low, high, scale}}}``."""
    if not given:
        return (), ({},)
    for key in given:
        if key not in ("samples", "seed", "fields"):
            raise InputError(f"random has no key {key!r}: allowed are samples, seed, fields")
    count, seed = given.get("samples"), given.get("seed", 0)
    require_whole("random.samples", count, least=1, most=MOST_CELLS)
    require_whole("random.seed", seed, least=0)
    assert isinstance(count, int)
    fields = _mapping("random.fields", given.get("fields"))
    if not fields:
        raise InputError("random.fields is empty: give a mapping of fields to choices or to low and high")
    _check_fields(list(fields))
    columns = {name: _draw(name, spread, count, seed) for name, spread in fields.items()}
    samples = tuple({name: column[k] for name, column in columns.items()} for k in range(count))
    return tuple(Axis(name, (name,), tuple(column)) for name, column in columns.items()), samples


def _draw(name: str, spread: Any, count: int, seed: int) -> list[Any]:
    part = uniform((count,), (seed, name, "random design")).double().tolist()
    if isinstance(spread, list) and spread:
        return [spread[int(u * len(spread))] for u in part]
    if not isinstance(spread, dict) or not {"low", "high"} <= set(spread) <= {"low", "high", "scale"}:
        raise InputError(f"random field {name!r} = {spread!r} is not allowed: give a list, or low, high and scale")
    low, high, scale = spread["low"], spread["high"], spread.get("scale", "linear")
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x) for x in (low, high))
    if not numbers or low >= high or scale not in ("linear", "log") or (scale == "log" and low <= 0):
        raise InputError(
            f"random field {name!r} = {spread!r} is not allowed: give numbers low < high, and scale linear or, above "
            "0, log"
        )
    whole = isinstance(low, int) and isinstance(high, int)
    top = high + 1 if whole else high
    drawn = [low * (top / low) ** u if scale == "log" else low + (top - low) * u for u in part]
    return [min(int(value), high) for value in drawn] if whole else drawn


def _check_fields(fields: list[str]) -> None:
    """Refuse fields that cannot exist."""
    for field in fields:
        put(copy.deepcopy({**DEFAULTS, "pattern": {"text": ""}, "memory": "ideal"}), field, None)


def _require_distinct(design: Design) -> None:
    fields = [field for axis in design.axes for field in axis.fields]
    twice = next((field for field in fields if fields.count(field) > 1), None)
    if twice is not None:
        raise InputError(f"field {twice!r} varies twice: put all its values into one list")
    if design.base["recipe"] is None and "recipe" not in fields:
        part = next((field for field in fields if field.startswith("recipe.")), None)
        if part is not None:
            raise InputError(f"field {part!r} needs a recipe: give 'recipe: fast' too")


def _same(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
