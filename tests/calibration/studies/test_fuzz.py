"""Damaged study files and stores: one sentence, or what an undamaged one says."""

import json
import sqlite3
import time
from contextlib import closing
from itertools import islice
from pathlib import Path

import pytest

from calibration import Study
from calibration.studies import design, seals
from calibration.studies.fields import resolve
from calibration.studies.report import render
from calibration.studies.sentences import summary
from calibration.studies.store import Store
from crossbar import InputError
from tests import mutations
from tests.calibration.studies import tiny

MUTATIONS = 500
WRITTEN = {
    "title": "Every key",
    "model": {"name": "minilm", "include": ["*.query"]},
    "task": {"name": "wordsim"},
    "hardware": {"adc": {"bits": 8}, "output_noise": 0.04, "device": {"kind": "pcm"}},
    "pattern": {"text": "window({size}) | sinks(1)", "size": 8},
    "memory": {"hardware": "pcm", "token_seconds": 1.0},
    "recipe": {"name": "own", "steps": [{"step": "DriftCompensation", "reads": 4}]},
    "wait": "1h",
    "time": "1d",
    "seed": 0,
    "device": "cpu",
    "staircase": True,
    "grid": [
        {
            "converters": {"fields": ["hardware.dac.bits", "hardware.adc.bits"], "values": [4, 6]},
            "pattern.size": [4, 8],
            "recipe": [None, "fast"],
            "time": ["0s", 60],
            "seed": "0..2",
        },
        {"memory.token_seconds": [0.5], "seed": [1, 2]},
    ],
    "random": {
        "samples": 3,
        "seed": 1,
        "fields": {"hardware.output_noise": {"low": 0.01, "high": 1.0, "scale": "log"}},
    },
}


def refuses(read):
    """Whether what reads a damaged file refuses it, as it should."""
    began, said = time.process_time(), ""
    try:
        read()
    except InputError as error:
        said = str(error)
    assert said.isprintable()
    assert len(said) < 2000
    assert time.process_time() - began < 10
    return bool(said)


def test_values_of_study_files():
    def read(config):
        found = design.read(config)
        json.dumps(found.describe(), allow_nan=False)
        for point in islice(found.combinations(), 3):
            resolve({**point.values, "time": point.times[0], "seed": point.seeds[0]})

    assert not refuses(lambda: read(WRITTEN))
    refused = 0
    for damaged in mutations.of_values(WRITTEN, MUTATIONS, seed=5):
        refused += refuses(lambda: read(damaged))  # noqa: B023 - called before the next
    assert MUTATIONS // 4 < refused < MUTATIONS


CONFIG = {"grid": {"hardware.adc.bits": [4, 8], "recipe": [None, "fast"], "time": ["0s", "1d"], "seed": "0..1"}}


def score(axes, seconds, seed):
    value = 0.05 * axes["hardware.adc.bits"] + 0.01 * seed - 0.1 * (seconds > 0)
    return {"analog": value} if axes["recipe"] is None else {"calibrated": value + 0.1}


@pytest.fixture
def made(tmp_path):
    study = tiny.made_study(tmp_path / "s.sqlite", CONFIG, score)
    with closing(sqlite3.connect(study.store)) as on:
        on.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    return study


TABLES = {
    "studies": "id, title, config, axes, planned",
    "setups": "id, fields, counts",
    "settings": "study, position, axes, setup, digital",
    "runs": "id, study, began, ended, provenance",
    "cells": "id, setup, seconds, seed, status, reason, trace, run, ended, took",
    "members": "study, cell",
    "scores": "cell, arm, metric, value",
}


def content(path):
    with Store(path) as store:
        return {table: sorted(map(repr, store.rows(f"SELECT {names} FROM {table}"))) for table, names in TABLES.items()}


def test_bytes_of_stores(made, tmp_path):
    whole, expected = made.store.read_bytes(), content(made.store)
    path = tmp_path / "damaged.sqlite"
    refused = 0
    for damaged in mutations.of_bytes(whole, MUTATIONS, seed=6):
        path.write_bytes(damaged)
        refused += refuses(lambda: content(path) == expected or pytest.fail("took a damaged store for whole"))
        for left in ("-wal", "-shm", "-journal"):
            Path(f"{path}{left}").unlink(missing_ok=True)
    assert MUTATIONS // 2 < refused < MUTATIONS


def forge(path, statement, *values):
    """Change a store, and seal it again as a forger would."""
    with closing(sqlite3.connect(path, isolation_level=None)) as on:
        on.execute(statement, values)
        seals.seal_all(on)


def look(store):
    """What a report looks at, without its pictures, which take most of its time."""
    study = Study(store)
    summary(study, study.table())
    study.runs()
    study.failures()
    study.seeds_needed(0.01)
    study.pareto()


@pytest.mark.parametrize(
    ("table", "column"), [("studies", "axes"), ("settings", "axes"), ("setups", "counts"), ("runs", "provenance")]
)
def test_sealed_values_of_stores(made, table, column):
    whole = made.store.read_bytes()
    with Store(made.store) as store:
        ((text, *_), *_) = store.rows(f"SELECT {column} FROM {table}")
    values = json.loads(text or '[["macs", 8, 3], ["attended_pairs", null, 5]]')

    for damaged in mutations.of_values(values, 8, seed=7):
        forge(made.store, f"UPDATE {table} SET {column} = ?", json.dumps(damaged))
        refuses(lambda: look(made.store))
        made.store.write_bytes(whole)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE scores SET arm = arm || '$\\frac{'",
        "UPDATE scores SET metric = '<b>' || metric",
        "UPDATE scores SET value = 1e200 * (1 - 2 * (cell % 2))",
        "UPDATE scores SET value = NULL",
        "UPDATE scores SET value = 'text'",
        "UPDATE cells SET took = 'long'",
        "DELETE FROM settings",
        "UPDATE settings SET digital = setup",
    ],
)
def test_sealed_scores_of_stores(made, statement):
    forge(made.store, statement)
    refuses(lambda: look(made.store))


def test_texts_of_stores_are_no_html(made):
    forge(made.store, "UPDATE studies SET title = '</title><script>alert(1)</script>'")
    forge(
        made.store, "UPDATE cells SET status = 'failed', reason = '</script><script>alert(1)</script>' WHERE seed = 1"
    )
    forge(made.store, "UPDATE scores SET metric = '</script><script>alert(1)</script>' WHERE cell = 2")
    assert "<script>alert" not in render(Study(made.store))


HANGS = """
    CREATE VIEW more AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT x FROM n;
    CREATE TABLE studies_ (id);
"""


@pytest.mark.parametrize(
    "script",
    [
        HANGS,
        "DROP TABLE members; CREATE VIEW members AS WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) "
        "SELECT 'a' AS study, x AS cell FROM n;",
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET sql = replace(sql, 'took REAL', 'took REAL AS (1)');",
        "PRAGMA writable_schema = ON; UPDATE sqlite_schema SET rootpage = 2 WHERE type = 'table';",
        "PRAGMA writable_schema = ON; INSERT INTO sqlite_schema SELECT * FROM sqlite_schema;",
        "PRAGMA writable_schema = ON; DELETE FROM sqlite_schema;",
    ],
)
def test_schemas_of_others(made, script):
    with closing(sqlite3.connect(made.store, isolation_level=None)) as on:
        on.executescript(script)
    assert refuses(lambda: Study(made.store))
    assert refuses(lambda: Store(made.store, create=True))
