"""The results of studies in one SQLite file: written cell by cell, whole at any moment, read while it grows."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from calibration.studies import database, schema, seals
from calibration.studies.database import MARK, telling
from calibration.studies.plan import Plan, now
from calibration.studies.worker import Failed, Scored
from crossbar import InputError


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

    Args:
        path: of the file; links are followed.
        create: open it to write, and make it if it is not there. Otherwise nothing is changed.
        verify: whether to read all of it first and compare it with its seals.

    Raises:
        InputError: for a missing file (unless ``create``), a file that is no store, a damaged one, one of a newer
            version, and, with ``create``, one that cannot be written or that another run is writing.
    """

    def __init__(self, path: str | Path, *, create: bool = False, verify: bool = True) -> None:
        self.path = Path(path)
        if not create and not self.path.exists():
            raise InputError(f"store {str(path)!r} does not exist: give the file that `ohmformer study` wrote")
        self._real = database.real_path(path)
        self._lock = FileLock(f"{self._real}.lock", timeout=0)
        try:
            if create:
                database.require_writable(self.path, self._real)
                self.lock()
            opened = database.open_to_write if create else database.open_to_read
            self.connection = opened(self.path, self._real, self._migrate)
            self._file = self._identity()
            if verify:
                self._verify()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        if hasattr(self, "connection"):
            self.connection.close()
        self._lock.release(force=True)

    def _migrate(self, on: sqlite3.Connection, version: int) -> None:
        """One transaction a step: a killed migration leaves the version that it began with."""
        for number in range(version, len(schema.MIGRATIONS)):
            on.executescript(f"BEGIN IMMEDIATE; {schema.MIGRATIONS[number]}")
            if number + 1 == seals.SINCE:
                seals.seal_all(on)
            on.execute(f"PRAGMA user_version = {number + 1}")
            on.execute(f"PRAGMA application_id = {MARK}")
            on.execute("COMMIT")

    def _verify(self) -> None:
        with telling(self.path):
            self.connection.execute("BEGIN")  # one moment of it, while a run may go on
            if not database.sound(self.connection):
                raise database.DamagedError("its parts do not fit together")
            seals.verify(self.connection)
            self.connection.execute("COMMIT")

    def _identity(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._real)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def require_there(self) -> None:
        """Refuse to go on once the file was deleted or replaced: what is computed would be lost.

        Raises:
            InputError: saying so.
        """
        if self._identity() != self._file:
            raise InputError(
                f"store {str(self.path)!r} was deleted or replaced while the study ran, and its results with it: leave "
                "it where it is, and run the study again"
            )

    def rows(self, query: str, *values: Any) -> list[Any]:
        """What a query finds.

        Raises:
            InputError: for a file that cannot be read.
        """
        with telling(self.path):
            return self.connection.execute(query, values).fetchall()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing.

        Raises:
            InputError: for a file that cannot be written, such as on a full disk.
        """
        self.require_there()
        with telling(self.path):
            self.connection.execute("BEGIN IMMEDIATE")
            try:
                yield self.connection
                self.connection.execute("COMMIT")
            except BaseException:
                if self.connection.in_transaction:  # SQLite may have rolled back by itself
                    self.connection.execute("ROLLBACK")
                raise

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
        except OSError as error:
            raise InputError(
                f"store {str(self.path)!r} cannot be locked ({error.strerror or error}): give one in another folder"
            ) from None

    def enter(self, plan: Plan) -> None:
        """Add a study and those of its cells that are not there yet, as pending."""
        study = plan.id
        axes = json.dumps(plan.design.describe())
        with self.transaction() as on:
            on.execute(
                "INSERT INTO studies (id, title, config, axes, planned) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT (id) DO UPDATE SET axes = excluded.axes, planned = excluded.planned",
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
            seals.seal(on, "setups", *plan.setups)
            seals.seal(on, "studies", study)

    def begin(self, study: str, provenance: dict[str, Any]) -> int:
        """Note that a run begins; returns its number."""
        with self.transaction() as on:
            row = on.execute(
                "INSERT INTO runs (study, began, provenance) VALUES (?, ?, ?) RETURNING id",
                (study, now(), json.dumps(provenance)),
            ).fetchone()
            seals.seal(on, "runs", row[0])
        return int(row[0])

    def end(self, run: int) -> None:
        """Note that a run ended by itself."""
        with self.transaction() as on:
            on.execute("UPDATE runs SET ended = ? WHERE id = ?", (now(), run))
            seals.seal(on, "runs", run)

    def rates(self, plan: Plan) -> dict[str, float]:
        """Seconds that a finished cell took on average, by setup of a plan."""
        rows = self.rows("SELECT setup, avg(took) FROM cells WHERE status = 'done' GROUP BY setup")
        return {setup: rate for setup, rate in rows if setup in plan.setups}

    def finished(self) -> set[str]:
        """Ids of all cells that are done or failed."""
        return {row[0] for row in self.rows("SELECT id FROM cells WHERE status != 'pending'")}

    def retry(self, study: str) -> int:
        """Make failed cells pending again; returns how many."""
        with self.transaction() as on:
            return on.execute(
                "UPDATE cells SET status = 'pending', lost = 0, seal = NULL WHERE status = 'failed' AND key IN "
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
                seals.seal(on, "cells", cell)
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
                seals.seal(on, "setups", setup)
            seals.seal(on, "cells", cell)

    def lose(self, cell: str) -> int:
        """Note that a worker was lost with a cell; returns how often that happened."""
        query = "UPDATE cells SET lost = lost + 1 WHERE id = ? RETURNING lost"
        with self.transaction() as on:
            return int(on.execute(query, (cell,)).fetchone()[0])

    def progress(self, study: str) -> Progressed:
        """How far a study is."""
        query = "SELECT status, count(*) FROM members JOIN cells ON cell = key WHERE study = ? GROUP BY status"
        return Progressed(**{"done": 0, "failed": 0, "pending": 0, **dict(self.rows(query, study))})

    def studies(self) -> list[str]:
        """Ids of the studies, the one that was planned last at the end."""
        return [row[0] for row in self.rows("SELECT id FROM studies ORDER BY planned, id")]

    def intact(self) -> bool:
        """Whether the file is whole, every reference in it points to something, and every seal fits."""
        try:
            self._verify()
        except InputError:
            return False
        return True
