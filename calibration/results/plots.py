"""Pictures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from calibration.metrics import metric
from calibration.printable import drawable
from calibration.results.results import Results
from calibration.results.staircase import stairs
from crossbar import format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; arms also differ in marker.
_STYLES = {
    "digital dense": {"color": "#999999", "linestyle": ":"},
    "digital": {"color": "#000000", "linestyle": "--"},
    "quantised": {"color": "#56B4E9", "linestyle": "-."},
    "analog": {"color": "#D55E00", "marker": "o"},
    "calibrated": {"color": "#0072B2", "marker": "s"},
}
_SPARE = [{"color": "#009E73", "marker": "^"}, {"color": "#CC79A7", "marker": "v"}, {"color": "#E69F00", "marker": "D"}]
_MARKERS = "osD^v"
EARLIEST = 20.0  # s: where 0 s is drawn on a logarithmic axis, being t_0 after the last pulse


def accuracy_over_time(results: Sequence[Results]) -> Figure:
    """One panel a task: its primary metric against the time since programming, with 95% intervals over chips."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(results), 4.0), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, result in zip(panels, results, strict=True):
        _panel(axes, result)
    return figure


def staircase(result: Results) -> Figure:
    """The primary metric after each step, a line for each time, 95% intervals over chips, and the digital levels."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    found = [stair for stair in stairs(result) if stair.metric == result.primary]
    arms = list(dict.fromkeys(stair.arm for stair in found))
    times = list(dict.fromkeys(stair.seconds for stair in found))
    figure = Figure(figsize=(max(5.2, 1.1 * len(arms) + 2), 4.4), layout="constrained")
    axes = figure.subplots()
    levels = {row.arm: row.mean for row in result.rows() if row.metric == result.primary and row.seconds is None}
    for arm, level in levels.items():
        style: dict[str, Any] = _STYLES[arm]
        axes.axhline(level, label=arm, **style)
    lows = [*levels.values(), *(stair.value.low for stair in found if stair.n > 1)]
    for place, seconds in enumerate(times):
        colour = colormaps["viridis"](0.9 * place / max(len(times) - 1, 1))
        members = [stair for stair in found if stair.seconds == seconds]
        # Side by side, so that intervals can be told apart.
        shift = 0.3 * (place / (len(times) - 1) - 0.5) if len(times) > 1 else 0.0
        means = [stair.value.mean for stair in members]
        bars = [[s.value.mean - s.value.low, s.value.high - s.value.mean] if s.n > 1 else [0.0, 0.0] for s in members]
        axes.errorbar(
            [arms.index(stair.arm) + shift for stair in members],
            means,
            yerr=list(zip(*bars, strict=True)),
            color=colour,
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=5,
            capsize=3,
            label=format_seconds(seconds),
        )
        lows += means
    axes.set_xticks(range(len(arms)), _told_arms(result, arms), rotation=25, ha="right")
    vertical(axes, result.primary, min(lows, default=0.0))
    axes.set_title(_title(result))
    axes.grid(alpha=0.3, axis="y")
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def shares(result: Results) -> Figure:
    """The primary metric of each arm against the share of operations that its steps do in digital, a line a time.

    Steps that cost no operation stand above each other. Means over chips; arms are numbered at the last time.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    found = [stair for stair in stairs(result) if stair.metric == result.primary]
    times = list(dict.fromkeys(stair.seconds for stair in found))
    digital = dict(zip(result.costs, itertools.accumulate(cost.share for cost in result.costs.values()), strict=True))
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    axes = figure.subplots()
    levels = {row.arm: row.mean for row in result.rows() if row.metric == result.primary and row.seconds is None}
    for arm, level in levels.items():
        style: dict[str, Any] = _STYLES[arm]
        axes.axhline(level, label=arm, **style)
    for place, seconds in enumerate(times):
        members = [stair for stair in found if stair.seconds == seconds]
        axes.plot(
            [digital.get(stair.arm, 0.0) for stair in members],
            [stair.value.mean for stair in members],
            color=colormaps["viridis"](0.9 * place / max(len(times) - 1, 1)),
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=5,
            label=format_seconds(seconds),
        )
    vertical(axes, result.primary, min([*levels.values(), *(stair.value.mean for stair in found)]))
    numbers: dict[tuple[float, float], str] = {}
    at = (math.inf, math.inf)
    for number, stair in enumerate(stair for stair in found if stair.seconds == times[-1]):
        axes.plot([], [], linestyle="", marker=f"${number}$", color="#000000", label=_told_arms(result, [stair.arm])[0])
        x, y = digital.get(stair.arm, 0.0), stair.value.mean
        if math.isclose(x, at[0], rel_tol=0.02) and math.isclose(y, at[1], rel_tol=0.05):  # would be hidden
            numbers[at] += f", {number}"
        else:
            at = (x, y)
            numbers[at] = f"{number}"
    for at, text in numbers.items():
        axes.annotate(text, at, (6, 0), textcoords="offset points", fontsize="small", va="center")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_xlabel("multiply-accumulates that steps do in digital, part of those on tiles")
    axes.set_title(_title(result))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _told_arms(result: Results, arms: Sequence[str]) -> list[str]:
    """Arms by what their step adds."""
    last = f"+ {result.setup['recipe']['steps'][-1]['step']}"
    return [last if arm == "calibrated" else arm.replace("after ", "+ ") for arm in arms]


