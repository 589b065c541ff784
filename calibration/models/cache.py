"""The user's cache folder: model folders that took long to make, each written whole or not at all."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from crossbar.errors import InputError

_NOTE = "made.json"
_PARTIAL = ".partial"
_ABANDONED = 3600.0  # s


@dataclass(frozen=True)
class Cached:
    """A folder in the cache whose files are those that were written.

    Attributes:
        folder: where it is.
        digests: SHA-256 (hex) of each file, by name.
    """

    folder: Path
    digests: Mapping[str, str]


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/ohmformer``, or ``~/.cache/ohmformer``; it may not exist yet.

    Raises:
        InputError: when neither is known.
    """
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if chosen.is_absolute():  # the XDG specification ignores a relative path
        return chosen / "ohmformer"
    try:
        return Path.home() / ".cache" / "ohmformer"
    except RuntimeError:
        raise InputError("there is no home folder to keep converted models in: set XDG_CACHE_HOME") from None


def obtain(name: str, made_from: Mapping[str, str], make: Callable[[Path], None]) -> Cached:
    """The cached folder of this name, made first if it is missing, damaged, or was made from something else.

    Every file is compared with the SHA-256 that was noted when it was written. A killed run leaves nothing that would
    be taken for a whole folder, and what it leaves is removed by the next one.

    Args:
        name: of the folder.
        made_from: what decides its content, such as versions.
        make: writes the files into the empty folder that it is given.

    Raises:
        InputError: when the folder cannot be written.
    """
    home = cache_folder()
    found = _intact(home / name, made_from)
    if found is not None:
        return found
    try:
        home.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(home)
        partial = Path(tempfile.mkdtemp(prefix=f".{name}.", suffix=_PARTIAL, dir=home))
    except OSError as error:
        raise _refusal(home, error) from error
    try:
        make(partial)
        digests = {path.name: _digest(path) for path in sorted(partial.iterdir())}
        note = json.dumps({"made_from": dict(made_from), "files": digests}, indent=2)
        (partial / _NOTE).write_text(note, encoding="utf-8")
        _put(partial, home / name, made_from)
    except OSError as error:
        raise _refusal(home, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Cached(home / name, digests)


def _intact(folder: Path, made_from: Mapping[str, str]) -> Cached | None:
    try:
        note = json.loads((folder / _NOTE).read_text(encoding="utf-8"))
        if note["made_from"] != dict(made_from):
            return None
        digests = {path.name: _digest(path) for path in sorted(folder.iterdir()) if path.name != _NOTE}
        return Cached(folder, digests) if note["files"] == digests else None
    except (OSError, ValueError, KeyError, TypeError):  # absent, or not what was written
        return None


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _put(partial: Path, folder: Path, made_from: Mapping[str, str]) -> None:
    """Move a finished folder to its place, unless another process was first."""
    old = partial.with_name(f"{partial.name}.old{_PARTIAL}")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
        shutil.rmtree(old, ignore_errors=True)
    try:
        partial.rename(folder)
    except OSError:
        if _intact(folder, made_from) is None:
            raise


def _remove_abandoned(home: Path) -> None:
    for path in home.glob(f".*{_PARTIAL}"):
        if time.time() - path.stat().st_mtime > _ABANDONED:
            shutil.rmtree(path, ignore_errors=True)


def _refusal(home: Path, error: OSError) -> InputError:
    return InputError(
        f"cache folder {str(home)!r} cannot be written ({error.strerror or error}): make room and access there, or set "
        "XDG_CACHE_HOME to another folder"
    )
