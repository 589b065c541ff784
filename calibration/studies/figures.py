"""The figures of a study: as wide as a phone, in colours, markers and lines that colour-blind readers tell apart."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from calibration.metrics import metric
from calibration.printable import drawable
from calibration.results.plots import EARLIEST, vertical
from calibration.studies import statistics, tradeoffs
from calibration.studies.design import plain
from calibration.studies.stored import FINAL, StoredAxis, StoredStudy, level
from crossbar import InputError, format_seconds
from crossbar.storage.files import write_whole

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_MARKERS = ("o", "s", "^", "D", "v", "P")
_WIDTH = 4.8  # inches: about a phone's, so that its letters stay readable there
_MOST_POINTS = 2000
_LONGEST = 40  # letters of a value in a legend
_STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "font.size": 9,
    "legend.fontsize": 8,
    "svg.hashsalt": "ohmformer",
    "axes.titlesize": 10,
}


class Drawn(NamedTuple):
    """A figure of the report.

    Attributes:
        name: of its file.
        title: above it.
        note: what it shows and what it leaves out, in words; also its text for screen readers.
        figure: itself.
    """

    name: str
    title: str
    note: str
    figure: Figure


def draw_all(study: StoredStudy) -> Iterator[Drawn]:
    """Every figure of the report, in its order."""
    import matplotlib as mpl

    table = study.table()
    table = table[table["metric"] == study.primary]
    with mpl.rc_context(_STYLE):
        axes = _sliced(study)
        for axis, slug in zip(axes, _slugs(axes), strict=True):
            figure, panel = _figure(4.2)
            _over_time(panel, study, table, axis)
            yield Drawn(f"over-time-{slug}", f"Over time, by {axis.label}", _slice_note(study, axis), figure)
        yield two_by_two(study, table)
        yield staircase(study, table)
        yield sensitivity(study)
        yield pareto(study)


def accuracy_over_time(study: StoredStudy) -> Figure:
    """A panel for each axis that is sliced; `calibration.studies.results.Study.plot`."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    table = study.table()
    table = table[table["metric"] == study.primary]
    axes = _sliced(study)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH * len(axes), 3.4), layout="constrained")
        for panel, axis in zip(figure.subplots(1, len(axes), squeeze=False)[0], axes, strict=True):
            _over_time(panel, study, table, axis)
    return figure


def write(study: StoredStudy, folder: Path) -> list[Path]:
    """`calibration.studies.results.Study.write_figures`."""
    if study.scores.empty:
        raise InputError(f"store {str(study.store)!r} holds no finished chip yet: run the study first")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"folder {str(folder)!r} cannot be made ({error}): give another") from None
    paths = []
    for drawn in draw_all(study):
        for kind in ("svg", "pdf"):
            path = folder / f"{drawn.name}.{kind}"
            undated = {"Date" if kind == "svg" else "CreationDate": None}
            write_whole(path, partial(drawn.figure.savefig, format=kind, metadata=undated), "figure")
            paths.append(path)
    return paths


def _sliced(study: StoredStudy) -> list[StoredAxis]:
    """Axes with a panel over time: those on the grid but time and seed; the recipe is in every panel."""
    axes = [axis for axis in study.axes if axis.name not in ("time", "seed") and not axis.drawn]
    others = [axis for axis in axes if axis.fields != ("recipe",)]
    return others or axes or [StoredAxis("all", (), ("all",), "all", False)]


def _slice_note(study: StoredStudy, axis: StoredAxis) -> str:
    named = [f"{other.label} {other.level(other.reference)}" for other in held(study, axis)]
    note = f"Mean {study.primary} against time since programming, bands for 95% intervals over chips"
    note += ", dashed lines for the digital model"
    note += "; solid: with a recipe, fitted at the time shown and scored later; dotted: as programmed"
    if named:
        note += f". Held at: {', '.join(named)}"
    if any(other.drawn for other in study.axes):
        note += ". Axes drawn at random are averaged over"
    return f"{note}."


def held(study: StoredStudy, varied: StoredAxis | None = None) -> list[StoredAxis]:
    """Axes that pictures hold at their reference: those of the grid but time, seed, recipe and ``varied``."""
    free = ("time", "seed") if varied is None else ("time", "seed", varied.name)
    return [axis for axis in study.axes if axis.name not in free and not axis.drawn and axis.fields != ("recipe",)]


