"""Intervals over chips, paired differences, which axis costs the most, how many chips an interval takes.

Everything is taken of a metric's values, or of their logarithms where differences mean something on a logarithmic scale
only (`calibration.metrics`), which makes means geometric and differences ratios.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.metrics import CONFIDENCE, interval, metric
from calibration.results.plots import EARLIEST
from calibration.studies.design import plain
from calibration.studies.stored import FINAL, StoredAxis, StoredStudy
from calibration.studies.summaries import logarithmic, summarise
from crossbar import InputError, to_seconds

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

_MOST_SEEDS = 10_000
_HUGE = 1e150


def differences(study: StoredStudy, axis: str, first: Any, second: Any) -> pd.DataFrame:
    """`calibration.studies.results.Study.differences`."""
    if axis == "seed" or axis not in [known.name for known in study.axes]:
        names = ", ".join(known.name for known in study.axes if known.name != "seed")
        raise InputError(f"axis {axis!r} does not vary in this study: choose one of {names}")
    frame = goodness(study)
    parts = [frame[frame[axis] == (to_seconds(value) if axis == "time" else plain(value))] for value in (first, second)]
    others = [name for name in (*study.varying, "time") if name != axis]
    keys = [*others, "seed", "metric"]
    for value, part in zip((first, second), parts, strict=True):
        if part.empty:
            raise InputError(f"axis {axis!r} has no finished cell at {value!r}: choose one of its values")
    joined = parts[0][[*keys, "good"]].merge(parts[1][[*keys, "good"]], on=keys, suffixes=("_first", "_second"))
    with np.errstate(invalid="ignore"):  # of infinite scores
        joined["value"] = joined["good_second"] - joined["good_first"]
    joined["metric"] = joined["metric"].astype(str)
    by = [*others, "metric"]
    return _plain_summary(joined, by)


def sensitivity(study: StoredStudy) -> pd.DataFrame:
    """`calibration.studies.results.Study.sensitivity`, of the primary metric.

    For each axis, levels are compared chip by chip where all other axes are equal: ``cost`` is how far the worst level
    lies below the best, averaged over the other axes for each chip, as the mean over chips with its 95% Student-t
    interval. ``per_unit`` is the slope of a straight line through the levels: per unit of a number, per factor of 10 of
    a time. Numbers that were drawn at random have no others equal; their cost is the slope times the drawn range.
    """
    import pandas as pd

    frame = goodness(study)
    frame = frame[frame["metric"] == study.primary]
    rows = []
    for axis in study.axes:
        if axis.name == "seed" or frame[axis.name].nunique() < 2:
            continue
        others = [name for name in (*study.varying, "time") if name != axis.name]
        drawn = axis.drawn and _numeric(frame[axis.name])
        row = _drawn_cost(frame, axis.name) if drawn else _cost(frame, axis, others)
        rows.append({"axis": axis.name, **row})
    columns = ["axis", "best", "worst", "cost", "low", "high", "per_unit", "n"]
    return pd.DataFrame(rows, columns=columns).sort_values("cost", ascending=False, ignore_index=True)


def _cost(frame: pd.DataFrame, axis: StoredAxis, others: list[str]) -> dict[str, Any]:
    import pandas as pd

    codes, levels = pd.factorize(frame[axis.name])
    wide = frame.assign(level=codes).pivot(index=[*others, "seed"], columns="level", values="good")
    reference = list(levels).index(plain(axis.reference)) if plain(axis.reference) in list(levels) else 0
    with np.errstate(invalid="ignore"):  # of infinite scores
        relative = wide.sub(wide[reference], axis=0).mean().to_numpy()
        if np.isnan(relative).all():
            return {"best": levels[0], "worst": levels[0], **_interval(np.array([]), "cost"), "per_unit": np.nan}
        best, worst = int(np.nanargmax(relative)), int(np.nanargmin(relative))
        differences = (wide[best] - wide[worst]).dropna().groupby("seed").mean()
    slope = np.nan
    if _numeric(frame[axis.name]) and np.isfinite(relative).all():
        slope = np.polyfit(_places(axis.name, np.array(levels, dtype=float)), relative, 1)[0]
    cost = _interval(differences.to_numpy(), "cost")
    return {"best": levels[best], "worst": levels[worst], **cost, "per_unit": slope}


def _drawn_cost(frame: pd.DataFrame, axis: str) -> dict[str, Any]:
    frame = frame[np.isfinite(frame["good"])]
    if frame.empty:
        return {"best": np.nan, "worst": np.nan, **_interval(np.array([]), "cost"), "per_unit": np.nan}
    x = _places(axis, frame[axis].to_numpy(float))
    slopes = []
    for _, chip in frame.assign(x=x).groupby("seed"):
        if chip["x"].nunique() > 1:
            slopes.append(np.polyfit(chip["x"], chip["good"], 1)[0])
    slope = float(np.mean(slopes)) if slopes else np.nan
    low, high = frame[axis].min(), frame[axis].max()
    best, worst = (high, low) if slope > 0 else (low, high)
    costs = np.array(slopes) * np.sign(slope) * (x.max() - x.min())
    return {"best": best, "worst": worst, **_interval(costs, "cost"), "per_unit": slope}


def seeds_needed(study: StoredStudy, half_width: float) -> pd.DataFrame:
    """`calibration.studies.results.Study.seeds_needed`."""
    from scipy import stats

    if not half_width > 0:
        raise InputError(f"half width {half_width!r} is not allowed: give a number above 0")
    frame = summarise(study.scores, ["setting", "seconds", "arm", "metric"])
    counts = np.arange(2, _MOST_SEEDS + 1)
    # Half of an interval over n chips, in deviations: it falls with n, so the first n that is narrow enough is needed.
    halves = stats.t.ppf((1 + CONFIDENCE) / 2, counts - 1) / np.sqrt(counts)
    with np.errstate(divide="ignore"):
        place = np.searchsorted(-halves, -half_width / frame["std"].to_numpy())
    known = frame["std"].notna() & (place < len(counts))
    frame["needed"] = np.where(known, counts[np.minimum(place, len(counts) - 1)], np.nan)
    return study.with_axes(frame)


def goodness(study: StoredStudy) -> pd.DataFrame:
    """Final scores with axes, ``time`` and ``seed``, and ``good``: higher is better, logarithms where those count."""
    scores = study.scores[study.scores["arm"].isin(FINAL)]
    frame = study.settings[["setting", *study.varying]].merge(scores, on="setting").rename(columns={"seconds": "time"})
    sign = np.array([1.0 if metric(name).higher_is_better else -1.0 for name in frame["metric"]])
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(logarithmic(frame["metric"]), np.log(frame["value"]), frame["value"])
    return frame.assign(good=sign * value)


def _plain_summary(frame: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    groups = frame.groupby(by, dropna=False, sort=False)["value"]
    rows = groups.apply(lambda values: _interval(values.to_numpy())).unstack().reset_index()
    return rows[[*by, "mean", "low", "high", "n"]].astype({"n": int})


def _interval(values: NDArray[np.float64], name: str = "mean") -> dict[str, Any]:
    if not len(values):
        return {name: np.nan, "low": np.nan, "high": np.nan, "n": 0}
    if not (np.abs(values) < _HUGE).all():  # infinite, not a number, or with squares that are
        with np.errstate(invalid="ignore", over="ignore"):
            return {name: float(np.mean(values)), "low": np.nan, "high": np.nan, "n": len(values)}
    mean, low, high = interval(values.tolist())
    return {name: mean, "low": low, "high": high, "n": len(values)}


def _places(axis: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log10(np.maximum(values, EARLIEST)) if axis == "time" else values


def _numeric(column: pd.Series[Any]) -> bool:
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in column.unique())
