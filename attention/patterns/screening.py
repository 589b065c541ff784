"""Keys that the array itself opens for a query: the first k rows to cross a ramp, or all rows above a threshold.

A query drives the K rows, and each row's line meets a comparator before anything is converted. Rows whose comparators
pass *spike*, and only these are read exactly. `Screened` shares a decreasing ramp among rows and stops it at the k-th
spike, as in-ADC top-k does (Topkima, arXiv 2411.13050); `Spiking` compares with a threshold, as hybrid chips prune
(arXiv 2409.04940).

What the comparators see are `Lines`: numbers of queries and keys, or those that cells hold, with their noise
(`attention.kernel.coarse`). A ramp's range is that of the lines that it is for, as peak detectors find it.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from attention.patterns.base import Compound, Pattern
from attention.patterns.heads import PerHead, PerSequence, per_sequence
from attention.patterns.intervals import padded
from attention.patterns.rows import LARGEST
from attention.patterns.selection import Chosen, Gradient, Selected, Selecting, require_scores
from attention.patterns.tokens import Dense
from crossbar.backends.converters import bit_planes
from crossbar.errors import InputError, require_number, require_whole, shown
from crossbar.hardware import Converter
from crossbar.random.streams import normal

Per = Literal["query", "tile"]

_SCORES = 2**20  # scores that exist at once: bounds memory, and stays in caches
_MOST_BITS = 12
_MOST_THRESHOLD = 1e6
_ROWS = 256  # of a tile, where no hardware says another number


class Screen(NamedTuple):
    """What choosing rows took, of all heads and sequences; int64 [7] as a tensor.

    Attributes:
        pairs: of a query and a row whose coarse score met a comparator.
        tiles: that queries drove, once a query and tile.
        spikes: rows that passed.
        comparisons: decisions of comparators; one that has passed decides no more.
        ramp_steps: steps of all tiles' ramps.
        waited: comparisons that each query waits for, one after another: the steps of its slowest tile's ramp, or one a
            drive where there is no ramp.
        queries: of all heads, that found a row.
    """

    pairs: int
    tiles: int
    spikes: int
    comparisons: int
    ramp_steps: int
    waited: int
    queries: int


@dataclass(frozen=True, eq=False)
class Lines:
    """What comparators of K rows see of queries.

    Attributes:
        q: what drives, [B, H, N_queries, D].
        k: what rows hold, [B, H_kv, M, D].
        offset: position of the first query.
        real: bool [B, M], False for padding, which has no row; None: all are real.
        asking: bool [B, N_queries], False for queries of padding, which are not counted; None: all are real.
        position: of each row's token, int64 [M]; None: 0 to M − 1.
        tile: of each row, int64 [M]; None: tiles of ``rows`` in order.
        line: of its tile, int64 [M]; None: as ``tile``.
        rows: of a tile.
        noise: read noise of ``(sequence, heads, first query, last query, phase)``, [H, C, M], in units of q · k; None:
            reads are quiet.
        key: of the comparators' offsets: they differ by head, tile and line.
        heads: numbers of the query heads; None: 0 to H − 1.
        within: which tokens' rows a query finds; None: those of all.
        numbers: queries and keys as numbers, for parts of a pattern that choose by these; None: there are none.
    """

    q: Tensor
    k: Tensor
    offset: int = 0
    real: Tensor | None = None
    asking: Tensor | None = None
    position: Tensor | None = None
    tile: Tensor | None = None
    line: Tensor | None = None
    rows: int = _ROWS
    noise: Callable[[int, tuple[int, ...], int, int, int], Tensor] | None = None
    key: tuple[str | int | float, ...] = ()
    heads: tuple[int, ...] | None = None
    within: Pattern | None = None
    numbers: tuple[Tensor, Tensor] | None = None

    @property
    def positions(self) -> Tensor:
        """Of rows, int64 [M]."""
        count = self.k.shape[2]
        return torch.arange(count, device=self.k.device) if self.position is None else self.position

    @property
    def places(self) -> tuple[Tensor, Tensor]:
        """Tile and line of each row, int64 [M]."""
        if self.tile is not None and self.line is not None:
            return self.tile, self.line
        row = torch.arange(self.k.shape[2], device=self.k.device)
        return row // self.rows, row % self.rows

    @property
    def of_heads(self) -> tuple[int, ...]:
        """Numbers of the query heads."""
        return tuple(range(self.q.shape[1])) if self.heads is None else self.heads

    def head(self, index: int) -> Lines:
        """Those of one query head."""
        group = self.q.shape[1] // self.k.shape[1]
        return replace(
            self,
            q=self.q[:, index : index + 1],
            k=self.k[:, index // group : index // group + 1],
            heads=(self.of_heads[index],),
            numbers=None
            if self.numbers is None
            else (self.numbers[0][:, index : index + 1], self.numbers[1][:, index // group : index // group + 1]),
        )

    def sequence(self, index: int) -> Lines:
        """Those of one sequence."""
        here = slice(index, index + 1)
        noise = self.noise
        return replace(
            self,
            q=self.q[here],
            k=self.k[here],
            real=None if self.real is None else self.real[here],
            asking=None if self.asking is None else self.asking[here],
            noise=None if noise is None else lambda _, *rest: noise(index, *rest),
            numbers=None if self.numbers is None else (self.numbers[0][here], self.numbers[1][here]),
        )

    def by_tile(self) -> Tensor:
        """Rows of each tile, int64 [T, R] of 0 to M − 1; M where a tile has fewer."""
        tile, line = self.places
        order = (tile * (int(line.max()) + 1) + line).argsort()
        number, count = tile[order].unique_consecutive(return_counts=True)
        table = torch.full((len(number), int(count.max())), len(tile), device=tile.device)
        of = torch.arange(len(number), device=tile.device).repeat_interleave(count)
        table[of, torch.arange(len(tile), device=tile.device) - (count.cumsum(0) - count)[of]] = order
        return table

    def by_row(self) -> Tensor:
        """All rows, tile after tile, as if they were one tile's: int64 [1, M]."""
        tile, line = self.places
        return (tile * (int(line.max()) + 1) + line).argsort()[None]

    def errors(self, deviation: float) -> Tensor | None:
        """What each comparator is off by, parts of its range, [H, M]; None: they are exact."""
        if not deviation:
            return None
        tile, line = self.places
        shape = (int(tile.max()) + 1, int(line.max()) + 1)
        drawn = [normal(shape, (*self.key, "comparators", h), self.q.device)[tile, line] for h in self.of_heads]
        return torch.stack(drawn).mul_(deviation)


