"""Pictures of a model on chips: its floor plan, and one token's way through it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibration.energy.results import EnergyStudy
from calibration.printable import drawable
from crossbar.costs.schedule import RESOURCES, Stage

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {
    "word lines": "#E69F00",
    "converters": "#D55E00",
    "read-out": "#999999",
    "digital units": "#0072B2",
    "DRAM": "#009E73",
    "network": "#CC79A7",
}
_MOST_ROWS = 40


def floor(study: EnergyStudy) -> Figure:
    """The floor plan of the first pattern: tiles in use of each core, what it holds, and bytes from core to core."""
    from matplotlib.figure import Figure

    plan = study.arms[0].plan
    chip = plan.chip
    wide, high = plan.chips * chip.width, chip.height
    figure = Figure(figsize=(min(max(4.0, 0.5 * wide), 18.0), 2.6 + min(0.5 * high, 6.0)), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(3, 1.4))
    parts = {"attention": [0] * (wide * high), "head": [0] * (wide * high), "layers": [0] * (wide * high)}
    for block, cores in zip(plan.blocks, plan.cores, strict=True):
        if not block.tiles:
            continue
        kind = "layers" if block.name in study.linear else "attention"
        kind = "head" if block.name in study.setup["tied_heads"] else kind
        for core in cores:
            parts[kind][core] += 1
    image = [[[1.0, 1.0, 1.0] for _ in range(wide)] for _ in range(high)]
    shades = {"layers": (0.0, 0.45, 0.70), "attention": (0.90, 0.62, 0.0), "head": (0.80, 0.47, 0.65)}
    for core in range(plan.chips * chip.cores):
        x, y = plan.at(core)
        for channel in range(3):
            image[y][x][channel] -= sum(
                parts[kind][core] / chip.tiles * (1 - shade[channel]) for kind, shade in shades.items()
            )
    upper.imshow(image, aspect="equal", vmin=0, vmax=1)
    for border in range(1, plan.chips):
        upper.axvline(border * chip.width - 0.5, color="black", linewidth=1.5)
    upper.set_xticks(
        [(k + 0.5) * chip.width - 0.5 for k in range(plan.chips)], [f"chip {k}" for k in range(plan.chips)], fontsize=8
    )
    upper.set_yticks([])
    for kind, shade in shades.items():
        upper.plot(
            [], [], "s", color=shade, label={"attention": "keys and values", "head": "output head"}.get(kind, kind)
        )
    upper.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=3)
    upper.set_title(
        drawable(
            f"{study.setup['model']}, {study.arms[0].pattern}: {plan.tiles:,} tiles on {plan.chips} chips "
            f"{chip.name}, {plan.utilisation:.0%} in use, {study.setup['placer']}"
        ),
        fontsize=9,
    )
    _traffic(lower, study)
    return figure


def _traffic(axes: Axes, study: EnergyStudy) -> None:
    """Byte-hops a token of the edges that move most."""
    most = sorted(study.arms[0].plan.traffic, key=lambda moved: -moved.byte_hops)[:8]
    names = [
        f"{moved.edge.source} → {moved.edge.target}"
        if moved.edge.source != moved.edge.target
        else f"sums of {moved.edge.source}"
        for moved in most
    ]
    axes.barh(range(len(most)), [moved.byte_hops / 1000 for moved in most], color="#0072B2")
    axes.set_yticks(range(len(most)), [drawable(name) for name in names], fontsize=6)
    axes.invert_yaxis()
    axes.tick_params(axis="x", labelsize=7)
    total = sum(moved.byte_hops for moved in study.arms[0].plan.traffic)
    axes.set_xlabel(f"1,000 byte-hops a token, largest edges (all edges {total / 1000:,.0f})", fontsize=8)


def gantt(study: EnergyStudy) -> Figure:
    """One token's way, in the last phase: the layers of its critical path, and where it waits; a panel a pattern."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 1.5 + 3.2 * len(study.arms)), layout="constrained")
    panels = figure.subplots(len(study.arms), 2, squeeze=False, width_ratios=(4, 1.3))
    for (way, sums), arm in zip(panels, study.arms, strict=True):
        time = arm.work[-1].time
        shown = (
            [*time.path[: _MOST_ROWS // 2], *time.path[-_MOST_ROWS // 2 :]]
            if len(time.path) > _MOST_ROWS
            else time.path
        )
        for place, stage in enumerate(shown):
            _stage(way, place, stage)
        step = max(1, len(shown) // 14)
        way.set_yticks(
            range(0, len(shown), step), [drawable(shown[k].name) for k in range(0, len(shown), step)], fontsize=6
        )
        way.invert_yaxis()
        way.set_xlabel("µs since the token's start", fontsize=8)
        hidden = len(time.path) - len(shown)
        left = f"; the middle {hidden} of {len(time.path)} layers are left out" if hidden else ""
        way.set_title(drawable(f"{arm.pattern}, {arm.work[-1].phase}: {time.latency / 1000:.1f} µs{left}"), fontsize=8)
        way.tick_params(axis="x", labelsize=7)
        waited = {name: ns for name, ns in time.waited().items() if ns}
        sums.barh(list(waited), [ns / 1000 for ns in waited.values()], color=[_COLOURS[name] for name in waited])
        sums.invert_yaxis()
        sums.tick_params(labelsize=7)
        sums.set_xlabel("µs a token waits", fontsize=8)
    for name, colour in _COLOURS.items():
        panels[0, 0].barh([], [], color=colour, label=name)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=6, fontsize=8)
    figure.supxlabel(drawable(f"{study.setup['model']} on {study.chip.name}: {study.chip.title}"), fontsize=7)
    return figure


def _stage(axes: Axes, place: int, stage: Stage) -> None:
    left = stage.start
    *read, digital, dram, network = stage.spent
    beside = ("digital units", digital) if digital >= dram else ("DRAM", dram)
    for name, ns in (*zip(RESOURCES, read, strict=False), beside, ("network", network)):
        if ns:
            axes.barh([place], [ns / 1000], left=[left / 1000], color=_COLOURS[name])
            left += ns
