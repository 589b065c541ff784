"""Measurements over chips and times, and the numbers made of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from calibration.metrics import CONFIDENCE, interval, metric
from calibration.runs.costs import Cost
from calibration.runs.measurement import Measurement
from crossbar import ConversionReport

if TYPE_CHECKING:
    import pandas as pd


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
class Results:
    """What a job found.

    Attributes:
        setup: model, task, hardware, pattern, chips and data sizes, as plain values.
        primary: the metric that is quoted.
        measurements: every score.
        conversion: what became analog.
        counts: row activations and conversions by part: ``linear`` and ``attention`` of one evaluation, for comparison
            ``dense attention``, and ``calibration``, what fitting the recipe once on one chip took.
        costs: of a calibration: what each arm of chips takes that the arm above does not.
        minutes: that fitting the steps of each of these arms took, which is no property of the result: equal results
            may differ in it, and `to_dict` and bundles are without it.
    """

    setup: dict[str, Any]
    primary: str
    measurements: tuple[Measurement, ...]
    conversion: ConversionReport
    counts: dict[str, dict[str, int]]
    costs: dict[str, Cost] = field(default_factory=dict, kw_only=True)
    minutes: dict[str, float] = field(default_factory=dict, kw_only=True, compare=False)

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
            "table": [finite(row._asdict()) for row in self.rows()],
            "measurements": [finite(asdict(m)) for m in self.measurements],
            "conversion": self.conversion.to_dict(),
            "counts": self.counts,
        }

    @property
    def is_calibration(self) -> bool:
        """Whether a recipe was fitted."""
        return "recipe" in self.setup


def finite(values: dict[str, Any]) -> dict[str, Any]:
    """The same with None for NaN and infinities, which JSON has not."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
