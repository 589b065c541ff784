"""What a store holds, against a hash that was written with it: a value that changed since is not taken for a result."""

from __future__ import annotations

import hashlib
import json
import math
import sqlite3
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from calibration.storage import hashes
from calibration.studies.database import DamagedError
from calibration.studies.design import plain, require_name
from calibration.studies.plan import cell_id
from crossbar import InputError
from crossbar.storage.plain_values import load_json

SINCE = 2
"""The version of a store from which on rows are sealed."""

# What each seal covers: a row, and the rows of other tables that belong to it, in an order of their own.
_ROWS = {
    "studies": ("id", "SELECT id, seal, title, config, axes, planned FROM studies"),
    "setups": ("id", "SELECT id, seal, fields, counts FROM setups"),
    "runs": ("id", "SELECT id, seal, study, began, ended, provenance FROM runs"),
    "cells": ("id", "SELECT id, seal, setup, seconds, seed, status, reason, trace, run, ended, took FROM cells"),
}
_BELOW = {
    "studies": (
        "SELECT study, position, axes, setup, digital FROM settings {} ORDER BY study, position",
        "SELECT study, cells.id FROM members JOIN cells ON cell = key {} ORDER BY study, cells.id",
    ),
    "cells": (
        "SELECT cells.id, arm, metric, value FROM scores JOIN cells ON cell = key {} ORDER BY cells.id, arm, metric",
    ),
}
_OWNER = {"settings": "study", "members": "study", "scores": "cells.id"}


def seal(on: sqlite3.Connection, table: str, *keys: Any) -> None:
    """Seal rows as they are now, by their ids; within the transaction that wrote them."""
    for key in keys:
        for _, _, found in _sealed(on, table, key):
            on.execute(f"UPDATE {table} SET seal = ? WHERE id = ?", (found, key))


def seal_all(on: sqlite3.Connection) -> None:
    """Seal every row of a store that had no seals; cells that are pending hold nothing to seal."""
    for table in _ROWS:
        for row, _, found in list(_sealed(on, table)):
            if table != "cells" or row[5] != "pending":
                on.execute(f"UPDATE {table} SET seal = ? WHERE id = ?", (found, row[0]))


def verify(on: sqlite3.Connection) -> None:
    """Read every row, and compare it with its seal, its identity and what may stand in it.

    Raises:
        DamagedError: with what does not fit.
    """
    checks = {"setups": _check_setup, "studies": _check_study, "cells": _check_cell, "runs": _check_run}
    for table, check in checks.items():
        for row, below, found in _sealed(on, table):
            if (table != "cells" or row[5] != "pending") and row[1] != found:
                raise DamagedError(f"a row of its {table} is not as it was written")
            try:
                check(row, below)
            except InputError as error:
                raise DamagedError(str(error)) from None
            except (KeyError, TypeError, ValueError, AttributeError):
                raise DamagedError(f"a row of its {table} holds what no study writes") from None


def _sealed(on: sqlite3.Connection, table: str, key: Any = None) -> Iterator[tuple[Any, list[list[Any]], str]]:
    """Each row of a table (or the one of an id), what belongs to it in other tables, and the seal that fits both."""
    one = () if key is None else (key,)
    ident, query = _ROWS[table]
    rows = on.execute(f"{query} {f'WHERE {ident} = ?' if one else ''} ORDER BY {ident}", one)
    parts = []
    for part in _BELOW.get(table, ()):
        owner = _OWNER[part.split(" FROM ")[1].split()[0]]
        parts.append(_Groups(on.execute(part.format(f"WHERE {owner} = ?" if one else ""), one)))
    for row in rows:
        below = [part.of(row[0]) for part in parts]
        content = json.dumps([row[0], *row[2:], *below], default=repr).encode()
        yield row, below, hashlib.sha256(content).hexdigest()


class _Groups:
    """Rows that come in the order of their owners, group by group."""

    def __init__(self, rows: Iterable[Any]) -> None:
        self._groups = groupby(rows, key=lambda row: row[0])
        self._next = next(self._groups, None)

    def of(self, owner: Any) -> list[Any]:
        if self._next is None or self._next[0] != owner:
            return []
        found = [row[1:] for row in self._next[1]]
        self._next = next(self._groups, None)
        return found


def _check_study(row: Any, below: list[list[Any]]) -> None:
    key, _, title, config, axes, planned = row
    written = _plain(config, dict)
    names: dict[str, set[Any]] = {}
    for axis in _plain(axes, list):
        _require(axis.keys() == {"name", "fields", "values", "reference", "drawn"})
        _require(isinstance(axis["drawn"], bool) and isinstance(axis["values"], list) and len(axis["values"]) > 0)
        _require(all(isinstance(field, str) for field in axis["fields"]) and len(axis["fields"]) > 0)
        require_name(axis["name"], axis["fields"])
        _require(axis["reference"] in axis["values"])
        _require(axis["name"] != "time" or all(_number(value) for value in axis["values"]))
        _require(axis["name"] not in names)
        names[axis["name"]] = {plain(value) for value in axis["values"]}
    varying = names.keys() - {"time", "seed"}
    _require(isinstance(title, str) and isinstance(planned, str) and hashes.of_values(written)[:32] == key)
    settings = [_plain(own, dict) for _, own, _, _ in below[0]]
    for own in settings:
        _require(own.keys() == varying and all(plain(value) in names[name] for name, value in own.items()))
    distinct = {tuple(plain(own[name]) for name in sorted(varying)) for own in settings}
    _require(len(distinct) == len(settings) > 0)


def _check_setup(row: Any, below: Any) -> None:
    key, _, fields, counts = row
    values = _plain(fields, dict)
    _require(hashes.of_values(values)[:32] == key)
    _require(isinstance(values["task"]["primary"], str) and isinstance(values["model"]["fingerprint"], str))
    recipe = values["recipe"]
    _require(recipe is None or (isinstance(recipe, dict) and isinstance(recipe["steps"], list)))
    for name, bits, number in [] if counts is None else _plain(counts, list):
        _require(isinstance(name, str) and _whole(number) and (bits is None or _whole(bits)))


def _check_cell(row: Any, below: list[list[Any]]) -> None:
    key, _, setup, seconds, seed, status, reason, trace, _, ended, took = row
    _require(cell_id(setup, seconds, seed) == key)
    _require((seconds is None and seed is None) or (_number(seconds) and _whole(seed)))
    _require(status in ("pending", "done", "failed") and (took is None or _number(took)))
    _require(all(text is None or isinstance(text, str) for text in (reason, trace, ended)))
    for arm, metric, value in below[0]:
        _require(isinstance(arm, str) and isinstance(metric, str) and (value is None or isinstance(value, float)))


def _check_run(row: Any, below: Any) -> None:
    _, _, _, began, ended, provenance = row
    values = _plain(provenance, dict)
    _require(isinstance(began, str) and (ended is None or isinstance(ended, str)))
    _require(all(isinstance(values[name], dict) for name in ("versions", "machine", "models")))
    _require(all(name in values for name in ("command", "engine", "workers", "code")))


def _plain(text: Any, kind: type) -> Any:
    _require(isinstance(text, str))
    values = load_json("a text in it", text.encode())
    _require(isinstance(values, kind))
    return values


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
