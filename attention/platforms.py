"""Machines that events run on."""

from __future__ import annotations

from dataclasses import dataclass

from crossbar.errors import require_whole


@dataclass(frozen=True)
class Platform:
    """A machine's description.

    Attributes:
        name: how reports call it.
        rows: token lines of a memory tile.
        columns: lines of a memory tile across the token lines; a head of more than this many dimensions takes
            several tiles side by side.

    Raises:
        InputError: for a tile without rows or columns.
    """

    name: str
    rows: int = 256
    columns: int = 256

    def __post_init__(self) -> None:
        require_whole(f"{self.name} rows", self.rows, least=1)
        require_whole(f"{self.name} columns", self.columns, least=1)


def ideal(rows: int = 256, columns: int = 256) -> Platform:
    """A machine that delivers every event in the step in which it is issued, on as many tiles as it takes."""
    return Platform("ideal", rows, columns)
