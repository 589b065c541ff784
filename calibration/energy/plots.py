"""Pictures of energy: where it goes, and what accuracy it buys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calibration.energy.results import DECODE, Arm, EnergyStudy, Work
from calibration.metrics import metric
from calibration.printable import drawable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, and one hatch a kind of work, so that neighbours differ without colour too.
_COLOURS = {
    "ADC": "#D55E00",
    "DAC and row drive": "#E69F00",
    "cells": "#F0E442",
    "digital logic": "#0072B2",
    "SRAM": "#56B4E9",
    "DRAM": "#009E73",
    "network": "#CC79A7",
    "writes": "#999999",
}
_OTHER = "#000000"
_MARKERS = ("o", "s", "^", "D", "v", "P")
_ALL = ("linear", "attention", "digital")
_UJ = 1e-6  # µJ in a pJ


def breakdown(study: EnergyStudy) -> Figure:
    """Stacked bars, a row for each phase: all of the model, and its attention alone; digital machines beside them."""
    from matplotlib.figure import Figure

    phases = [work.phase for work in study.arms[0].work]
    figure = Figure(figsize=(12.5, 1.2 + 2.7 * len(phases)), layout="constrained")
    panels = figure.subplots(len(phases), 3, squeeze=False, width_ratios=(3, 3, 2))
    for row, phase in zip(panels, range(len(phases)), strict=True):
        _bars(row[0], study, phase, _ALL, "all of it")
        _bars(row[1], study, phase, ("attention",), "attention alone")
        _machines(row[2], study, phase)
    handles: dict[str, Artist] = {}
    for axes in panels[:, :2].flat:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(list(handles.values()), list(handles), loc="outside upper center", ncols=8, fontsize=8)
    figure.supxlabel(_provenance(study), fontsize=7)
    return figure


def _bars(axes: Axes, study: EnergyStudy, phase: int, parts: tuple[str, ...], title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    stacks = [study.by_part(arm, arm.work[phase]) for arm in study.arms]
    components = sorted({name for stack in stacks for part, name in stack if part in parts})
    left = [0.0] * len(stacks)
    for component in components:
        width = [sum(stack.get((part, component), 0.0) for part in parts) * _UJ for stack in stacks]
        axes.barh(range(len(stacks)), width, left=left, label=component, color=_COLOURS.get(component, _OTHER))
        left = [a + b for a, b in zip(left, width, strict=True)]
    axes.set_yticks(range(len(stacks)), [_short(arm) for arm in study.arms], fontsize=8)
    axes.invert_yaxis()
    for place, total in enumerate(left):
        text = f" {total:,.0f}" if total >= 1000 else f" {total:.3g}"
        axes.annotate(text, (total, place), va="center", fontsize=8)
    axes.set_xlim(0, 1.2 * max(left) if any(left) else 1.0)
    axes.xaxis.set_major_locator(
        MaxNLocator(4, steps=(1, 2, 2.5, 5, 10))
    )  # more run together where they have many digits
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("µJ a token", fontsize=8)
    work = study.arms[0].work[phase]
    axes.set_title(drawable(f"{study.setup['model']}, {_named(work)}: {title}"), fontsize=9)


def _machines(axes: Axes, study: EnergyStudy, phase: int) -> None:
    """Digital machines by their two bounds, for the first pattern and the others."""
    for k, arm in enumerate(study.arms):
        rows = arm.work[phase].baselines()
        places = [place + 0.2 * (k - (len(study.arms) - 1) / 2) for place in range(len(rows))]
        energies = [row.pj * _UJ / arm.work[phase].tokens for row in rows]
        axes.plot(energies, places, _MARKERS[k % len(_MARKERS)], label=_short(arm), markersize=4, color=_shade(k))
    rows = study.arms[0].work[phase].baselines()
    axes.set_yticks(range(len(rows)), [f"{row.machine}\n({row.bound} bound)" for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.xaxis.set_minor_formatter("")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("µJ a token", fontsize=8)
    axes.set_title("digital machines, all of it", fontsize=9)
    if phase == 0:
        axes.legend(fontsize=6)
    axes.grid(alpha=0.3, axis="x")


def pareto(study: EnergyStudy) -> Figure:
    """Accuracy against energy a token, of all of the model and of its attention; a point for each pattern and phase."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(10.0, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    views = ((_ALL, "all of the model"), (("attention",), "attention alone"))
    for axes, (parts, title) in zip(panels, views, strict=True):
        for k, arm in enumerate(study.arms):
            for work in arm.work:
                filled = "full" if work.phase == DECODE else "none"
                x = _uj(study, arm, work, parts)
                label = f"{_short(arm, ' ')}, {work.phase}"
                axes.plot(
                    [x], [arm.analog], _MARKERS[k % len(_MARKERS)], color=_shade(k), label=label, fillstyle=filled
                )
        axes.set_xscale("log")
        low, high = axes.get_xlim()
        if 5 * low < high < 1000 * low:  # ticks at 1, 2 and 5 of each decade; 7, 8 and 9 would run together
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}" if high <= 5 * low else "")
        axes.tick_params(axis="x", which="both", labelsize=8, labelrotation=45)
        axes.set_xlabel(f"µJ a token, {title}")
        axes.grid(alpha=0.3, which="both")
    for k, arm in enumerate(study.arms):
        for axes in panels:
            axes.axhline(arm.digital, color=_shade(k), linewidth=0.8, linestyle=":")
    direction = "higher" if metric(study.metric).higher_is_better else "lower"
    panels[0].set_ylabel(f"{study.metric} on the chip ({direction} is better)\ndotted: same pattern in digital")
    panels[0].legend(fontsize=7)
    what = f"{study.setup['model']} on {study.setup['hardware']['device']['kind']}, {study.setup['task']}"
    figure.suptitle(drawable(what), fontsize=11)
    figure.supxlabel(_provenance(study), fontsize=7)
    return figure


def _uj(study: EnergyStudy, arm: Arm, work: Work, parts: tuple[str, ...]) -> float:
    return sum(pj for (part, _), pj in study.by_part(arm, work).items() if part in parts) * _UJ


def _provenance(study: EnergyStudy) -> str:
    """Which prices are simulated, and what no price was found for."""
    found: dict[str, set[str]] = {}
    unpriced: set[str] = set()
    for arm in study.arms:
        for work in arm.work:
            report = study.report(arm, work)
            unpriced |= set(report.unpriced)
            for line in report.lines:
                found.setdefault(line.evidence, set()).add(line.component)
    prices = "; ".join(f"{evidence}: {', '.join(sorted(parts))}" for evidence, parts in sorted(found.items()))
    missing = f"\nwithout a price, not in any sum: {', '.join(sorted(unpriced))}" if unpriced else ""
    return drawable(f"prices ({study.book.name}): {prices}{missing}")


def _short(arm: Arm, between: str = "\n") -> str:
    text = arm.pattern
    return text if len(text) < 26 else text.replace(" | ", f" |{between}", 1)


def _named(work: Work) -> str:
    return f"prefill of {work.tokens:,} tokens" if work.phase != DECODE else "one decode step"


def _shade(k: int) -> str:
    return ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")[k % 6]
