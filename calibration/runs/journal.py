"""What a long job has found so far, on disk, so that the same job goes on from there after it was stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from glob import escape
from pathlib import Path
from typing import TypedDict, TypeVar

from filelock import FileLock, Timeout
from torch import Tensor

from calibration.storage import checked_files
from crossbar.errors import InputError
from crossbar.storage.tensor_files import as_os_error

Counts = dict[str, dict[str, int]]
"""Totals of counters by part, as in `calibration.Emulation.counts`."""
_DONE, _REMOVED = ".done", ".removed"
_T = TypeVar("_T")


class Evaluation(TypedDict):
    """One evaluation: the task's metrics, and what it drove and converted where that was counted."""

    metrics: dict[str, float]
    counts: Counts


class Fit(TypedDict):
    """One fitted step: its tensors, what measuring them drove and converted, and the seconds that it took."""

    tensors: dict[str, Tensor]
    counts: Counts
    seconds: float


@dataclass(frozen=True)
class Journal:
    """Results by key; each is kept in a file that appears whole or not at all, or nowhere if there is no folder.

    The folder belongs to one job: its name holds a hash of everything that decides the job's result, so that nothing
    else finds what is in it. A file that is not what was written, its checksum says, is computed again.

    Attributes:
        folder: made when the first result is kept; None keeps nothing.
        found: keys of results that were taken from the folder instead of computed.
        notify: told, in a sentence, of each damaged result.
        through: whether files are written through to the disk, so that they are there after a power failure too.
    """

    folder: Path | None = None
    found: list[str] = field(default_factory=list)
    notify: Callable[[str], None] | None = None
    through: bool = True

    def __len__(self) -> int:
        """Number of results on disk."""
        if self.folder is None or not self.folder.is_dir():
            return 0
        return sum(path.suffix in (".json", ".safetensors") for path in self.folder.iterdir())

    def score(self, key: str, compute: Callable[[], Evaluation]) -> Evaluation:
        """The evaluation called ``key``: as it was found before, or computed and kept.

        Raises:
            InputError: where it cannot be kept, such as on a full disk.
        """
        path = self._path(key, ".json")

        def read(path: Path) -> Evaluation:
            kept_key, values = checked_files.read_values(path)
            scored: Evaluation = values
            return _of(key, kept_key, scored)

        kept = self._kept(key, path, read)
        if kept is not None:
            return kept
        scored = compute()
        if path is not None:
            self._keep(lambda: checked_files.write_values(path, [key, scored], through=self.through))
        return scored

    def fit(self, key: str, compute: Callable[[], Fit]) -> Fit:
        """The fitted step called ``key``: as it was found before, or computed and kept.

        Raises:
            InputError: where it cannot be kept, such as on a full disk.
        """
        path = self._path(key, ".safetensors")

        def read(path: Path) -> Fit:
            tensors, told = checked_files.read_tensors(path)
            counts, seconds = json.loads(told["counts"]), float(told["seconds"])
            fit: Fit = {"tensors": tensors, "counts": counts, "seconds": seconds}
            return _of(key, told["key"], fit)

        kept = self._kept(key, path, read)
        if kept is not None:
            return kept
        fit = compute()
        if path is not None:
            told = {"key": key, "counts": json.dumps(fit["counts"]), "seconds": repr(fit["seconds"])}
            self._keep(lambda: checked_files.write_tensors(path, fit["tensors"], told, through=self.through))
            path.with_suffix(".state").unlink(missing_ok=True)
        return fit

    def state(self, key: str) -> Path | None:
        """Where a fit that is not done yet keeps its state; None if there is no folder."""
        return self._path(key, ".state")

    def mark_done(self) -> None:
        """Say that what the job is for stands under its name from now on, so that `tidy` may remove the folder."""
        folder = self.folder
        if folder is not None and folder.is_dir():
            self._keep((folder / _DONE).touch)

    def remove(self) -> None:
        """Forget everything."""
        if self.folder is not None:
            _remove(self.folder)

    def _path(self, key: str, suffix: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key.replace(' ', '-')}{suffix}"

    def _kept(self, key: str, path: Path | None, read: Callable[[Path], _T]) -> _T | None:
        """A result that is on disk and whole."""
        if path is None or not path.is_file():
            return None
        try:
            kept = read(path)
        except (ValueError, KeyError, TypeError, OSError):
            path.unlink(missing_ok=True)
            if self.notify is not None:
                self.notify(f"the result {key!r} in {str(path.parent)!r} is damaged and is computed again")
            return None
        self.found.append(key)
        return kept

    def _keep(self, write: Callable[[], None]) -> None:
        assert self.folder is not None
        try:
            self.folder.mkdir(exist_ok=True)
            write()
        except (OSError, InputError) as error:
            refused = as_os_error(error)
            raise InputError(
                f"results cannot be kept in {str(self.folder)!r} ({getattr(refused, 'strerror', None) or error}): make "
                "room and access there, and the same call goes on from here"
            ) from error


def _of(key: str, kept: str, result: _T) -> _T:
    """A result, if it is kept under its own name."""
    if kept != key:
        raise ValueError(f"it is of {kept!r}")
    return result


@contextmanager
def only_run(out: Path) -> Iterator[None]:
    """Keep other runs off a folder that is to be written, until this one ends, in whatever way.

    Raises:
        InputError: when another run has it.
    """
    lock = _lock(out)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(
            f"{str(out)!r} is being made by another run: wait until that ends, or give another path"
        ) from None
    except OSError as error:
        raise InputError(
            f"folder {str(out.parent)!r} cannot be written to ({error.strerror or error}): give another path"
        ) from error
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # while it is held: who waits for it sees that it is gone
        lock.release()


def tidy(out: Path) -> None:
    """Remove what a run left beside ``out`` that was killed when that was already whole."""
    with suppress(InputError), only_run(out):
        for left in out.parent.glob(f".{escape(out.name)}.*.progress"):
            if (left / _DONE).is_file() or not any(left.iterdir()):
                _remove(left)
        for left in out.parent.glob(f".{escape(out.name)}.*{_REMOVED}"):
            shutil.rmtree(left, ignore_errors=True)


def _lock(out: Path) -> FileLock:
    return FileLock(out.parent.resolve() / f".{out.name}.lock", timeout=0)


def _remove(folder: Path) -> None:
    """Remove a folder under another name, so that nobody goes on from a part of it after a kill."""
    removed = folder.with_suffix(_REMOVED)
    shutil.rmtree(removed, ignore_errors=True)
    with suppress(OSError):
        folder.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)
