"""What a study varies: a grid and random samples over dotted fields, read from YAML and checked."""

from __future__ import annotations

import copy
import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from calibration.studies.fields import DEFAULTS, SECTIONS, look_up, put
from crossbar import InputError, to_seconds
from crossbar.errors import require_whole
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


@dataclass(frozen=True)
class Design:
    """A study as it is written, with every list checked.

    Attributes:
        title: of the report.
        base: the values of fields that do not vary, and those that others are compared with.
        grid: axes of which every combination is a cell.
        drawn: axes whose values come in samples.
        samples: values of the drawn axes, by axis name; one empty sample where nothing is drawn.
        staircase: score after each step of a recipe too.
        written: the configuration as it was given.
    """

    title: str
    base: dict[str, Any]
    grid: tuple[Axis, ...]
    drawn: tuple[Axis, ...]
    samples: tuple[dict[str, Any], ...]
    staircase: bool
    written: dict[str, Any]

    @property
    def axes(self) -> tuple[Axis, ...]:
        """All axes, those of the grid first."""
        return self.grid + self.drawn

    @property
    def points(self) -> int:
        """Number of combinations, before those that come out the same are joined."""
        return math.prod(len(axis.values) for axis in self.grid) * len(self.samples)

    def settings(self) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
        """Each combination but of time and seed: values by axis name, and the values of all fields."""
        outer = [axis for axis in self.grid if axis.name not in ("time", "seed")]
        for chosen in itertools.product(*(axis.values for axis in outer)):
            on_grid = {axis.name: value for axis, value in zip(outer, chosen, strict=True)}
            for sample in self.samples:
                labels = {**on_grid, **sample}
                values = copy.deepcopy(self.base)
                varied = [axis for axis in self.axes if axis.name in labels]
                assigned = [(field, labels[axis.name]) for axis in varied for field in axis.fields]
                for field, value in sorted(assigned, key=lambda pair: pair[0].count(".")):  # a whole before its parts
                    put(values, field, value)
                yield labels, values

    def levels(self, name: str) -> tuple[Any, ...] | None:
        """Values of the grid axis ``time`` or ``seed``; None where it is not on the grid."""
        return next((axis.values for axis in self.grid if axis.name == name), None)

    def reference(self, axis: Axis) -> Any:
        """The level that pictures hold an axis at: the base's own value where it is one, else the first."""
        value = look_up(self.base, axis.fields[0])
        value = to_seconds(value) if axis.name == "time" else value
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
    grid = tuple(_axis(name, given) for name, given in _mapping("grid", written.get("grid")).items())
    drawn, samples = _random(_mapping("random", written.get("random")))
    base = {**DEFAULTS, **{name: written[name] for name in SECTIONS if name in written}}
    design = Design(title, base, grid, drawn, samples, staircase, written)
    if design.points > MOST_CELLS:
        raise InputError(
            f"the study has {design.points:,} cells: take values away until there are at most {MOST_CELLS:,}"
        )
    _require_distinct(design)
    return design


def _load(path: str | Path) -> dict[str, Any]:
    import yaml

    path = Path(path)
    if not path.is_file():
        raise InputError(f"study file {str(path)!r} does not exist: give the path of a YAML file")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"study file {str(path)!r} is not YAML: {' '.join(str(error).split())}") from None
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
    repeated = next((v for k, v in enumerate(values) if _same(v) in map(_same, values[:k])), None)
    if len({_same(value) for value in values}) < len(values):
        raise InputError(f"grid field {name!r} lists {repeated!r} twice: give each value once")
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
        put(copy.deepcopy({**DEFAULTS, "pattern": {"text": ""}}), field, None)


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
