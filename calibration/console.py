"""How commands print: tables, progress, and sentences.

Every command prints through `terminal` and `say`, which take text as text: names of models, titles and reasons come
from users and files, and are neither markup nor commands to the terminal.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any, TextIO

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from calibration import progress
from calibration.printable import printable

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


def about(seconds: float) -> str:
    """A time that people wait.

    >>> about(0.2), about(47.3), about(4000.0)
    ('1 s', '47 s', '1.1 h')
    """
    for size, unit in ((3600.0, "h"), (60.0, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{max(seconds, 1):.0f} s"


def pairs_table(rows: Iterable[tuple[str, str]]) -> Table:
    """A name and a text on each line."""
    view = Table(show_header=False)
    view.add_column(no_wrap=True)
    view.add_column(overflow="fold")
    for row in rows:
        view.add_row(*row)
    return view
