"""Pictures."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from calibration.metrics import metric
from calibration.results import Emulation
from crossbar import format_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which colour-blind readers can tell apart; arms also differ in marker.
_STYLES = {
    "digital dense": {"color": "#999999", "linestyle": ":"},
    "digital": {"color": "#000000", "linestyle": "--"},
    "analog": {"color": "#D55E00", "marker": "o"},
    "calibrated": {"color": "#0072B2", "marker": "s"},
}
_SPARE = [{"color": "#009E73", "marker": "^"}, {"color": "#CC79A7", "marker": "v"}, {"color": "#E69F00", "marker": "D"}]
_EARLIEST = 20.0  # s: where 0 s is drawn on a logarithmic axis, being t_0 after the last pulse


def accuracy_over_time(results: Sequence[Emulation]) -> Figure:
    """One panel a task: its primary metric against the time since programming, with 95% intervals over chips."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2 * len(results), 4.0), layout="constrained")
    panels = figure.subplots(1, len(results), squeeze=False)[0]
    for axes, result in zip(panels, results, strict=True):
        _panel(axes, result)
    return figure


def _panel(axes: Axes, result: Emulation) -> None:
    spare = itertools.cycle(_SPARE)
    rows = [row for row in result.rows() if row.metric == result.primary]
    for arm in dict.fromkeys(row.arm for row in rows):
        style: dict[str, Any] = _STYLES.get(arm) or next(spare)
        points = sorted((row.seconds, row) for row in rows if row.arm == arm and row.seconds is not None)
        if not points:
            axes.axhline(next(row.mean for row in rows if row.arm == arm), label=arm, **style)
            continue
        x = [max(seconds, _EARLIEST) for seconds, _ in points]
        axes.plot(x, [row.mean for _, row in points], label=arm, markersize=5, **style)
        low, high = [row.low for _, row in points], [row.high for _, row in points]
        axes.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)
    ticks = {row.seconds for row in rows if row.seconds is not None and row.fitted is None}
    axes.set_xscale("log")
    places = sorted(ticks)
    axes.set_xticks([max(t, _EARLIEST) for t in places], [format_seconds(t) for t in places])
    axes.xaxis.minorticks_off()
    axes.set_xlabel("time since programming")
    _vertical(axes, result.primary, min(row.low if row.low == row.low else row.mean for row in rows))
    axes.set_title(f"{result.setup['model']} on {result.setup['hardware']['device']['kind']}: {result.setup['task']}")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="lower left" if metric(result.primary).higher_is_better else "upper left")


def _vertical(axes: Axes, name: str, lowest: float) -> None:
    """The axis of a metric: from 0 where that is its scale, logarithmic where means are geometric."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    meaning = metric(name)
    axes.set_ylabel(name if meaning.higher_is_better else f"{name} (lower is better)")
    if meaning.logarithmic:
        axes.set_yscale("log")
        # Plain numbers at 1, 2 and 5 of each decade: an interval within one decade has no power of ten to label.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif lowest >= 0:
        axes.set_ylim(bottom=0.0)
