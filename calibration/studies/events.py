"""What an engine is, and what it tells of its workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from calibration.studies.worker import Failed, Scored, Unit


@dataclass(frozen=True)
class Ready:
    """A worker waits for its first unit."""


@dataclass(frozen=True)
class Finished:
    """A worker has come to the end of its unit."""


@dataclass(frozen=True)
class Lost:
    """A worker is gone, with what it was computing; the engine starts another in its place.

    Attributes:
        reason: what is known of it.
    """

    reason: str


Event = Ready | Scored | Failed | Finished | Lost


class Engine(Protocol):
    """Workers by number, each with one unit at a time."""

    @property
    def workers(self) -> int:
        """How many there are."""

    def submit(self, worker: int, unit: Unit) -> None:
        """Give a worker that is ready or has finished its next unit."""

    def events(self, timeout: float) -> Iterable[tuple[int, Event]]:
        """What happened, by worker, waiting up to ``timeout`` seconds for something to happen."""

    def close(self) -> None:
        """Stop all workers at once."""