@dataclass(frozen=True, eq=False)
class Opened:
    """A `attention.patterns.selection.Choice` of any number of keys for each query, in memory of these pairs.

    Attributes:
        bounds: where the keys of a query and head begin and end, int64 [B N H + 1]: heads of a query are neighbours.
        keys: positions, int32, rising for each.
        sizes: B, N_queries and H.
        offset: position of the first query.
        is_causal: whether a query attends no later key.
        sequences, heads: numbers of those that this is of.
    """

    bounds: Tensor
    keys: Tensor
    sizes: tuple[int, int, int]
    offset: int
    is_causal: bool
    sequences: tuple[int, ...]
    heads: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """B and H."""
        return len(self.sequences), len(self.heads)

    def pairs(self, first: int, last: int, n_keys: int) -> Tensor:
        """See `attention.patterns.selection.Choice.pairs`."""
        _, queries, heads = self.sizes
        found = []
        for b in self.sequences:
            bounds = self.bounds[(b * queries + first) * heads : (b * queries + last) * heads + 1]
            keys = self.keys[int(bounds[0]) : int(bounds[-1])].long().clamp_(max=n_keys)
            row = torch.arange(len(bounds) - 1, device=keys.device).repeat_interleave(bounds.diff())
            chosen = torch.zeros(len(bounds) - 1, n_keys + 1, dtype=torch.bool, device=keys.device)
            chosen[row, keys] = True
            own = chosen[:, :-1].unflatten(0, (-1, heads)).transpose(0, 1)
            found.append(own if len(self.heads) == heads else own[list(self.heads)])
        return torch.stack(found)

    def part(self, sequences: slice, heads: slice) -> Opened:
        """See `attention.patterns.selection.Choice.part`."""
        return replace(self, sequences=self.sequences[sequences], heads=self.heads[heads])

    def pattern(self) -> Selected:
        """See `attention.patterns.selection.Choice.pattern`."""
        _, queries, heads = self.sizes
        place = (torch.arange(queries, device=self.bounds.device) + self.sequences[0] * queries) * heads
        begin, end = (self.bounds[place + self.heads[0] + step] for step in (0, 1))
        count = end - begin
        row = torch.arange(queries, device=count.device).repeat_interleave(count)
        at = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row] + begin[row]
        key = self.keys[at].long()
        spans = padded(row, key, key + 1, queries, LARGEST)
        return Selected(spans.start, spans.stop, self.offset, is_causal=self.is_causal)


