"""How long a study will take, from timing one block of its model on a part of its data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

import torch

from calibration.runs.climb import Climb
from calibration.runs.estimating import keys_of, measure
from calibration.runs.request import Request
from calibration.studies.plan import Cell, Plan
from calibration.studies.worker import request_of, score_cell


def estimate(plan: Plan, cells: Iterable[Cell], rates: Mapping[str, float], workers: int) -> float:
    """Seconds that cells will take, from what cells of their kind took, or from doing a part of one.

    Setups are of one kind when model, task, memory and recipe are the same. What is done, on one core, is one cell of a
    model with a single block (`calibration.runs.estimating`); the rest follows from the numbers of blocks, weights and
    tokens. Workers also take some seconds each to start, which are left out.

    Args:
        plan: where the cells are from.
        cells: those to come.
        rates: seconds a cell of finished cells by setup.
        workers: how many compute at a time.

    Raises:
        RuntimeError: when what is timed fails; its failure is the message.
    """
    kinds: dict[str, list[Cell]] = defaultdict(list)
    known: dict[str, list[float]] = defaultdict(list)
    for cell in cells:
        kinds[_kind(plan.setups[cell.setup])].append(cell)
    for setup, rate in rates.items():
        known[_kind(plan.setups[setup])].append(rate)
    threads, total = torch.get_num_threads(), 0.0
    torch.set_num_threads(1)
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
    try:
        return _timed(plan, cells)
    except Exception as error:
        reason = " ".join(str(error).split()) or "no message"
        raise RuntimeError(f"a part that was timed failed: {type(error).__name__}: {reason}") from error


def _timed(plan: Plan, cells: list[Cell]) -> float:
    values = plan.setups[cells[0].setup]
    model = plan.loaded[values["model"]["fingerprint"]].model
    task, staircase = plan.tasks[values["task"]["fingerprint"]], bool(values.get("staircase", False))
    request = request_of(values, model, task)

    def rise(climb: Climb, request: Request) -> None:
        if values["hardware"] is None:
            climb.score_digital()
            return
        climb.write()
        for chip in request.chips:
            for seconds in request.times:
                score_cell(climb, request.recipe, chip, seconds, staircase=staircase)

    measured = measure(request, model, task, rise, staircase=staircase)
    keys = keys_of(measured.experiment, request, rise, staircase=staircase)
    shared = [key for key in keys if key.startswith("fit") and " chip " not in key]
    a_chip = [key for key in keys if key.startswith("fit") and " chip " in key and " at " not in key]
    a_cell = [key for key in keys if key not in {*shared, *a_chip}]
    setups = len({cell.setup for cell in cells})
    chips = len({(cell.setup, cell.seed) for cell in cells if cell.seed is not None})
    total = setups * (measured.making + measured.work(shared)) + len(cells) * measured.work(a_cell)
    return total + chips * (measured.programming + measured.work(a_chip))
