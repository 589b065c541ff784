"""What a long job has found so far, on disk, so that the same job goes on from there after it was stopped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crossbar.files import write_whole

Counts = dict[str, dict[str, int]]
"""Totals of counters by part, as in `calibration.Emulation.counts`."""


class Scored(TypedDict):
    """One evaluation: the task's metrics, and what it drove and converted where that was counted."""

    metrics: dict[str, float]
    counts: Counts


class Fit(TypedDict):
    """One fitted step: its tensors, and what measuring them drove and converted where that was counted."""

    tensors: dict[str, Tensor]
    counts: Counts


@dataclass(frozen=True)
class Journal:
    """Results by key; each is kept in a file that appears whole or not at all, or nowhere if there is no folder.

    The folder belongs to one job: its name holds a hash of everything that decides the job's result, so that nothing
    else finds what is in it.

    Attributes:
        folder: made when the first result is kept; None keeps nothing.
        found: keys of results that were taken from the folder instead of computed.
    """

    folder: Path | None = None
    found: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Number of results on disk."""
        if self.folder is None or not self.folder.is_dir():
            return 0
        return sum(path.suffix in (".json", ".safetensors") for path in self.folder.iterdir())

    def score(self, key: str, compute: Callable[[], Scored]) -> Scored:
        """The evaluation called ``key``: as it was found before, or computed and kept."""
        path = self._path(key, ".json")
        if path is not None and path.is_file():
            try:
                kept: Scored = json.loads(path.read_text(encoding="utf-8"))
            except ValueError:  # a power failure may leave an empty file
                path.unlink()
            else:
                self.found.append(key)
                return kept
        scored = compute()
        if path is not None:
            path.parent.mkdir(exist_ok=True)
            write_whole(path, lambda partial: partial.write_text(json.dumps(scored), encoding="utf-8"))
        return scored

    def fit(self, key: str, compute: Callable[[], Fit]) -> Fit:
        """The fitted step called ``key``: as it was found before, or computed and kept."""
        path = self._path(key, ".safetensors")
        if path is not None and path.is_file():
            try:
                with safe_open(path, framework="pt", device="cpu") as file:
                    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
                    counts: Counts = json.loads(file.metadata()["counts"])
            except SafetensorError:
                path.unlink()
            else:
                self.found.append(key)
                return {"tensors": tensors, "counts": counts}
        fit = compute()
        if path is not None:
            # Copies, because safetensors refuses tensors that share memory.
            tensors = {name: tensor.detach().clone().contiguous() for name, tensor in fit["tensors"].items()}
            counts_text = {"counts": json.dumps(fit["counts"])}
            path.parent.mkdir(exist_ok=True)
            write_whole(path, lambda partial: save_file(tensors, partial, counts_text))
            path.with_suffix(".state").unlink(missing_ok=True)
        return fit

    def state(self, key: str) -> Path | None:
        """Where a fit that is not done yet keeps its state; None if there is no folder."""
        return self._path(key, ".state")

    def remove(self) -> None:
        """Forget everything."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, key: str, suffix: str) -> Path | None:
        return None if self.folder is None else self.folder / f"{key.replace(' ', '-')}{suffix}"
