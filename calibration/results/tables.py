"""Results as tables for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.table import Table

from calibration.metrics import metric
from calibration.results.results import Results, Row
from calibration.results.staircase import Range, stairs
from crossbar import ConversionReport, format_seconds

_FEW = 1.3
_PARTS = ("linear", "attention", "dense attention", "calibration")


def tables(result: Results) -> list[Table]:
    """What was scored, and what each step of a calibration gains and costs."""
    found = [accuracy_table(result)]
    if result.is_calibration:
        found.append(staircase_table(result))
    if result.costs:
        found.append(costs_table(result))
    return found


def hint(result: Results) -> str:
    """What to try where chips are far worse than the digital model; nothing where they are not, or were calibrated.

    Far is a loss of a fifth, or a perplexity that is higher by half.
    """
    if result.is_calibration:
        return ""
    rows = [row for row in result.rows() if row.metric == result.primary]
    digital = next((row.mean for row in rows if row.arm == "digital"), math.nan)
    logarithmic, higher = metric(result.primary).logarithmic, metric(result.primary).higher_is_better
    means = [row.mean for row in rows if row.arm == "analog"]
    far = [mean < 0.8 * digital if higher else mean > (1.5 if logarithmic else 1.2) * digital for mean in means]
    if not any(far):
        return ""
    return "These chips are not calibrated: ohmformer calibrate with the same options shows how much comes back."


def accuracy_table(result: Results) -> Table:
    """Rows: times; columns: arms; cells: mean of each metric and half its 95% interval."""
    rows = [row for row in result.rows() if not row.arm.startswith("after ")]  # these are in the staircase
    arms = list(dict.fromkeys(row.arm for row in rows))
    fits = result.fits()
    chips = result.setup["chips"]
    names = list(dict.fromkeys(row.metric for row in rows))
    linear = [name for name in names if not metric(name).logarithmic]
    several, one = chips > 1, "one chip, which gives no interval"
    notes = [f"mean ± half the 95% interval over {chips} chips" if several else one] if linear or not several else []
    for name in names:
        if several and name not in linear:
            notes.append(f"{name}: geometric mean (95% interval) over {chips} chips")
        if not metric(name).higher_is_better:
            notes.append(f"lower {name} is better")
    notes.append("digital arms do not age")
    notes += few_decide(rows)
    if fits:
        wait = min(scored - fitted for scored, fitted in fits.items())
        notes.append(f"chips: all scored {format_seconds(wait)} after the time shown, at which calibration was fitted")
    title = f"{result.setup['model']}: {result.setup['task']}"
    view = Table(title=title, caption="; ".join(notes), title_justify="left")
    view.add_column("metric")
    view.add_column("time", justify="right")
    for arm in arms:
        view.add_column(arm, justify="right")
    # Arms that were scored at one instant stand in one row, that of the time at which steps were fitted.
    cells = {}
    for row in rows:
        when = row.fitted if row.fitted is not None or row.seconds is None else fits.get(row.seconds, row.seconds)
        cells[row.metric, row.arm, when] = _cell(row)
    times = sorted({time for _, _, time in cells if time is not None})
    for name in names:
        for time in times:
            values = [cells.get((name, arm, time)) or cells.get((name, arm, None), "") for arm in arms]
            view.add_row(name, format_seconds(time), *values, end_section=time == times[-1])
    return view


def few_decide(rows: Sequence[Row]) -> list[str]:
    """A note for each metric whose mean over windows is decided by a few of them in an arm, but not in digital.

    It is seen where a metric comes with its median: their ratio is more than 1.3 times that in digital. One window of
    16 that loses its attention sink makes it 1.4 (docs/calibration.md).
    """
    medians = {(row.metric, row.arm, row.seconds, row.fitted): row.mean for row in rows}
    tails: dict[str, list[tuple[str, float]]] = {}
    for row in rows:
        median = medians.get((f"median_{row.metric}", row.arm, row.seconds, row.fitted))
        if median:
            tails.setdefault(row.metric, []).append((row.arm, row.mean / median))
    notes = []
    for name, ratios in tails.items():
        usual = dict(ratios).get("digital", math.inf)
        arms = ", ".join(dict.fromkeys(arm for arm, ratio in ratios if ratio > _FEW * usual))
        if arms:
            notes.append(f"a few windows decide {name} of {arms}: compare median_{name} (docs/calibration.md)")
    return notes


def staircase_table(result: Results) -> Table:
    """What each step gains at each time, paired chip by chip."""
    caption = "gain: over the arm above, more is better"
    if result.setup["chips"] > 1:
        caption = "gain: over the arm above, mean ± half the 95% interval over chips, more is better"
    logarithmic = [name for name in dict.fromkeys(stair.metric for stair in stairs(result)) if metric(name).logarithmic]
    for name in logarithmic:
        caption += f"; {name}: gain and recovered loss of its logarithm, digital as a part of it"
    view = Table(title="what each step gains", title_justify="left", caption=caption)
    for name in ("metric", "time", "arm", "value", "gain", "of digital", "loss recovered"):
        view.add_column(name, justify="left" if name in ("metric", "arm") else "right", overflow="fold")
    for stair in stairs(result):
        value = f"{stair.value.mean:,.2f}" if metric(stair.metric).logarithmic else f"{stair.value.mean:.3f}"
        gain = "" if stair.gain is None else _with_interval(stair.gain, "+.3f", 1)
        recovered = "" if stair.recovered is None else _with_interval(stair.recovered, ".0f", 100, "%")
        when = format_seconds(stair.seconds)
        kept = _with_interval(stair.of_digital, ".1f", 100, "%")
        arm = _told_arm(result, stair.arm)
        view.add_row(stair.metric, when, arm, value, gain, kept, recovered, end_section=stair.arm == "calibrated")
    return view


def costs_table(result: Results) -> Table:
    """What each step costs when the model runs, and once, when it is fitted on a chip."""
    view = Table(
        title="what each step costs",
        title_justify="left",
        caption="beyond the arm above, on the first chip; of linear: digital multiply-accumulates as a part of those "
        "of the layers on tiles; conversions: of DACs and ADCs; cells: written",
    )
    names = (
        "digital MACs a token",
        "of linear",
        "conversions a token",
        "conversions to fit",
        "cells",
        "minutes to fit",
    )
    view.add_column("arm", overflow="fold")
    for name in names:
        view.add_column(name, justify="right")
    for arm, cost in result.costs.items():
        digital, conversions = (_short(round(number)) for number in (cost.digital_macs, cost.conversions))
        fits, minutes = (_short(cost.fit_conversions), f"{result.minutes[arm]:.1f}") if arm != "analog" else ("", "")
        own = (digital, f"{cost.share:.2%}", conversions) if arm != "analog" else ("", "", "")
        view.add_row(_told_arm(result, arm), *own, fits, _short(cost.cells), minutes)
    return view


def _told_arm(result: Results, arm: str) -> str:
    """An arm's name, the last one's after its step too."""
    return f"after {result.setup['recipe']['steps'][-1]['step']}" if arm == "calibrated" else arm


def conversion_table(report: ConversionReport, *, layers: bool = False, memory: bool = False) -> Table:
    """What became analog and what stayed digital and why; by layer, or in groups."""
    share = report.analog_parameters / report.parameters
    title = (
        f"{len(report.analog)} layers on {report.tiles} tiles, {report.utilisation:.0%} of their cells in use; "
        f"{report.analog_parameters:,} of {report.parameters:,} parameters ({share:.0%}) are analog"
    )
    caption = "softmax, activation functions and the products of queries, keys and values are digital too"
    if memory:
        caption = "keys and values are in analog memory; softmax and activation functions are digital too"
    if report.device not in ("cpu", "meta"):
        caption += f"; {report.computed()}"
    view = Table(title=title, title_justify="left", caption=caption)
    view.add_column("layer" if layers else "layers", overflow="fold")
    for name in ("kind", "parameters", "tiles", "cells in use"):
        view.add_column(name, justify="left" if name == "kind" else "right")
    view.add_column("stays digital because")
    if layers:
        for layer in report.layers:
            used = f"{layer.utilisation:.0%}" if layer.tiles else ""
            view.add_row(
                layer.name or "(model)", layer.kind, f"{layer.parameters:,}", str(layer.tiles or ""), used, layer.reason
            )
        return view
    kinds = ", ".join(sorted({layer.kind for layer in report.analog}))
    count = sum(layer.parameters for layer in report.analog)
    view.add_row(str(len(report.analog)), kinds, f"{count:,}", str(report.tiles), f"{report.utilisation:.0%}", "")
    for reason, members in report.digital_by_reason().items():
        kinds = ", ".join(sorted({layer.kind for layer in members}))
        view.add_row(str(len(members)), kinds, f"{sum(m.parameters for m in members):,}", "", "", reason)
    return view


def counts_table(result: Results) -> Table:
    """What one evaluation drives and converts; attention beside what dense attention would take, and calibration."""
    view = Table(title=f"{result.setup['task']}: what one evaluation drives and converts", title_justify="left")
    view.add_column("count")
    parts = {part: result.counts[part] for part in _PARTS if part in result.counts}
    for part in parts:
        view.add_column(part, justify="right")
    dense, gated = result.counts.get("dense attention"), result.counts.get("attention")
    if dense and gated:
        view.add_column("gated / dense", justify="right")
    for name in dict.fromkeys(name for part in parts.values() for name in part):
        row = [_short(part[name]) if name in part else "" for part in parts.values()]
        if dense and gated:
            row.append(f"{gated[name] / dense[name]:.0%}" if dense.get(name) and name in gated else "")
        view.add_row(name.replace("_", " "), *row)
    return view


def _with_interval(spread: Range, form: str, scale: float, unit: str = "") -> str:
    """Mean and half the interval, where several chips give one."""
    mean = f"{spread.mean * scale:{form}}{unit}"
    half = f"{(spread.high - spread.low) / 2 * scale:{form.lstrip('+')}}{unit}"
    return mean if math.isnan(spread.low) else f"{mean} ± {half}"


def _cell(row: Row) -> str:
    """Mean, and the interval where several chips give one."""
    if metric(row.metric).logarithmic:
        mean = f"{row.mean:,.2f}"
        return mean if row.n == 1 else f"{mean} ({row.low:,.2f} to {row.high:,.2f})"
    if row.n == 1:
        return f"{row.mean:.3f}"
    return f"{row.mean:.3f} ± {(row.high - row.low) / 2:.3f}"


def _short(number: int) -> str:
    """A count to four digits; JSON has them all."""
    for size, unit in ((10**12, "T"), (10**9, "G"), (10**6, "M")):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number:,}"
