"""YAML read within bounds: mappings with names as keys, lists, texts, numbers, true, false and null, nothing else."""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass
from typing import Any

from crossbar.errors import InputError, shown

MOST_BYTES = 1 << 20
"""Of a text file that a user gives. The longest that the packages ship has 12 kB."""
_DEEPEST = 32  # lists and mappings in each other; study files have 6
_MOST_VALUES = 20_000  # aliases written out
_MOST_DIGITS = 40  # of a whole number

_WORDS: dict[str, Any] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **{form: True for word in ("true", "yes", "on") for form in (word, word.capitalize(), word.upper())},
    **{form: False for word in ("false", "no", "off") for form in (word, word.capitalize(), word.upper())},
}
_WHOLE = re.compile(r"[-+]?(0|[1-9][0-9]*(_[0-9]+)*|0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+)")
_NUMBER = re.compile(r"[-+]?((0|[1-9][0-9]*(_[0-9]+)*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


class NotYamlError(InputError):
    """A text that is not YAML of plain values; one that is too much is refused as an `InputError` alone."""


@dataclass
class _Open:
    """A list or mapping whose end has not come."""

    values: list[Any] | dict[str, Any]
    anchor: str | None
    before: int  # values that came before it
    key: str | None = None  # of a mapping, whose value comes next
    merging: bool = False  # whether that key is ``<<``
    merged: dict[str, Any] | None = None  # what it brings
    height: int = 1


@dataclass
class _Anchored:
    """What an alias stands for."""

    value: Any
    count: int
    height: int


def load_yaml(where: str, text: str) -> Any:
    """The plain values of a YAML text, which comes from ``where``.

    Numbers are written as in YAML 1.2, so ``1e-3`` is one, and dates and ``1:30`` are texts; ``yes`` and ``no`` are
    as in YAML 1.1. Aliases and ``<<`` are written out.

    Raises:
        InputError: for text that is not YAML, for a key that a mapping has twice or that is no name, for tags, and for
            what no file of ours needs: more than a mebibyte, 20,000 values or 32 lists in each other, numbers of more
            than 40 digits. Nothing of the file runs, and refusing takes no longer than reading.
    """
    import yaml

    if len(text) > MOST_BYTES:
        raise InputError(f"{where} has {len(text):,} characters: give at most {MOST_BYTES:,}")
    reader = _Reader(where)
    try:
        for event in yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            reader.take(event)
    except yaml.MarkedYAMLError as error:
        what = " ".join(filter(None, (error.context, error.problem)))
        mark = error.problem_mark or error.context_mark
        line = "" if mark is None else f" in line {mark.line + 1}"
        raise NotYamlError(f"{where} is not YAML: {what}{line}") from None
    except (yaml.YAMLError, UnicodeError) as error:
        raise NotYamlError(f"{where} is not YAML: {' '.join(str(error).split())}") from None
    return reader.documents[0] if reader.documents else None


class _Reader:
    """Builds values from the parser's events, which come one by one: nothing is nested, and nothing is made twice."""

    def __init__(self, where: str) -> None:
        self.documents: list[Any] = []
        self._where = where
        self._open: list[_Open] = []
        self._anchors: dict[str, _Anchored | None] = {}  # None: still open
        self._count = 0

    def take(self, event: Any) -> None:
        """Go on by one event."""
        match type(event).__name__:
            case "ScalarEvent":
                self._require_no_tag(event)
                self._scalar(event)
            case "SequenceStartEvent" | "MappingStartEvent" as kind:
                self._require_no_tag(event)
                self._counted(event, 1, 1)
                if event.anchor is not None:
                    self._anchors[event.anchor] = None
                self._open.append(_Open([] if kind[0] == "S" else {}, event.anchor, self._count - 1))
            case "SequenceEndEvent" | "MappingEndEvent":
                self._close(event)
            case "AliasEvent":
                self._alias(event)

    def _scalar(self, event: Any) -> None:
        plain = event.implicit[0]
        top = self._open[-1] if self._open else None
        if top is not None and isinstance(top.values, dict) and top.key is None:
            self._key(top, event, plain)
            return
        self._counted(event, 1, 0)
        value = self._value(event) if plain else event.value
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(value, 1, 0)
        self._put(event, value, 0)

    def _key(self, top: _Open, event: Any, plain: bool) -> None:
        key, line = event.value, event.start_mark.line + 1
        if plain and key == "<<":
            if top.merged is not None:
                raise NotYamlError(f"{self._where} has '<<' again in line {line}: give it once")
            top.merging, top.merged = True, {}
        elif plain and not isinstance(self._value(event), str):
            raise NotYamlError(
                f"{self._where} is not YAML of plain values: {shown(key)} in line {line} is no name; "
                "put a name or quotation marks there"
            )
        elif key in top.values:
            raise NotYamlError(f"{self._where} has {shown(key)} again in line {line}: give it once")
        else:
            top.values[key] = None
        if event.anchor is not None:
            self._anchors[event.anchor] = _Anchored(key, 1, 0)
        top.key = key

    def _alias(self, event: Any) -> None:
        name = event.anchor
        found = self._anchors.get(name)
        if found is None:
            problem = "stands in what it names" if name in self._anchors else "names nothing"
            raise NotYamlError(
                f"{self._where} is not YAML: alias *{name} in line {event.start_mark.line + 1} {problem}"
            )
        self._counted(event, found.count, found.height)
        self._put(event, copy.deepcopy(found.value), found.height)

    def _close(self, event: Any) -> None:
        done = self._open.pop()
        values: Any = done.values
        if done.merged is not None:
            values = {**done.merged, **values}
        if done.anchor is not None:
            self._anchors[done.anchor] = _Anchored(values, self._count - done.before, done.height)
        self._put(event, values, done.height)

    def _put(self, event: Any, value: Any, height: int) -> None:
        """A value that is whole goes into the list or mapping around it."""
        if not self._open:
            if self.documents:
                raise NotYamlError(f"{self._where} is not YAML of plain values: it holds several documents, give one")
            self.documents.append(value)
            return
        top = self._open[-1]
        top.height = max(top.height, height + 1)
        if isinstance(top.values, list):
            top.values.append(value)
        elif top.key is None:
            line = event.start_mark.line + 1
            raise NotYamlError(f"{self._where} is not YAML of plain values: line {line} has a key that is no name")
        elif top.merging:
            self._merge(top, event, value)
        else:
            top.values[top.key] = value
        top.key, top.merging = None, False

    def _merge(self, top: _Open, event: Any, value: Any) -> None:
        for part in value if isinstance(value, list) else [value]:
            if not isinstance(part, dict):
                line = event.start_mark.line + 1
                raise NotYamlError(
                    f"{self._where} is not YAML: '<<' in line {line} stands for {shown(part)}, no mapping"
                )
            top.merged = {**part, **(top.merged or {})}

    def _counted(self, event: Any, count: int, height: int) -> None:
        self._count += count
        line = event.start_mark.line + 1
        if self._count > _MOST_VALUES:
            raise InputError(f"{self._where} has more than {_MOST_VALUES:,} values, aliases written out: give fewer")
        if len(self._open) + height > _DEEPEST:
            raise InputError(
                f"{self._where} has more than {_DEEPEST} lists and mappings in each other in line {line}: give fewer"
            )

    def _require_no_tag(self, event: Any) -> None:
        if event.tag is not None:
            line, tag = event.start_mark.line + 1, shown(event.tag)
            raise NotYamlError(
                f"{self._where} is not YAML of plain values: line {line} has the tag {tag}; give the value without it"
            )

    def _value(self, event: Any) -> Any:
        """What a plain scalar stands for."""
        text: str = event.value
        if text in _WORDS:
            return _WORDS[text]
        if _WHOLE.fullmatch(text):
            if len(text) > _MOST_DIGITS:
                line = event.start_mark.line + 1
                raise NotYamlError(
                    f"{self._where} has a number of more than {_MOST_DIGITS} digits in line {line}: give a smaller one"
                )
            return int(text.replace("_", ""), 0)
        if _NUMBER.fullmatch(text):
            return float(text.replace("_", ""))
        return float(text.replace(".", "")) if _NOT_FINITE.fullmatch(text) else text
