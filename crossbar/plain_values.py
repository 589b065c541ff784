"""Plain values from YAML, and dataclasses from plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from crossbar.errors import InputError

_T = TypeVar("_T")


def mapping(name: str, values: Any) -> Mapping[str, Any]:
    """The values, refused by their dotted name where they are no mapping."""
    if not isinstance(values, Mapping):
        raise InputError(f"{name} = {values!r} is not allowed: give a mapping of field names to values")
    return values


def build(part: type[_T], name: str, values: Any, default: _T | None = None) -> _T:
    """``part`` with the given fields; the others are those of ``default``, or the class's own.

    Args:
        part: a dataclass.
        name: dotted, for errors.
        values: fields and their values.
        default: what gives the other fields.

    Raises:
        InputError: for an unknown field, with what is allowed, and for what the class refuses.
    """
    allowed = [f.name for f in dataclasses.fields(part)]  # type: ignore[arg-type]  # all parts are dataclasses
    for key in mapping(name, values):
        if key not in allowed:
            raise InputError(f"{name} has no field {key!r}: allowed are {', '.join(allowed)}")
    try:
        return part(**values) if default is None else dataclasses.replace(default, **values)  # type: ignore[type-var]  # as above
    except InputError as error:
        raise InputError(f"in {name}: {error}") from None


def read_yaml(what: str, path: str | Path) -> Any:
    """The plain values of a YAML file.

    Args:
        what: it describes, for errors, such as ``hardware``.
        path: of the file.

    Raises:
        InputError: for a missing file, and what `load_yaml` refuses.
    """
    path = Path(path)
    where = f"{what} file {str(path)!r}"
    if not path.is_file():
        raise InputError(f"{where} does not exist: give the path of a YAML file")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not YAML: {error}") from None
    return load_yaml(where, text)


def load_yaml(where: str, text: str) -> Any:
    """The plain values of a YAML text, which comes from ``where``.

    Raises:
        InputError: for text that is not YAML, and for a key that a mapping has twice: YAML's loader would keep the last
            without a word.
    """
    import yaml

    def refuse_repeated(node: Any) -> None:
        if isinstance(node, yaml.SequenceNode):
            for child in node.value:
                refuse_repeated(child)
        elif isinstance(node, yaml.MappingNode):
            seen = set()
            for key, child in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        raise InputError(
                            f"{where} has {key.value!r} again in line {key.start_mark.line + 1}: give it once"
                        )
                    seen.add(key.value)
                refuse_repeated(child)

    try:
        refuse_repeated(yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
