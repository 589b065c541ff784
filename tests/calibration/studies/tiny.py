"""A study of seconds, a BERT that reads letters, and studies whose scores are made up."""

import json
import sqlite3
from contextlib import closing
from itertools import product

from calibration.storage import hashes
from calibration.studies import design
from calibration.studies.plan import Cell, Plan, Setting, cell_id
from calibration.studies.results import Study
from calibration.studies.store import Store
from calibration.studies.worker import Scored
from crossbar import to_seconds

TWO = {"name": "two", "steps": ["InputRanges", "DriftCompensation"]}


def config(folder, **changes):
    values = {
        "title": "Letters",
        "model": str(folder),
        "task": "wordsim",
        "grid": {
            "hardware.adc.bits": [4, 8],
            "pattern": ["dense", "window(2) | sinks(1)"],
            "recipe": [None, TWO],
            "time": ["1h", "1d"],
            "seed": "0..1",
        },
    }
    return {**values, **changes}


def scores(store):
    """Every score of a store by the cell's identity."""
    with closing(sqlite3.connect(store)) as on:
        rows = on.execute("SELECT id, arm, metric, value FROM scores JOIN cells ON cell = key ORDER BY id, arm, metric")
        return rows.fetchall()


def column(store, query):
    with closing(sqlite3.connect(store)) as on:
        return [row[0] for row in on.execute(query)]


FAST = {"name": "fast", "steps": [{"step": "InputRanges"}, {"step": "DriftCompensation"}]}


def made_plan(config, primary="spearman"):
    """A plan of a configuration whose model and task nobody loads."""
    plan = Plan(design.read(config))
    for labels, values, times, seeds in plan.design.combinations():
        values = {name: value for name, value in values.items() if name not in ("time", "seed")}
        common = {"model": {"fingerprint": "none"}, "task": {"name": "made", "primary": primary}}
        recipe = FAST if values["recipe"] == "fast" else values["recipe"]
        setup = {**common, "hardware": values["hardware"], "recipe": recipe, "pattern": values["pattern"]}
        digital = {**common, "hardware": None, "recipe": None, "pattern": values["pattern"]}
        ids = [hashes.of_values(part)[:32] for part in (setup, digital)]
        plan.setups |= dict(zip(ids, (setup, digital), strict=True))
        axes = {name: value for name, value in labels.items() if name not in ("time", "seed")}
        plan.settings.append(Setting(axes, *ids))
        for key, chip in [(ids[1], (None, None)), *((ids[0], chip) for chip in product(map(to_seconds, times), seeds))]:
            cell = Cell(cell_id(key, *chip), key, *chip)
            plan.cells[cell.id] = cell
    return plan


def made_study(path, config, score, digital=0.9, counts=(), primary="spearman"):
    """A store whose cell of axes, seconds and seed has the scores that ``score`` gives by arm."""
    plan = made_plan(config, primary)
    labels = {setting.setup: setting.axes for setting in plan.settings}
    with Store(path, create=True) as store:
        store.enter(plan)
        run = store.begin(plan.id, {**plan.provenance("local", 1), "command": "made up"})
        taken = {key: json.loads(text) for text, key in counts}
        for cell in plan.cells.values():
            arms = {"digital": digital} if cell.seed is None else score(labels[cell.setup], cell.seconds, cell.seed)
            scores = {arm: {primary: v} for arm, v in arms.items()}
            store.record(cell.id, Scored(cell.seconds, scores, 0.1, taken.get(cell.setup, [])), run)
        store.end(run)
    return Study(path)
