"""The commands ``study`` and ``report``, and ``export`` of a store."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

if TYPE_CHECKING:
    from rich.console import Console

    from calibration.progress import Progress
    from calibration.studies.plan import Cell, Plan
    from calibration.studies.store import Progressed


REPORT_TO = "keep a run for a tracker, offline: mlflow or wandb, with a folder as in mlflow:runs"


def add_study_commands(add: Callable[[str, Any, str], None], subcommand: Callable[[str], Any]) -> None:
    """Have ``add`` add the two: a name, a parser, and what it is for."""
    study = subcommand("Compute a grid of cells that a YAML file describes; what is in the store already stays.")
    study.add_argument("study", type=str, help="YAML file; docs/studies.md says what stands in it")
    study.add_argument("--store", type=str | None, default=None, help="results (default: the YAML's name, .sqlite)")
    study.add_argument("--engine", type=str, default="local", help="local processes, or ray")
    study.add_argument("--workers", type=int | None, default=None, help="how many (default: one for each core, or GPU)")
    study.add_argument("--dry-run", action="store_true", help="check, count cells and estimate the time only")
    study.add_argument("--retry", action="store_true", help="compute failed cells again")
    study.add_argument("--report-to", type=str | None, default=None, help=REPORT_TO)
    add("study", study, "a grid over any field, resumable, with intervals")

    report = subcommand("Write what a store holds as one HTML page that needs nothing else.")
    report.add_argument("store", type=str, help="file that `ohmformer study` wrote")
    report.add_argument("--out", type=str | None, default=None, help="page (default: the store's name, .html)")
    report.add_argument("--figures", type=str | None, default=None, help="folder for the figures as SVG and PDF too")
    add("report", report, "the report of a study as an HTML page")


def run_study(options: Namespace) -> int:
    """``ohmformer study``: 0 if every cell is done, 1 if some failed, 130 when it was stopped."""
    from calibration import console
    from calibration.results.trackers import Tracker
    from calibration.studies.engine import workers_for
    from calibration.study import plan_study, study

    if options.report_to is not None:
        Tracker.of(options.report_to)  # refused before anything runs
    terminal = console.terminal(soft_wrap=True)
    store = Path(options.store or f"{Path(options.study).stem}.sqlite")
    if options.dry_run:
        with console.progress_bar("study") as loading:
            plan, pending, rates = plan_study(
                options.study, store, engine=options.engine, workers=options.workers, loading=loading
            )
        _announce(terminal, plan, pending, rates, workers_for(options.engine, options.workers, plan))
        return 0
    with _bar() as (loading, progress):
        try:
            found = study(
                options.study,
                store=store,
                engine=options.engine,
                workers=options.workers,
                retry=options.retry,
                loading=loading,
                announce=lambda plan, pending, rates: _announce(
                    terminal, plan, pending, rates, workers_for(options.engine, options.workers, plan)
                ),
                progress=progress,
            )
        except KeyboardInterrupt:
            console.say("stopped; what is done is kept, and the same command goes on from there")
            return 130
    if options.report_to is not None and found.progress.done:
        found.report_to(options.report_to)
    state = found.progress
    terminal.print(f"{state.done:,} of {state.total:,} cells are done in {store}; ohmformer report {store} shows them")
    for reason, count, _, _ in found.failures():
        terminal.print(f"{count:,} failed: {reason}", style="red")
    if state.failed:
        terminal.print("--retry computes failed cells again")
    return int(state.failed > 0)


def run_report(options: Namespace) -> int:
    """``ohmformer report``: writes the page, and figures if they are asked for."""
    from calibration import console
    from calibration.studies.results import Study

    study = Study(options.store)
    page = Path(options.out or f"{Path(options.store).stem}.html")
    study.report(page)
    terminal = console.terminal(soft_wrap=True)
    terminal.print(str(page))
    if options.figures is not None:
        for path in study.write_figures(options.figures):
            terminal.print(str(path))
    return 0


def _announce(terminal: Console, plan: Plan, pending: list[Cell], rates: dict[str, float], workers: int) -> None:
    """Print how many cells there are and how long those that are not done will take."""
    from calibration.console import about
    from calibration.studies.estimate import estimate

    line = f"{plan.design.title}: {len(plan.cells):,} cells, {len(plan.cells) - len(pending):,} of them finished"
    if pending:
        try:
            line += f"; about {about(estimate(plan, pending, rates, workers))} on "
            line += f"{workers} worker{'s' if workers > 1 else ''}"
        except RuntimeError as error:  # the cell that fails is kept as failed when its turn comes
            line += f"; how long they take is unknown: {error}"
    terminal.print(line)


@contextmanager
def _bar() -> Iterator[tuple[Progress, Callable[[Progressed], None]]]:
    """A bar on standard error: first what is loaded, then cells done and failed, and the time left."""
    from rich import progress

    from calibration import console
    from calibration.printable import printable

    terminal = console.terminal(sys.stderr)
    if not terminal.is_terminal:
        with console.progress_lines("study") as tell:
            yield (
                lambda done, total, what: tell(f"{done} of {total} done, now {what}"),
                lambda state: tell(f"{state.done + state.failed} of {state.total} cells, {state.failed} failed"),
            )
        return
    columns = (
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[failed]}"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=terminal, transient=True) as bar:
        task = bar.add_task("study", total=None, failed="")

        def loading(done: int, total: int, what: str) -> None:
            bar.update(task, description=printable(what), completed=done, total=total)

        def cells(state: Progressed) -> None:
            finished, failed = state.done + state.failed, f"{state.failed} failed"
            if bar.tasks[0].description != "cells":  # speed counts from here
                bar.reset(task, description="cells", completed=finished, total=state.total, failed=failed)
            else:
                bar.update(task, completed=finished, failed=failed)

        yield loading, cells
