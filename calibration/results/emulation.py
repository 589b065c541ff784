"""What `emulate` and `calibrate` return: results that show themselves as tables and pictures."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.bundles.files import LARGEST
from calibration.bundles.writer import save_bundle
from calibration.results.results import Results, finite
from calibration.results.staircase import Stair, stairs
from calibration.results.trackers import Run, Tracker, flat, scores_of
from calibration.runs.deployment import Deployment
from crossbar import to_seconds

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, repr=False)
class Emulation(Results):
    """What `calibration.emulate` found."""

    def __repr__(self) -> str:
        from calibration.console import as_text
        from calibration.results.tables import tables

        return as_text(*tables(self))

    def _repr_html_(self) -> str:
        """The rows for a notebook."""
        return str(self.table().to_html(index=False, na_rep="", float_format="{:.4g}".format))

    def plot(self) -> Figure:
        """Accuracy over time with intervals."""
        from calibration.results.plots import accuracy_over_time

        return accuracy_over_time([self])

    def report_to(self, tracker: str) -> None:
        """Keep the result as a run of an experiment tracker, offline.

        Args:
            tracker: ``"mlflow"`` or ``"wandb"``, with a folder behind a colon if not the tracker's own, such as
                ``"mlflow:runs"``.

        Raises:
            InputError: for another tracker, one that is not installed, and a folder that is a file.
        """
        name = f"{self.setup['task']} {'calibrated' if self.is_calibration else 'emulated'}"
        Tracker.of(tracker).keep([Run(name, flat(self.setup), scores_of(self.rows()), self.to_dict())])

    def clock(self) -> dict[str, Any]:
        """What ``--json`` prints beside `to_dict` that another run of the same has otherwise: nothing."""
        return {}


@dataclass(frozen=True, repr=False)
class Calibration(Emulation):
    """What `calibration.calibrate` found: an `Emulation` with the arms of the recipe.

    Arms: ``quantised`` (converters alone), ``analog`` (uncalibrated), ``after <step>`` for each step but the last, and
    ``calibrated``. Those of chips are all scored at the same instants, the wait after the times at which steps were
    fitted.

    Attributes:
        deployment: the calibrated chips.
    """

    deployment: Deployment = field(repr=False, compare=False)

    def stairs(self) -> list[Stair]:
        """What each step gains, paired chip by chip (`calibration.results.staircase`)."""
        return stairs(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: those of an `Emulation`, the ``staircase`` and the ``costs``."""
        return {
            **super().to_dict(),
            "staircase": [_plain_stair(stair) for stair in self.stairs()],
            "costs": {arm: cost._asdict() for arm, cost in self.costs.items()},
        }

    def clock(self) -> dict[str, Any]:
        """The ``minutes``, which ``--json`` prints too."""
        return {"minutes": self.minutes}

    def plot(self) -> Figure:
        """The staircase, a panel for each time, with intervals."""
        from calibration.results.plots import staircase

        return staircase(self)

    def plot_shares(self) -> Figure:
        """Accuracy after each step against the share of operations that are digital by then, a line for each time."""
        from calibration.results.plots import shares

        return shares(self)

    def save(
        self,
        path: str | Path,
        *,
        chip: int | None = None,
        fitted: str | float | None = None,
        cells: str = "conductances",
        largest: int = LARGEST,
    ) -> None:
        """Write one calibrated chip as a deployment bundle, a folder that `calibration.load_bundle` reads.

        It holds the chip as it was scored: calibrated at ``fitted``, and as old as the wait before scoring made it. The
        folder appears whole or not at all.

        Args:
            path: a folder that does not exist yet.
            chip: seed of the chip; None: the first.
            fitted: one of the times at which steps were fitted; None: the last.
            cells: ``conductances``: what programming left in every cell is written; ``seeds``: cells that the chip's
                seed makes again bit for bit are not, but for a sample that `calibration.load_bundle` compares.
            largest: bytes of a file of weights, targets or cells, of which there are more where a model is larger.

        Raises:
            InputError: for a folder that exists already or cannot be written, and a chip or a time that was not
                calibrated.
        """
        chip = self.deployment.first_chip() if chip is None else chip
        time = self.deployment.last_time() if fitted is None else to_seconds(fitted)
        save_bundle(self.deployment, self.to_dict(), Path(path), chip, time, cells=cells, largest=largest)


def _plain_stair(stair: Stair) -> dict[str, Any]:
    """A stair with its intervals as dictionaries."""
    plain = stair._asdict()
    for name in ("value", "gain", "of_digital", "recovered"):
        plain[name] = None if plain[name] is None else finite(plain[name]._asdict())
    return plain
