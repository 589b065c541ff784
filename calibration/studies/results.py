"""A study as users have it: what a store holds, with what is computed and drawn of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.results.trackers import Tracker
from calibration.studies.stored import StoredStudy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Study(StoredStudy):
    """A study in a store, finished or not.

    Args:
        store: the SQLite file.
        study: its id in there; None: the one that was planned last.

    Raises:
        InputError: for a file that is no store, and one without a study.
    """

    def differences(self, axis: str, first: Any, second: Any) -> pd.DataFrame:
        """How much better the second level of an axis is than the first, chip by chip, in all that is otherwise equal.

        Columns: the other axes, ``time``, ``metric``, ``mean``, ``low``, ``high`` (95%, Student-t over the differences
        of the same chips) and ``n``. For perplexity: of logarithms, the other way round, since lower is better.

        Raises:
            InputError: for an unknown axis or level.
        """
        from calibration.studies import statistics

        return statistics.differences(self, axis, first, second)

    def sensitivity(self) -> pd.DataFrame:
        """Which axis costs the most: ``axis, best, worst, cost, low, high, per_unit, n``, the costliest first."""
        from calibration.studies import statistics

        return statistics.sensitivity(self)

    def seeds_needed(self, half_width: float) -> pd.DataFrame:
        """Chips that an interval of ± ``half_width`` takes: `table` with the deviation ``std`` and ``needed``."""
        from calibration.studies import statistics

        return statistics.seeds_needed(self, half_width)

    def pareto(self) -> pd.DataFrame:
        """Accuracy, cost and density of each setting at the reference time, and which are not dominated."""
        from calibration.studies import tradeoffs

        return tradeoffs.pareto(self)

    def plot(self) -> Figure:
        """Accuracy over time: a panel for each axis, its levels in colours, the other axes at their reference."""
        from calibration.studies import figures

        return figures.accuracy_over_time(self)

    def report(self, path: str | Path) -> None:
        """Write the report: one HTML file that needs nothing else.

        Raises:
            InputError: for a path that cannot be written, and a store without a finished cell.
        """
        from calibration.studies.report import write_report

        write_report(self, Path(path))

    def write_figures(self, folder: str | Path) -> list[Path]:
        """Write every figure of the report as SVG and as PDF; returns the files.

        Raises:
            InputError: for a folder that cannot be made.
        """
        from calibration.studies import figures

        return figures.write(self, Path(folder))

    def report_to(self, tracker: str) -> None:
        """Keep each combination of axes as a run of an experiment tracker, offline.

        Args:
            tracker: as for `calibration.results.emulation.Emulation.report_to`.

        Raises:
            InputError: as there.
        """
        from calibration.studies.export import runs

        Tracker.of(tracker).keep(runs(self))

    def export(self, path: str | Path) -> None:
        """Write every score with its axes as ``.csv`` or ``.parquet``, by the name's end.

        Raises:
            InputError: for another ending, and for Parquet without pyarrow.
        """
        from calibration.studies.export import write_scores

        write_scores(self, Path(path))
