"""Pictures of a model on chips: its floor plan, and one token's way through it."""

from __future__ import annotations

from collections import Counter, defaultdict
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
    "comparators": "#56B4E9",
    "digital units": "#0072B2",
    "DRAM": "#009E73",
    "network": "#CC79A7",
}
_KINDS = {"layers": "#0072B2", "keys and values": "#E69F00", "output head": "#CC79A7"}
_MOST_ROWS = 40


def floor(study: EnergyStudy) -> Figure:
    """The floor plan of the first pattern: what the tiles of each core hold, and which edges move most."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch, Rectangle

    plan = study.arms[0].plan
    wide, high = plan.chips * plan.chip.width, plan.chip.height
    drawn = 10.5 * high / wide
    figure = Figure(figsize=(11.0, min(max(drawn, 1.2), 7.0) + 3.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=(min(max(drawn, 1.2), 7.0), 2.2))
    held: dict[int, Counter[str]] = defaultdict(Counter)
    for block, cores in zip(plan.blocks, plan.cores, strict=True):
        for core in cores if block.tiles else ():
            held[core][_kind(study, block.name)] += 1
    for core in range(plan.chips * plan.chip.cores):
        x, y = plan.at(core)
        left = x - 0.45
        for kind, colour in _KINDS.items():
            part = 0.9 * held[core][kind] / plan.chip.tiles
            if part:
                upper.add_patch(Rectangle((left, y - 0.45), part, 0.9, facecolor=colour))
            left += part
        upper.add_patch(Rectangle((x - 0.45, y - 0.45), 0.9, 0.9, fill=False, edgecolor="#bbbbbb", linewidth=0.4))
    for border in range(1, plan.chips):
        upper.axvline(border * plan.chip.width - 0.5, color="black", linewidth=1.2)
    upper.set_xlim(-0.5, wide - 0.5)
    upper.set_ylim(high - 0.5, -0.5)
    upper.set_aspect("equal")
    middles = [(k + 0.5) * plan.chip.width - 0.5 for k in range(plan.chips)]
    upper.set_xticks(middles, [f"chip {k}" for k in range(plan.chips)], fontsize=8)
    upper.set_yticks([])
    handles = [Patch(color=colour, label=kind) for kind, colour in _KINDS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=4, fontsize=8)
    what = f"{study.setup['model']}, {study.arms[0].pattern}: {plan.tiles:,} tiles on {plan.chips} chips of "
    what += f"{plan.chip.name}, {plan.utilisation:.0%} in use, {study.setup['placer']}; a square is a core of "
    upper.set_title(drawable(f"{what}{plan.chip.tiles} tiles"), fontsize=9)
    _traffic(lower, study)
    return figure


def _kind(study: EnergyStudy, name: str) -> str:
    if name in study.setup["tied_heads"]:
        return "output head"
    return "layers" if name in study.linear else "keys and values"


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
    """One token's way, in the last phase: the layers of its critical path, and where it waits; a row a pattern."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(11.0, 1.5 + 3.2 * len(study.arms)), layout="constrained")
    panels = figure.subplots(len(study.arms), 2, squeeze=False, width_ratios=(4, 1.3))
    for (way, sums), arm in zip(panels, study.arms, strict=True):
        time = arm.work[-1].time
        shown = time.path[:_MOST_ROWS]
        for place, stage in enumerate(shown):
            _stage(way, place, stage)
        step = max(1, len(shown) // 14)
        way.set_yticks(
            range(0, len(shown), step), [drawable(shown[k].name) for k in range(0, len(shown), step)], fontsize=6
        )
        way.invert_yaxis()
        way.set_xlabel("µs since the token's start", fontsize=8)
        part = f"; the first {len(shown)} of {len(time.path)} layers" if len(shown) < len(time.path) else ""
        way.set_title(drawable(f"{arm.pattern}, {arm.work[-1].phase}: {time.latency / 1000:.1f} µs{part}"), fontsize=8)
        way.tick_params(axis="x", labelsize=7)
        waited = {name: ns for name, ns in time.waited().items() if ns}
        sums.barh(list(waited), [ns / 1000 for ns in waited.values()], color=[_COLOURS[name] for name in waited])
        sums.invert_yaxis()
        sums.tick_params(labelsize=7)
        sums.set_xlabel("µs a token waits", fontsize=8)
    handles = [Patch(color=colour, label=name) for name, colour in _COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=6, fontsize=8)
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
