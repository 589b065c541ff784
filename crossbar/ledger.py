"""Integer counts of what the hardware would do, gathered while a model runs."""

from __future__ import annotations

from collections import defaultdict
from contextvars import ContextVar, Token
from types import TracebackType
from typing import NamedTuple

from crossbar.errors import InputError

_active: ContextVar[tuple[Ledger, ...]] = ContextVar("active_ledgers", default=())


class Counter(NamedTuple):
    """What is counted: a name and, for conversions, the converter's bits (None where bits do not apply)."""

    name: str
    bits: int | None = None


class Ledger:
    """Counts while the model runs: ``with Ledger() as ledger: model(x)``.

    Counts are Python integers by layer and counter; prices are applied to them afterwards. Ledgers nest: each open one
    counts. Counter names in use (gating.md): ``row_activations``, ``column_activations``, ``dac_conversions``,
    ``adc_conversions`` (with bits), ``cell_macs``, ``digital_macs``, ``row_writes``, ``write_pulses``
    (writes of one cell, where programming verifies).
    """

    def __init__(self) -> None:
        self.by_layer: defaultdict[str, defaultdict[Counter, int]] = defaultdict(lambda: defaultdict(int))
        self._token: Token[tuple[Ledger, ...]] | None = None

    def __enter__(self) -> Ledger:
        if self._token is not None:
            raise InputError("this ledger is open already: open another Ledger inside it")
        self._token = _active.set((*_active.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._token is not None
        _active.reset(self._token)
        self._token = None

    def totals(self) -> dict[str, int]:
        """Counts by name, summed over layers and bits."""
        totals: dict[str, int] = defaultdict(int)
        for counts in self.by_layer.values():
            for counter, count in counts.items():
                totals[counter.name] += count
        return dict(totals)

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Counts by layer, with keys such as ``adc_conversions`` or, where bits are known, ``adc_conversions_8bit``."""
        return {
            layer: {
                c.name if c.bits is None else f"{c.name}_{c.bits}bit": n for c, n in sorted(counts.items(), key=str)
            }
            for layer, counts in self.by_layer.items()
        }


def counting() -> bool:
    """Whether a ledger is open, so that callers can skip working out counts that nobody reads."""
    return bool(_active.get())


def book(layer: str, name: str, count: int, bits: int | None = None) -> None:
    """Add ``count`` of counter ``name`` (with a converter's ``bits``) for ``layer`` to every open ledger."""
    for ledger in _active.get():
        ledger.by_layer[layer][Counter(name, bits)] += int(count)
