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
        yield store, plan, store.begin(plan.id, plan.provenance("local", 1))


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
        "calibration.studies.schema.MIGRATIONS", (*MIGRATIONS, "ALTER TABLE cells ADD COLUMN watts REAL;")
    )
    with Store(store.path, create=True) as later:
        assert later.connection.execute("SELECT count(watts), count(*) FROM cells").fetchone() == (0, 5)
        assert later.connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
        assert later.intact()


def test_a_migration_that_breaks_changes_nothing(entered, monkeypatch):
    store, *_ = entered
    store.close()
    broken = "ALTER TABLE cells ADD COLUMN watts REAL; ALTER TABLE nothing ADD COLUMN more REAL;"
    monkeypatch.setattr("calibration.studies.schema.MIGRATIONS", (*MIGRATIONS, broken))
    for create in (False, True):
        with pytest.raises(InputError):
            Store(store.path, create=create)
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


def test_a_store_of_an_older_version_is_read_as_it_is_and_sealed_by_a_run(entered, tmp_path):
    store, plan, run = entered
    cell = next(iter(plan.cells))
    store.record(cell, Scored(None, {"digital": {"spearman": 0.5}}, 1.0, [("macs", 8, 3)]), run)
    store.close()
    old = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(old)) as on:
        on.executescript(f"{MIGRATIONS[0]} PRAGMA user_version = 1; PRAGMA application_id = {0x4F484D46};")
        on.execute("ATTACH ? AS new", (str(store.path),))
        for table in ("studies", "setups", "settings", "runs", "cells", "members", "scores"):
            names = ", ".join(row[1] for row in on.execute(f"PRAGMA main.table_info({table})"))
            on.execute(f"INSERT INTO main.{table} SELECT {names} FROM new.{table}")
        on.commit()
        on.execute("PRAGMA journal_mode = WAL")
    before = old.read_bytes()
    with Store(old) as read:
        assert (read.finished(), read.progress(plan.id).pending) == ({cell}, 4)
    assert old.read_bytes() == before
    with Store(old, create=True) as run_on:
        assert run_on.finished() == {cell}
        assert run_on.connection.execute("SELECT count(*) FROM setups WHERE seal IS NOT NULL").fetchone() == (3,)
    with Store(old) as read:
        assert read.intact()


def changed(path, statement, *values):
    with closing(sqlite3.connect(path, isolation_level=None)) as on:
        on.execute(statement, values)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE scores SET value = 0.25",
        "UPDATE scores SET arm = 'analog'",
        "DELETE FROM scores",
        "UPDATE cells SET took = 1e9 WHERE status = 'done'",
        "UPDATE cells SET seed = 7 WHERE seed = 1",
        "UPDATE cells SET seconds = 60.0 WHERE seed = 1",
        "UPDATE cells SET status = 'done' WHERE seed = 1",
        "UPDATE cells SET status = 'failed', reason = 'x' WHERE seed IS NULL",
        "UPDATE settings SET axes = '{}'",
        "UPDATE studies SET title = 'another'",
        "UPDATE setups SET counts = '[[\"macs\", 8, 5]]'",
        "UPDATE setups SET seal = NULL",
        "UPDATE runs SET provenance = '{}'",
        "DELETE FROM members WHERE cell = 2",
        "CREATE VIEW more AS SELECT 1",
        "CREATE TRIGGER more AFTER INSERT ON scores BEGIN DELETE FROM scores; END",
        "CREATE INDEX more ON cells (took)",
        "DROP TABLE members",
        "PRAGMA user_version = 1",
        "PRAGMA user_version = -1",
        "PRAGMA application_id = 1",
    ],
)
def test_what_was_changed_is_not_taken_for_a_result(entered, statement):
    store, plan, run = entered
    store.record(next(iter(plan.cells)), Scored(None, {"digital": {"spearman": 0.5}}, 1.0, [("macs", 8, 3)]), run)
    store.close()
    with Store(store.path) as same:
        assert same.intact()
    changed(store.path, statement)
    for create in (False, True):
        with pytest.raises(InputError) as refusal:
            Store(store.path, create=create)
        assert "\n" not in str(refusal.value)


def test_pages_that_changed_places(entered):
    """What SQLite itself would read without a word."""
    store, *_ = entered
    store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = store.connection.execute("PRAGMA page_size").fetchone()[0]
    store.close()
    data = store.path.read_bytes()
    pages = [data[at : at + size] for at in range(0, len(data), size)]
    for first in range(1, len(pages) - 1):
        swapped = [*pages]
        swapped[first], swapped[first + 1] = pages[first + 1], pages[first]
        store.path.write_bytes(b"".join(swapped))
        with pytest.raises(InputError, match="not a store that can be read"):
            Store(store.path)
    store.path.write_bytes(data)
    with Store(store.path) as same:
        assert same.intact()


def test_a_link_has_the_lock_of_its_file(entered, tmp_path):
    store, *_ = entered
    (tmp_path / "other").mkdir()
    link = tmp_path / "other" / "link.sqlite"
    link.symlink_to(store.path)
    with pytest.raises(InputError, match="in use by another run"):
        Store(link, create=True)
    store.close()
    with Store(link, create=True) as same:
        assert same.studies()
    assert [path.name for path in link.parent.iterdir()] == ["link.sqlite"]
    (tmp_path / "hard.sqlite").hardlink_to(store.path)
    with pytest.raises(InputError, match="2 names"):
        Store(store.path, create=True)


@pytest.mark.parametrize("name", [":memory:", "folder", "/dev/null", "loop"])
def test_what_is_no_file(tmp_path, name, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    before = sorted(tmp_path.iterdir())
    for create in (False, True):
        with pytest.raises(InputError):
            Store(name, create=create)
    assert sorted(tmp_path.iterdir()) == before


def test_a_folder_that_is_read_only(entered, monkeypatch):
    """Which the system says, to all but root, whom it lets do everything."""
    store, plan, _ = entered
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with Store(store.path) as read:  # a run goes on, or was killed: its last results are in the file beside it
        assert read.progress(plan.id).pending == 5
    store.close()
    before = sorted(store.path.parent.iterdir())
    with Store(store.path) as read:
        assert read.progress(plan.id).pending == 5
        assert sorted(store.path.parent.iterdir()) == before
    with pytest.raises(InputError, match="read-only"):
        Store(store.path, create=True)


def test_an_empty_file_becomes_a_store_and_is_none_yet(tmp_path):
    path = tmp_path / "s.sqlite"
    path.touch()
    with pytest.raises(InputError, match="is empty"):
        Store(path)
    assert path.read_bytes() == b""
    with Store(path, create=True) as store:
        assert store.studies() == []
