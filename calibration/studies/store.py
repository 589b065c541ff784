"""The results of studies in one SQLite file: written cell by cell, whole at any moment, read while it grows."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from calibration.studies.plan import Plan, now
from calibration.studies.schema import MIGRATIONS
from calibration.studies.worker import Failed, Scored
from crossbar import InputError

_MARK = 0x4F484D46
"""SQLite's ``application_id`` of a store: OHMF."""


@dataclass(frozen=True)
class Progressed:
    """How far a study is: numbers of cells."""

    done: int
    failed: int
    pending: int

    @property
    def total(self) -> int:
        """All cells."""
        return self.done + self.failed + self.pending


class Store:
    """An open store. Close it, or use it as a context manager.

    Raises:
        InputError: for a missing file (unless ``create``), a file that is no store, and one of a newer version.
    """

    def __init__(self, path: str | Path, *, create: bool = False) -> None:
        self.path = Path(path)
        if not create and not self.path.is_file():
            raise InputError(f"store {str(path)!r} does not exist: give the file that `ohmformer study` wrote")
        if not self.path.resolve().parent.is_dir():
            raise InputError(f"folder {str(self.path.parent)!r} does not exist: make it first, or give another store")
        self._lock = FileLock(f"{self.path}.lock", timeout=0)
        with ExitStack() as undo:
            try:
                self.connection = sqlite3.connect(self.path, isolation_level=None)  # transactions are written out below
                undo.callback(self.connection.close)
                self._open()
            except sqlite3.DatabaseError as error:
                reason = f"{str(path)!r} is not a store that can be read ({error})"
                raise InputError(f"{reason}: give another file") from None
            undo.pop_all()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self.connection.close()
        self._lock.release()

    def _open(self) -> None:
        version, mark, tables = (
            self.connection.execute(query).fetchone()[0]
            for query in ("PRAGMA user_version", "PRAGMA application_id", "SELECT count(*) FROM sqlite_schema")
        )
        if (tables and mark != _MARK) or version > len(MIGRATIONS):
            known = "made by a newer ohmformer" if mark == _MARK else "another program's database"
            raise InputError(f"store {str(self.path)!r} is {known}: give another file, or install that version")
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        self.connection.execute("PRAGMA foreign_keys = ON")
        self.connection.execute("PRAGMA busy_timeout = 10000")
        for number in range(version, len(MIGRATIONS)):
            # One transaction a step: a killed migration leaves the version that it began with.
            self.connection.executescript(
                f"BEGIN IMMEDIATE; {MIGRATIONS[number]} PRAGMA user_version = {number + 1}; "
                f"PRAGMA application_id = {_MARK}; COMMIT;"
            )

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing."""
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield self.connection
        except BaseException:
            self.connection.execute("ROLLBACK")
            raise
        self.connection.execute("COMMIT")

    def lock(self) -> None:
        """Keep other runs off this store until it is closed or this process ends.

        Raises:
            InputError: when another run has it.
        """
        try:
            self._lock.acquire()
        except Timeout:
            raise InputError(
                f"store {str(self.path)!r} is in use by another run: wait until that ends, or give another file"
            ) from None

    def enter(self, plan: Plan) -> None:
        """Add a study and those of its cells that are not there yet, as pending."""
        study = plan.id
        axes = json.dumps(plan.design.describe())
        with self.transaction() as on:
            on.execute(
                "INSERT INTO studies VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET planned = excluded.planned",
                (study, plan.design.title, json.dumps(plan.design.written), axes, now()),
            )
            on.executemany(
                "INSERT OR IGNORE INTO setups (id, fields) VALUES (?, ?)",
                ((key, json.dumps(values)) for key, values in plan.setups.items()),
            )
            on.executemany(
                "INSERT OR IGNORE INTO cells (id, setup, seconds, seed) VALUES (?, ?, ?, ?)",
                ((cell.id, cell.setup, cell.seconds, cell.seed) for cell in plan.cells.values()),
            )
            # Another version of the code gives other cells: the study holds those of the present one.
            on.execute("DELETE FROM members WHERE study = ?", (study,))
            on.execute("DELETE FROM settings WHERE study = ?", (study,))
            on.executemany(
                "INSERT INTO settings VALUES (?, ?, ?, ?, ?)",
                ((study, position, json.dumps(s.axes), s.setup, s.digital) for position, s in enumerate(plan.settings)),
            )
            on.executemany(
                "INSERT INTO members SELECT ?, key FROM cells WHERE id = ?", ((study, cell) for cell in plan.cells)
            )

    def begin(self, study: str, provenance: dict[str, Any]) -> int:
        """Note that a run begins; returns its number."""
        row = self.connection.execute(
            "INSERT INTO runs (study, began, provenance) VALUES (?, ?, ?) RETURNING id",
            (study, now(), json.dumps(provenance)),
        ).fetchone()
        return int(row[0])

    def end(self, run: int) -> None:
        """Note that a run ended by itself."""
        self.connection.execute("UPDATE runs SET ended = ? WHERE id = ?", (now(), run))

    def rates(self, plan: Plan) -> dict[str, float]:
        """Seconds that a finished cell took on average, by setup of a plan."""
        rows = self.connection.execute("SELECT setup, avg(took) FROM cells WHERE status = 'done' GROUP BY setup")
        return {setup: rate for setup, rate in rows if setup in plan.setups}

    def finished(self) -> set[str]:
        """Ids of all cells that are done or failed."""
        return {row[0] for row in self.connection.execute("SELECT id FROM cells WHERE status != 'pending'")}

    def retry(self, study: str) -> int:
        """Make failed cells pending again; returns how many."""
        return self.connection.execute(
            "UPDATE cells SET status = 'pending', lost = 0 WHERE status = 'failed' AND key IN "
            "(SELECT cell FROM members WHERE study = ?)",
            (study,),
        ).rowcount

    def record(self, cell: str, result: Scored | Failed, run: int) -> None:
        """Keep what became of a cell: its scores, or why there are none."""
        with self.transaction() as on:
            if isinstance(result, Failed):
                on.execute(
                    "UPDATE cells SET status = 'failed', reason = ?, trace = ?, run = ?, ended = ? WHERE id = ?",
                    (result.reason, result.trace, run, now(), cell),
                )
                return
            key, setup = on.execute(
                "UPDATE cells SET status = 'done', reason = NULL, trace = NULL, run = ?, ended = ?, took = ? "
                "WHERE id = ? RETURNING key, setup",
                (run, now(), result.took, cell),
            ).fetchone()
            on.executemany(
                "INSERT INTO scores VALUES (?, ?, ?, ?)",
                ((key, arm, name, value) for arm, metrics in result.scores.items() for name, value in metrics.items()),
            )
            if result.counts:
                on.execute("UPDATE setups SET counts = ? WHERE id = ?", (json.dumps(result.counts), setup))

    def lose(self, cell: str) -> int:
        """Note that a worker was lost with a cell; returns how often that happened."""
        query = "UPDATE cells SET lost = lost + 1 WHERE id = ? RETURNING lost"
        return int(self.connection.execute(query, (cell,)).fetchone()[0])

    def progress(self, study: str) -> Progressed:
        """How far a study is."""
        rows = self.connection.execute(
            "SELECT status, count(*) FROM members JOIN cells ON cell = key WHERE study = ? GROUP BY status", (study,)
        )
        return Progressed(**{"done": 0, "failed": 0, "pending": 0, **dict(rows)})

    def studies(self) -> list[str]:
        """Ids of the studies, the one that was planned last at the end."""
        return [row[0] for row in self.connection.execute("SELECT id FROM studies ORDER BY planned, id")]

    def intact(self) -> bool:
        """Whether SQLite finds the file whole and every reference in it points to something."""
        sound = self.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        with closing(self.connection.execute("PRAGMA foreign_key_check")) as dangling:
            return sound and dangling.fetchone() is None
