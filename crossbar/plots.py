"""Pictures of a device: its cells over time, its programming error, its drift, and measurements beside it.

Each function draws a seeded population of cells into matplotlib axes and returns them; without axes it makes a figure
of its own, which is at ``axes.figure``. Lines called *typical* follow a cell whose every draw is 0, its middle; devices
whose error is drawn anew at each time (`crossbar.devices.RedrawDevice`) have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from crossbar.devices import AnyDevice, Device, Fit, State, window
from crossbar.tiles import ageing
from crossbar.units import format_seconds, to_seconds

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _BLACK = "#0072B2", "#D55E00", "#000000"
_KEY = "plots"
_BINS = 160
_ROW_HEIGHT = 0.9


def conductance_histograms(
    device: AnyDevice,
    times: Sequence[str | float] = ("0s", "1h", "1d", "30d", "1y"),
    *,
    levels: int = 5,
    cells: int = 5_000,
    seed: int = 0,
    axes: Axes | None = None,
) -> Axes:
    """How cells written to evenly spaced targets are spread at some times: a row for each time, the first on top.

    Each target has a colour and, in each row, a histogram of its own cells, scaled to its own peak.

    Args:
        device: whose cells.
        times: since programming.
        levels: targets, the least and the greatest conductance included.
        cells: on each target.
        seed: of the cells.
        axes: to draw into.
    """
    axes = _axes(axes)
    targets = _targets(device, levels)
    state = ageing.program(device, targets.unsqueeze(1).expand(-1, cells).contiguous(), (seed, _KEY))
    seconds = [to_seconds(time) for time in times]
    reads = [ageing.conductances(device, state, t, (seed, _KEY)) for t in seconds]
    low, high = min(float(read.min()) for read in reads), max(float(read.max()) for read in reads)
    for row, read in enumerate(reversed(reads)):
        for values, colour in zip(read, _shades(levels), strict=True):
            counts, edges = torch.histogram(values, bins=_BINS, range=(low, high))
            heights = row + _ROW_HEIGHT * counts / counts.max()
            axes.stairs(heights.numpy(), edges.numpy(), baseline=row, fill=True, color=colour, alpha=0.75)
    for target, colour in zip(targets.tolist(), _shades(levels), strict=True):
        axes.axvline(target, color=colour, linestyle=":", linewidth=1.0, zorder=0)
    axes.set_yticks(range(len(reads)), [format_seconds(t) for t in reversed(seconds)])
    axes.set_ylim(0.0, len(reads))
    axes.set_xlabel("conductance (µS), targets dotted")
    axes.set_ylabel("time since programming (counts to their peaks)")
    axes.set_title(f"{device.kind}: conductances over time")
    return axes


def programming_error(device: AnyDevice, *, cells: int = 4_000, seed: int = 0, axes: Axes | None = None) -> Axes:
    """Error of cells just written, without 1/f noise if it can be told apart, against their targets, both in µS.

    The lines are the error of cells whose every draw is -1, 0 or 1: one deviation around the typical cell.

    Args:
        device: whose cells.
        cells: over evenly spaced targets.
        seed: of the cells.
        axes: to draw into.
    """
    axes = _axes(axes)
    targets = _targets(device, cells)
    state = ageing.program(device, targets, (seed, _KEY))
    noise = not isinstance(device, Device)
    error = ageing.conductances(device, state, 0.0, (seed, _KEY), noise) - targets
    axes.scatter(targets.numpy(), error.numpy(), s=6, color=_BLUE, alpha=0.4, linewidth=0, label="cells")
    if isinstance(device, Device):
        for draw, style, label in ((0.0, "-", "typical"), (1.0, "--", "one deviation"), (-1.0, "--", None)):
            line = device.drifted(_alike(device, targets, draw), 0.0) - targets
            axes.plot(targets.numpy(), line.numpy(), color=_ORANGE, linestyle=style, linewidth=1.6, label=label)
    axes.set_xlabel("target (µS)")
    axes.set_ylabel("programmed - target (µS)")
    axes.set_title(f"{device.kind}: programming error")
    axes.grid(alpha=0.3)
    axes.legend(ncols=3, loc="upper left", markerscale=3)
    return axes


def population_drift(
    device: AnyDevice,
    *,
    target: float | None = None,
    longest: str | float = "1y",
    cells: int = 4_000,
    seed: int = 0,
    axes: Axes | None = None,
) -> Axes:
    """Conductance of cells written to one target against time: median, quartiles, 5% and 95%, and the typical cell.

    Args:
        device: whose cells.
        target: µS; g_max if not given.
        longest: last time on the axis, which is logarithmic and begins at 1 s, or at 1/1000 of this if that is
            earlier.
        cells: in the population.
        seed: of the cells.
        axes: to draw into.
    """
    axes = _axes(axes)
    target = device.g_max if target is None else target
    last = to_seconds(longest)
    first = min(1.0, last / 1000)
    seconds = torch.logspace(0, 1, 49, base=last / first, dtype=torch.float64, device="cpu").mul_(first).tolist()
    goal = torch.full((cells,), target, device="cpu")
    state = ageing.program(device, goal, (seed, _KEY))
    parts = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95], device="cpu")
    spread = torch.stack([ageing.conductances(device, state, t, (seed, _KEY)).quantile(parts) for t in seconds])
    low, lower, median, upper, high = spread.T.numpy()
    axes.fill_between(seconds, low, high, color=_BLUE, alpha=0.15, linewidth=0, label="5% to 95%")
    axes.fill_between(seconds, lower, upper, color=_BLUE, alpha=0.3, linewidth=0, label="25% to 75%")
    axes.plot(seconds, median, color=_BLUE, linewidth=1.8, label="median")
    if isinstance(device, Device):
        middle = _alike(device, goal[:1], 0.0)
        typical = [float(device.drifted(middle, t)) for t in seconds]
        axes.plot(seconds, typical, color=_ORANGE, linestyle="--", linewidth=1.6, label="typical cell")
    axes.set_xscale("log")
    ticks = [t for t in (1.0, 60.0, 3600.0, 86400.0, 30 * 86400.0, 365 * 86400.0) if first <= t <= last]
    if len(ticks) > 1:
        axes.set_xticks(ticks, [format_seconds(t) for t in ticks])
        axes.minorticks_off()
        axes.set_xlabel("time since programming")
    else:
        axes.set_xlabel("time since programming (s)")
    axes.set_xlim(first, last)
    axes.set_ylabel("conductance (µS)")
    axes.set_title(f"{device.kind}: cells written to {target:g} µS")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="best")
    return axes


def fitted(fit: Fit, *, cells: int = 2_000, seed: int = 0, axes: Axes | None = None) -> Axes:
    """Readings that a device was fitted to, beside the device: conductance over time, a colour for each target.

    Points are means of devices' readings with one deviation to each side, bands what 16% to 84% of cells of the fitted
    device read, lines their mean. Of many targets at most six are drawn.

    Args:
        fit: of `crossbar.devices.fit`.
        cells: of the fitted device, on each target.
        seed: of these cells.
        axes: to draw into.
    """
    axes = _axes(axes)
    readings, device = fit.readings, fit.device
    targets = readings.target.unique()
    targets = targets[torch.linspace(0, len(targets) - 1, min(len(targets), 6), device="cpu").round().long()]
    times = readings.seconds.unique()
    first = max(float(times[times > 0].min()) if bool((times > 0).any()) else 1.0, 1e-3)
    last = max(float(times.max()), first * 10)
    seconds = torch.logspace(0, 1, 25, base=last / first, dtype=torch.float64, device="cpu").mul_(first).tolist()
    parts = torch.tensor([0.16, 0.84], device="cpu")
    for target, colour in zip(targets.tolist(), _shades(len(targets)), strict=True):
        goal = torch.full((cells,), min(target, device.g_max), device="cpu")
        state = ageing.program(device, goal, (seed, _KEY))
        reads = [ageing.conductances(device, state, t, (seed, _KEY)) for t in seconds]
        low, high = torch.stack([read.quantile(parts) for read in reads]).T.numpy()
        axes.fill_between(seconds, low, high, color=colour, alpha=0.2, linewidth=0)
        axes.plot(seconds, [float(read.mean()) for read in reads], color=colour, linewidth=1.4)
        own = readings.target == target
        at = [own & (readings.seconds == t) for t in times.tolist()]
        there = [(max(float(t), first), readings.conductance[chosen]) for t, chosen in zip(times, at, strict=True)]
        there = [(t, values) for t, values in there if len(values)]
        axes.errorbar(
            [t for t, _ in there],
            [float(values.mean()) for _, values in there],
            [float(values.std()) if len(values) > 1 else 0.0 for _, values in there],
            fmt="o", markersize=4, capsize=2, linewidth=1.0, color=colour, label=f"{target:g} µS",
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("time since programming (s)")
    axes.set_ylabel("conductance (µS)")
    axes.set_title(f"{device.kind}: readings (points) and fitted device (bands)")
    axes.grid(alpha=0.3)
    axes.legend(title="target", frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return axes


def _axes(axes: Axes | None) -> Axes:
    if axes is not None:
        return axes
    from matplotlib.figure import Figure

    return Figure(figsize=(6.4, 4.2), layout="constrained").add_subplot()


def _targets(device: AnyDevice, count: int) -> Tensor:
    return torch.linspace(window(device)[0], device.g_max, count, device="cpu")


def _alike(device: Device, targets: Tensor, draw: float) -> State:
    """Cells whose every draw is the same number."""
    return device.program(targets, lambda _: torch.full_like(targets, draw))


def _shades(count: int) -> list[tuple[float, float, float, float]]:
    """Colours of even steps in lightness, dark first, which print in grey too."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.9 * i / max(count - 1, 1)) for i in range(count)]
