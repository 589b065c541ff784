"""Files of results: each appears whole or not at all, and only where there was one or nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError

from crossbar.errors import InputError


def write_whole(path: Path, write: Callable[[Path], object], what: str = "file") -> None:
    """Have ``write`` write a file under a temporary name beside ``path``, and give it its own once it is whole.

    A link is followed: the file that it leads to is replaced, and the link stays.

    Args:
        path: of the file.
        write: writes the file at the path that it is given.
        what: the file is called in errors.

    Raises:
        InputError: for what `require_writable` refuses, and where writing fails, such as on a full disk; an old file
            then stays as it was.
    """
    target = _target(path)
    partial = _partial(target)
    try:
        write(partial)
        if target.exists():
            shutil.copymode(target, partial)
        partial.replace(target)
    except (OSError, SafetensorError) as error:
        raise _unwritable(path, error, what) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def require_writable(path: str | Path, kinds: Sequence[str] = ()) -> None:
    """Refuse a path that no file could be written to, before anything is computed for it.

    Args:
        path: of a new file, or of one to replace.
        kinds: endings that are allowed; none: any.

    Raises:
        InputError: for a folder, a device or a pipe, a write-protected file, a folder that does not exist or cannot be
            written to, and another ending.
    """
    if kinds and Path(path).suffix not in kinds:
        raise InputError(f"file {str(path)!r} is of no known kind: end its name in {', '.join(kinds)}")
    require_room(_target(Path(path)), path)


def require_room(path: Path, named: str | Path | None = None) -> None:
    """Refuse a path beside which nothing can be made; ``named``: as the user called it.

    Raises:
        InputError: in that case.
    """
    probe = _partial(path)
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise _unwritable(path if named is None else named, error) from error


def _target(path: Path) -> Path:
    """Where a file of this path is, links followed.

    Raises:
        InputError: for what is neither a file nor a new name in a folder.
    """
    try:
        kind = path.stat().st_mode
    except FileNotFoundError:
        kind = None
    except (OSError, ValueError) as error:
        raise _unwritable(path, error) from error
    target = path.resolve()
    if not target.parent.is_dir():
        raise InputError(f"folder {str(path.parent)!r} does not exist: make it first, or give another path")
    if kind is None:
        return target
    if stat.S_ISDIR(kind):
        raise InputError(f"{str(path)!r} is a folder: give the path of a file")
    if not stat.S_ISREG(kind):
        raise InputError(f"{str(path)!r} is a device or a pipe: give the path of a file, or of a new one")
    if not os.access(target, os.W_OK):
        raise InputError(f"file {str(path)!r} is write-protected: make it writable, or give another path")
    return target


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.{os.getpid()}.partial")


def _unwritable(path: str | Path, error: Exception, what: str = "file") -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
    return InputError(
        f"{what} {str(path)!r} cannot be written ({reason or 'no reason given'}): make room and access there, or give "
        "another path"
    )
