"""What a store holds of a study, as tables."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.recipe import step_from_dict
from calibration.steps.protocol import Stage
from calibration.studies.design import plain
from calibration.studies.store import Progressed, Store
from calibration.studies.summaries import summarise
from crossbar import InputError, format_seconds

if TYPE_CHECKING:
    import pandas as pd

FINAL = ("analog", "calibrated")
"""Arms that a cell ends with; those between are steps of a staircase."""


@dataclass(frozen=True)
class StoredAxis:
    """An axis of a study as its store describes it.

    Attributes:
        name: column of the tables.
        fields: dotted.
        values: in their order; of samples, those drawn.
        reference: the level that pictures hold it at.
        drawn: whether it was sampled.
    """

    name: str
    fields: tuple[str, ...]
    values: tuple[Any, ...]
    reference: Any
    drawn: bool

    @property
    def label(self) -> str:
        """A short name: the last two parts."""
        return " ".join(self.name.split(".")[-2:]).replace("_", " ")

    def level(self, value: Any) -> str:
        """A value as text."""
        return level(self.name, value)


def level(axis: str, value: Any) -> str:
    """A value of an axis as text."""
    if axis == "time":
        return format_seconds(value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(plain(value))


class StoredStudy:
    """A study in a store, finished or not.

    Args:
        store: the SQLite file.
        study: its id in there; None: the one that was planned last.

    Raises:
        InputError: for a file that is no store, and one without a study.
    """

    def __init__(self, store: str | Path, study: str | None = None) -> None:
        self.store = Path(store)
        with Store(store) as kept:
            known = kept.studies()
            if not known or study not in (None, *known):
                raise InputError(f"store {str(store)!r} does not hold that study: run `ohmformer study` first")
            self.id = known[-1] if study is None else study
            (row,) = kept.rows("SELECT title, config, axes FROM studies WHERE id = ?", self.id)
        self.title: str = row[0]
        self.config: dict[str, Any] = json.loads(row[1])
        self.axes = tuple(
            StoredAxis(**{**axis, "fields": tuple(axis["fields"]), "values": tuple(axis["values"])})
            for axis in json.loads(row[2])
        )

    @property
    def progress(self) -> Progressed:
        """How many cells are done, failed and pending."""
        with Store(self.store, verify=False) as kept:
            return kept.progress(self.id)

    @cached_property
    def settings(self) -> pd.DataFrame:
        """One row a combination of axes but time and seed: their values, ``setup``, its ``fields`` and so on.

        Columns ``steps``, ``before`` and ``after``: of its recipe, and whether there are some before and after
        programming.
        """
        import pandas as pd

        query = """
            SELECT position, settings.axes, settings.setup, settings.digital, own.fields, own.counts, base.counts
            FROM settings JOIN setups own ON own.id = settings.setup JOIN setups base ON base.id = settings.digital
            WHERE study = ? ORDER BY position
        """
        rows = self._rows(query)
        axes = [json.loads(row[1]) for row in rows]
        frame = pd.DataFrame({axis: [plain(a[axis]) for a in axes] for axis in self.varying}, dtype=object)
        frame.insert(0, "setting", [row[0] for row in rows])
        for name, position in (("setup", 2), ("digital_setup", 3)):
            frame[name] = [row[position] for row in rows]
        recipes = [json.loads(row[4])["recipe"] for row in rows]
        steps = [[] if recipe is None else [step_from_dict(step) for step in recipe["steps"]] for recipe in recipes]
        frame["steps"] = [tuple(type(step).__name__ for step in own) for own in steps]
        frame["before"] = [any(step.stage is Stage.BEFORE_PROGRAMMING for step in own) for own in steps]
        frame["after"] = [any(step.stage is not Stage.BEFORE_PROGRAMMING for step in own) for own in steps]
        for name, position in (("fields", 4), ("counts", 5), ("digital_counts", 6)):
            frame[name] = [json.loads(row[position] or "[]") for row in rows]
        return frame

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Every score of a chip: ``setting, seconds, seed, arm, metric, value``."""
        import pandas as pd

        query = """
            SELECT position, seconds, seed, arm, metric, value
            FROM settings JOIN cells ON cells.setup = settings.setup JOIN scores ON scores.cell = cells.key
            WHERE settings.study = ?1 AND seed IS NOT NULL
              AND EXISTS (SELECT 1 FROM members WHERE members.study = ?1 AND members.cell = cells.key)
        """
        columns = ["setting", "seconds", "seed", "arm", "metric", "value"]
        frame = pd.DataFrame(self._rows(query), columns=columns)
        return frame.astype({"value": float, "arm": "category", "metric": "category"})

    @cached_property
    def digital(self) -> pd.DataFrame:
        """Scores of the digital models: ``setting, arm, metric, value``."""
        import pandas as pd

        query = """
            SELECT position, arm, metric, value
            FROM settings JOIN cells ON cells.setup = settings.digital JOIN scores ON scores.cell = cells.key
            WHERE settings.study = ?
        """
        frame = pd.DataFrame(self._rows(query), columns=["setting", "arm", "metric", "value"])
        return frame.astype({"value": float})

    @cached_property
    def recipe(self) -> StoredAxis | None:
        """The axis of recipes, if they vary, with the one that has most steps as its reference."""
        axis = next((axis for axis in self.axes if axis.fields == ("recipe",)), None)
        if axis is None:
            return None
        longest = max(range(len(self.settings)), key=lambda place: len(self.settings["steps"].iloc[place]))
        chosen = self.settings[axis.name].iloc[longest]
        return replace(axis, reference=next(value for value in axis.values if plain(value) == chosen))

    @property
    def primary(self) -> str:
        """The metric that is quoted: that of the first setting's task."""
        return str(self.settings["fields"].iloc[0]["task"]["primary"])

    def table(self) -> pd.DataFrame:
        """Mean and 95% Student-t interval over chips, for each combination, time, arm and metric.

        Columns: the axes, ``steps`` of the recipe, ``time`` (s), ``arm``, ``metric``, ``mean``, ``low``, ``high``,
        ``n`` and ``digital``, the score of the digital model with the same pattern. Of perplexity means and intervals
        are those of the logarithm, exponentiated.
        """
        return self._table.copy()

    def with_axes(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Rows that name a setting, with its axes and the steps of its recipe instead, and ``time`` for ``seconds``."""
        axes = self.settings[["setting", *self.varying, "steps", "before", "after"]]
        joined = axes.merge(frame, on="setting").drop(columns="setting").rename(columns={"seconds": "time"})
        for name in ("arm", "metric"):
            joined[name] = joined[name].astype(str)
        return joined

    @cached_property
    def _table(self) -> pd.DataFrame:
        frame = summarise(self.scores, ["setting", "seconds", "arm", "metric"])
        digital = self.digital[self.digital["arm"] == "digital"].set_index(["setting", "metric"])["value"].to_dict()
        frame["digital"] = [digital.get(pair, np.nan) for pair in zip(frame["setting"], frame["metric"], strict=True)]
        return self.with_axes(frame.drop(columns="std"))

    def failures(self) -> list[tuple[str, int, float | None, int | None]]:
        """Reasons of failed cells: reason, how many, and time and seed of the first."""
        query = """
            SELECT reason, count(*), seconds, seed FROM members JOIN cells ON cell = key
            WHERE study = ? AND status = 'failed' GROUP BY reason ORDER BY count(*) DESC
        """
        rows: list[tuple[str, int, float | None, int | None]] = self._rows(query)
        return rows

    def runs(self) -> list[tuple[str, str | None, dict[str, Any]]]:
        """When runs began and ended, and where and with what they computed."""
        rows = self._rows("SELECT began, ended, provenance FROM runs WHERE study = ? ORDER BY id")
        return [(began, ended, json.loads(provenance)) for began, ended, provenance in rows]

    @property
    def varying(self) -> list[str]:
        """Names of the axes but time and seed."""
        return [axis.name for axis in self.axes if axis.name not in ("time", "seed")]

    def _rows(self, query: str) -> list[Any]:
        with Store(self.store, verify=False) as kept:
            return kept.rows(query, self.id)
