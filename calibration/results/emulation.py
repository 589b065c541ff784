"""Measurements over chips and times, and the tables made of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from calibration.metrics import CONFIDENCE, interval, metric
from crossbar import ConversionReport, to_seconds

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from calibration.results.staircase import Stair
    from calibration.runs.deployment import Deployment


@dataclass(frozen=True)
class Measurement:
    """One metric of one arm, on one chip at one time.

    Attributes:
        arm: what was scored, such as ``"analog"``.
        metric: name of the metric.
        value: its value.
        chip: seed of the chip; None for a digital arm.
        seconds: time since programming at which it was scored; None for a digital arm.
        fitted: time since programming at which the calibration was fitted; None without calibration.
    """

    arm: str
    metric: str
    value: float
    chip: int | None = None
    seconds: float | None = None
    fitted: float | None = None


class Row(NamedTuple):
    """One line of a result's table.

    Attributes:
        arm: what was scored.
        seconds: when, since programming; None for a digital arm.
        metric: name of the metric.
        mean: over chips; geometric for a logarithmic metric, which is perplexity.
        low, high: 95% interval; both the mean for a digital arm, which has one value, and NaN for a single chip. That
            of a logarithmic metric is the interval of the mean logarithm, exponentiated.
        n: number of chips.
        fitted: when the calibration was fitted; None without one.
    """

    arm: str
    seconds: float | None
    metric: str
    mean: float
    low: float
    high: float
    n: int
    fitted: float | None


@dataclass(frozen=True, repr=False)
class Emulation:
    """What `calibration.emulate` found.

    Attributes:
        setup: model, task, hardware, pattern, chips and data sizes, as plain values.
        primary: the metric that is quoted.
        measurements: every score.
        conversion: what became analog.
        counts: row activations and conversions by part: ``linear`` and ``attention`` of one evaluation, for comparison
            ``dense attention``, and ``calibration``, what fitting the recipe once on one chip took.
    """

    setup: dict[str, Any]
    primary: str
    measurements: tuple[Measurement, ...]
    conversion: ConversionReport
    counts: dict[str, dict[str, int]]

    def __repr__(self) -> str:
        from calibration.console import as_text, tables

        return as_text(*tables(self))

    def _repr_html_(self) -> str:
        """The rows for a notebook."""
        return str(self.table().to_html(index=False, na_rep="", float_format="{:.4g}".format))

    def rows(self) -> list[Row]:
        """Mean and 95% Student-t interval over chips, for each arm, metric and time; of logarithms for perplexity."""
        groups: dict[tuple[str, float | None, float | None, str], list[Measurement]] = {}
        for m in self.measurements:
            groups.setdefault((m.arm, m.seconds, m.fitted, m.metric), []).append(m)
        rows = []
        for (arm, seconds, fitted, name), members in groups.items():
            values = [m.value for m in members]
            mean, low, high = interval(values, metric(name).logarithmic)
            if members[0].chip is None:
                mean = low = high = values[0]
            rows.append(Row(arm, seconds, name, mean, low, high, len(members), fitted))
        return rows

    def table(self) -> pd.DataFrame:
        """The rows as a data frame: ``arm, seconds, metric, mean, low, high, n, fitted``."""
        import pandas as pd

        return pd.DataFrame(self.rows(), columns=list(Row._fields))

    def values(self, arm: str, metric: str | None = None, *, fitted: float | None = None) -> list[float]:
        """Values of an arm by chip; of the primary metric unless another is named."""
        return [
            m.value
            for m in self.measurements
            if m.arm == arm and m.metric == (metric or self.primary) and (fitted is None or m.fitted == fitted)
        ]

    def fits(self) -> dict[float, float]:
        """When steps were fitted, by when chips were scored, both in s since programming; empty without calibration."""
        return {m.seconds: m.fitted for m in self.measurements if m.seconds is not None and m.fitted is not None}

    def to_dict(self) -> dict[str, Any]:
        """Plain values: what ``--json`` prints."""
        logarithmic = metric(self.primary).logarithmic
        return {
            **self.setup,
            "primary": self.primary,
            "interval": f"Student-t, {CONFIDENCE:.0%}, over chips" + (", of logarithms" if logarithmic else ""),
            "table": [_finite(row._asdict()) for row in self.rows()],
            "measurements": [_finite(asdict(m)) for m in self.measurements],
            "conversion": self.conversion.to_dict(),
            "counts": self.counts,
        }

    def plot(self) -> Figure:
        """Accuracy over time with intervals."""
        from calibration.results.plots import accuracy_over_time

        return accuracy_over_time([self])


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
        from calibration.results.staircase import stairs

        return stairs(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain values: those of an `Emulation`, and the ``staircase``."""
        return {**super().to_dict(), "staircase": [_plain_stair(stair) for stair in self.stairs()]}

    def plot(self) -> Figure:
        """The staircase, a panel for each time, with intervals."""
        from calibration.results.plots import staircase

        return staircase(self)

    def save(self, path: str | Path, *, chip: int | None = None, fitted: str | float | None = None) -> None:
        """Write one calibrated chip as a deployment bundle, a folder that `calibration.load_bundle` reads.

        It holds the chip as it was scored: calibrated at ``fitted``, and as old as the wait before scoring made it. The
        folder appears whole or not at all.

        Args:
            path: a folder that does not exist yet.
            chip: seed of the chip; None: the first.
            fitted: one of the times at which steps were fitted; None: the last.

        Raises:
            InputError: for a folder that exists already or cannot be written, and a chip or a time that was not
                calibrated.
        """
        from calibration.bundles.writer import save_bundle

        chip = self.deployment.first_chip() if chip is None else chip
        save_bundle(self, Path(path), chip, self.deployment.last_time() if fitted is None else to_seconds(fitted))


def _plain_stair(stair: Stair) -> dict[str, Any]:
    """A stair with its intervals as dictionaries."""
    plain = stair._asdict()
    for name in ("value", "gain", "of_digital", "recovered"):
        plain[name] = None if plain[name] is None else _finite(plain[name]._asdict())
    return plain


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    """The same with None for NaN and infinities, which JSON has not."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
