"""The same bits with any number of threads, also of what libraries compute."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def strict_products() -> None:
    """Have MKL, which computes torch's matrix products, give the same bits with any number of threads.

    MKL looks for ``MKL_CBWR`` at the first product of a process; what the user has set stays. On some processors
    products with a single vector take about twice as long.
    """
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
