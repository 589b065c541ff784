"""The file of results: whole at any moment, of one version, written by one run."""

import sqlite3
from contextlib import closing

import pytest

from calibration.studies.schema import MIGRATIONS
from calibration.studies.store import Store
from calibration.studies.worker import Failed, Scored
from crossbar import InputError
from tests.calibration.studies import tiny

CONFIG = {"grid": {"hardware.adc.bits": [4, 8], "seed": "0..1"}}


@pytest.fixture
def entered(tmp_path):
    plan = tiny.made_plan(CONFIG)
    with Store(tmp_path / "s.sqlite", create=True) as store:
        store.enter(plan)
        yield store, plan, store.begin(plan.id, {})


def test_settings_of_the_database(entered):
    store, *_ = entered
    for pragma, value in (("journal_mode", "wal"), ("foreign_keys", 1), ("user_version", len(MIGRATIONS))):
        assert store.connection.execute(f"PRAGMA {pragma}").fetchone() == (value,)
    assert store.intact()


def test_cells_come_once(entered):
    store, plan, _ = entered
    store.enter(plan)
    assert store.progress(plan.id).pending == len(plan.cells) == 5
    assert store.connection.execute("SELECT count(*) FROM cells").fetchone() == (5,)


def test_a_result_is_kept_bit_for_bit_and_once(entered):
    store, plan, run = entered
    cell = next(iter(plan.cells))
    values = {"a": 0.1 + 0.2, "b": -1e-308, "c": float("inf")}
    store.record(cell, Scored(None, {"digital": values}, 1.0, [("macs", 8, 3)]), run)
    rows = store.connection.execute("SELECT metric, value FROM scores").fetchall()
    assert dict(rows) == values
    assert store.finished() == {cell}
    with pytest.raises(sqlite3.IntegrityError):
        store.record(cell, Scored(None, {"digital": values}, 1.0, []), run)
    assert store.connection.execute("SELECT took FROM cells WHERE status = 'done'").fetchall() == [(1.0,)]


def test_a_failure_leaves_with_a_retry(entered):
    store, plan, run = entered
    cell = next(iter(plan.cells))
    store.record(cell, Failed("why", "where"), run)
    assert store.finished() == {cell}
    assert store.retry("another study") == 0
    assert store.retry(plan.id) == 1
    assert store.finished() == set()


def test_a_later_version_migrates_in_steps(entered, monkeypatch):
    store, plan, run = entered
    store.record(next(iter(plan.cells)), Scored(None, {"digital": {"spearman": 0.5}}, 1.0, []), run)
    store.close()
    monkeypatch.setattr(
        "calibration.studies.store.MIGRATIONS", (*MIGRATIONS, "ALTER TABLE cells ADD COLUMN watts REAL;")
    )
    with Store(store.path) as later:
        assert later.connection.execute("SELECT count(watts), count(*) FROM cells").fetchone() == (0, 5)
        assert later.connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
        assert later.intact()


def test_a_migration_that_breaks_changes_nothing(entered, monkeypatch):
    store, *_ = entered
    store.close()
    broken = "ALTER TABLE cells ADD COLUMN watts REAL; ALTER TABLE nothing ADD COLUMN more REAL;"
    monkeypatch.setattr("calibration.studies.store.MIGRATIONS", (*MIGRATIONS, broken))
    with pytest.raises(InputError):
        Store(store.path)
    monkeypatch.undo()
    with Store(store.path) as same:
        assert same.connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert (
            "watts" not in same.connection.execute("SELECT sql FROM sqlite_schema WHERE name = 'cells'").fetchone()[0]
        )


def test_files_that_are_no_stores(tmp_path):
    for name, words in (("missing.sqlite", "does not exist"), ("no/s.sqlite", "does not exist")):
        with pytest.raises(InputError, match=words):
            Store(tmp_path / name)
    with pytest.raises(InputError, match="folder"):
        Store(tmp_path / "no" / "s.sqlite", create=True)
    (tmp_path / "text").write_text("not a database, and long enough to be taken for one" * 20)
    with pytest.raises(InputError, match="not a store that can be read"):
        Store(tmp_path / "text")
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as other:
        other.execute("CREATE TABLE own (x)")
    with pytest.raises(InputError, match="another program's database"):
        Store(tmp_path / "other.sqlite")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.sqlite", "text"]


def test_a_store_of_the_future(entered):
    store, *_ = entered
    store.connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    store.close()
    with pytest.raises(InputError, match="newer ohmformer"):
        Store(store.path)
