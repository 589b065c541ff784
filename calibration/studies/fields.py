"""The fields of a job under their dotted names: ``hardware.adc.bits``, ``task.pairs``, ``pattern.size``, ``seed``."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attention import Memory, Pattern, parse
from calibration import models
from calibration import recipe as recipes
from calibration.recipe import Recipe
from crossbar import Hardware, InputError, presets, to_seconds
from crossbar.errors import require_whole, shown

SECTIONS = ("model", "task", "hardware", "pattern", "memory", "recipe", "wait", "time", "seed", "device")
DEFAULTS: dict[str, Any] = {
    "model": "minilm",
    "task": "wordsim",
    "hardware": "pcm",
    "pattern": None,
    "memory": None,
    "recipe": None,
    "wait": "1h",
    "time": "1d",
    "seed": 0,
    "device": "cpu",
}
_NAMED = {"model": "name", "task": "name", "pattern": "text", "memory": "hardware", "recipe": "name"}
_DEVICES = ("cpu", "cuda")
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")  # in a pattern's text; no format of Python's own


@dataclass(frozen=True)
class Job:
    """What the dotted fields add up to, checked.

    Attributes:
        model: name or folder.
        include, exclude: shell patterns of layers, as in `calibration.emulate`.
        task: its name.
        options: of the task's class.
        hardware: the tiles.
        pattern: who attends to whom.
        memory: where keys and values are; None: in digital.
        recipe: None leaves the chip as it was programmed.
        wait: seconds between fitting and scoring.
        seconds: since programming; with a recipe, when it is fitted.
        seed: of the chip.
        device: where it is computed, ``cpu`` or ``cuda``.
    """

    model: str
    include: tuple[str, ...] | None
    exclude: tuple[str, ...] | None
    task: str
    options: dict[str, Any]
    hardware: Hardware
    pattern: Pattern | None
    memory: Memory | None
    recipe: Recipe | None
    wait: float
    seconds: float
    seed: int
    device: str


def put(values: dict[str, Any], field: str, value: Any, folder: Path = Path()) -> None:
    """Set a field of a job's values, in place; relative paths among them start from a folder.

    Raises:
        InputError: for a field that cannot exist. Whether it does exist, and the value, is checked by `resolve`.
    """
    head, *rest = field.split(".")
    if head not in SECTIONS or not all(rest) or (rest and head in ("wait", "time", "seed", "device")):
        raise InputError(
            f"field {shown(field)} does not exist: give {', '.join(SECTIONS)}, or a part of the first six, such as "
            "'hardware.adc.bits', 'task.pairs', 'memory.token_seconds' or 'recipe.DriftCompensation.reads'"
        )
    if not rest:
        values[head] = copy.deepcopy(value)
        return
    if head == "hardware" and not isinstance(values[head], dict):
        values[head] = _hardware(values[head], folder).to_dict()
    elif head in _NAMED and isinstance(values[head], str):
        values[head] = {_NAMED[head]: values[head]}
    here = values[head]
    if here is None:
        if head == "recipe":  # nothing to fit, so nothing to vary
            return
        raise InputError(f"field {shown(field)} has nothing to belong to: give {shown(head)} too")
    if not isinstance(here, dict):
        raise InputError(f"field {shown(field)} does not exist: {shown(head)} is {shown(here)}, which has no parts")
    if head == "memory" and rest[0] == "hardware" and len(rest) > 1 and isinstance(here.get("hardware"), str):
        here["hardware"] = _hardware(here["hardware"], folder).to_dict()
    for part in rest[:-1]:
        if here.get(part) is None:
            here[part] = {}
        elif isinstance(here[part], str):  # `device: pcm`, `recipe: fast`
            here[part] = {"kind": here[part]}
        here = here[part]
        if not isinstance(here, dict):
            raise InputError(f"field {shown(field)} does not exist: {shown(part)} is {shown(here)}, which has no parts")
    here[rest[-1]] = copy.deepcopy(value)


def look_up(values: Mapping[str, Any], field: str, folder: Path = Path()) -> Any:
    """The value of a field among a job's values, None where it is not given."""
    head, *rest = field.split(".")
    here: Any = values[head]
    if rest and head in ("hardware", "memory"):  # whose fields have values where none is given
        whole = _hardware(here, folder) if head == "hardware" else _memory(here, folder)
        here = None if whole is None else whole.to_dict()
    for part in rest:
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