class _Fired(NamedTuple):
    """What became of some queries: which rows spiked, bool [H, C, M], and counts, int64 [H, C]."""

    rows: Tensor
    comparisons: Tensor
    ramp_steps: Tensor
    waited: Tensor


@dataclass(frozen=True)
class Screening(Selecting):
    """A family whose keys are those of rows that spike.

    Attributes:
        gradient: as for `attention.TopK`.
        mismatch: deviation of the offsets of comparators, which each keeps.
    """

    gradient: Gradient = field(default="chosen", kw_only=True)
    mismatch: float = field(default=0.0, kw_only=True)

    def _require_common(self) -> None:
        if self.gradient not in get_args(Gradient):
            raise InputError(
                f"{self.name} gradient = {shown(self.gradient)} is not allowed: choose {', '.join(get_args(Gradient))}"
            )
        require_number(f"{self.name} mismatch", self.mismatch, most=10)

    @property
    def phases(self) -> int:
        """How often a query drives the columns."""
        return 1

    @property
    def serial(self) -> bool:
        """Whether each of these drives is a bit."""
        return False

    @abstractmethod
    def fire(self, lines: Lines, sequence: int, first: int, last: int, candidate: Tensor) -> _Fired:
        """Which rows spike for queries ``first`` to ``last`` (excluded) of a sequence, among candidates [C, M]."""

    def relaxed(self) -> Pattern:
        """All keys where gradients go straight through the choice."""
        return self if self.gradient == "chosen" else Dense(is_causal=self.is_causal)

    def select(self, q: Tensor, k: Tensor, *, mask: Tensor | None = None, offset: int = 0) -> Pattern:
        """See `Pattern.select`: by the numbers of queries and keys, without cells; O(n²) time, memory of the pairs."""
        require_scores(q, k, mask)
        require_whole("offset", offset, least=0, most=LARGEST)
        return self.open(Lines(q, k, offset, mask))[0]

    @torch.no_grad()
    def open(self, lines: Lines) -> tuple[Chosen, Tensor]:
        """The keys that spike for each query, and what that took (`Screen`, int64 [7], where the queries are)."""
        batch, heads, queries = lines.q.shape[:3]
        position, (tile, _) = lines.positions, lines.places
        order = position.argsort()  # keys of a query are to rise
        chunk = max(1, _SCORES // (heads * len(position)))
        keys: list[Tensor] = []
        sizes: list[Tensor] = []
        total = torch.zeros(len(Screen._fields), dtype=torch.int64, device=lines.q.device)
        for b in range(batch):
            for first in range(0, queries, chunk):
                last = min(first + chunk, queries)
                at = torch.arange(first, last, device=position.device)[:, None] + lines.offset
                candidate = torch.ones(last - first, len(position), dtype=torch.bool, device=position.device)
                candidate = self.past(candidate, at, position)
                if lines.within is not None:
                    candidate = candidate & lines.within.allowed(*torch.broadcast_tensors(at, position))
                if lines.real is not None:
                    candidate = candidate & lines.real[b]
                fired = self.fire(lines, b, first, last, candidate)
                passed = fired.rows.transpose(0, 1)[:, :, order]
                keys.append(position[order][passed.nonzero()[:, 2]].int())
                sizes.append(passed.sum(2).flatten())
                counted = None if lines.asking is None else lines.asking[b, first:last]
                total += _counts(fired, candidate, tile, counted)
        bounds = torch.nn.functional.pad(torch.cat(sizes).cumsum(0), (1, 0))
        choice = Opened(
            bounds, torch.cat(keys), (batch, queries, heads), lines.offset, self.is_causal,
            tuple(range(batch)), tuple(range(heads)),
        )  # fmt: skip
        return Chosen(choice, str(self), is_causal=self.is_causal), total

    def _scores(self, lines: Lines, sequence: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """Queries [H, C, D] and keys [H, M, D] of a sequence, in float32 or better."""
        dtype = torch.float64 if lines.q.dtype == torch.float64 else torch.float32
        q, k = lines.q[sequence, :, first:last].detach().to(dtype), lines.k[sequence].detach().to(dtype)
        return q, k.repeat_interleave(len(q) // len(k), 0)

    def _options(self, **given: object) -> str:
        """The named options that are not their defaults, as a text after others."""
        defaults = {"bits": None, "per": "query", "beta": 1.0, "gradient": "chosen", "mismatch": 0.0}
        given |= {"gradient": self.gradient, "mismatch": self.mismatch}
        return "".join(f", {name}={number(value)}" for name, value in given.items() if value != defaults[name])


@dataclass(frozen=True)
class Screened(Screening):
    """The ``k`` rows that first cross a decreasing ramp, of a query or of each tile. Text ``screened(64, bits=4)``.

    The ramp falls from the largest of the lines to the smallest in 2^bits − 1 equal steps; a row crosses at the first
    step that is not above its line. Rows that cross at one step are taken in order of tile and line. The ramp stops
    at the k-th. Causal: rows of keys j <= i; all of them where they are fewer than k.

    Args:
        k: rows of a query, or of a tile.
        bits: of the ramp, 1 to 12; None: comparators tell any two lines apart, which is `TopK`, ties by row.
        per: ``query``: tiles share a ramp and stop at the k-th spike of all of them; ``tile``: each stops at its own.
        gradient: as for `TopK`.
        mismatch: deviation of comparators' offsets, parts of the ramp's range, 0 to 10.

    Raises:
        InputError: for a value that is not allowed.
    """

    k: int
    bits: int | None = None
    per: Per = "query"
    name: ClassVar[str] = "screened"
    cost: ClassVar[str] = "O(n k), screening O(n²)"

    def __post_init__(self) -> None:
        require_whole("screened k", self.k, least=1, most=LARGEST)
        if self.bits is not None:
            require_whole("screened bits", self.bits, least=1, most=_MOST_BITS)
        if self.per not in get_args(Per):
            raise InputError(f"screened per = {shown(self.per)} is not allowed: choose {', '.join(get_args(Per))}")
        self._require_common()

    def fire(self, lines: Lines, sequence: int, first: int, last: int, candidate: Tensor) -> _Fired:
        """See `Screening.fire`."""
        q, k = self._scores(lines, sequence, first, last)
        scores = q @ k.transpose(1, 2)
        if lines.noise is not None:
            scores += lines.noise(sequence, lines.of_heads, first, last, 0)
        table = lines.by_tile() if self.per == "tile" else lines.by_row()
        flat = table.flatten()
        there = torch.nn.functional.pad(candidate, (0, 1))[:, flat].unflatten(1, table.shape)  # [C, T, R]
        value = torch.nn.functional.pad(scores, (0, 1))[:, :, flat].unflatten(2, table.shape)
        high = value.masked_fill(~there, -torch.inf).amax(3, keepdim=True)
        low = value.masked_fill(~there, torch.inf).amin(3, keepdim=True)
        errors = lines.errors(self.mismatch)
        if errors is not None:
            own = torch.nn.functional.pad(errors, (0, 1))[:, flat].unflatten(1, table.shape)[:, None]
            value = value + own.to(value.dtype) * (high - low).nan_to_num(0.0, 0.0, 0.0)
        steps = 0 if self.bits is None else 2**self.bits - 1
        if steps:  # the step at which the ramp is no longer above a line; offsets may put it beyond both ends
            size = ((high - low) / steps).clamp_(min=torch.finfo(value.dtype).tiny)
            value = ((high - value) / size - 1e-4).ceil_().clamp_(0, steps).neg_()  # rounding is no step
        value = value.masked_fill(~there, -torch.inf)
        rows, last_value = _first(self.k, value, there)
        if steps:
            stop = last_value.neg().clamp_(min=0)  # [H, C, T, 1]
            used = torch.minimum(value.neg(), stop).add_(1).masked_fill_(~there, 0)
            comparisons = used.sum((2, 3)).long()
            ran = torch.where(there.any(2), stop[..., 0] + 1, 0.0).long()  # [H, C, T]
            if self.per == "query":  # every tile that is driven has a ramp
                driven = _driven(candidate, lines.places[0])
                ramp_steps, waited = ran[..., 0] * driven, ran[..., 0]
            else:
                ramp_steps, waited = ran.sum(2), ran.amax(2)
        else:
            comparisons = there.sum((1, 2)).expand(len(scores), -1)
            ramp_steps, waited = torch.zeros_like(comparisons), there.any((1, 2)).long().expand(len(scores), -1)
        passed = torch.zeros(*scores.shape[:2], len(candidate[0]) + 1, dtype=torch.bool, device=scores.device)
        passed[:, :, flat] = rows.flatten(2)
        return _Fired(passed[:, :, :-1], comparisons, ramp_steps, waited)

    def bare_text(self) -> str:
        """For example ``screened(64, bits=4)``."""
        return f"{self.name}({self.k}{self._options(bits=self.bits, per=self.per)})"


@dataclass(frozen=True)
class Spiking(Screening):
    """All rows whose line is above a threshold, q · k / √D > θ. Text ``spiking(2)``, or a threshold a head.

    Causal: of keys j <= i. A query for which no row spikes attends nothing: with ``|`` a window stays open.
    With ``bits`` rows are leaky integrate-and-fire neurons of a bit-serial drive: the query's magnitude bits (of its
    abs-max, with a sign) drive one after another, the most significant first, each half as long as the one before;
    a row's potential becomes ``beta`` times itself plus what the bit brings, and the row fires the first time
    that it is above θ.

    Args:
        threshold: θ, one for all heads or one for each, in units of q · k / √D, −1e6 to 1e6.
        bits: of the query with its sign, 2 to 12; None: one drive, its pulses as long as the numbers.
        beta: part of a potential that is left after a bit, 0 to 1.
        gradient: as for `TopK`.
        mismatch: deviation of comparators' offsets, in units of q · k / √D, 0 to 10.

    Raises:
        InputError: for a value that is not allowed.
    """

    threshold: tuple[float, ...] | float
    bits: int | None = None
    beta: float = 1.0
    name: ClassVar[str] = "spiking"
    cost: ClassVar[str] = "O(n²)"

    def __post_init__(self) -> None:
        given = self.threshold if isinstance(self.threshold, list | tuple) else (self.threshold,)
        for value in given:
            require_number("spiking threshold", value, least=-_MOST_THRESHOLD, most=_MOST_THRESHOLD)
        if not given:
            raise InputError("spiking has no threshold: give one, or one for each head")
        if self.bits is not None:
            require_whole("spiking bits", self.bits, least=2, most=_MOST_BITS)
        require_number("spiking beta", self.beta, most=1)
        if self.beta != 1 and self.bits is None:
            raise InputError(f"spiking beta = {shown(self.beta)} is not allowed without bits: give the drive's bits")
        object.__setattr__(self, "threshold", tuple(float(value) for value in given))
        self._require_common()

    @property
    def thresholds(self) -> tuple[float, ...]:
        """One, or one for each head."""
        assert isinstance(self.threshold, tuple)  # since it was checked
        return self.threshold

    @property
    def phases(self) -> int:
        """The magnitude bits of a drive."""
        return 1 if self.bits is None else self.bits - 1

    @property
    def serial(self) -> bool:
        """Where bits drive one after another."""
        return self.bits is not None

    def levels(self, lines: Lines) -> Tensor:
        """θ of each head of some lines, [H, 1, 1], in units of q · k.

        Raises:
            InputError: for another number of heads.
        """
        wanted = max(lines.of_heads) + 1
        if len(self.thresholds) not in (1, wanted) and (lines.heads is None or len(self.thresholds) < wanted):
            raise InputError(
                f"{self.bare_text()} has thresholds for {len(self.thresholds)} heads, which do not fit queries of "
                f"{wanted}: give one, or one for each"
            )
        own = self.thresholds * wanted if len(self.thresholds) == 1 else self.thresholds
        levels = torch.tensor([own[h] for h in lines.of_heads], dtype=torch.float64, device=lines.q.device)
        return (levels * math.sqrt(lines.q.shape[3]))[:, None, None]

    def potentials(self, lines: Lines, sequence: int, first: int, last: int) -> Iterator[Tensor]:
        """What rows hold after each phase of queries' drives, [H, C, M], in units of q · k."""
        q, k = self._scores(lines, sequence, first, last)
        k = k.transpose(1, 2)
        if self.bits is None:
            yield self._noisy(q @ k, lines, sequence, first, last, 0)
            return
        converter = Converter(bits=self.bits)
        full_scale = q.abs().amax(2, keepdim=True).clamp_(min=torch.finfo(q.dtype).tiny)
        planes = bit_planes((q * (converter.levels / full_scale)).round_(), converter)
        memory: Tensor | None = None
        for phase, place in enumerate(range(len(planes) - 1, -1, -1)):
            brought = (planes[place] * (full_scale * (2**place / converter.levels))) @ k
            brought = self._noisy(brought, lines, sequence, first, last, phase, 2.0 ** (place + 1 - len(planes)))
            memory = brought if memory is None else memory.mul(self.beta).add_(brought)
            yield memory

    def fire(self, lines: Lines, sequence: int, first: int, last: int, candidate: Tensor) -> _Fired:
        """See `Screening.fire`."""
        level, errors = self.levels(lines), lines.errors(self.mismatch)
        if errors is not None:
            level = level - errors[:, None].double() * math.sqrt(lines.q.shape[3])
        rows: Tensor | None = None
        comparisons = torch.zeros((), dtype=torch.int64, device=candidate.device)
        for memory in self.potentials(lines, sequence, first, last):
            waiting = candidate if rows is None else candidate & ~rows
            comparisons = comparisons + waiting.sum(-1)
            passed = waiting & (memory > level.to(memory.dtype))
            rows = passed if rows is None else rows | passed
        assert rows is not None
        none = torch.zeros(rows.shape[:2], dtype=torch.int64, device=rows.device)
        waited = self.phases * candidate.any(1).long().expand(rows.shape[:2])
        return _Fired(rows, comparisons.expand(rows.shape[:2]), none, waited)

    def _noisy(
        self, x: Tensor, lines: Lines, sequence: int, first: int, last: int, phase: int, part: float = 1.0
    ) -> Tensor:
        """With the read noise of a phase whose pulses are ``part`` of the longest."""
        if lines.noise is None:
            return x
        return x.add_(lines.noise(sequence, lines.of_heads, first, last, phase).to(x.dtype), alpha=part)

    def bare_text(self) -> str:
        """For example ``spiking(2)``."""
        levels = ", ".join(map(number, self.thresholds))
        return f"{self.name}({levels}{self._options(bits=self.bits, beta=self.beta)})"


def is_screening(pattern: Pattern) -> bool:
    """Whether rows choose some of a pattern's pairs."""
    return isinstance(pattern, Screening) or (
        isinstance(pattern, Compound) and any(is_screening(part) for part in pattern.parts)
    )


def spikes(pattern: Pattern) -> bool:
    """Whether some part of a pattern has thresholds."""
    return isinstance(pattern, Spiking) or (isinstance(pattern, Compound) and any(map(spikes, pattern.parts)))


def thresholds_of(pattern: Pattern, heads: int) -> tuple[float, ...]:
    """The threshold of each head in the first part that has some for it, 0 where none has."""
    if isinstance(pattern, Spiking):
        own = pattern.thresholds
        return own * heads if len(own) == 1 else own
    if isinstance(pattern, PerHead) and len(pattern.parts) == heads:
        return tuple(thresholds_of(part, heads)[h] for h, part in enumerate(pattern.parts))
    parts = pattern.parts if isinstance(pattern, Compound) else ()
    return next((thresholds_of(part, heads) for part in parts if spikes(part)), (0.0,) * heads)


def with_thresholds(pattern: Pattern, levels: tuple[float, ...]) -> Pattern:
    """The pattern with a threshold of each head in all parts that have some."""
    if isinstance(pattern, Spiking):
        return replace(pattern, threshold=levels)
    return pattern.each(lambda part: with_thresholds(part, levels)) if spikes(pattern) else pattern  # type: ignore[attr-defined]  # a Compound


def by_rows(pattern: Pattern) -> bool:
    """Whether rows and positions decide all pairs, and nothing the numbers of keys."""
    if isinstance(pattern, Compound):
        return all(map(by_rows, pattern.parts))
    return pattern.is_static or isinstance(pattern, Screening)


def screen(pattern: Pattern, lines: Lines) -> tuple[Pattern, dict[Screening, Tensor]]:
    """A pattern whose pairs rows have chosen, and what that took of each different screening in it.

    Args:
        pattern: who attends to whom.
        lines: what the comparators see; with numbers, where parts choose by these.

    Returns:
        A static pattern, and int64 [7] of each screening (`Screen`).
    """
    taken: dict[Screening, Tensor] = {}

    def of(part: Pattern, own: Lines) -> Pattern:
        if isinstance(part, Screening):
            chosen, counts = part.open(own)
            taken[part] = counts + taken[part] if part in taken else counts
            return chosen
        if not is_screening(part):
            if part.is_static:
                return part
            assert own.numbers is not None  # where rows alone hold keys, `by_rows` is asked before
            return part.select(*own.numbers, mask=own.real, offset=own.offset)
        (batch, heads), listed = own.q.shape[:2], len(part.parts) if isinstance(part, Compound) else 0
        if isinstance(part, PerHead):
            if heads != listed:
                raise InputError(f"patterns for {listed} heads do not fit queries of {heads}: give one a head")
            found = [of(each, own.head(h)) for h, each in enumerate(part.parts)]
            return per_sequence(batch, lambda b: PerHead([each.sequence(b).head(0) for each in found]))
        if isinstance(part, PerSequence):
            if batch != listed:
                raise InputError(f"patterns for {listed} sequences do not fit a batch of {batch}: give one each")
            return PerSequence([of(each, own.sequence(b)) for b, each in enumerate(part.parts)])
        assert isinstance(part, Compound)
        return part.each(lambda each: of(each, own))

    return of(pattern, lines), taken


@torch.no_grad()
def recall(
    chosen: Pattern, q: Tensor, k: Tensor, *, mask: Tensor | None = None, offset: int = 0, size: int | None = None
) -> Tensor:
    """How many of the keys of truly largest score a choice opens: mean over queries, [B, H].

    Args:
        chosen: a static pattern, causal or not as its text says.
        q: queries [B, H, N_queries, D].
        k: keys [B, H_kv, N_keys, D].
        mask: padding, bool [B, N_keys], True for a real key.
        offset: position of the first query.
        size: how many keys are wanted of each query, or all that there are; None: as many as it opens.
    """
    from attention.patterns.on_device import pairs  # which is made of this module's parts

    require_scores(q, k, mask)
    (batch, heads, queries), keys = q.shape[:3], k.shape[2]
    wide = k.repeat_interleave(heads // k.shape[1], 1)
    share = torch.zeros(batch, heads, dtype=torch.float64, device=q.device)
    counted = torch.zeros_like(share)
    chunk = max(1, _SCORES // (batch * heads * keys))
    for first in range(0, queries, chunk):
        last = min(first + chunk, queries)
        opened = pairs(chosen, (queries, keys), offset, q.device, (first, last), keys).expand(batch, heads, -1, -1)
        scores = q[:, :, first:last] @ wide.transpose(2, 3)
        if mask is not None:
            scores = scores.masked_fill(~mask[:, None, None], -torch.inf)
        if chosen.is_causal:
            at = torch.arange(first, last, device=q.device)[:, None] + offset
            scores = scores.masked_fill(torch.arange(keys, device=q.device) > at, -torch.inf)
        there = scores > -torch.inf
        opened = opened & there
        wanted = opened.sum(3) if size is None else there.sum(3).clamp(max=size)
        rank = scores.argsort(dim=3, descending=True, stable=True).argsort(dim=3)
        found = (opened & (rank < wanted[..., None])).sum(3)
        share += torch.where(wanted > 0, found / wanted.clamp(min=1), 0.0).sum(2)
        counted += (wanted > 0).sum(2)
    return share / counted.clamp(min=1)


def number(value: object) -> str:
    """A number or a word as texts of patterns have it."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)


def _first(k: int, value: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """The ``k`` largest of values [.., R], ties by place, and the least of them [.., 1]; all where there are fewer."""
    least = value.topk(min(k, value.shape[-1]), -1, sorted=True).values
    least = least.masked_fill(least == -torch.inf, torch.inf).amin(-1, keepdim=True)
    least = least.masked_fill(least == torch.inf, -torch.inf)
    above = (value > least) & there
    equal = (value == least) & there
    left = k - above.sum(-1, keepdim=True)
    return above | (equal & (equal.cumsum(-1, dtype=torch.int32) <= left)), least


def _driven(candidate: Tensor, tile: Tensor) -> Tensor:
    """Tiles that hold a candidate [C, M] of each query, int64 [C]."""
    number, place = tile.unique(return_inverse=True)
    held = candidate.new_zeros(len(candidate), len(number), dtype=torch.int64)
    held.index_add_(1, place, candidate.long())
    return (held > 0).sum(1)


def _counts(fired: _Fired, candidate: Tensor, tile: Tensor, asking: Tensor | None) -> Tensor:
    """`Screen` of some queries, of those that ask [C]; None: all do."""
    heads = len(fired.rows)
    pairs, tiles, spikes = candidate.sum(1), _driven(candidate, tile), fired.rows.sum(2)
    own = torch.ones_like(pairs) if asking is None else asking.long()
    each = (heads * pairs, heads * tiles, spikes.sum(0), *(x.sum(0) for x in fired[1:]), heads * (pairs > 0))
    return torch.stack([(x * own).sum() for x in each])
