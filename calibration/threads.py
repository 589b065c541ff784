"""The same bits with any number of threads, also of what libraries compute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


def strict_products() -> None:
    """Have MKL, which computes torch's matrix products, give the same bits with any number of threads.

    MKL looks for ``MKL_CBWR`` at the first product of a process; what the user has set stays. Products with a single
    vector take about twice as long. MKL offers it for Intel's processors: elsewhere nothing is set, since it would
    fall back to instructions of 2001.
    """
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
            intel = "GenuineIntel" in file.read(4096)
    except OSError:
        intel = False
    if intel:
        os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute with one thread for a while: inverses and factors, whose bits follow the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
