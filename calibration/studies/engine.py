"""Who computes: engines by name, and the loop that gives their workers units until every cell is done or failed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable

from calibration.runs import engines
from calibration.studies.events import Engine, Lost
from calibration.studies.local import LocalEngine, visible_gpus
from calibration.studies.plan import Cell, Plan
from calibration.studies.schedule import Schedule
from calibration.studies.store import Progressed, Store
from calibration.studies.worker import Failed, Scored, Unit
from crossbar import InputError
from crossbar.errors import require_whole

MOST_WORKERS = 1024
MOST_LOSSES = 5
"""Workers that may be lost with one cell before it counts as failed, and before any was ready."""


def require(name: str, workers: int | None) -> None:
    """Refuse what no engine can be made from.

    Raises:
        InputError: for an unknown name, a number of workers that is not allowed, and Ray that is not installed.
    """
    engines.require(name)
    if workers is not None:
        require_whole("workers", workers, least=1, most=MOST_WORKERS)


def default_workers() -> int:
    """One for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def workers_for(name: str, workers: int | None, plan: Plan) -> int:
    """How many workers compute a plan: as many as were asked for, else one for each core, or for each GPU on ``cuda``.

    What a Ray cluster has shows when it is there; until then it is taken to have this machine's cores.

    Raises:
        InputError: where the engine ``local`` finds no GPU for a plan on ``cuda``, or fewer GPUs than workers.
    """
    if name != "local" or "cuda" not in _devices(plan):
        return workers or default_workers()
    found = len(visible_gpus())
    if found == 0:
        raise InputError("device 'cuda' is not there: run the study on 'cpu', or where torch finds a GPU")
    if workers is not None and workers > found:
        raise InputError(
            f"workers = {workers} is not allowed on 'cuda': torch finds {found} GPU{'s' * (found > 1)}, and each "
            f"worker has one of its own: give at most {found}"
        )
    return workers or found


def make_engine(name: str, workers: int | None, plan: Plan) -> Engine:
    """The engine of this name, its workers starting.

    Raises:
        InputError: for a device that is not there.
    """
    devices = _devices(plan)
    if name == "local":
        return LocalEngine(plan.sources, workers_for(name, workers, plan), visible_gpus() if "cuda" in devices else ())
    from calibration.studies.ray_engine import RayEngine  # imports Ray, which is an extra

    return RayEngine(plan.loaded, workers, devices)


def _devices(plan: Plan) -> set[str]:
    return {setup["device"] for setup in plan.setups.values()}


def compute(
    cells: Iterable[Cell], plan: Plan, store: Store, engine: Engine, run: int, report: Callable[[Progressed], None]
) -> None:
    """Have an engine compute cells, and keep each result as soon as it is there.

    Raises:
        InputError: when the store is deleted, or cannot be written any more.
        RuntimeError: when workers die before they are ready.
    """
    cells = list(cells)
    ids = {(cell.setup, cell.seed, cell.seconds): cell.id for cell in cells}
    schedule = Schedule(cells, plan.setups)
    counted = store.progress(plan.id)
    done, failed = counted.done, counted.failed
    idle: set[int] = set()
    busy: dict[int, tuple[Unit, list[float | None]]] = {}
    stillborn = 0

    def leave(worker: int) -> None:
        unit, left = busy.pop(worker)
        schedule.give_back(unit, tuple(left))

    while schedule or busy:
        store.require_there()
        for worker in sorted(idle):
            unit = schedule.take(worker)
            if unit is None:
                break
            engine.submit(worker, unit)
            busy[worker] = (unit, list(unit.seconds))
            idle.remove(worker)
        for worker, event in engine.events(timeout=1.0):
            if isinstance(event, Scored | Failed):
                unit, left = busy[worker]
                store.record(ids[unit.id, unit.seed, left.pop(0)], event, run)
                done, failed = done + isinstance(event, Scored), failed + isinstance(event, Failed)
                report(Progressed(done, failed, counted.total - done - failed))
            elif isinstance(event, Lost) and worker in busy:
                unit, left = busy[worker]
                cell = ids[unit.id, unit.seed, left[0]] if left else None
                if cell is not None and store.lose(cell) >= MOST_LOSSES:
                    left.pop(0)
                    store.record(cell, Failed(f"its worker was lost {MOST_LOSSES} times: {event.reason}", ""), run)
                    failed += 1
                    report(Progressed(done, failed, counted.total - done - failed))
                leave(worker)
            elif isinstance(event, Lost):
                idle.discard(worker)
                stillborn += 1
                if stillborn >= MOST_LOSSES * engine.workers:
                    raise RuntimeError(f"workers are lost as they start: {event.reason}")
            else:
                if worker in busy:
                    leave(worker)
                idle.add(worker)
                stillborn = 0
