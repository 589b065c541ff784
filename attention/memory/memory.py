"""Keys and values in analog memory: tokens are appended, age, are read where a pattern opens rows, and evicted."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from attention.activation import Saturating
from attention.kernel.analog import ReadNoise, attend_analog
from attention.kernel.analog_booking import book_tokens
from attention.kernel.blocks import Options, merge, shared_heads
from attention.kernel.coarse import book_screening, lines_of_rows
from attention.kernel.fused import Kernels, asked_for, block_for, why_not
from attention.kernel.token_rows import TokenRows
from attention.memory.address_map import AddressMap
from attention.memory.booking import book_row_reads, book_row_writes
from attention.memory.description import Memory
from attention.memory.open_rows import (
    OpenRows,
    candidates,
    chosen_rows,
    open_chunks,
    open_rows,
    resident_pairs,
    taken_rows,
)
from attention.memory.report import MemoryReport
from attention.memory.row_tiles import ProgrammedRows, RowTiles
from attention.patterns.base import Pattern, Union
from attention.patterns.on_device import is_chosen
from attention.patterns.resident import Beyond
from attention.patterns.screening import by_rows, is_screening, screen
from attention.patterns.tokens import Dense, Sinks
from attention.patterns.windows import LocalWindow
from crossbar import presets
from crossbar.costs.ledger import book, book_later, counting
from crossbar.devices import GainCell
from crossbar.errors import InputError, require_number
from crossbar.native import gpu
from crossbar.random.streams import Key


class AnalogMemory:
    """The K and V tiles of one attention layer, one token a row, for each sequence of a batch and each K/V head.

    `append` writes a row in K and in V for each token and head; `read` is attention on the rows that a pattern opens,
    with the noise, converter range and counts of those rows alone. Rows keep the error of their own write and have
    their own age. Query heads that share a key head share its rows. While a `crossbar.Ledger` is open, everything is
    booked under ``name``: ``row_writes``, ``write_pulses`` (one a cell), activations and conversions, and, where they
    happen, ``expired_row_reads`` and ``lost_pairs``.

    Args:
        memory: the description; its capacity is a number.
        name: keys the random draws and the counts: unique in a model.
        stream: more of the key, such as which cache of a model this is.

    Attributes:
        tokens: appended so far.
        now: seconds.
        writes: how often each row was written, int64 [capacity].
        reads: index of the next read.
        digital: whether the tokens are in a digital buffer, whose reads and writes are booked as such.

    Raises:
        InputError: for hardware that token rows do not have and a description without a capacity.

    >>> import torch
    >>> from attention import AnalogMemory, LocalWindow, Memory
    >>> from crossbar import presets
    >>> memory = AnalogMemory(Memory(presets.gain_cell(), capacity=8, token_seconds=1e-3))
    >>> x = torch.ones(1, 2, 12, 4)
    >>> memory.append(x, x)
    >>> memory.read(x, LocalWindow(8).causal())[0].shape, memory.report().evicted
    (torch.Size([1, 2, 12, 4]), 4)
    """

    def __init__(self, memory: Memory, name: str = "memory", stream: Key = ()) -> None:
        if memory.capacity is None:
            raise InputError("a memory needs a capacity: give the number of token rows of each head")
        self.memory, self.name, self.hardware = memory, name, memory.hardware
        self.addresses = AddressMap(memory.capacity, memory.hardware.tile.rows, memory.sinks, memory.placement)
        with torch.inference_mode(False):  # it is counted up whenever tokens come
            self.writes = torch.zeros(memory.capacity, dtype=torch.int64, device="cpu")
        self._key: Key = (memory.seed, name, *stream)
        self.digital = False
        self._group = 1
        self._guard = _guard(memory, name, stream)
        self.reset()

    def reset(self) -> None:
        """Forget all tokens, and start time and reads again; rows keep the count of their writes."""
        memory = self.memory
        self.keys = RowTiles(self.hardware, memory.key_scale, (*self._key, "keys"))
        self.values = RowTiles(self.hardware, memory.value_scale, (*self._key, "values"))
        self.tokens = self.reads = 0
        self.now = 0.0
        self._first = self._lost = 0
        self._expired: Tensor | int = 0  # a tensor on the rows' device, which is asked in a report
        self._displaced: tuple[Tensor, ProgrammedRows, ProgrammedRows] | None = None
        if self._guard is not None:
            self._guard.reset()

    @torch.inference_mode(False)
    @torch.no_grad()
    def append(self, k: Tensor, v: Tensor, *, padding: Tensor | None = None) -> None:
        """Write the next tokens, a row of K and one of V for each K/V head.

        Args:
            k: keys [B, H_kv, n, D].
            v: values [B, H_kv, n, D_v].
            padding: bool [B, n], True for a real token; the others cost nothing, and readers pass them over.

        Raises:
            InputError: for shapes that do not fit, and, where eviction is refused, for more tokens than there are rows;
                the memory is then unchanged.
        """
        self._require_fitting(k, v)
        n, addresses = k.shape[2], self.addresses
        end = self.tokens + n
        if self.memory.eviction == "refuse" and end > max(self._first, addresses.sinks) + addresses.ring:
            raise InputError(
                f"{self.name} has {addresses.capacity} token rows, which {n} more tokens behind {self.tokens} do not "
                "fit: give a larger capacity, evict tokens, or choose eviction='ring'"
            )
        first, at = self.tokens, self._times(n, k.device)
        fresh = [tiles.write(x, first, at) for tiles, x in ((self.keys, k), (self.values, v))]
        self._displaced = self._kept_back(first, end, fresh, k.device) if n > 1 and end > addresses.capacity else None
        taken = taken_rows(first, end, k.device, addresses)
        for tiles, rows in zip((self.keys, self.values), fresh, strict=True):
            kept = rows if taken.chosen is None else rows.take(taken.chosen)
            tiles.store(taken.slots, kept, taken.needed, addresses.capacity)
        self.writes.index_add_(0, taken.written, taken.once)
        self.tokens = end
        self.now = float(at[-1]) if self.memory.clock is not None else self.now + n * self.memory.token_seconds
        book_row_writes(self.name, k, v, padding, self.hardware, self.digital)
        if self._guard is not None:
            self._guard.append(k, v, padding=padding)

    @property
    def batch(self) -> int:
        """Sequences; 0 before any token."""
        return 0 if self.keys.rows is None else self.keys.rows.scale.shape[0]

    def age(self, seconds: float) -> None:
        """Let time pass, without a token.

        Raises:
            InputError: for a negative time, and for a memory that goes by a clock of its own.
        """
        require_number("seconds", seconds)
        if self.memory.clock is not None:
            raise InputError(f"{self.name} goes by its clock: let that go on")
        self.now += seconds
        if self._guard is not None:
            self._guard.age(seconds)

    def evict(self, before: int) -> None:
        """Give up the rows of the tokens before a position, but for sinks, so that others can have them.

        Raises:
            InputError: for a position behind the tokens that there are.
        """
        if not 0 <= before <= self.tokens:
            raise InputError(f"{self.name} cannot evict before position {before}: give 0 to {self.tokens}")
        self._first = max(self._first, before)

    def read(
        self,
        q: Tensor,
        pattern: Pattern,
        *,
        scale: float | None = None,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
        softcap: float | None = None,
        return_lse: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention of the last ``N_queries`` tokens on the rows that the pattern opens, at the present time.

        Args:
            q: queries [B, H, N_queries, D] of the tokens that were appended last; H is a multiple of H_kv.
            pattern: who attends to whom, by position; causal. Evicted keys that it attends are counted and passed over.
                `attention.Screened` and `attention.Spiking` choose among the rows that there are.
            scale: factor on the scores; 1/√D unless given.
            mask: padding, bool [B, tokens], True for a real token.
            bias: added to the scores in digital, [B or 1, H or 1, N_queries, tokens].
            softcap: c; scores s become c tanh(s / c) in digital, before the bias.
            return_lse: also give the log-sum-exp of each query's scores.

        Returns:
            Output [B, H, N_queries, D_v] in q's dtype, and log-sum-exp [B, H, N_queries] or None.

        Raises:
            InputError: for a pattern that is not causal or chooses by keys as numbers, and shapes that do not fit.
        """
        self._require_readable(q, pattern)
        scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
        if self.memory.clock is not None:
            self.now = max(self.now, float(self.memory.clock()))
        options = Options(scale, mask, 0.0, self.memory.seed, True, self.memory.activation, bias, softcap)
        if not options.plain and isinstance(options.activation, Saturating):
            raise InputError(
                f"{self.name} drives values with its scores as they are, never in digital, where soft caps and biases "
                "are computed: give softmax as the activation"
            )
        with torch.no_grad():
            output, lse = self._guarded(q, pattern.at(self.tokens), options)
        self.reads += 1
        return output.to(q.dtype), lse if return_lse else None

    def select(self, sequences: Tensor) -> None:
        """Keep some sequences of the batch, in this order, as beams do: addresses move, and no row is written."""
        for tiles in (self.keys, self.values):
            tiles.select(sequences)
        self._displaced = None
        if self._guard is not None:
            self._guard.select(sequences)

    def report(self) -> MemoryReport:
        """What became of the rows."""
        addresses, pinned = self.addresses, min(self.tokens, self.addresses.sinks)
        oldest = max(self._first, self.tokens - addresses.ring, pinned)
        held = pinned + self.tokens - oldest
        return MemoryReport(
            tokens=self.tokens,
            held=held,
            capacity=addresses.capacity,
            tiles=addresses.tiles,
            evicted=self.tokens - held,
            lost_pairs=self._lost,
            expired_reads=int(self._expired),
            clipped=int(self.keys.clipped) + int(self.values.clipped),
            most_writes=int(self.writes.max()),
        )

    def _guarded(self, q: Tensor, pattern: Pattern, options: Options) -> tuple[Tensor, Tensor]:
        """Attention on the memory, of which the protected tokens are read from where they are kept better."""
        if counting():  # one reciprocal a query, wherever its pairs are
            name, heads = self.name, q.shape[1]
            asking = None if options.mask is None else options.mask[:, -q.shape[2] :]
            book_tokens(name, q, asking, lambda tokens: book(name, "special_functions", heads * tokens))
        pattern, lost = self._resident(q, pattern, options)
        self._lost += lost
        if lost and counting():
            book(self.name, "lost_pairs", lost)
        if self._guard is None or self.memory.protected is None:
            return self._by_head(q, pattern, options)
        sinks, recent = self.memory.protected.sinks, self.memory.protected.recent
        near = (LocalWindow(recent) | Sinks(sinks)).causal()
        better = self._guard._by_head(q, pattern & near, options)
        rest = self._by_head(q, pattern & Beyond(sinks, recent).causal(), options)
        if isinstance(options.activation, Saturating):
            return better[0] + rest[0], rest[1]
        merged, lse = merge(better[0].to(rest[1].dtype), better[1][..., None], rest[0], rest[1][..., None])
        return merged, lse[..., 0]

    def _resident(self, q: Tensor, pattern: Pattern, options: Options) -> tuple[Pattern, int]:
        """The static pattern of pairs whose rows are there, and how many were lost; rows choose among those left."""
        queries, given = q.shape[2], (self.tokens, self._first, self.addresses)
        if not is_screening(pattern):
            return resident_pairs(pattern, queries, *given)
        lost = 0
        for part in pattern.parts if isinstance(pattern, Union) else ():
            if part.is_static:
                lost += resident_pairs(part, queries, *given)[1]
        positions = candidates(queries, self.tokens, self._first, q.device, self.addresses)
        opened = chosen_rows(pattern, 0, self.tokens, positions, self.addresses)
        stored, index = self._stored(opened)
        keys = self._rows_of(stored, index, opened, "keys")
        within = resident_pairs(Dense().causal(), queries, *given)[0] if self._gone(queries) else None
        read: Key = (*self._key, "read", self.now, self.reads)
        mask = options.mask
        lines = lines_of_rows(
            self._in_channels(q, keys, None), keys, self.hardware, self._key, read, offset=self.tokens - queries,
            real=None if mask is None else mask.index_select(1, positions),
            asking=None if mask is None else mask[:, -queries:], position=positions,
            places=(opened.places.tile, opened.places.line), within=within,
        )  # fmt: skip
        chosen, taken = screen(pattern, lines)
        book_screening(self.name, taken, q.shape[3], self.hardware)
        return chosen if within is None else chosen & within, lost

    def _gone(self, queries: int) -> bool:
        """Whether rows of some tokens are no longer there for some of the last queries."""
        return self.tokens > self.addresses.capacity or self._first > self.addresses.sinks

    def _rows_of(self, stored: list[ProgrammedRows], index: Tensor, opened: OpenRows, role: str) -> TokenRows:
        """Opened rows of keys or values as they read now."""
        tiles, rows = (self.keys, stored[0]) if role == "keys" else (self.values, stored[1])
        return tiles.read(rows, index, self.now, opened.numbers((*self._key, role, "1/f", self.now)))

    def _in_channels(self, q: Tensor, keys: TokenRows, shared: Tensor | None) -> Tensor:
        """Queries with the scales of keys' channels folded in, of key heads ``shared`` (None: all in order)."""
        if self.memory.key_scale != "channel":
            return q
        assert self.keys.fixed is not None
        channels = self.keys.fixed if shared is None else self.keys.fixed.index_select(1, shared)
        return q.to(keys.digits.dtype) * channels.repeat_interleave(q.shape[1] // channels.shape[1], 1)

    def _by_head(self, q: Tensor, pattern: Pattern, options: Options) -> tuple[Tensor, Tensor]:
        """`_attend` for each group of query heads that have one pattern."""
        if pattern.n_heads is None or is_chosen(pattern):
            return self._attend(q, pattern, options, None)
        found: dict[Pattern, list[int]] = {}
        for h in range(q.shape[1]):
            found.setdefault(pattern.head(h), []).append(h)
        output = q.new_empty(*q.shape[:3], self._value_size)
        lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
        for own, heads in found.items():
            index = gpu.sent(torch.tensor(heads, device="cpu"), q.device)
            part, part_lse = self._attend(q.index_select(1, index), own, options.heads(index), heads)
            output.index_copy_(1, index, part.to(q.dtype))
            lse.index_copy_(1, index, part_lse)
        return output, lse

    def _attend(self, q: Tensor, pattern: Pattern, options: Options, heads: list[int] | None) -> tuple[Tensor, Tensor]:
        chosen = is_chosen(pattern)
        if chosen:
            positions = candidates(q.shape[2], self.tokens, self._first, q.device, self.addresses)
            opened = chosen_rows(pattern, q.shape[2], self.tokens, positions, self.addresses)
        else:
            opened = open_rows(pattern, q.shape[2], self.tokens, q.device, self.addresses)
        if len(opened.positions) == 0:
            return q.new_zeros(*q.shape[:3], self._value_size), q.new_full(
                q.shape[:3], -torch.inf, dtype=torch.promote_types(q.dtype, torch.float32)
            )
        asking = None
        if options.mask is not None:
            asking = options.mask[:, -q.shape[2] :]  # queries are those of the last tokens
            options = options._replace(mask=options.mask.index_select(1, opened.positions))
        if options.bias is not None:
            options = options._replace(bias=options.bias.index_select(3, opened.positions))
        stored, index = self._stored(opened)
        self._note_expired(stored[0], index)
        keys, values = (self._rows_of(stored, index, opened, role) for role in ("keys", "values"))
        shared: Tensor | None = None
        if heads is not None:
            shared = gpu.sent(shared_heads(heads, self._group), q.device)
            keys, values = keys.heads(shared), values.heads(shared)
        q = self._in_channels(q, keys, shared)  # which so has a scale for each of its own lines
        kv_heads = keys.digits.shape[1] if heads is None else len({head // self._group for head in heads})
        book_row_reads(
            self.name, q, keys.digits, values.digits, opened.schedule, options.mask, self.hardware, self.digital,
            asking, kv_heads, options.softcap is not None, options.bias is not None,
        )  # fmt: skip
        noise = ReadNoise(
            (*self._key, "read", self.now, self.reads),
            heads=None if heads is None else tuple(heads),
            places=opened.places,
        )
        kernels, narrow = None, keys.digits.dtype == torch.float32 and asked_for(None, q.device)
        wide = values.digits.shape[3]
        if narrow and not chosen and why_not(q, keys.digits.shape[2], self.hardware, options, wide) is None:
            block = block_for(q.shape[2], q.shape[3], self.hardware.read_noise is not None)
            kernels = Kernels(open_chunks(pattern, q.shape[2], self.tokens, q.device, self.addresses, block))
        output, lse = attend_analog(q, keys, values, opened.schedule, options, self.hardware, noise, fused=kernels)
        assert lse is not None
        return output, lse

    @property
    def _value_size(self) -> int:
        """Dimensions of a value that is stored."""
        assert self.values.rows is not None
        return next(iter(self.values.rows.state.values())).shape[4]

    def _times(self, n: int, device: torch.device) -> Tensor:
        """When the next tokens are written, float64 [n]."""
        if self.memory.clock is not None:
            now = float(self.memory.clock())
            if now < self.now:
                raise InputError(
                    f"the clock of {self.name} went back from {self.now:g} s to {now:g} s: give one that rises"
                )
            return torch.full((n,), now, dtype=torch.float64, device=device)
        step = torch.arange(1, n + 1, dtype=torch.float64, device=device)
        return self.now + step * self.memory.token_seconds

    def _kept_back(
        self, first: int, end: int, fresh: list[ProgrammedRows], device: torch.device
    ) -> tuple[Tensor, ProgrammedRows, ProgrammedRows]:
        """Rows that queries of tokens ``first`` to ``end`` still read, though later ones of these take their places."""
        addresses = self.addresses
        low = max(first + 1 - addresses.ring, addresses.sinks, self._first)
        old = torch.arange(low, max(low, min(first, end - addresses.ring)), device=device)
        begin = max(first, addresses.sinks)
        new = torch.arange(begin - first, max(begin, end - addresses.ring) - first, device=device)
        parts = []
        for tiles, rows in zip((self.keys, self.values), fresh, strict=True):
            taken = rows.take(new)
            parts.append(tiles.rows.take(addresses.slot(old)).joined(taken) if tiles.rows is not None else taken)
        return torch.cat([old, first + new]), parts[0], parts[1]

    def _stored(self, opened: OpenRows) -> tuple[list[ProgrammedRows], Tensor]:
        """Where rows are kept, of keys and of values, and the places of opened ones there."""
        stored = [tiles.rows for tiles in (self.keys, self.values) if tiles.rows is not None]
        if self._displaced is None:
            return stored, opened.slots
        back, *kept = self._displaced
        gone = torch.isin(opened.positions, back)
        index = torch.where(gone, len(stored[0].at) + torch.searchsorted(back, opened.positions), opened.slots)
        return [rows.joined(own) for rows, own in zip(stored, kept, strict=True)], index

    def _note_expired(self, rows: ProgrammedRows, index: Tensor) -> None:
        device = self.hardware.device
        if isinstance(device, GainCell):
            expired = (self.now - rows.at.index_select(0, index) > device.retention).sum()
            self._expired = self._expired + expired
            if counting():
                name, each = self.name, rows.scale.shape[:2].numel()

                def booked(numbers: list[int]) -> None:
                    if numbers[0]:
                        book(name, "expired_row_reads", numbers[0] * each)

                book_later(name, expired[None], booked)

    def _require_fitting(self, k: Tensor, v: Tensor) -> None:
        if k.dim() != 4 or v.dim() != 4 or k.shape[:3] != v.shape[:3] or 0 in (*k.shape, *v.shape):
            raise InputError(
                f"{self.name} cannot take k {list(k.shape)}, v {list(v.shape)}: give [B, H_kv, n, D] of both, of which "
                "D alone may differ"
            )
        stored = self.keys.rows
        if stored is not None:
            batch, heads, _, size = stored.scale.shape[:2] + next(iter(stored.state.values())).shape[3:]
            for given, width in ((k, size), (v, self._value_size)):
                if (given.shape[0], given.shape[1], given.shape[3]) != (batch, heads, width):
                    raise InputError(
                        f"{self.name} holds [{batch}, {heads}, ·, {width}] and cannot take {list(given.shape)}: reset "
                        "it first"
                    )

    def _require_readable(self, q: Tensor, pattern: Pattern) -> None:
        stored = self.keys.rows
        if stored is None:
            raise InputError(f"{self.name} holds no tokens: append some first")
        batch, heads = stored.scale.shape[:2]
        size = next(iter(stored.state.values())).shape[4]
        if q.dim() != 4 or q.shape[0] != batch or q.shape[1] % heads or q.shape[3] != size or q.shape[2] > self.tokens:
            raise InputError(
                f"{self.name} cannot be read by q {list(q.shape)}: give [{batch}, a multiple of {heads}, at most "
                f"{self.tokens}, {size}]"
            )
        self._group = q.shape[1] // heads
        if self._guard is not None:
            self._guard._group = self._group
        if not pattern.is_causal or not by_rows(pattern):
            raise InputError(
                f"pattern {str(pattern)!r} cannot read a memory: give a causal one that does not choose by digital keys"
            )
        pattern.require_decodable(self.tokens - q.shape[2])


def _guard(memory: Memory, name: str, stream: Key) -> AnalogMemory | None:
    """The memory that holds protected tokens."""
    kept = memory.protected
    if kept is None:
        return None
    hardware = presets.ideal()
    if kept.by == "pairs":
        tile = replace(memory.hardware.tile, pairs=memory.hardware.tile.pairs * kept.copies)
        hardware = replace(memory.hardware, tile=tile)
    size = kept.sinks + kept.recent
    own = replace(memory, hardware=hardware, capacity=size, sinks=kept.sinks, eviction="ring", protected=None)
    guard = AnalogMemory(own, f"{name}.protected", stream)
    guard.digital = kept.by == "digital"
    return guard
