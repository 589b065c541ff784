"""The report's summary in words: each sentence says what an interval bears out, and no more."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.metrics import CONFIDENCE, metric
from calibration.studies import figures, statistics, tradeoffs
from calibration.studies.design import plain
from calibration.studies.stored import StoredAxis, StoredStudy, level
from crossbar import format_seconds

if TYPE_CHECKING:
    import pandas as pd

_TIME = StoredAxis("time", ("time",), (), None, False)


def summary(study: StoredStudy, table: pd.DataFrame) -> list[str]:
    """What was run, the reference setting in numbers, what the recipe gains and where it does harm, what costs most."""
    state = study.progress
    sentences = [
        f"{state.done:,} of {state.total:,} cells are done"
        + (f", {state.failed:,} failed" if state.failed else "")
        + (f", {state.pending:,} were not run yet" if state.pending else "")
        + "."
    ]
    undefined = int((~np.isfinite(study.scores["value"])).sum())
    if undefined:
        sentences.append(
            f"{undefined:,} of {len(study.scores):,} scores are infinite or not a number: so are means that have one "
            "of them, and these have no interval."
        )
    rows = figures.at_reference(study, table[table["metric"] == study.primary])
    if not rows.empty:
        time = tradeoffs.reference_time(study, rows)
        sentences += [_stated(study, rows, time), *_recipe(study, time)]
    return [*sentences, *_costs(study)]


def _stated(study: StoredStudy, rows: pd.DataFrame, time: float) -> str:
    held = [f"{axis.label} {axis.level(axis.reference)}" for axis in figures.held(study)]
    final = rows[(rows["time"] == time) & rows["arm"].isin(("analog", "calibrated"))]
    scores = [f"{row['arm']} {_with_interval(row)} over {row['n']} chips" for row in final.to_dict("records")]
    digital = final["digital"].dropna()
    if len(digital):
        scores.insert(0, f"digital {digital.iloc[0]:.3f}")
    where = f" with {', '.join(held)}" if held else ""
    stated = f"{study.primary} at {format_seconds(time)}{where}: {'; '.join(scores)}"
    return f"{stated}. In brackets: {CONFIDENCE:.0%} Student-t intervals over chips."


def _recipe(study: StoredStudy, time: float) -> list[str]:
    """What the longest recipe gains over none on the same chips: at the reference, and wherever both were scored."""
    axis = study.recipe
    if axis is None or axis.reference is None or None not in axis.values:
        return []
    scored = set(study.settings.merge(study.scores, on="setting")[axis.name])
    if not {"none", plain(axis.reference)} <= scored:
        return []
    rows = statistics.differences(study, axis.name, None, axis.reference)
    rows = rows[rows["metric"] == study.primary]
    name, sentences = axis.level(axis.reference), []
    own = figures.at_reference(study, rows[rows["time"] == time], axis).to_dict("records")
    if len(own) == 1:
        sentences.append(f"Recipe {name} {_effect(study, own[0])} on the same {own[0]['n']} chips there.")
    if len(rows) > 1:
        helps, harms = int((rows["low"] > 0).sum()), int((rows["high"] < 0).sum())
        unsure = len(rows) - helps - harms
        text = f"Over all {len(rows)} settings and times that have both, recipe {name} gains in {helps}, does harm in "
        text += f"{harms}" + (f", and in {unsure} the interval does not say which" if unsure else "")
        sentences.append(f"{text}{_where(study, rows, axis) if harms else ''}.")
    return sentences


def _effect(study: StoredStudy, row: Mapping[Any, Any]) -> str:
    """What a paired difference says: a gain, a loss, or neither."""
    mean, low, high = row["mean"], row["low"], row["high"]
    if not math.isfinite(mean):
        return "cannot be compared with none, since scores are not finite,"
    if metric(study.primary).logarithmic:
        if math.isnan(low):
            return f"divides it by {math.exp(mean):.3f}, which one chip gives no interval for,"
        between = f"({math.exp(low):.3f} to {math.exp(high):.3f})"
        if low > 0:
            return f"divides it by {math.exp(mean):.3f} {between}"
        if high < 0:
            between = f"({math.exp(-high):.3f} to {math.exp(-low):.3f})"
            return f"does harm and multiplies it by {math.exp(-mean):.3f} {between}"
        return f"changes nothing that can be told: it divides it by {math.exp(mean):.3f} {between}"
    if math.isnan(low):
        return f"{'gains' if mean >= 0 else 'loses'} {abs(mean):.3f}, which one chip gives no interval for,"
    if low > 0:
        return f"gains {_with_interval(row)}"
    if high < 0:
        return f"does harm and loses {_with_interval({'mean': -mean, 'low': -high, 'high': -low})}"
    return f"changes nothing that can be told: its gain is {_with_interval(row)}"


def _where(study: StoredStudy, rows: pd.DataFrame, recipe: StoredAxis) -> str:
    """The axis whose levels tell best where a recipe does harm, with how often at each."""
    best: tuple[float, str] = (-1.0, "")
    for axis in (*study.axes, _TIME):
        if axis.name in ("seed", recipe.name) or axis.drawn or (axis.name == "time") != (axis is _TIME):
            continue
        harms = (rows["high"] < 0).groupby(rows[axis.name], sort=False).agg(["sum", "size"])
        parts = harms["sum"] / harms["size"]
        spread = float(parts.max() - parts.min())
        if len(parts) > 1 and spread > best[0]:
            named = [
                f"{axis.level(value)} ({int(row['sum'])} of {int(row['size'])})"
                for value, row in harms[harms["sum"] > 0].iterrows()
            ]
            best = spread, f": at {axis.label} {', '.join(named)}"
    return best[1]


def _costs(study: StoredStudy) -> list[str]:
    """Which field costs the most. A recipe is a choice that is spoken of elsewhere."""
    costs = statistics.sensitivity(study)
    recipe = study.recipe
    if recipe is not None:
        costs = costs[costs["axis"] != recipe.name]
    rows = costs.dropna(subset=["cost"]).to_dict("records")
    if not rows:
        return []
    first = rows[0]
    best, worst = level(first["axis"], first["best"]), level(first["axis"], first["worst"])
    name = _label(study, first)
    if math.isinf(first["cost"]):
        return [f"What costs the most is {name}: without bound from {best} to {worst}, where scores are infinite."]
    if first["low"] <= 0:
        text = "No field costs more than these chips differ by; the largest mean is that of"
        return [f"{text} {name}: {_cost(study, first)}."]
    text = f"What costs the most is {name}: {_cost(study, first)} from {best} to {worst}"
    near = [row for row in rows[1:] if row["high"] >= first["low"]]
    if near:
        text += f"; not told apart from it: {', '.join(f'{_label(study, row)} {_cost(study, row)}' for row in near)}"
    return [f"{text}."]


def _label(study: StoredStudy, row: Mapping[Any, Any]) -> str:
    return next(axis.label for axis in study.axes if axis.name == row["axis"])


def _cost(study: StoredStudy, row: Mapping[Any, Any]) -> str:
    if metric(study.primary).logarithmic:
        factors = {name: math.exp(row[name]) for name in ("cost", "low", "high")}
        return f"a factor of {_with_interval({**factors, 'mean': factors['cost']})}"
    return _with_interval({**row, "mean": row["cost"]})


def _with_interval(row: Mapping[Any, Any]) -> str:
    """A mean and its interval."""
    mean, low, high = row["mean"], row["low"], row["high"]
    return f"{mean:.3f}" if math.isnan(low) else f"{mean:.3f} ({low:.3f} to {high:.3f})"
