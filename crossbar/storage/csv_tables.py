"""Tables in CSV files with a header that names the columns, in any order."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from crossbar.errors import InputError, shown
from crossbar.storage.plain_values import read_text

Lines = list[tuple[str, dict[str, str]]]
"""Of a table: where each line stands, for errors, and its cells by column."""


def read_table(what: str, path: str | Path, columns: Sequence[str], together: Sequence[str] = ()) -> tuple[str, Lines]:
    """The file's name, for errors, and its lines; empty lines are skipped, and spaces around cells.

    Args:
        what: it holds, for errors, such as ``device``.
        path: a file in UTF-8 with commas, of at most a mebibyte.
        columns: that it must have.
        together: columns that it may have, all or none.

    Raises:
        InputError: for a missing file and for anything that is not such a table, with line and column.
    """
    name = f"{what} file {str(path)!r}"
    reader = csv.reader(io.StringIO(read_text(what, path, "CSV"), newline=""), strict=True)
    try:
        lines = [(reader.line_num, [cell.strip() for cell in line]) for line in reader if any(map(str.strip, line))]
    except csv.Error as error:
        raise InputError(f"{name} is not CSV: {error}") from None
    if not lines:
        raise InputError(f"{name} is empty: give a header with {', '.join(columns)}")
    header = lines[0][1]
    require_columns(name, header, columns, together)
    rows = []
    for number, line in lines[1:]:
        place = f"{name}, line {number}"
        if len(line) != len(header):
            raise InputError(f"{place} has {len(line)} cells: give {len(header)}, as the header")
        rows.append((place, dict(zip(header, line, strict=True))))
    return name, rows


def require_columns(name: str, header: Sequence[str], columns: Sequence[str], together: Sequence[str] = ()) -> None:
    """Refuse a header that lacks columns, and one that has others or some of them twice."""
    known = (*columns, *together)
    for column in header:
        if column not in known:
            raise InputError(f"{name} has a column {shown(column)} that is not known: allowed are {', '.join(known)}")
        if header.count(column) > 1:
            raise InputError(f"{name} has column {column} twice: give it once")
    needed = known if set(header) & set(together) else columns
    missing = [column for column in needed if column not in header]
    if missing:
        raise InputError(f"{name} has no column {missing[0]}: give {', '.join(needed)}")


def number(place: str, column: str, cell: str) -> float:
    """The number in a cell.

    Raises:
        InputError: for a cell that holds none.
    """
    try:
        if "_" in cell:
            raise ValueError
        return float(cell)
    except ValueError:
        raise InputError(f"{place}, column {column} = {shown(cell)} is not a number: give one") from None