def resolve(values: Mapping[str, Any], folder: Path = Path()) -> Job:
    """Check a job's values and make of them what computes; relative paths among them start from a folder.

    Raises:
        InputError: for an unknown field or an impossible value.
    """
    model, task = _named("model", values["model"]), _named("task", values["task"])
    name, include, exclude = model.pop("name"), model.pop("include", None), model.pop("exclude", None)
    if model:
        raise InputError(f"model has no field {shown(next(iter(model)))}: allowed are name, include, exclude")
    wait = to_seconds(values["wait"])
    if wait == 0 and values["recipe"] is not None:
        raise InputError("a wait of 0 s would score the very noise that was fitted: wait longer, such as '1h'")
    require_whole("seed", values["seed"], least=0, most=2**63 - 1)
    if values["device"] not in _DEVICES:
        raise InputError(f"device {shown(values['device'])} is not known: choose {' or '.join(_DEVICES)}")
    return Job(
        model=_model(name, folder),
        include=_patterns("model.include", include),
        exclude=_patterns("model.exclude", exclude),
        task=task.pop("name"),
        options=task,
        hardware=_hardware(values["hardware"], folder),
        pattern=_pattern(values["pattern"]),
        memory=_memory(values["memory"], folder),
        recipe=_recipe(values["recipe"], folder),
        wait=wait,
        seconds=to_seconds(values["time"]),
        seed=values["seed"],
        device=values["device"],
    )


def _named(section: str, value: Any) -> dict[str, Any]:
    """The section as a mapping with its name; a bare text is the name."""
    key = _NAMED[section]
    values = {key: value} if isinstance(value, str) else value
    if not isinstance(values, Mapping) or not isinstance(values.get(key), str):
        raise InputError(f"{section} = {shown(value)} is not allowed: give a name, or a mapping with {shown(key)}")
    return dict(values)


def _patterns(field: str, value: Any) -> tuple[str, ...] | None:
    if value is None or isinstance(value, str):
        return None if value is None else (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{field} = {shown(value)} is not allowed: give a list of layer patterns, such as ['*.query']")
    return tuple(value)


def _model(name: str, folder: Path) -> str:
    """A model's name as it is, or the path of its folder; what stands in the working directory alone is not found."""
    if name in models.NAMED:
        return name
    path = folder / Path(name).expanduser()
    return str(path) if path.is_dir() or Path(name).is_dir() or name.startswith((".", "/", "~")) else name


def _located(name: str, folder: Path) -> str:
    """A name, or, of a file, its path."""
    return str(folder / name) if Path(name).suffix in (".yaml", ".yml", ".csv") else name


def _hardware(value: Any, folder: Path) -> Hardware:
    return presets.get(_located(value, folder)) if isinstance(value, str) else Hardware.from_dict(value, folder)


def _pattern(value: Any) -> Pattern | None:
    """A pattern from its text, whose ``{placeholders}`` are other parts of the field."""
    if value is None:
        return None
    values = _named("pattern", value)
    text = values.pop("text")
    names = set(_PLACEHOLDER.findall(text))
    if names != set(values):
        name = min(names ^ set(values))
        raise InputError(
            f"pattern {shown(text)} and its fields differ in {shown(name)}: each {{placeholder}} needs a value"
        )
    for name, part in values.items():
        if isinstance(part, bool) or not isinstance(part, int | str):
            raise InputError(f"pattern.{name} = {shown(part)} is not allowed: give a whole number or a text")
    return parse(_PLACEHOLDER.sub(lambda found: str(values[found[1]]), text))


def _memory(value: Any, folder: Path) -> Memory | None:
    """A memory of hardware by name, or of its fields."""
    if value is None:
        return None
    values = {"hardware": value} if isinstance(value, str) else value
    if isinstance(values, Mapping) and isinstance(values.get("hardware"), str):
        values = {**values, "hardware": _located(values["hardware"], folder)}
    return Memory.from_dict(values)


def _recipe(value: Any, folder: Path) -> Recipe | None:
    """A recipe by name, or its steps; other fields change those of the steps they name.

    ``fast``, ``{name: fast, DriftCompensation: {reads: 64}}``, ``{name: tiles, steps: [{step: DriftCompensation}]}``.
    """
    if value is None:
        return None
    changes = _named("recipe", value)
    name, steps = changes.pop("name"), changes.pop("steps", None)
    recipe = recipes.get(_located(name, folder)) if steps is None else Recipe.from_dict({"name": name, "steps": steps})
    written = recipe.to_dict()["steps"]
    kinds = list(dict.fromkeys(step["step"] for step in written))
    for kind, values in changes.items():
        if kind not in kinds or not isinstance(values, Mapping):
            raise InputError(
                f"recipe field {shown(kind)} = {shown(values)} is not allowed: give fields of the steps "
                f"{', '.join(kinds)}"
            )
        written = [{**step, **values} if step["step"] == kind else step for step in written]
    return Recipe.from_dict({"name": name, "steps": written}) if changes else recipe
