"""What each step of a recipe costs: digital operations and conversions while the model runs, and fitting it once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from crossbar import AnalogLinear, Hardware
from crossbar.costs.counts import macs_of


class Fitting(NamedTuple):
    """What fitting steps on a chip took.

    Attributes:
        conversions: of DACs and ADCs, in reads of the chip.
        cells: that were written again.
        seconds: of computing.
    """

    conversions: int = 0
    cells: int = 0
    seconds: float = 0.0


class Cost(NamedTuple):
    """What an arm takes that the arm above does not, on the first chip at the first time.

    A token is a vector that each weight on tiles meets, on average: in a transformer without experts a token, padding
    among them. What any read of tiles takes in digital, such as adding up row tiles, cancels.

    Attributes:
        digital_macs: multiply-accumulates in digital, a token.
        share: these as a part of the multiply-accumulates of the layers on tiles.
        conversions: of DACs and ADCs while the model runs, a token; below 0 where an arm has fewer.
        fit_conversions: of DACs and ADCs, to fit the arm's steps once.
        cells: written: all of the chip for the arm ``analog``, or those that a step writes again.
    """

    digital_macs: float
    share: float
    conversions: float
    fit_conversions: int
    cells: int


class Costs:
    """Finds the cost of each arm, given what fitting steps took and what the first evaluation of each arm drives.

    Args:
        hardware: the tiles.

    Attributes:
        of: each arm's.
        seconds: that fitting each arm's steps took.
    """

    def __init__(self, hardware: Hardware) -> None:
        self.of: dict[str, Cost] = {}
        self.seconds: dict[str, float] = {}
        self._hardware = hardware
        self._fittings: list[tuple[int, Fitting]] = []  # by place of the step, that no arm has yet
        self._base: Mapping[str, int] = {}
        self._before: Mapping[str, int] = {}

    def wants(self, arm: str) -> bool:
        """Whether an arm has no cost yet, and could have one: ``analog`` comes first, since others are beside it."""
        return arm not in self.of and (arm == "analog" or "analog" in self.of)

    def fitted(self, place: int, fitting: Fitting) -> None:
        """The step at a place of the recipe was fitted."""
        self._fittings.append((place, fitting))

    def scored(self, arm: str, counts: Mapping[str, int], place: int, layers: Iterable[AnalogLinear]) -> None:
        """An arm was scored, after the steps up to a place (-1: none); it has no cost if no layer on tiles was driven.

        Args:
            arm: its name.
            counts: totals of the layers on tiles in its evaluation, by counter.
            place: of the last step before it.
            layers: on tiles.
        """
        if not counts.get("cell_macs"):
            return
        own = [fitting for at, fitting in self._fittings if at <= place]
        self._fittings = [(at, fitting) for at, fitting in self._fittings if at > place]
        sizes = [(layer.in_features * layer.out_features, layer.cells.cells_a_weight) for layer in layers]
        cells = sum(fitting.cells for fitting in own)
        if not self.of:
            self._base = self._before = counts
            cells = sum(weights * each for weights, each in sizes)
        macs = macs_of(self._hardware, self._base["cell_macs"])
        tokens = macs / sum(weights for weights, _ in sizes)
        digital = counts["digital_macs"] - self._before["digital_macs"]
        conversions = conversions_of(counts) - conversions_of(self._before)
        fits = sum(fitting.conversions for fitting in own)
        self.of[arm] = Cost(digital / tokens, digital / macs, conversions / tokens, fits, cells)
        self.seconds[arm] = sum(fitting.seconds for fitting in own)
        self._before = counts


def conversions_of(counts: Mapping[str, int]) -> int:
    """DAC and ADC conversions among totals by counter."""
    return counts.get("dac_conversions", 0) + counts.get("adc_conversions", 0)
