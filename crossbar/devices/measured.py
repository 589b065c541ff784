"""A device given by a table of measurements, without code."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from crossbar.devices.power_law import log1p
from crossbar.devices.protocol import require_conductance
from crossbar.errors import InputError, require_number, shown
from crossbar.native import functions
from crossbar.storage.csv_tables import number, read_table, require_columns

if TYPE_CHECKING:
    from crossbar.devices.protocol import Draw, State

_REQUIRED = ("target_us", "mean_us", "std_us")
_DRIFT = ("drift_mean", "drift_std")
_BOUNDS: dict[str, dict[str, float]] = {
    "target_us": {"most": 1e5},
    "mean_us": {"most": 1e5},
    "std_us": {"most": 1e5},
    "drift_mean": {"least": -1.0, "most": 1.0},
    "drift_std": {"most": 1.0},
}
_MOST_TARGETS = 10_000
MOST_RISE = math.log(1e12)
"""Of a conductance that rises: the logarithm of how many times."""


@dataclass(frozen=True)
class Measured:
    """Cells whose error and drift were measured at some targets; between two rows all columns are linear.

    Programming gives ``max(N(mean, std), 0)``, drift is ``G(t) = G_prog ((t + t_0) / t_0)^-ν`` with the exponent
    ``ν ~ N(drift_mean, drift_std)`` (it may be negative: a conductance that rises, at most 10^12 times). No 1/f noise.

    Attributes:
        target_us: targets, µS, up to 10,000 of them, rising from 0 (half of the cells of a differential pair are empty)
            by a millionth of the last or more. The last is g_max, 0.001 to 1e5.
        mean_us: mean conductance after programming, µS, up to 1e5.
        std_us: its standard deviation, µS, up to 1e5.
        drift_mean, drift_std: mean, within ± 1, and standard deviation, up to 1, of the drift exponent; None for cells
            that do not drift.
        t_0: time of the measurement after programming, s, 1e-9 to 1e9.
    """

    kind: ClassVar[str] = "measured"
    ages_apart: ClassVar[bool] = True
    target_us: tuple[float, ...] = ()
    mean_us: tuple[float, ...] = ()
    std_us: tuple[float, ...] = ()
    drift_mean: tuple[float, ...] | None = None
    drift_std: tuple[float, ...] | None = None
    t_0: float = 20.0

    def __post_init__(self) -> None:
        require_number("device field t_0", self.t_0, least=1e-9, most=1e9)
        columns = [name for name in (*_REQUIRED, *_DRIFT) if getattr(self, name) is not None]
        for name in columns:
            values = getattr(self, name)
            if not isinstance(values, Sequence) or isinstance(values, str):
                raise InputError(f"device field {name} = {shown(values)} is not allowed: give a list of numbers")
            object.__setattr__(self, name, tuple(values))
        require_columns("device", columns, _REQUIRED, _DRIFT)
        rows = len(self.target_us)
        for name in columns:
            if len(getattr(self, name)) != rows:
                raise InputError(f"device field {name} has {len(getattr(self, name))} numbers: give {rows}, as targets")
        table = [{name: getattr(self, name)[row] for name in columns} for row in range(rows)]
        _require_rows("device", [f"device row {row + 1}" for row in range(rows)], table)

    @property
    def g_max(self) -> float:
        """The largest measured target, µS."""
        return self.target_us[-1]

    def program(self, target: Tensor, draw: Draw) -> State:
        """Programmed conductances (µS) and, with drift, exponents (1)."""
        drifts = self.drift_mean is not None and self.drift_std is not None
        mean, std, *drift = self._at(target, *_REQUIRED[1:], *(_DRIFT if drifts else ()))
        state = {"programmed": mean.addcmul_(std, draw("programming")).clamp_(min=0.0)}
        if drift:
            state["exponent"] = drift[0].addcmul_(drift[1], draw("drift"))
        return state

    def drifted(self, state: State, seconds: float | Tensor) -> Tensor:
        """``G_prog ((t + t_0) / t_0)^-ν``."""
        if "exponent" not in state:
            return state["programmed"]
        power = (state["exponent"] * -log1p(seconds / self.t_0)).clamp_(max=MOST_RISE)
        return functions.exp(power).mul_(state["programmed"])

    def fluctuation(self, state: State, drifted: Tensor, seconds: float | Tensor) -> None:
        """None: the table has none."""

    def _at(self, target: Tensor, *columns: str) -> list[Tensor]:
        """Columns of the table at targets (µS), linear between rows."""
        points = target.new_tensor(self.target_us)
        row = torch.bucketize(target, points[1:-1]).flatten()

        def of_rows(values: Tensor) -> Tensor:
            return values.index_select(0, row).view(target.shape)  # less than half the time of values[row]

        share = (target - of_rows(points)) / of_rows(points.diff())
        given = (target.new_tensor(getattr(self, column)) for column in columns)
        return [torch.lerp(of_rows(values), of_rows(values[1:]), share) for values in given]


def from_csv(path: str | Path, t_0: float = 20.0) -> Measured:
    """The device of a table with a line for each target, and a header that names the columns.

    Columns, in any order: ``target_us``, ``mean_us``, ``std_us`` (µS), and for cells that drift ``drift_mean``,
    ``drift_std`` (exponents of a power law): see `Measured`. Empty lines are skipped.

    Args:
        path: a CSV file, UTF-8, with commas.
        t_0: time of the measurement after programming, s.

    Raises:
        InputError: for a missing file and for anything that is not such a table, with line and column.
    """
    name, lines = read_table("device", path, _REQUIRED, _DRIFT)
    places = [place for place, _ in lines]
    table = [{column: number(place, column, cell) for column, cell in row.items()} for place, row in lines]
    _require_rows(name, places, table)
    columns = {column: tuple(row[column] for row in table) for column in table[0]}
    return Measured(**columns, t_0=t_0)


def _require_rows(name: str, places: Sequence[str], table: Sequence[dict[str, float]]) -> None:
    if len(table) < 2:
        raise InputError(f"{name} has measurements at {len(table)} targets: give 2 or more, from 0 µS to the largest")
    if len(table) > _MOST_TARGETS:
        raise InputError(f"{name} has measurements at {len(table):,} targets: give at most {_MOST_TARGETS:,}")
    before = None
    for place, row in zip(places, table, strict=True):
        for column, value in row.items():
            require_number(f"{place}, column {column}", value, **_BOUNDS[column])
        target = row["target_us"]
        if before is None and target != 0:
            raise InputError(f"{place}, column target_us = {target!r} is not allowed: begin with the empty cell, 0 µS")
        if before is not None and target <= before:
            raise InputError(
                f"{place}, column target_us = {target!r} is not allowed: targets must rise, give more than {before!r}"
            )
        before = target
    targets = [row["target_us"] for row in table]
    require_conductance(f"{places[-1]}, column target_us", targets[-1])
    for place, (below, target) in zip(places[1:], pairwise(targets), strict=True):
        if target - below < targets[-1] * 1e-6:
            raise InputError(
                f"{place}, column target_us = {target!r} is not allowed: it is less than a millionth of the largest "
                f"target above {below!r}, leave one of them out"
            )
