"""What commands print: results as tables, progress, and sentences.

Every command prints through `terminal` and `say`, which take text as text: names of models, titles and reasons come
from users and files, and are neither markup nor commands to the terminal.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from calibration import progress
from calibration.doctor import Check
from calibration.metrics import metric
from calibration.printable import printable
from calibration.results.emulation import Calibration, Emulation, Row
from calibration.results.staircase import Range
from crossbar import ConversionReport, format_seconds

_FEW = 1.3
_PARTS = ("linear", "attention", "dense attention", "calibration")
_WIDEST = 10_000
"""Columns where what is printed goes to a file or another program: no table is cut."""
EVERY = 30.0
"""Seconds between two lines of progress where there is no terminal, at the least."""
_QUIET = 10
"""After so many of them without news the last line comes again."""


class _Plain(Console):
    """A console that takes text as text."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def terminal(file: TextIO | None = None, *, soft_wrap: bool = False) -> Console:
    """What commands print to: standard output unless a stream is given, in full width where that is no terminal."""
    plain = _Plain(file=file, markup=False, emoji=False, highlight=False, soft_wrap=soft_wrap)
    if not plain.is_terminal and "COLUMNS" not in os.environ:
        plain.width = _WIDEST
    return plain


def say(text: str, file: TextIO | None = None) -> None:
    """One line on standard error."""
    print(f"ohmformer: {printable(' '.join(text.split()))}", file=file or sys.stderr, flush=True)


def as_text(*views: Table) -> str:
    """Tables as plain text, as wide as the terminal if there is one, without a newline at the end."""
    stream = io.StringIO()
    plain = terminal(stream)
    plain.width = shutil.get_terminal_size((_WIDEST, 0)).columns
    plain.print(*views, sep="\n")
    return "\n".join(line.rstrip() for line in stream.getvalue().rstrip("\n").split("\n"))


@contextmanager
def progress_bar(title: str) -> Iterator[progress.Progress]:
    """A progress bar on standard error, as the ``progress`` argument of a job; lines where that is no terminal."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[now]}", markup=False),
    )
    stream = terminal(sys.stderr)  # this stream, even where sys.stderr is held back for a while
    if not stream.is_terminal:
        with progress_lines(title) as tell:
            yield lambda done, total, now: tell(f"{done} of {total} done, now {now}")
        return
    with Progress(*columns, console=stream, transient=True) as bar:
        task = bar.add_task(title, total=None, now="")

        def show(done: int, total: int, now: str) -> None:
            bar.update(task, completed=done, total=total, now=printable(now))

        yield show
        bar.update(task, completed=bar.tasks[task].total or 0, now="")


@contextmanager
def progress_lines(title: str) -> Iterator[Callable[[str], None]]:
    """Takes how far a job is, and says the news on standard error every half minute; all of it, every five minutes."""
    stream, began, over = sys.stderr, monotonic(), threading.Event()
    news: list[str] = []

    def speak() -> None:
        said, rounds = "", 0
        while not over.wait(EVERY):
            rounds += 1
            if news and (news[0] != said or rounds >= _QUIET):
                said, rounds = news[0], 0
                say(f"{title}, after {_duration(monotonic() - began)}: {said}", stream)

    def tell(state: str) -> None:
        news[:] = [state]

    speaker = threading.Thread(target=speak, daemon=True)
    speaker.start()
    try:
        yield tell
    finally:
        over.set()
        speaker.join()


def _duration(seconds: float) -> str:
    minutes = int(seconds) // 60
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {int(seconds) % 60} s"


def tables(result: Emulation) -> list[Table]:
    """What was scored, and what each step of a calibration gains."""
    return [accuracy_table(result)] + ([staircase_table(result)] if isinstance(result, Calibration) else [])


def hint(result: Emulation) -> str:
    """What to try where chips are far worse than the digital model; nothing where they are not, or were calibrated.

    Far is a loss of a fifth, or a perplexity that is higher by half.
    """
    if isinstance(result, Calibration):
        return ""
    rows = [row for row in result.rows() if row.metric == result.primary]
    digital = next((row.mean for row in rows if row.arm == "digital"), math.nan)
    logarithmic, higher = metric(result.primary).logarithmic, metric(result.primary).higher_is_better
    means = [row.mean for row in rows if row.arm == "analog"]
    far = [mean < 0.8 * digital if higher else mean > (1.5 if logarithmic else 1.2) * digital for mean in means]
    if not any(far):
        return ""
    return "These chips are not calibrated: ohmformer calibrate with the same options shows how much comes back."


def accuracy_table(result: Emulation) -> Table:
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


def staircase_table(result: Calibration) -> Table:
    """What each step gains at each time, paired chip by chip."""
    caption = "gain: over the arm above, more is better"
    if result.setup["chips"] > 1:
        caption = "gain: over the arm above, mean ± half the 95% interval over chips, more is better"
    logarithmic = [
        name for name in dict.fromkeys(stair.metric for stair in result.stairs()) if metric(name).logarithmic
    ]
    for name in logarithmic:
        caption += f"; {name}: gain and recovered loss of its logarithm, digital as a part of it"
    view = Table(title="what each step gains", title_justify="left", caption=caption)
    for name in ("metric", "time", "arm", "value", "gain", "of digital", "loss recovered"):
        view.add_column(name, justify="left" if name in ("metric", "arm") else "right", overflow="fold")
    for stair in result.stairs():
        value = f"{stair.value.mean:,.2f}" if metric(stair.metric).logarithmic else f"{stair.value.mean:.3f}"
        gain = "" if stair.gain is None else _with_interval(stair.gain, "+.3f", 1)
        recovered = "" if stair.recovered is None else _with_interval(stair.recovered, ".0f", 100, "%")
        when = format_seconds(stair.seconds)
        kept = _with_interval(stair.of_digital, ".1f", 100, "%")
        last = stair.arm == "calibrated"
        arm = f"after {result.setup['recipe']['steps'][-1]['step']}" if last else stair.arm
        view.add_row(stair.metric, when, arm, value, gain, kept, recovered, end_section=last)
    return view


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


def counts_table(result: Emulation) -> Table:
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


def bundle_table(rows: list[tuple[str, str]]) -> Table:
    """What a bundle is."""
    view = Table(show_header=False)
    view.add_column(no_wrap=True)
    view.add_column(overflow="fold")
    for row in rows:
        view.add_row(*row)
    return view


def doctor_table(checks: list[Check]) -> Table:
    """What was found, and what to do."""
    view = Table(title="ohmformer doctor", title_justify="left")
    for name in ("check", "found", "", "what to do"):
        view.add_column(name)
    for check in checks:
        mark = "ok" if not check.remedy else "missing" if check.needed else "note"
        view.add_row(check.name, check.found, mark, check.remedy)
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
