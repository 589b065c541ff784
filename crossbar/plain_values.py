"""Dataclasses from plain values, as YAML and JSON hold them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
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
