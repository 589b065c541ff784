"""A store's SQLite file: opened only if it is one, to write with a lock on it, or to read without changing it."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from calibration.studies import schema
from crossbar import InputError

MARK = 0x4F484D46
"""SQLite's ``application_id`` of a store: OHMF."""
LARGEST_VALUE = 64 << 20
"""Bytes of a text in a store: a design of a million values takes a quarter of that."""
_PATIENCE = 5.0  # s, for reading what tables a file has
_ROOM = ("SQLITE_FULL", "SQLITE_IOERR", "SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_BUSY", "SQLITE_PERM")
_SCHEMA = "SELECT type, name, tbl_name, sql FROM sqlite_schema"

Migrate = Callable[[sqlite3.Connection, int], None]
"""Takes a connection from a version to the newest."""


class DamagedError(Exception):
    """Something in a store is not as it was written; the message says what."""


def real_path(path: str | Path) -> Path:
    """The file that a path stands for, links followed: what is locked and opened.

    Raises:
        InputError: for a name that stands for no file, and for what is no regular file.
    """
    if str(path) == ":memory:":
        raise InputError("store ':memory:' would be gone with the run: give the path of a file")
    try:
        real = Path(path).resolve()
        known = real.exists()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name that is too long
        raise InputError(f"store {str(path)!r} is no usable path ({error}): give the path of a file") from None
    if known and not real.is_file():
        raise InputError(f"store {str(path)!r} is no regular file: give the path of a file")
    if not real.parent.is_dir():
        raise InputError(f"folder {str(Path(path).parent)!r} does not exist: make it first, or give another store")
    return real


def require_writable(path: Path, real: Path) -> None:
    """Refuse a store that could not be written, before anything runs.

    Raises:
        InputError: for a folder or a file without access, and a file with several names, each of which could be locked.
    """
    for place in (real.parent, *([real] if real.exists() else [])):
        if not os.access(place, os.W_OK):
            raise InputError(f"store {str(path)!r} cannot be written: {str(place)!r} is read-only; give another path")
    if real.exists() and real.stat().st_nlink > 1:
        raise InputError(
            f"store {str(path)!r} has {real.stat().st_nlink} names (hard links), so two runs could write it: copy it, "
            "and give the copy"
        )


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Make one sentence of what SQLite and damage raise.

    Raises:
        InputError: with what to do.
    """
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):  # a defect of ours
        raise
    except (sqlite3.Error, DamagedError, UnicodeDecodeError) as error:
        reason = " ".join(word for word in str(error).split() if word.isprintable())[:200]  # it may quote the file
        if getattr(error, "sqlite_errorname", "").startswith(_ROOM):
            raise InputError(
                f"store {str(path)!r} cannot be used ({reason}): see to room and access there, and run the same "
                "command again; what is done is kept"
            ) from None
        raise InputError(
            f"{str(path)!r} is not a store that can be read ({reason}): give another file, or a copy from before"
        ) from None


def open_to_write(path: Path, real: Path, migrate: Migrate) -> sqlite3.Connection:
    """A connection to a store, made if it is not there, of the newest version. What fails leaves no new file.

    Raises:
        InputError: for a file that is no store.
    """
    require_writable(path, real)
    new = not real.exists()
    with ExitStack() as undo, telling(path):
        if new:
            for end in ("", "-wal", "-shm"):
                undo.callback(real.with_name(real.name + end).unlink, missing_ok=True)
        on = _connect(real, "mode=rwc")
        undo.callback(on.close)
        version = _known_version(path, on, empty=True)
        on.execute("PRAGMA journal_mode = WAL")
        on.execute("PRAGMA synchronous = NORMAL")
        on.execute("PRAGMA foreign_keys = ON")
        migrate(on, version)
        undo.pop_all()
    return on


def open_to_read(path: Path, real: Path, migrate: Migrate) -> sqlite3.Connection:
    """A connection that changes nothing; a store of an older version is brought up to date in memory.

    Raises:
        InputError: for a file that is no store, and results that only a run could take over.
    """
    waiting = real.with_name(f"{real.name}-wal")
    pending = waiting.exists() and waiting.stat().st_size > 0
    # Write access lets SQLite make files of its own and take them away again; where there is neither access nor room,
    # and no run has left results in them, the file alone is read.
    ways = ["mode=rw", "mode=ro" if pending else "mode=ro&immutable=1"]
    if not (os.access(real, os.W_OK) and os.access(real.parent, os.W_OK)):
        del ways[0]
    with ExitStack() as undo, telling(path):
        on = _first_that_works(real, ways)
        undo.callback(on.close)
        on.execute("PRAGMA query_only = ON")
        version = _known_version(path, on, empty=False)
        if version < len(schema.MIGRATIONS):
            memory = sqlite3.connect(":memory:", isolation_level=None)
            undo.callback(memory.close)
            with closing(on):
                on.backup(memory)
            migrate(memory, version)
            on = memory
        undo.pop_all()
    return on


def sound(on: sqlite3.Connection) -> bool:
    """Whether SQLite finds the file whole and every reference in it points to something."""
    whole = on.execute("PRAGMA integrity_check(1)").fetchone() == ("ok",)
    with closing(on.execute("PRAGMA foreign_key_check")) as dangling:
        return whole and dangling.fetchone() is None


def _first_that_works(real: Path, ways: list[str]) -> sqlite3.Connection:
    for how in ways:
        on = _connect(real, how)
        try:
            on.execute("PRAGMA schema_version")
        except sqlite3.Error as error:
            on.close()
            if how == ways[-1] or not error.sqlite_errorname.startswith(_ROOM):
                raise
        else:
            break
    return on


def _connect(real: Path, how: str) -> sqlite3.Connection:
    on = sqlite3.connect(f"{real.as_uri()}?{how}", uri=True, isolation_level=None)  # transactions are written out
    on.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LARGEST_VALUE)
    for setting in ("trusted_schema = OFF", "cell_size_check = ON", "mmap_size = 0", "busy_timeout = 10000"):
        on.execute(f"PRAGMA {setting}")
    return on


def _known_version(path: Path, on: sqlite3.Connection, *, empty: bool) -> int:
    """The version of a file whose tables are exactly those of a store: nothing else in it is ever run."""
    until = time.monotonic() + _PATIENCE
    on.set_progress_handler(lambda: time.monotonic() > until, 10_000)
    version, mark = (on.execute(f"PRAGMA {name}").fetchone()[0] for name in ("user_version", "application_id"))
    found = on.execute(_SCHEMA).fetchmany(100)
    on.set_progress_handler(None, 0)
    if not found and not mark and not version:
        if empty:
            return 0
        raise InputError(f"store {str(path)!r} is empty: run `ohmformer study` first")
    if mark != MARK:
        raise InputError(f"store {str(path)!r} is another program's database: give another file")
    if version > len(schema.MIGRATIONS):
        raise InputError(
            f"store {str(path)!r} is made by a newer ohmformer: give another file, or install that version"
        )
    with closing(sqlite3.connect(":memory:")) as ours:
        for step in schema.MIGRATIONS[:version]:
            ours.executescript(step)
        if version < 1 or sorted(found, key=repr) != sorted(ours.execute(_SCHEMA), key=repr):
            raise DamagedError("its tables are not those of a store")
    return int(version)
