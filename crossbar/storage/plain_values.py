"""Plain values from YAML and JSON, and dataclasses from plain values."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from crossbar.errors import InputError, shown
from crossbar.storage.yaml_values import MOST_BYTES
from crossbar.storage.yaml_values import load_yaml as load_yaml

_T = TypeVar("_T")

_LARGEST_JSON = 64 << 20  # bytes
_MOST_JSON = 4_000_000, 16_000_000  # containers, which take 200 bytes each, and commas
_DEEPEST_JSON = 100  # lists and objects in each other
_LONGEST_JSON = 40  # digits of a whole number: tokenizers write 10^30 for "no limit"


def mapping(name: str, values: Any) -> Mapping[str, Any]:
    """The values, refused by their dotted name where they are no mapping."""
    if not isinstance(values, Mapping):
        raise InputError(f"{name} = {shown(values)} is not allowed: give a mapping of field names to values")
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
            raise InputError(f"{name} has no field {shown(key)}: allowed are {', '.join(allowed)}")
    try:
        return part(**values) if default is None else dataclasses.replace(default, **values)  # type: ignore[type-var]  # as above
    except InputError as error:
        raise InputError(f"in {name}: {error}") from None


def read_text(what: str, path: str | Path, kind: str = "YAML") -> str:
    """The text of a file in UTF-8, of at most a mebibyte.

    Args:
        what: it describes, for errors, such as ``hardware``.
        path: of the file.
        kind: of text that is wanted, for errors.

    Raises:
        InputError: for a missing file, one that cannot be read or is no text, and a larger one.
    """
    where = f"{what} file {shown(str(path), 1000)}"
    try:
        if not Path(path).is_file():
            raise InputError(f"{where} does not exist: give the path of a {kind} file")
        with open(path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{where} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MOST_BYTES:
        raise InputError(f"{where} is larger than {MOST_BYTES:,} bytes: give a {kind} file of at most that")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not {kind}: byte {error.start + 1} is no UTF-8 ({error.reason})") from None


def read_yaml(what: str, path: str | Path) -> Any:
    """The plain values of a YAML file.

    Args:
        what: it describes, for errors, such as ``hardware``.
        path: of the file.

    Raises:
        InputError: for what `read_text` and `load_yaml` refuse, and for a file without values.
    """
    where = f"{what} file {shown(str(path), 1000)}"
    values = load_yaml(where, read_text(what, path))
    if values is None:
        raise InputError(f"{where} is empty: give a mapping of field names to values")
    return values


def read_json(what: str, path: str | Path) -> Any:
    """The plain values of a JSON file.

    Args:
        what: it describes, for errors, such as ``bundle``.
        path: of the file.

    Raises:
        InputError: for a missing file, and what `load_json` refuses.
    """
    path = Path(path)
    where = f"{what} file {str(path)!r}"
    if not path.is_file():
        raise InputError(f"{where} does not exist: give the path of a JSON file")
    try:
        size = path.stat().st_size
        if size > _LARGEST_JSON:
            raise InputError(
                f"{where} has {size} bytes, more than the {_LARGEST_JSON} that are read: give a smaller one"
            )
        text = path.read_bytes()
    except OSError as error:
        raise InputError(f"{where} cannot be read ({error.strerror or error}): give a file that can be") from None
    return load_json(where, text)


def load_json(where: str, text: bytes, remedy: str = "give a JSON file") -> Any:
    """The plain values of a JSON text, which comes from ``where``.

    What Python's own reader takes beyond JSON is refused, and so is what costs more memory or time than its bytes
    suggest, or what other code falls over: deep nesting, numbers of thousands of digits, half a surrogate pair.

    Args:
        where: names the text in errors.
        text: UTF-8.
        remedy: what the user can do, for errors.

    Raises:
        InputError: for text that is not JSON, larger than 64 MB or nested deeper than 100, with a key that an object
            has twice, with NaN, an infinite number or one of more than 40 digits.
    """
    if len(text) > _LARGEST_JSON:
        raise InputError(f"{where} has {len(text)} bytes, more than the {_LARGEST_JSON} that are read: {remedy}")
    if text.count(b"[") + text.count(b"{") > _MOST_JSON[0] or text.count(b",") > _MOST_JSON[1]:
        raise InputError(f"{where} has more than {_MOST_JSON[0]} lists and objects or {_MOST_JSON[1]} values: {remedy}")
    try:
        values = json.loads(
            text.decode("utf-8"),
            object_pairs_hook=_json_object,
            parse_int=_json_whole,
            parse_float=_json_number,
            parse_constant=_foreign_to_json,
        )
        if b"\\ud" in text.lower():
            json.dumps(values, ensure_ascii=False).encode("utf-8")  # raises for half a surrogate pair
        _require_shallow(values)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())
        raise InputError(f"{where} is not JSON ({reason}): {remedy}") from None
    return values


def _json_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a key comes twice")
    return values


def _json_whole(digits: str) -> int:
    if len(digits) > _LONGEST_JSON:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _json_number(digits: str) -> float:
    number = float(digits)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{digits[:_LONGEST_JSON]} is too large a number")
    return number


def _foreign_to_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _require_shallow(values: Any) -> None:
    level, depth = [values], 0
    while level := [part for part in level if isinstance(part, dict | list)]:
        depth += 1
        if depth > _DEEPEST_JSON:
            raise ValueError(f"it is nested deeper than {_DEEPEST_JSON}")
        level = [inside for part in level for inside in (part.values() if isinstance(part, dict) else part)]
