"""How long a study will take, from scoring a few of its cells."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import torch

from calibration.studies.plan import Cell, Plan
from calibration.studies.worker import Failed, Unit, Worker


def estimate(plan: Plan, cells: Iterable[Cell], rates: Mapping[str, float], workers: int) -> float:
    """Seconds that cells will take, from what cells of their kind took, or from timing two chips in this process.

    Setups are of one kind when model, task, memory and recipe are the same. What is timed: making a setup ready,
    programming a chip, and a score. Workers also take some seconds each to start, which are left out.

    Args:
        plan: where the cells are from.
        cells: those to come.
        rates: seconds a cell of finished cells by setup.
        workers: how many compute at a time.

    Raises:
        RuntimeError: when a cell that is timed fails; its failure is the message.
    """
    kinds: dict[str, list[Cell]] = defaultdict(list)
    known: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        kinds[_kind(plan.setups[cell.setup])].append(cell)
    for setup, rate in rates.items():
        known[_kind(plan.setups[setup])].append(rate)
    threads, total = torch.get_num_threads(), 0.0
    try:
        for kind, members in kinds.items():
            total += len(members) * fmean(known[kind]) if kind in known else _seconds(plan, members)
    finally:
        torch.set_num_threads(threads)
    return total / workers


def _kind(setup: dict[str, Any]) -> str:
    digital = setup["hardware"] is None
    same = ("task", "memory", "recipe", "staircase")
    return str((setup["model"]["fingerprint"], *map(setup.get, same), digital))


def _seconds(plan: Plan, cells: list[Cell]) -> float:
    setups, chips = {cell.setup for cell in cells}, {(cell.setup, cell.seed) for cell in cells}
    worker, setup, seed, seconds = Worker(plan.loaded.__getitem__), cells[0].setup, cells[0].seed, cells[0].seconds
    if seed is None:
        return len(cells) * _timed(worker, Unit(setup, plan.setups[setup], None, (None,)))[0]
    everything, score = _timed(worker, Unit(setup, plan.setups[setup], seed, (seconds, seconds)))
    (chip,) = _timed(worker, Unit(setup, plan.setups[setup], seed + 1, (seconds,)))
    return len(setups) * max(everything - chip, 0.0) + len(chips) * max(chip - score, 0.0) + len(cells) * score


def _timed(worker: Worker, unit: Unit) -> list[float]:
    took = []
    for result in worker.run(unit):
        if isinstance(result, Failed):
            raise RuntimeError(f"a cell that was timed failed: {result.reason}")
        took.append(result.took)
    return took
