"""What a priced ledger says: energy by component, by layer and by token, and what it leaves out."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pandas as pd

_COMPONENTS = {
    "adc_conversions": "ADC",
    "dac_conversions": "DAC and row drive",
    "row_activations": "DAC and row drive",
    "query_drives": "DAC and row drive",
    "column_activations": "column sensing",
    "cell_macs": "cells",
    "tile_reads": "tiles, all-in",
    "attended_pairs": "attention, all-in",
    "digital_pairs": "attention, all-in",
    "row_writes": "writes",
    "write_pulses": "writes",
    "digital_macs": "digital logic",
    "special_functions": "digital logic",
    "sram_bytes": "SRAM",
    "dram_bytes": "DRAM",
    "comparisons": "comparators",
    "ramp_steps": "comparators",
    "synaptic_events": "synapses",
    "neuron_updates": "neurons",
    "spikes": "neurons",
}


def component_of(counter: str) -> str:
    """The part of a chip that a counter belongs to; what moves events is the network."""
    return _COMPONENTS.get(counter, "network")


class Line(NamedTuple):
    """One counter of one layer, priced: ``pj`` is between ``low`` and ``high``."""

    layer: str
    counter: str
    component: str
    number: int
    pj: float
    low: float
    high: float
    evidence: str
    scope: str


class Energy(NamedTuple):
    """Picojoules, with bounds where prices have them."""

    pj: float = 0.0
    low: float = 0.0
    high: float = 0.0

    def plus(self, line: Line) -> Energy:
        """The sum with a line."""
        return Energy(self.pj + line.pj, self.low + line.low, self.high + line.high)


@dataclass(frozen=True)
class EnergyReport:
    """Energy of the counts of a ledger by a price book.

    Attributes:
        book: the price book's name.
        lines: every priced counter of every layer.
        unpriced: counters without a price, and how many were counted; their energy is not in any sum.
        covered: counters that an all-in price, or a price that includes them, has paid for.
        tokens: how many tokens the counts are of; None: not known.
        notes: what the book says about itself.
    """

    book: str
    lines: tuple[Line, ...]
    unpriced: dict[str, int] = field(default_factory=dict)
    covered: dict[str, int] = field(default_factory=dict)
    tokens: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def total(self) -> Energy:
        """All that is priced."""
        return self._sums("")[""] if self.lines else Energy()

    def by_component(self) -> dict[str, Energy]:
        """Energy of ADC, DAC and row drive, cells, digital logic, SRAM, DRAM, writes, network, …; largest first."""
        return _sorted(self._sums("component"))

    def by_layer(self) -> dict[str, Energy]:
        """Energy of each layer."""
        return self._sums("layer")

    def by_evidence(self) -> dict[str, Energy]:
        """How much of the energy rests on measured, simulated, derived and assumed prices."""
        return _sorted(self._sums("evidence"))

    def table(self) -> pd.DataFrame:
        """One row for each priced counter of each layer, with the fields of `Line`."""
        import pandas as pd

        return pd.DataFrame(self.lines, columns=list(Line._fields))

    def to_dict(self) -> dict[str, Any]:
        """Plain values: sums, each with bounds in pJ, and what is unpriced."""
        sums = {"by_component": self.by_component(), "by_layer": self.by_layer(), "by_evidence": self.by_evidence()}
        return {
            "book": self.book,
            "total": self.total._asdict(),
            **{name: {key: energy._asdict() for key, energy in found.items()} for name, found in sums.items()},
            "unpriced": self.unpriced,
            "covered": self.covered,
            "tokens": self.tokens,
            "pj_per_token": None if self.tokens is None else self.total.pj / self.tokens,
            "notes": list(self.notes),
        }

    def only(self, layers: set[str]) -> EnergyReport:
        """The report of some layers; what is unpriced stays that of all."""
        return dataclasses.replace(self, lines=tuple(line for line in self.lines if line.layer in layers))

    def _sums(self, by: str) -> dict[str, Energy]:
        sums: dict[str, Energy] = {}
        for line in self.lines:
            key = getattr(line, by) if by else ""
            sums[key] = sums.get(key, Energy()).plus(line)
        return sums


def _sorted(sums: dict[str, Energy]) -> dict[str, Energy]:
    return dict(sorted(sums.items(), key=lambda item: -item[1].pj))
