"""The third job: how robust accuracy is, over a grid of any fields, with results that a reviewer can get again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from calibration.progress import Progress
from calibration.studies import design
from calibration.studies.database import real_path, require_writable
from calibration.studies.engine import compute, make_engine, require, workers_for
from calibration.studies.plan import Cell, Plan, resolve_plan
from calibration.studies.results import Study
from calibration.studies.store import Progressed, Store

Config = str | Path | Mapping[str, Any]
Announce = Callable[[Plan, list[Cell], dict[str, float]], None]
"""Called before anything is computed with the plan, the cells that are not finished, and `Store.rates`."""


def study(
    config: Config,
    *,
    store: str | Path,
    engine: str = "local",
    workers: int | None = None,
    retry: bool = False,
    loading: Progress | None = None,
    announce: Announce = lambda plan, pending, rates: None,
    progress: Callable[[Progressed], None] = lambda state: None,
) -> Study:
    """Compute every cell of a study that its store does not hold yet.

    Everything is checked before anything is computed. A cell is known by a hash of all that decides its result, so one
    that is done never runs again, whatever study it belongs to; one that raises is kept as failed, with its traceback.
    Stop it when you like, and call it again to go on.

    Args:
        config: a YAML file, or the same as a mapping; docs/studies.md lists what may stand in it.
        store: SQLite file of results, made if it is not there.
        engine: ``"local"``: processes on this machine; ``"ray"``: a Ray cluster, the one that runs or one of its own.
        workers: None: one for each core, or, where ``device`` is ``cuda``, for each GPU.
        retry: compute failed cells again.
        loading: called while a model is converted for the first time.
        announce: called before anything is computed.
        progress: called with how far the study is, whenever that changes.

    Raises:
        InputError: for a wrong configuration, a GPU that is not there, a file that is not a store, and a store that
            cannot be written, that another run is writing, or that is deleted while this one runs.
    """
    require(engine, workers)
    require_writable(Path(store), real_path(store))
    plan = resolve_plan(design.read(config), loading)
    workers_for(engine, workers, plan)  # refuses a GPU that is not there, before anything is written
    with Store(store, create=True) as kept:
        kept.enter(plan)
        if retry:
            kept.retry(plan.id)
        pending = _pending(plan, kept)
        announce(plan, pending, kept.rates(plan))
        if pending:
            computing = make_engine(engine, workers, plan)
            try:
                run = kept.begin(plan.id, plan.provenance(engine, computing.workers))
                progress(kept.progress(plan.id))
                compute(pending, plan, kept, computing, run, progress)
                kept.end(run)
            finally:
                computing.close()
    return Study(store, plan.id)


def plan_study(
    config: Config,
    store: str | Path,
    *,
    engine: str = "local",
    workers: int | None = None,
    loading: Progress | None = None,
) -> tuple[Plan, list[Cell], dict[str, float]]:
    """What `study` would announce, computing and writing nothing.

    Raises:
        InputError: as `study`.
    """
    require(engine, workers)
    require_writable(Path(store), real_path(store))
    plan = resolve_plan(design.read(config), loading, weights=False)
    if not Path(store).exists():
        return plan, list(plan.cells.values()), {}
    with Store(store) as kept:
        return plan, _pending(plan, kept), kept.rates(plan)


def _pending(plan: Plan, store: Store) -> list[Cell]:
    finished = store.finished()
    return [cell for cell in plan.cells.values() if cell.id not in finished]
