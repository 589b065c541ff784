"""The fields of a cell under their dotted names: ``hardware.adc.bits``, ``task.pairs``, ``pattern.size``, ``seed``."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from calibration.placement.layout import Target
from calibration.runs.request import Request, as_hardware, as_memory, named
from crossbar import InputError
from crossbar.errors import shown

SECTIONS = ("model", "task", "hardware", "pattern", "memory", "recipe", "chip", "wait", "time", "seed", "device")
DEFAULTS: dict[str, Any] = {
    "model": "minilm",
    "task": "wordsim",
    "hardware": "pcm",
    "pattern": None,
    "memory": None,
    "recipe": None,
    "chip": None,
    "wait": "1h",
    "time": "1d",
    "seed": 0,
    "device": "cpu",
}
_DEVICES = ("cpu", "cuda")  # engines number the GPUs of their workers
_NAMED = {"model": "name", "task": "name", "pattern": "text", "memory": "hardware", "recipe": "name", "chip": "name"}


def put(values: dict[str, Any], field: str, value: Any, folder: Path = Path()) -> None:
    """Set a field of a job's values, in place; relative paths among them start from a folder.

    Raises:
        InputError: for a field that cannot exist. Whether it does exist, and the value, is checked by `resolve`.
    """
    head, *rest = field.split(".")
    if head not in SECTIONS or not all(rest) or (rest and head in ("wait", "time", "seed", "device")):
        raise InputError(
            f"field {shown(field)} does not exist: give {', '.join(SECTIONS)}, or a part of the first seven, such as "
            "'hardware.adc.bits', 'task.pairs', 'memory.token_seconds' or 'recipe.DriftCompensation.reads'"
        )
    if not rest:
        values[head] = copy.deepcopy(value)
        return
    if head == "hardware" and not isinstance(values[head], dict):
        values[head] = as_hardware(values[head], folder).to_dict()
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
        here["hardware"] = as_hardware(here["hardware"], folder).to_dict()
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
        whole = as_hardware(here, folder) if head == "hardware" else as_memory(here, folder)
        here = None if whole is None else whole.to_dict()
    for part in rest:
        here = here.get(part) if isinstance(here, Mapping) else None
    return here


def resolve(values: Mapping[str, Any], folder: Path = Path()) -> Request:
    """What a cell asks for, checked; relative paths among the values start from a folder.

    Raises:
        InputError: for an unknown field or an impossible value.
    """
    model, task = named("model", "name", values["model"]), named("task", "name", values["task"])
    name, include, exclude = model.pop("name"), model.pop("include", None), model.pop("exclude", None)
    tied_heads = model.pop("tied_heads", False)
    if model:
        raise InputError(
            f"model has no field {shown(next(iter(model)))}: allowed are name, include, exclude, tied_heads"
        )
    target = None
    if values["chip"] is not None:
        on = named("chip", "name", values["chip"])
        for key in on:
            if key not in ("name", "placer", "machine"):
                raise InputError(f"chip has no field {shown(key)}: allowed are name, placer, machine")
        target = Target.of(on.pop("name"), **on, folder=folder)
    if values["device"] not in _DEVICES:
        raise InputError(f"device {shown(values['device'])} is not known: choose {' or '.join(_DEVICES)}")
    return Request.of(
        name,
        task.pop("name"),
        values["hardware"],
        pattern=values["pattern"],
        memory=values["memory"],
        recipe=values["recipe"],
        times=[values["time"]],
        wait=values["wait"],
        seed=values["seed"],
        device=values["device"],
        include=include,
        exclude=exclude,
        tied_heads=tied_heads,
        options=task,
        target=target,
        folder=folder,
        elsewhere=True,
    )
