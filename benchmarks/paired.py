"""What the benchmarks share: paired timing of several arms in one process, their peak memory, and a table.

Arms are run in turn, round after round, so that a busy moment of the machine meets them alike; a ratio is the median of
the rounds' ratios, not the ratio of two medians. The first round warms up and is not counted.
"""

import argparse
import contextlib
import ctypes
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from calibration.doctor import versions

Arms = dict[str, Callable[[], object]]


class Cost(NamedTuple):
    """Of one arm: seconds of each round, and peak memory (MiB) above what the process held before."""

    seconds: list[float]
    memory: float


def measure(
    arms: Arms, rounds: int, twice: bool = False, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Cost]:
    """Run every arm once in each round; the warm-up round measures memory.

    ``twice``: an arm of milliseconds is timed at its second call in a row, since it still meets the caches of the arm
    before it at its first, and that arm's threads, where they are another library's and spin on for a while.
    ``clock``: such as `time.process_time`, of one thread on a machine that is busy with other work.
    """
    memory = {name: _extra_memory(arm) for name, arm in arms.items()}
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(rounds):
        for name, arm in arms.items():
            if twice:
                arm()
            start = clock()
            arm()
            seconds[name].append(clock() - start)
    return {name: Cost(seconds[name], memory[name]) for name in arms}


def ratio(over: list[float], under: list[float]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def judge(what: str, found: float, bar: float, goal: float | None = None, least: bool = False) -> str:
    """A line that holds a figure against the bar it must reach: at most, or at ``least``."""

    def reached(limit: float) -> bool:
        return found >= limit if least else found <= limit

    verdict = f"{'within' if reached(bar) else 'OUTSIDE'} the bar of {'at least' if least else 'at most'} {bar:g}"
    wish = "" if goal is None else f", goal of {goal:g} {'reached' if reached(goal) else 'not reached'}"
    return f"{what}: {found:.2f}, {verdict}{wish}"


def table(title: str, costs: dict[str, Cost], base: str) -> Table:
    """Median time of every arm, its ratio to the arm ``base``, and its extra memory."""
    view = Table(title=title, title_justify="left")
    for name in ("arm", "median", f"ratio to {base}", "fastest to slowest", "extra memory"):
        view.add_column(name, justify="left" if name == "arm" else "right")
    for name, (seconds, memory) in costs.items():
        times = f"{_text(min(seconds))} to {_text(max(seconds))}"
        share = f"{ratio(seconds, costs[base].seconds):.2f}"
        view.add_row(name, _text(statistics.median(seconds)), share, times, f"{memory:.0f} MiB")
    return view


def options(description: str | None, rounds: int) -> argparse.Namespace:
    """The options that every benchmark has; sets the number of threads."""
    return use(option_parser(description, rounds))


def option_parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser of the options that every benchmark has, to add to."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help=f"timed rounds (default {rounds})")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="torch threads (default: torch's)")
    return parser


def use(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given on the command line; sets the number of threads."""
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    return chosen


def print_setting() -> None:
    """Which versions and how many threads the numbers belong to, and how busy the machine is with other work."""
    found = ", ".join(f"{name} {version}" for name, version in versions().items())
    threads = f"{torch.get_num_threads()} torch threads on {os.cpu_count()} cores ({platform.machine()})"
    Console().print(f"{found}; {threads}; load {os.getloadavg()[0]:.1f} before the run", highlight=False)


def peak_memory() -> float:
    """Largest resident size of this process since `_forget_peak`, or since its start, MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _extra_memory(arm: Callable[[], object]) -> float:
    _forget_peak()
    before = peak_memory()
    arm()
    return peak_memory() - before


def _forget_peak() -> None:
    """Start the peak again where the system can (Linux); elsewhere an arm shows only what it adds to earlier peaks."""
    clear = Path("/proc/self/clear_refs")
    if clear.exists():
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # freed memory that malloc keeps would hide what the next arm takes
        clear.write_text("5")


def _text(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1e3:.1f} ms"
