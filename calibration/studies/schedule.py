"""In which order cells are computed: what shares work stays together, on one worker as long as there is enough."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from calibration.studies.plan import Cell
from calibration.studies.worker import Unit


class Schedule:
    """Pending cells as units, chip by chip.

    Args:
        cells: what is to be computed.
        setups: plain values by id.
    """

    def __init__(self, cells: Iterable[Cell], setups: Mapping[str, dict[str, Any]]) -> None:
        self._waiting: dict[str, deque[Unit]] = {}
        chips: dict[tuple[str, int | None], list[float | None]] = {}
        for cell in cells:
            chips.setdefault((cell.setup, cell.seed), []).append(cell.seconds)
        for (setup, seed), seconds in chips.items():
            self._waiting.setdefault(setup, deque()).append(Unit(setup, setups[setup], seed, tuple(seconds)))
        self._new = deque(self._waiting)  # setups that no worker has at hand
        self._at_hand: dict[int, str] = {}

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def take(self, worker: int) -> Unit | None:
        """The next unit for a worker: of the setup it has at hand, else of one that nobody has, else of the longest."""
        setup = self._at_hand.get(worker)
        while setup not in self._waiting and self._new:
            setup = self._new.popleft()
        if setup not in self._waiting:  # what is left is at hand elsewhere: no more setups than workers
            setup = max(self._waiting, key=lambda key: len(self._waiting[key]), default=None)
        if setup is None:
            return None
        self._at_hand[worker] = setup
        units = self._waiting[setup]
        unit = units.popleft()
        if not units:
            del self._waiting[setup]
        return unit

    def give_back(self, unit: Unit, left: tuple[float | None, ...]) -> None:
        """Put back what is left of a unit, behind the others: what is lost again and again is then seldom one cell."""
        if left:
            rest = Unit(unit.id, unit.setup, unit.seed, left)
            self._waiting.setdefault(unit.id, deque()).append(rest)
            self._new.append(unit.id)