def at_reference(study: StoredStudy, table: pd.DataFrame, varied: StoredAxis | None = None) -> pd.DataFrame:
    """Rows at the reference of every axis that is `held`, of chips without a recipe and with the longest."""
    for axis in held(study, varied):
        table = table[table[axis.name] == plain(axis.reference)]
    recipe = study.recipe
    if recipe is not None and (varied is None or varied.name != recipe.name):  # without and with the longest
        table = table[table[recipe.name].isin(["none", plain(recipe.reference)])]
    return table


def _over_time(panel: Axes, study: StoredStudy, table: pd.DataFrame, axis: StoredAxis) -> None:
    rows = at_reference(study, table[table["arm"].isin(FINAL)], axis)
    levels = list(axis.values)
    if len(levels) > len(_COLOURS):
        levels = [levels[round(k)] for k in np.linspace(0, len(levels) - 1, len(_COLOURS))]
    for k, value in enumerate(levels):
        colour, marker, name = _COLOURS[k], _MARKERS[k], f"{axis.label} {_short(axis.level(value))}"
        own = rows if not axis.fields else rows[rows[axis.name] == plain(value)]
        for digital in own["digital"].dropna().unique():
            panel.axhline(digital, color=colour, linestyle="--", linewidth=0.8, alpha=0.7)
        for arm in FINAL:
            style = {"linestyle": ":", "markerfacecolor": "white"} if arm == "analog" else {"linestyle": "-"}
            part = own[own["arm"] == arm]
            if len(part):
                _line(panel, part, label=f"{name}, {arm}", color=colour, marker=marker, **style)
    if rows.empty:
        _say_empty(panel)
        return
    _time_axis(panel, study, rows)
    columns = 2 if max(map(len, panel.get_legend_handles_labels()[1])) < 32 else 1  # longer names would be cut off
    panel.legend(frameon=False, ncols=columns, loc="upper center", bbox_to_anchor=(0.45, -0.16))


def _say_empty(panel: Axes) -> None:
    panel.text(0.5, 0.5, "no such cells\nin this store", ha="center", va="center", transform=panel.transAxes)


def _line(panel: Axes, rows: pd.DataFrame, **style: Any) -> None:
    rows = rows.groupby("time", as_index=False)[["mean", "low", "high"]].mean().sort_values("time")
    x = np.maximum(rows["time"], EARLIEST)
    panel.plot(x, rows["mean"], markersize=4, linewidth=1.2, **style)
    panel.fill_between(x, rows["low"], rows["high"], color=style["color"], alpha=0.15, linewidth=0)


def _time_axis(panel: Axes, study: StoredStudy, rows: pd.DataFrame) -> None:
    places = sorted(rows["time"].unique())
    panel.set_xscale("log")
    panel.set_xticks([max(t, EARLIEST) for t in places[:8]], [format_seconds(t) for t in places[:8]])
    panel.xaxis.minorticks_off()
    panel.set_xlabel("time since programming")
    low = rows[["low", "mean", "digital"]].min().min() if len(rows) else 0.0
    _vertical(panel, study.primary, float(low))
    panel.grid(alpha=0.3)


def _vertical(panel: Axes, name: str, lowest: float) -> None:
    vertical(panel, name, lowest)
    if not np.isfinite(panel.dataLim.minposy):  # nothing that a logarithmic axis could show
        panel.set_yscale("linear")


