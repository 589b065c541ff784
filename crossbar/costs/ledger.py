"""Integer counts of what the hardware would do, gathered while a model runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

from crossbar.errors import InputError, require_whole

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.hooks import RemovableHandle

_active: ContextVar[tuple[Ledger, ...]] = ContextVar("active_ledgers", default=())

COUNTERS = (
    "row_activations", "query_drives", "column_activations", "dac_conversions", "adc_conversions", "cell_macs",
    "tile_reads", "attended_pairs", "digital_pairs", "row_writes", "write_pulses", "events", "events_dropped",
    "hops_x", "hops_y", "barriers", "synaptic_events", "neuron_updates", "spikes", "digital_macs", "special_functions",
    "sram_bytes", "dram_bytes", "expired_row_reads", "lost_pairs",
)  # fmt: skip
"""Every counter that this project books.

``row_activations`` are word lines driven by a layer's inputs and V-tile rows driven by attention weights,
``query_drives`` K-tile lines driven by queries. ``tile_reads`` are products of one tile with one vector.
``attended_pairs`` are those of a query and a key in analog rows, ``digital_pairs`` those with a key in a digital
buffer. ``write_pulses`` are writes of one cell, ``hops_x`` and ``hops_y`` steps of one event from tile to tile,
``synaptic_events`` spikes times the synapses that each meets, ``special_functions`` exponentials, roots, reciprocals
and activation functions of one number.
"""

PAIRS = ("attended_pairs", "digital_pairs")
"""Counters of pairs of a query and a key, wherever they are computed."""

WHOLES = ("tile_reads", *PAIRS)
"""Counters of whole products, whose terms are counted beside them: an all-in price may take the place of the terms."""

OUTCOMES = ("events_dropped", "expired_row_reads", "lost_pairs")
"""Counters that say what became of work that is counted elsewhere, or was not done: they take nothing of their own."""


class Counter(NamedTuple):
    """What is counted: a name and, for conversions, the converter's bits (None where bits do not apply)."""

    name: str
    bits: int | None = None

    def __str__(self) -> str:
        return self.name if self.bits is None else f"{self.name}_{self.bits}bit"


class Ledger:
    """Counts while the model runs: ``with Ledger() as ledger: model(x)``.

    Counts are Python integers by layer and counter (`COUNTERS`); prices are applied to them afterwards
    (`crossbar.price`). Ledgers nest: each open one counts, in the thread that opened it. Analog layers, gated
    attention, analog memory and the controller book by themselves.

    Args:
        model: a model whose digital layers (linear layers, embeddings, norms, activation functions) are counted too,
            by `crossbar.costs.digital_layers`. A kind of layer with parameters that it does not know is named in
            ``uncounted``.

    Attributes:
        by_layer: counts.
        uncounted: digital layers of unknown kinds, by name: the kind.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self.by_layer: defaultdict[str, defaultdict[Counter, int]] = defaultdict(lambda: defaultdict(int))
        self.uncounted: dict[str, str] = {}
        self._model = model
        self._hooks: list[RemovableHandle] = []
        self._token: Token[tuple[Ledger, ...]] | None = None

    def __enter__(self) -> Ledger:
        if self._token is not None:
            raise InputError("this ledger is open already: open another Ledger inside it")
        if self._model is not None:
            from crossbar.costs.digital_layers import watch

            self._hooks, self.uncounted = watch(self._model, self._add_here)
        self._token = _active.set((*_active.get(), self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._token is not None
        _active.reset(self._token)
        self._token = None
        for hook in self._hooks:
            hook.remove()

    def add(self, layer: str, name: str, count: int, bits: int | None = None) -> None:
        """Add ``count`` of counter ``name`` (with a converter's ``bits``) for ``layer``."""
        self.by_layer[layer][Counter(name, bits)] += int(count)

    def _add_here(self, layer: str, name: str, count: int) -> None:
        """`add`, unless a thread runs the model in which this ledger is not open."""
        if self in _active.get():
            self.add(layer, name, count)

    def totals(self) -> dict[str, int]:
        """Counts by name, summed over layers and bits."""
        totals: dict[str, int] = defaultdict(int)
        for counts in self.by_layer.values():
            for counter, count in counts.items():
                totals[counter.name] += count
        return dict(totals)

    @property
    def pairs(self) -> int:
        """Pairs of a query and a key that attention computed, on analog rows and in digital buffers."""
        totals = self.totals()
        return sum(totals.get(name, 0) for name in PAIRS)

    def per_token(self, tokens: int) -> dict[str, dict[str, float]]:
        """Counts by layer as `to_dict` gives them, for each of ``tokens`` tokens on average.

        Raises:
            InputError: for fewer than one token.
        """
        require_whole("tokens", tokens, least=1)
        return {layer: {name: n / tokens for name, n in counts.items()} for layer, counts in self.to_dict().items()}

    def to_dict(self) -> dict[str, dict[str, int]]:
        """Counts by layer, with keys such as ``adc_conversions`` or, where bits are known, ``adc_conversions_8bit``."""
        return {
            layer: {str(counter): n for counter, n in sorted(counts.items(), key=str)}
            for layer, counts in self.by_layer.items()
        }


def counting() -> bool:
    """Whether a ledger is open, so that callers can skip working out counts that nobody reads."""
    return bool(_active.get())


@contextmanager
def unbooked() -> Iterator[None]:
    """Count nothing meanwhile, in this thread: for work that an emulation does and hardware would not."""
    token = _active.set(())
    try:
        yield
    finally:
        _active.reset(token)


def book(layer: str, name: str, count: int, bits: int | None = None) -> None:
    """Add ``count`` of counter ``name`` (with a converter's ``bits``) for ``layer`` to every open ledger."""
    for ledger in _active.get():
        ledger.add(layer, name, count, bits)
