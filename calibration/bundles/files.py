"""A folder whose files are what its manifest says: it appears whole or not at all, and is verified before use."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, TypeVar

from torch import Tensor

from calibration.runs.journal import tidy
from calibration.storage.checked_files import sync
from crossbar.errors import InputError, shown
from crossbar.storage.files import require_room
from crossbar.storage.plain_values import load_json
from crossbar.storage.tensor_files import as_os_error, opened, shapes

FORMAT = "ohmformer bundle"
SCHEMA = 1
MANIFEST = "manifest.json"
SEAL = "manifest.json.sha256"
"""The manifest's own hash, in the format of ``sha256sum -c``: a change to the manifest itself is seen too."""
CELLS = ("conductances", "seeds")
"""What a bundle holds of cells: what programming left in them, or the seed that makes them again, with a sample."""
LARGEST = 2_000_000_000
"""Bytes of the largest file of weights, targets or cells; a layer's cells are in one file, however large."""

_LARGEST_MANIFEST = 16 << 20  # bytes
_LONGEST_NAME = 1024
_LONGEST_REASON = 1000  # characters: it may quote the file
_AGAIN = "make the bundle again"
_HEX = re.compile(r"[0-9a-f]{64}")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Entry:
    """A file of a bundle: its SHA-256 (hex) and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Files:
    """The files of a bundle, each as its manifest says.

    Attributes:
        folder: where they are.
        entries: by name, with ``/`` between folders.
        cells: what the manifest says of the cells, one of `CELLS`.
    """

    folder: Path
    entries: Mapping[str, Entry]
    cells: str = CELLS[0]

    @classmethod
    def verified(cls, folder: Path) -> Files:
        """Read the manifest and compare every file with it.

        Raises:
            InputError: for a folder that is not a bundle of this schema, and for any file that is missing, changed, not
                listed, not a plain file, or outside of the folder.
        """
        if not folder.is_dir():
            raise InputError(f"bundle {str(folder)!r} is not a folder: give one that `ohmformer calibrate --out` wrote")
        try:
            return cls._verified(folder)
        except OSError as error:
            raise InputError(
                f"bundle {str(folder)!r} cannot be read ({error.strerror or error}): give one that can be"
            ) from None

    @classmethod
    def _verified(cls, folder: Path) -> Files:
        text = _sealed_manifest(folder)
        values = parse_json(text, f"bundle {str(folder)!r}: {MANIFEST}")
        if values.get("format") != FORMAT:
            raise InputError(f"folder {str(folder)!r} is not an {FORMAT}: give one that `ohmformer calibrate` wrote")
        if values.get("schema") != SCHEMA or isinstance(values["schema"], bool):
            raise InputError(
                f"bundle {str(folder)!r} has schema version {shown(values.get('schema'))} and this version of "
                f"ohmformer reads {SCHEMA}: use the version that wrote it, or calibrate again"
            )
        cells = values.get("cells", CELLS[0])
        if cells not in CELLS:
            raise InputError(
                f"bundle {str(folder)!r}: {MANIFEST} says cells = {shown(cells)}, which is none of {', '.join(CELLS)}: "
                "use the version that wrote it"
            )
        files = cls(folder, _entries(folder, values), cells)
        for name, entry in files.entries.items():
            files._compare(name, entry)
        files._require_nothing_else()
        return files

    @property
    def size(self) -> int:
        """Bytes of all files that the manifest lists."""
        return sum(entry.size for entry in self.entries.values())

    def path(self, name: str) -> Path:
        """Where a file is that the bundle must have."""
        if name not in self.entries:
            raise InputError(f"{self._called} has no file {name!r}: make the bundle again")
        return self.folder / name

    def json(self, name: str) -> dict[str, Any]:
        """The object in a JSON file."""
        return parse_json(self.path(name).read_bytes(), f"{self._called}: {name}")

    def field(self, name: str, key: str, kind: type[_T], values: Mapping[str, Any] | None = None) -> _T:
        """A value of a JSON file (or of ``values``, a part of it), which must be of this kind."""
        value = (self.json(name) if values is None else values).get(key)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            self.refuse(name, f"{key} = {shown(value)} is not a {kind.__name__}")
        return value

    def shapes(self, name: str) -> dict[str, list[int]]:
        """The shapes of the tensors in a safetensors file."""
        with opened(f"{self._called}: {name}", self.path(name), _AGAIN) as file:
            return shapes(file)

    def tensors(self, name: str) -> dict[str, Tensor]:
        """The tensors of a safetensors file."""
        with opened(f"{self._called}: {name}", self.path(name), _AGAIN) as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict

    def refuse(self, name: str, why: str) -> NoReturn:
        """Refuse the bundle because of a file, whose hash is right and whose content is not."""
        line = " ".join(why.split())[:_LONGEST_REASON]
        raise InputError(f"{self._called}: {name} cannot be used, {line}: make the bundle again")

    @property
    def _called(self) -> str:
        return f"bundle {str(self.folder)!r}"

    def _compare(self, name: str, entry: Entry) -> None:
        what = f"{self._called}: file {name!r}"
        parts = PurePosixPath(name).parts
        for depth in range(1, len(parts) + 1):
            if self.folder.joinpath(*parts[:depth]).is_symlink():
                raise InputError(
                    f"{what} is reached through a link, which may lead anywhere: copy the file in its place"
                )
        try:
            found = os.lstat(self.folder / name)
        except OSError:
            raise InputError(f"{what} is missing: copy the whole bundle again") from None
        if not stat.S_ISREG(found.st_mode):
            raise InputError(f"{what} is not a plain file: copy the whole bundle again")
        if found.st_size != entry.size:
            raise InputError(
                f"{what} has {found.st_size} bytes and the manifest says {entry.size}: copy the whole bundle again"
            )
        if digest(self.folder / name) != entry.sha256:
            raise InputError(f"{what} is not what was written, its SHA-256 differs: copy the whole bundle again")

    def _require_nothing_else(self) -> None:
        for place, folders, names in os.walk(self.folder):
            for name in [*names, *(name for name in folders if Path(place, name).is_symlink())]:
                found = Path(place, name).relative_to(self.folder).as_posix()
                if found not in self.entries and found not in (MANIFEST, SEAL):
                    raise InputError(f"{self._called}: {found!r} is not in the manifest: take it out of the folder")


def seal(folder: Path, cells: str = CELLS[0]) -> Files:
    """Write the manifest of all files that are in a folder, what they hold of cells, and the manifest's hash."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    entries = {path.relative_to(folder).as_posix(): Entry(digest(path), path.stat().st_size) for path in paths}
    files = {name: {"sha256": entry.sha256, "size": entry.size} for name, entry in entries.items()}
    write_json(folder / MANIFEST, {"format": FORMAT, "schema": SCHEMA, "cells": cells, "files": files})
    (folder / SEAL).write_text(_seal_of((folder / MANIFEST).read_bytes()), encoding="ascii")
    return Files(folder, entries, cells)


