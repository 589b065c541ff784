"""Climbs that compute nothing: which results a job has, before and after there are any."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from calibration.runs.climb import Bench
from calibration.runs.journal import Evaluation, Fit, Journal


@dataclass(frozen=True)
class Rehearsal(Journal):
    """Notes the keys of all results, in their order, and computes none.

    Attributes:
        keys: of the results so far.
    """

    keys: list[str] = field(default_factory=list)

    def score(self, key: str, compute: Callable[[], Evaluation]) -> Evaluation:
        """Nothing, of a key."""
        self.keys.append(key)
        return {"metrics": {}, "counts": defaultdict(dict)}

    def fit(self, key: str, compute: Callable[[], Fit]) -> Fit:
        """Nothing, of a key."""
        self.keys.append(key)
        return {"tensors": {}, "counts": {}, "seconds": 0.0}


class NoBench(Bench):
    """Has no model: for climbs that compute nothing."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        self.model = nn.Module()

    def write(self, *_: Any) -> None:
        """Nothing."""

    def program(self, *_: Any, **__: Any) -> None:
        """Nothing."""

    def uncalibrate(self) -> None:
        """Nothing."""

    def age(self, *_: Any) -> None:
        """Nothing."""

    def apply(self, *_: Any) -> None:
        """Nothing."""

    def catch_up(self) -> None:
        """Nothing."""

    def be_read(self, *_: Any) -> None:
        """Nothing."""
