"""Means of scores with intervals over chips, of logarithms where those count (`calibration.metrics`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.metrics import CONFIDENCE, metric

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray


def summarise(scores: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean, 95% Student-t interval, number and deviation of groups; logarithmic where the metric is.

    Columns: ``by``, which has ``metric`` among it, then ``mean, low, high, n, std``; ``std`` is of logarithms where
    means are geometric.
    """
    from scipy import stats

    geometric = logarithmic(scores["metric"])
    with np.errstate(divide="ignore", invalid="ignore"):
        values = np.where(geometric, np.log(scores["value"]), scores["value"])
    groups = scores[by].assign(value=values).groupby(by, observed=True, sort=False)["value"]
    with np.errstate(invalid="ignore"):  # of infinite scores
        frame = groups.agg(mean="mean", std="std", n="size", known="count").reset_index()
    frame.loc[frame["known"] < frame["n"], ["mean", "std"]] = np.nan
    spread = stats.t.ppf((1 + CONFIDENCE) / 2, np.maximum(frame["n"] - 1, 1)) * frame["std"] / np.sqrt(frame["n"])
    frame["low"], frame["high"] = frame["mean"] - spread, frame["mean"] + spread
    with np.errstate(over="ignore"):
        geometric = logarithmic(frame["metric"])
        for name in ("mean", "low", "high"):
            frame[name] = np.where(geometric, np.exp(frame[name]), frame[name])
    return frame[[*by, "mean", "low", "high", "n", "std"]]


def logarithmic(names: pd.Series[Any]) -> NDArray[np.bool_]:
    """Which of these metrics are."""
    known = {name: metric(str(name)).logarithmic for name in names.unique()}
    return names.map(known).to_numpy(bool)