def sync_all(folder: Path) -> None:
    """Have the disk take a folder and all that is in it."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)


def digest(path: Path) -> str:
    """SHA-256 (hex) of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write an object as JSON for people to read too."""
    path.write_text(json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def parse_json(text: bytes, what: str) -> dict[str, Any]:
    """The object that JSON text holds (`crossbar.storage.plain_values.load_json`); ``what`` names it.

    Raises:
        InputError: for anything else.
    """
    values = load_json(what, text, _AGAIN)
    if not isinstance(values, dict):
        raise InputError(f"{what} is not an object of names and values: {_AGAIN}")
    return values


def require_new(path: Path) -> None:
    """Refuse a folder that exists already, that nothing could be written to, or that would spoil a bundle.

    What a run that was killed at its very end left beside the folder goes.
    """
    if not path.resolve().parent.is_dir():
        raise InputError(f"folder {str(path.parent)!r} does not exist: make it first, or give another path")
    for above in path.resolve().parents:
        if (above / MANIFEST).is_file() and (above / SEAL).is_file():
            raise InputError(
                f"{str(path)!r} lies in the bundle {str(above)!r}, which takes no other files: give another path"
            )
    if os.path.lexists(path):
        tidy(path)
        raise InputError(f"{str(path)!r} exists already and would be overwritten: give another path, or remove it")
    require_room(path)


@contextlib.contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, which takes the place ``path`` once it was filled without an error.

    A process that is killed leaves a hidden folder, which the next attempt removes.

    Raises:
        InputError: as `require_new`, and when it cannot be written.
    """
    require_new(path)
    for left in path.parent.glob(f".{escape(path.name)}.*.partial"):
        if not _alive(left.suffixes[-2].removeprefix(".")):
            shutil.rmtree(left, ignore_errors=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.mkdir()
        yield partial
        sync_all(partial)
        partial.rename(path)
        sync(path.parent)
    except Exception as error:
        refused = as_os_error(error)
        if refused is None:
            raise
        raise InputError(
            f"folder {str(path)!r} cannot be written ({refused.strerror or refused}): make room and access there, or "
            "give another path"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _alive(process: str) -> bool:
    try:
        os.kill(int(process), 0)
    except (ValueError, OverflowError, ProcessLookupError):
        return False
    except OSError:  # such as one of another user
        return True
    return True


def _sealed_manifest(folder: Path) -> bytes:
    for name in (MANIFEST, SEAL):
        path = folder / name
        if name == MANIFEST and (folder / "config.json").is_file() and not os.path.lexists(path):
            raise InputError(
                f"folder {str(folder)!r} is a model folder and not a bundle: look at it with "
                f"`ohmformer inspect --model {folder}`, or give a folder that `ohmformer calibrate --out` wrote"
            )
        if path.is_symlink() or not path.is_file():
            raise InputError(f"folder {str(folder)!r} is not a bundle, it has no {name}: copy the whole bundle again")
        if path.stat().st_size > _LARGEST_MANIFEST:
            raise InputError(f"bundle {str(folder)!r}: {name} is larger than any that is written: make it again")
    text = (folder / MANIFEST).read_bytes()
    if (folder / SEAL).read_bytes() != _seal_of(text).encode("ascii"):
        raise InputError(
            f"bundle {str(folder)!r}: {MANIFEST} is not what was written, {SEAL} differs: copy the whole bundle again"
        )
    return text


def _seal_of(manifest: bytes) -> str:
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n"


def _entries(folder: Path, manifest: Mapping[str, Any]) -> dict[str, Entry]:
    what = f"bundle {str(folder)!r}: {MANIFEST}"
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise InputError(f"{what} lists no files: make the bundle again")
    entries = {}
    for name, values in files.items():
        if not _inside(name):
            raise InputError(
                f"{what} names {shown(name)}, which is not a path inside the bundle: make the bundle again"
            )
        sha256, size = (values.get("sha256"), values.get("size")) if isinstance(values, dict) else (None, None)
        if not isinstance(sha256, str) or not _HEX.fullmatch(sha256) or type(size) is not int or size < 0:
            raise InputError(f"{what} gives no SHA-256 and size of {name!r}: make the bundle again")
        entries[name] = Entry(sha256, size)
    return entries


def _inside(name: str) -> bool:
    """Whether a name is a plain relative path, the same on every system."""
    parts = name.split("/")
    plain = len(name) <= _LONGEST_NAME and all(part not in ("", ".", "..") for part in parts)
    return plain and not re.search(r"[\\:\x00-\x1f\x7f-\x9f]", name)
