"""What accuracy costs: energy of an evaluation, the part of token pairs that attend, and settings that none beats."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from calibration.metrics import metric
from calibration.placement.layout import MEASURES
from calibration.studies.stored import FINAL, StoredStudy
from calibration.studies.worker import Counts
from crossbar import Ledger, price
from crossbar.costs.ledger import PAIRS
from crossbar.costs.prices import DEFAULT, PriceBook

if TYPE_CHECKING:
    import pandas as pd


BOOK = f"andrulis_22nm + {DEFAULT}"
"""Price books of the trade-off: converters are priced by their bits, which studies vary."""


def pareto(study: StoredStudy, book: str = BOOK) -> pd.DataFrame:
    """Accuracy at the reference time, energy and density of each setting.

    Columns: the axes, ``arm``, ``mean``, ``energy`` (µJ an evaluation, by the price book), ``density`` (attended pairs
    over those of dense attention; NaN where a model's own attention was left alone and nothing was counted) and
    ``best``: whether no other setting is at least as good in all of them and better in one. Where settings stand on
    chips, also ``token_ns`` (ns a token of the evaluation, tokens following one another closely) and ``mm2`` of their
    chips, which ``best`` then compares too.
    """
    table = study.table().drop(columns=["steps", "before", "after"])
    table = table[(table["metric"] == study.primary) & table["arm"].isin(FINAL)]
    table = table[table["time"] == reference_time(study, table)].copy()
    costs = study.settings[study.varying].copy()
    prices = PriceBook.get(book)
    costs["energy"] = [energy(counts, prices) for counts in study.settings["counts"]]
    costs["density"] = [
        density(own, base) for own, base in zip(study.settings["counts"], study.settings["digital_counts"], strict=True)
    ]
    placed = []
    for name, measure, unit in (("token_ns", "token_ps", 1e-3), ("mm2", "chip_um2", 1e-6)):
        costs[name] = [number_of(counts, measure) * unit for counts in study.settings["counts"]]
        placed += [name] if costs[name].notna().any() else []
    table = table.merge(costs, on=study.varying) if study.varying else table.merge(costs, how="cross")
    sign = 1.0 if metric(study.primary).higher_is_better else -1.0
    table["best"] = not_dominated(
        np.column_stack(
            [-sign * table["mean"], table["energy"], table["density"].fillna(1.0), *(table[name] for name in placed)]
        ).astype(float)
    )
    return table[[*study.varying, "arm", "mean", "low", "high", "n", "energy", "density", *placed, "best"]]


def reference_time(study: StoredStudy, table: pd.DataFrame) -> float:
    """The time that pictures at one time show."""
    known = [float(axis.reference) for axis in study.axes if axis.name == "time" and not axis.drawn]
    times = [float(time) for time in sorted(table["time"].dropna().unique())]
    return known[0] if known and (known[0] in times or not times) else times[-1] if times else 0.0


def energy(counts: Counts, book: PriceBook) -> float:
    """Microjoules of one evaluation; NaN where nothing was counted yet, or converters have no price."""
    ledger = Ledger()
    for name, bits, number in counts:
        if name not in MEASURES:
            ledger.add("all", name, number, bits)
    report = price(ledger, book)
    priced = counts and not any(name.startswith("adc_conversions") for name in report.unpriced)
    return float(report.total.pj) / 1e6 if priced else np.nan


def number_of(counts: Counts, name: str) -> float:
    """One of `calibration.placement.layout.MEASURES`; NaN where a setting stands on no chips."""
    return next((float(number) for own, _, number in counts if own == name), np.nan)


def density(own: Counts, dense: Counts) -> float:
    """Pairs over those of dense attention; NaN where they were not counted."""
    pairs = [sum(number for name, _, number in counts if name in PAIRS) for counts in (own, dense)]
    return pairs[0] / pairs[1] if all(pairs) else np.nan


def not_dominated(costs: np.ndarray[Any, np.dtype[np.float64]]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Which rows of ``[n, k]`` costs no other row beats: nowhere worse, somewhere better. NaN rows are beaten."""
    best: np.ndarray[Any, np.dtype[np.bool_]] = np.isfinite(costs).all(axis=1)
    for k in np.flatnonzero(best):
        if best[k]:
            beaten = (costs >= costs[k]).all(axis=1) & (costs > costs[k]).any(axis=1)
            best &= ~beaten
    return best
