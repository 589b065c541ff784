"""Integer counts of what the hardware would do, gathered while a model runs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import torch

from crossbar.errors import InputError, require_whole

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.utils.hooks import RemovableHandle

_active: ContextVar[tuple[Ledger, ...]] = ContextVar("active_ledgers", default=())

_MOST_WAITING = 4096  # numbers on a device that a ledger keeps until it is read: bounds memory

COUNTERS = (
    "row_activations", "query_drives", "column_activations", "dac_conversions", "adc_conversions", "cell_macs",
    "tile_reads", "attended_pairs", "digital_pairs", "row_writes", "write_pulses", "events", "events_dropped",
    "hops_x", "hops_y", "barriers", "synaptic_events", "neuron_updates", "spikes", "digital_macs", "special_functions",
    "sram_bytes", "dram_bytes", "hop_bytes", "expired_row_reads", "lost_pairs", "screened_pairs", "row_spikes",
    "comparisons", "ramp_steps", "waited_comparisons", "screening_queries", "screening_drives", "screening_reads",
)  # fmt: skip
"""Every counter that this project books.

``row_activations`` are word lines driven by a layer's inputs and V-tile rows driven by attention weights,
``query_drives`` K-tile lines driven by queries. ``tile_reads`` are products of one tile with one vector.
``attended_pairs`` are those of a query and a key in analog rows, ``digital_pairs`` those with a key in a digital
buffer. ``write_pulses`` are writes of one cell, ``hops_x`` and ``hops_y`` steps of one event from tile to tile,
``hop_bytes`` bytes times hops between the cores of a floor plan,
``synaptic_events`` spikes times the synapses that each meets, ``special_functions`` exponentials, roots, reciprocals
and activation functions of one number. ``screened_pairs`` are those of a query and a row whose line met a comparator,
``row_spikes`` rows that passed, ``comparisons`` decisions of comparators, ``ramp_steps`` steps of the ramps of all
tiles. ``screening_queries`` are queries of a head that found rows to choose from, with the bits of their pulses,
``screening_drives`` how often these drove the columns and ``waited_comparisons`` the comparisons that they waited for
one after another; ``screening_reads`` are those of the ``tile_reads`` that compare and convert nothing.
"""

PAIRS = ("attended_pairs", "digital_pairs")
"""Counters of pairs of a query and a key, wherever they are computed."""

WHOLES = ("tile_reads", *PAIRS)
"""Counters of whole products, whose terms are counted beside them: an all-in price may take the place of the terms."""

OUTCOMES = (
    "events_dropped", "expired_row_reads", "lost_pairs", "screened_pairs", "row_spikes", "waited_comparisons",
    "screening_queries", "screening_drives", "screening_reads",
)  # fmt: skip
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
    attention, analog memory and the controller book by themselves. What depends on numbers that a GPU works out is
    asked for when the ledger is read, so that no forward pass waits for it.

    Args:
        model: a model whose digital layers (linear layers, embeddings, norms, activation functions) are counted too,
            by `crossbar.costs.digital_layers`. A kind of layer with parameters that it does not know is named in
            ``uncounted``.

    Attributes:
        uncounted: digital layers of unknown kinds, by name: the kind.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._counts: defaultdict[str, defaultdict[Counter, int]] = defaultdict(lambda: defaultdict(int))
        self._waiting: list[tuple[Tensor, Callable[[list[int]], None]]] = []
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
        self._counts[layer][Counter(name, bits)] += int(count)

    def add_later(self, layer: str, numbers: Tensor, then: Callable[[list[int]], None]) -> None:
        """Let ``then`` book what ``numbers`` tell (`book_later`) when this ledger is read."""
        self._counts[layer]  # layers are in the order of their work
        self._waiting.append((numbers, then))
        if len(self._waiting) >= _MOST_WAITING:
            self._settle()

    @property
    def by_layer(self) -> defaultdict[str, defaultdict[Counter, int]]:
        """Counts; where some are on a GPU still, they are waited for."""
        self._settle()
        return self._counts

    def _settle(self) -> None:
        """Book what waits: all numbers of a device are copied at once."""
        waiting, self._waiting = self._waiting, []
        where = dict.fromkeys(numbers.device for numbers, _ in waiting)
        found = {
            device: iter(torch.cat([numbers for numbers, _ in waiting if numbers.device == device]).tolist())
            for device in where
        }
        token = _active.set((self,))
        try:
            for numbers, then in waiting:
                then([next(found[numbers.device]) for _ in range(len(numbers))])
        finally:
            _active.reset(token)

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


def book_later(layer: str, numbers: Tensor, then: Callable[[list[int]], None]) -> None:
    """Have every open ledger book what depends on numbers of a device, once somebody reads the ledger.

    Args:
        layer: whose counts they are.
        numbers: int64 [n], on any device.
        then: books, given the numbers; it should hold no tensors, which would stay in memory.
    """
    for ledger in _active.get():
        ledger.add_later(layer, numbers, then)