def two_by_two(study: StoredStudy, table: pd.DataFrame) -> Drawn:
    """Recipes without and with steps before programming, by without and with steps after it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, 4.6), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey=True)
    rows = at_reference(study, table[table["arm"].isin(FINAL)], study.recipe)
    missing = []
    names = {(0, 0): "neither", (0, 1): "after programming", (1, 0): "before programming", (1, 1): "both"}
    for (before, after), name in names.items():
        panel = panels[before][after]
        panel.set_title(name)
        part = rows[(rows["before"] == before) & (rows["after"] == after)]
        for k, steps in enumerate(part["steps"].unique()):
            own, text = part[part["steps"] == steps], ",\n".join(steps) or "as programmed"
            _line(panel, own, label=text, color=_COLOURS[k % 6], marker=_MARKERS[k % 6])
        for digital in part["digital"].dropna().unique():
            panel.axhline(digital, color="#000000", linestyle="--", linewidth=0.8)
        if part.empty:
            missing.append(name)
            _say_empty(panel)
            panel.grid(alpha=0.3)
        else:
            _time_axis(panel, study, rows)
            panel.legend(frameon=False, loc="lower left", fontsize=7)
        panel.label_outer()
    note = (
        f"{study.primary} over time for recipes without and with steps before programming (training, input ranges), by "
        "without and with steps after it (compensation), at the reference of the other axes; dashed: the digital "
    )
    note += f"model. Not in this store: {'; '.join(missing)}." if missing else "model. All four are in this store."
    return Drawn("two-by-two", "Before × after programming", note, figure)


def staircase(study: StoredStudy, table: pd.DataFrame) -> Drawn:
    """From digital to programmed to each step of the recipe, at the reference of all axes."""
    figure, panel = _figure(3.0)
    time = tradeoffs.reference_time(study, table)
    rows = at_reference(study, table[table["time"] == time])
    settings = at_reference(study, study.settings)
    digital = study.digital[study.digital["metric"] == study.primary]
    digital = digital[digital["setting"].isin(settings["setting"])].drop_duplicates("arm")
    bars = [(str(row["arm"]), row["value"], row["value"], row["value"]) for row in _records(digital)]
    bars.sort(key=lambda bar: bar[0] != "digital dense")
    found = [(str(row["arm"]), row["mean"], row["low"], row["high"]) for row in _records(rows.drop_duplicates("arm"))]
    bars += sorted(found, key=lambda bar: {"analog": 0, "calibrated": 2}.get(bar[0], 1))
    for k, (arm, mean, low, high) in enumerate(bars):
        colour = "#000000" if arm.startswith("digital") else _COLOURS[1] if arm == "analog" else _COLOURS[0]
        panel.barh(k, mean if np.isfinite(mean) else 0.0, color=colour, alpha=0.25 if arm.startswith("after") else 0.45)
        if high > low:
            panel.errorbar(mean, k, xerr=[[mean - low], [high - mean]], color=colour, capsize=3)
        panel.annotate(f"{mean:.3g}", (0, k), xytext=(4, -3), textcoords="offset points", fontsize=8)
    panel.set_yticks(range(len(bars)), [arm for arm, *_ in bars])
    panel.invert_yaxis()
    panel.set_xlabel(study.primary)
    panel.grid(alpha=0.3, axis="x")
    note = f"{study.primary} of the digital model, of chips as programmed and after each step of the recipe, at "
    note += f"{format_seconds(time)} (all of them scored later, by the wait), with 95% intervals over chips"
    if not any(arm.startswith("after") for arm, *_ in bars):
        note += "; steps between are scored where the study says staircase: true and the recipe has several"
    return Drawn("staircase", "Staircase: what each step gets back", f"{note}.", figure)


def sensitivity(study: StoredStudy) -> Drawn:
    """How much each axis costs from its best level to its worst."""
    rows = _records(statistics.sensitivity(study).dropna(subset=["cost"]))
    widest = max((row["cost"] for row in rows if np.isfinite(row["cost"])), default=1.0)
    figure, panel = _figure(1.2 + 0.45 * max(len(rows), 1))
    labels = {axis.name: axis.label for axis in study.axes}
    ticks = []
    for k, row in enumerate(rows):
        bounded = bool(np.isfinite(row["cost"]))
        panel.barh(k, row["cost"] if bounded else widest, color=_COLOURS[0], alpha=0.5)
        if not bounded:
            panel.annotate("without bound", (0, k), xytext=(4, -3), textcoords="offset points", fontsize=8)
        if np.isfinite(row["low"]):
            spread = [[row["cost"] - row["low"]], [row["high"] - row["cost"]]]
            panel.errorbar(row["cost"], k, xerr=spread, color="#000000", capsize=3)
        best, worst = (_short(level(row["axis"], row[name])) for name in ("best", "worst"))
        ticks.append(f"{labels[row['axis']]}\n{best} → {worst}")
    panel.set_yticks(range(len(rows)), ticks)
    panel.invert_yaxis()
    logarithmic = metric(study.primary).logarithmic
    panel.set_xlabel(f"cost in {'ln ' if logarithmic else ''}{study.primary}")
    panel.grid(alpha=0.3, axis="x")
    note = (
        "What each axis costs from its best level to its worst on the same chip where all other axes are equal; 95% "
        "Student-t intervals over chips."
    )
    return Drawn("sensitivity", "Sensitivity: which field costs the most", note, figure)


def pareto(study: StoredStudy) -> Drawn:
    """Accuracy against energy, and on chips also against time and area, with the settings that no other beats."""
    frame = tradeoffs.pareto(study)
    costs = {"energy": "energy of one evaluation, µJ", "token_ns": "a token, ns", "mm2": "chips, mm²"}
    columns = [name for name in costs if name in frame]
    figure, panels = _panels(4.0 if len(columns) == 1 else 2.8, len(columns))
    step = max(1, len(frame) // _MOST_POINTS)
    shown = frame[frame["best"] | (np.arange(len(frame)) % step == 0)]
    shares = shown["density"].map(lambda share: f"{share:.0%} of pairs" if share == share else "attention not counted")
    for panel, column in zip(panels, columns, strict=True):
        for k, share in enumerate(sorted(shares.unique())):
            colour, marker = _COLOURS[k % len(_COLOURS)], _MARKERS[k % len(_MARKERS)]
            for arm, part in shown[shares == share].groupby("arm"):
                face = "none" if arm == "analog" else colour
                style: dict[str, Any] = {"s": 22, "marker": marker, "facecolors": face, "edgecolors": colour}
                panel.scatter(part[column], part["mean"], label=f"{share}, {arm}", linewidths=0.9, **style)
        ring: dict[str, Any] = {"s": 80, "facecolors": "none", "edgecolors": "#000000", "linewidths": 0.8}
        panel.scatter(shown[column][shown["best"]], shown["mean"][shown["best"]], label="not dominated", **ring)
        panel.set_xlabel(costs[column])
        panel.ticklabel_format(axis="x", useOffset=False)
        panel.locator_params(axis="x", nbins=4)
        panel.grid(alpha=0.3)
        _vertical(panel, study.primary, float(shown["mean"].min()) if len(shown) else 0.0)
    panels[-1].legend(frameon=False, ncols=2, loc="upper center", bbox_to_anchor=(0.45, -0.16))
    compared = ["accuracy", "energy", "density", *(["time", "area"] if len(columns) > 1 else [])]
    note = f"Mean {study.primary} against energy by the price books {tradeoffs.BOOK} of analog layers, gated "
    note += "attention and digital layers; colours and markers: attended pairs as a part of those of dense attention. "
    if len(columns) > 1:
        note += "Time of a token, tokens following one another closely, and area of whole chips by the books of chips. "
    note += f"Ringed: settings that no other equals in {', '.join(compared[:-1])} and {compared[-1]} and beats in one"
    if step > 1:
        note += f"; of {len(frame):,} settings, those that are ringed and every {step}th are drawn"
    return Drawn("pareto", f"{', '.join(compared).capitalize()}", f"{note}.", figure)


def _records(frame: pd.DataFrame) -> list[dict[Any, Any]]:
    return frame.to_dict("records")


def _figure(height: float = 3.4) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def _panels(height: float, rows: int) -> tuple[Figure, list[Axes]]:
    """Panels one above the other, ``height`` inches each."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height * rows), layout="constrained")
    return figure, list(figure.subplots(rows, 1, squeeze=False)[:, 0])


def _slugs(axes: list[StoredAxis]) -> list[str]:
    """A name for the figure of each axis that files and pages can have, no two alike."""
    slugs: list[str] = []
    for axis in axes:
        slug = "".join(c if c.isascii() and c.isalnum() else "-" for c in axis.name.lower())
        again = sum(other == slug or other.startswith(f"{slug}-again-") for other in slugs)
        slugs.append(f"{slug}-again-{again}" if again else slug)
    return slugs


def _short(text: str) -> str:
    """A value in a legend."""
    return drawable(text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…")