def _title(result: Results) -> str:
    return drawable(f"{result.setup['model']} on {result.setup['hardware']['device']['kind']}: {result.setup['task']}")


def _panel(axes: Axes, result: Results) -> None:
    spare = itertools.cycle(_SPARE)
    rows = [row for row in result.rows() if row.metric == result.primary]
    for arm in dict.fromkeys(row.arm for row in rows):
        style: dict[str, Any] = _STYLES.get(arm) or next(spare)
        points = sorted((row.seconds, row) for row in rows if row.arm == arm and row.seconds is not None)
        if not points:
            axes.axhline(next(row.mean for row in rows if row.arm == arm), label=arm, **style)
            continue
        x = [max(seconds, EARLIEST) for seconds, _ in points]
        axes.plot(x, [row.mean for _, row in points], label=arm, markersize=5, **style)
        low, high = [row.low for _, row in points], [row.high for _, row in points]
        axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
    places = sorted({row.seconds for row in rows if row.seconds is not None and row.fitted is None})
    axes.set_xscale("log")
    # A calibration's chips are scored a wait after round times, of which the labels are.
    fits = result.fits()
    waits = {format_seconds(time - fits[time]) if time in fits else "" for time in places}
    wait = waits.pop() if len(waits) == 1 else ""
    labels = [format_seconds(fits[time] if wait else time) for time in places]
    axes.set_xticks([max(time, EARLIEST) for time in places], labels)
    axes.xaxis.minorticks_off()
    if len(places) == 1:  # in the middle
        axes.set_xlim(max(places[0], EARLIEST) / 10, max(places[0], EARLIEST) * 10)
    axes.set_xlabel("time since programming" + (f" + {wait}" if wait else ""))
    vertical(axes, result.primary, min(row.low if row.low == row.low else row.mean for row in rows))
    axes.set_title(_title(result))
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower left" if metric(result.primary).higher_is_better else "upper left")


def vertical(axes: Axes, name: str, lowest: float) -> None:
    """The axis of a metric: from 0 where that is its scale, logarithmic where means are geometric."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    meaning = metric(name)
    axes.set_ylabel(drawable(name if meaning.higher_is_better else f"{name} (lower is better)"))
    if meaning.logarithmic:
        axes.set_yscale("log")
        # Plain numbers at 1, 2 and 5 of each decade: an interval within one decade has no power of ten to label.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif lowest >= 0:
        axes.set_ylim(0.0, 1.05 * axes.get_ylim()[1])  # markers at the top stay whole
