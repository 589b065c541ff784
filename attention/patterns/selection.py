"""Patterns that queries select by their scores, and the static pattern that a selection is."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal, NoReturn, Protocol, get_args

import torch
from torch import Tensor

from attention.patterns.base import Pattern
from attention.patterns.family import Constant, Family
from attention.patterns.heads import PerHead, per_sequence
from attention.patterns.intervals import Spans
from attention.patterns.rows import LARGEST
from attention.patterns.tokens import Dense
from crossbar.errors import InputError, require_whole

Gradient = Literal["chosen", "straight"]

_SCORES = 2**22  # scores that exist at once while a selection is made: bounds memory


@dataclass(frozen=True)
class Selected(Family):
    """Keys listed for each query, as intervals: what `TopK` and `BlockTopK` become by `Pattern.select`. No text.

    Args:
        start: int64 [N_queries, S], first key of each interval; a copy of both is kept.
        stop: int64 [N_queries, S], after the last key of each.
        offset: position of the first query that is listed.
        order: int64 [N_queries], rows in an order in which neighbours share keys, where one is known; who attends whom
            does not depend on it.
    """

    start: Tensor = field(compare=False)
    stop: Tensor = field(compare=False)
    offset: int = 0
    order: Tensor | None = field(default=None, compare=False, repr=False)
    _content: Constant = field(init=False, repr=False)
    name: ClassVar[str] = "selected"
    cost: ClassVar[str] = "O(n k)"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "_content", Constant(torch.stack([self.start, self.stop])))
        object.__setattr__(self, "start", self._content.tensor[0])
        object.__setattr__(self, "stop", self._content.tensor[1])

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether one of the query's intervals holds the key; nothing for queries that are not listed."""
        row = query - self.offset
        listed = (row >= 0) & (row < len(self.start))
        row = torch.where(listed, row, 0)
        pairs = torch.zeros_like(listed)
        for start, stop in zip(self.start.to(query.device).T, self.stop.to(query.device).T, strict=True):
            pairs = pairs | ((key >= start[row]) & (key < stop[row]))
        return self.past(pairs & listed, query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """The intervals as they are listed."""
        row = query - self.offset
        if int(row.min()) < 0 or int(row.max()) >= len(self.start):
            raise InputError(
                f"{self.bare_text()} hold none for query {int(query.max() if row.min() >= 0 else query.min())}: select "
                "with the queries that will attend"
            )
        stop = torch.minimum(self.stop.index_select(0, row), self.until(query, n_keys))
        return Spans(self.start.index_select(0, row), stop)

    def bare_text(self) -> str:
        """For example ``<keys selected for queries 0 to 99>``."""
        return f"<keys selected for queries {self.offset} to {self.offset + len(self.start) - 1}>"


def stays(device: torch.device) -> bool:
    """Whether selections stay on a device (`Chosen`), where the host would have to wait for them."""
    return device.type != "cpu"


class Choice(Protocol):
    """Which keys queries [B, H, N_queries] chose, on the device where their scores are; never asked by the host."""

    @property
    def shape(self) -> tuple[int, int]:
        """B and H."""
        ...

    def pairs(self, first: int, last: int, n_keys: int) -> Tensor:
        """Whether queries of rows ``first`` to ``last`` (excluded) chose keys: bool [B, H, last - first, n_keys]."""
        ...

    def part(self, sequences: slice, heads: slice) -> Choice:
        """That of some sequences and heads."""
        ...

    def pattern(self) -> Pattern:
        """The same on the host, of one head of one sequence."""
        ...


@dataclass(frozen=True)
class Chosen(Family):
    """Pairs that stay where they were chosen, such as on a GPU, until the host asks for one. No text.

    Two are equal if their choice is the same object.

    Args:
        choice: of all heads of all sequences.
        text: what it was made by.
    """

    choice: Choice
    text: str
    name: ClassVar[str] = "chosen"
    cost: ClassVar[str] = "O(n k)"
    shift_invariant: ClassVar[bool] = False

    @property
    def n_heads(self) -> int | None:  # type: ignore[override]  # here it depends on the choice
        """Where there are several."""
        return self.choice.shape[1] if self.choice.shape[1] > 1 else None

    @property
    def n_sequences(self) -> int | None:  # type: ignore[override]  # as above
        """Where there are several."""
        return self.choice.shape[0] if self.choice.shape[0] > 1 else None

    def sequence(self, index: int) -> Pattern:
        """That of one sequence."""
        return self._part(slice(index, index + 1), slice(None)) if self.n_sequences else self

    def head(self, index: int) -> Pattern:
        """That of one head."""
        return self._part(slice(None), slice(index, index + 1)) if self.n_heads else self

    def _part(self, sequences: slice, heads: slice) -> Chosen:
        return replace(self, choice=self.choice.part(sequences, heads))

    @cached_property
    def _host(self) -> Pattern:
        if self.choice.shape != (1, 1):
            raise InputError(f"{self.bare_text()} are not one pattern: choose with pattern.sequence(b) and .head(h)")
        return self.choice.pattern()

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """As the host has it: of one head of one sequence."""
        return self._host.allowed(query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """As the host has them: of one head of one sequence."""
        return self._host.spans(query, n_keys)

    def bare_text(self) -> str:
        """For example ``<keys chosen by topk(32)>``."""
        return f"<keys chosen by {self.text}>"


@dataclass(frozen=True)
class Intervals:
    """A `Choice` of intervals.

    Attributes:
        start, stop: int64 [B, H, N_queries, S].
        single: whether none holds more than one key.
        offset: position of the first query.
        is_causal: whether a query attends no later key.
    """

    start: Tensor
    stop: Tensor
    single: bool
    offset: int
    is_causal: bool

    @property
    def shape(self) -> tuple[int, int]:
        """B and H."""
        return self.start.shape[0], self.start.shape[1]

    def pairs(self, first: int, last: int, n_keys: int) -> Tensor:
        """See `Choice.pairs`."""
        start, stop = (x[:, :, first:last] for x in (self.start, self.stop))
        if self.is_causal:
            until = torch.arange(self.offset + first + 1, self.offset + last + 1, device=start.device)
            stop = torch.minimum(stop, until[:, None])
        if self.single:
            start = torch.where(stop > start, start, n_keys).clamp_(max=n_keys)
            pairs = torch.zeros(*start.shape[:3], n_keys + 1, dtype=torch.bool, device=start.device)
            return pairs.scatter_(3, start, True)[..., :-1]
        return held(start, stop, n_keys)

    def part(self, sequences: slice, heads: slice) -> Intervals:
        """See `Choice.part`."""
        return replace(self, start=self.start[sequences, heads], stop=self.stop[sequences, heads])

    def pattern(self) -> Selected:
        """See `Choice.pattern`."""
        return Selected(self.start[0, 0], self.stop[0, 0], self.offset, is_causal=self.is_causal)


def held(start: Tensor, stop: Tensor, n_keys: int) -> Tensor:
    """Whether any of intervals [..., S] holds each of ``n_keys`` keys, bool [..., n_keys]; on any device."""
    start, stop = start.clamp(0, n_keys), stop.clamp(0, n_keys)
    there = (stop > start).to(torch.int16)
    change = torch.zeros(*start.shape[:-1], n_keys + 1, dtype=torch.int16, device=start.device)
    change.scatter_add_(-1, start, there).scatter_add_(-1, stop, -there)
    return change.cumsum(-1, dtype=torch.int16)[..., :-1] > 0


@dataclass(frozen=True)
class Selecting(Family):
    """A family whose pairs depend on queries and keys, one choice for each query of each head."""

    is_static: ClassVar[bool] = False

    @property
    def length_invariant(self) -> bool:  # type: ignore[override]  # here it depends on the mode
        """True if causal: a query chooses among its past, which later tokens do not change."""
        return self.is_causal

    @abstractmethod
    def select(self, q: Tensor, k: Tensor, *, mask: Tensor | None = None, offset: int = 0) -> Pattern:
        """See `Pattern.select`."""

    def allowed(self, query: Tensor, key: Tensor) -> NoReturn:
        """Refused: select first."""
        self._refuse()

    def spans(self, query: Tensor, n_keys: int) -> NoReturn:
        """Refused: select first."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(f"pattern {str(self)!r} depends on queries and keys: make it static with pattern.select(q, k)")


@dataclass(frozen=True)
class Scoring(Selecting):
    """A family in which each query chooses by its scores with keys, or with what stands for several keys."""

    single: ClassVar[bool]
    """Whether an interval that is chosen is one key."""

    @abstractmethod
    def targets(self, k: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """What queries are scored against, [H, M, D], and which of it there is, bool [M].

        Args:
            k: the keys of one sequence, [H, N_keys, D].
            real: bool [N_keys], False for keys that are padding; None if there are none.
        """

    @abstractmethod
    def choose(self, scores: Tensor, there: Tensor, query: Tensor) -> Spans:
        """The intervals of keys that queries choose, int64 [H, C, S] both.

        Args:
            scores: queries' scores with the targets, [H, C, M].
            there: which targets there are, as `targets` gives it.
            query: the positions of the queries, int64 [C].
        """

    def select(self, q: Tensor, k: Tensor, *, mask: Tensor | None = None, offset: int = 0) -> Pattern:
        """See `Pattern.select`; scores are computed in chunks, in float32 or better: O(n²) time, O(n) memory.

        Of tensors that are not on the CPU it is `Chosen`, and the host waits for nothing.
        """
        require_scores(q, k, mask)
        require_whole("offset", offset, least=0, most=LARGEST)
        heads, n_queries = q.shape[1], q.shape[2]
        dtype = torch.float64 if q.dtype == torch.float64 else torch.float32

        def of_sequence(b: int) -> Spans:
            keys = k[b].detach().to(dtype).repeat_interleave(heads // k.shape[1], 0)
            targets, there = self.targets(keys, None if mask is None else mask[b])
            chunk = max(1, _SCORES // targets.shape[:2].numel())
            chosen: list[Spans] = []
            for first in range(0, n_queries, chunk):
                queries = q[b, :, first : first + chunk].detach().to(dtype)
                position = torch.arange(first, first + queries.shape[1], device=q.device) + offset
                chosen.append(self.choose(queries @ targets.transpose(1, 2), there, position))
            return Spans(torch.cat([c.start for c in chosen], 1), torch.cat([c.stop for c in chosen], 1))

        def on_host(b: int) -> Pattern:
            start, stop = of_sequence(b)
            return PerHead([Selected(start[h], stop[h], offset, is_causal=self.is_causal) for h in range(heads)])

        if not stays(q.device):
            return per_sequence(q.shape[0], on_host)
        start, stop = (torch.stack(x) for x in zip(*map(of_sequence, range(q.shape[0])), strict=True))
        return Chosen(Intervals(start, stop, self.single, offset, self.is_causal), str(self), is_causal=self.is_causal)


@dataclass(frozen=True)
class TopK(Scoring):
    """The ``k`` keys of largest score q · k for each query; causal: of those with j <= i. Text ``topk(32)``.

    All of them where they are fewer than k. Ties are broken by ``torch.topk``.

    Args:
        k: keys of a query.
        gradient: ``chosen``: of the attended pairs alone; ``straight``: straight through the choice, that is, the
            gradient of attention to all keys (causal: all past ones), so that keys that were not chosen learn too.
            Text ``topk(32, straight)``. Its cost is O(n²).

    Raises:
        InputError: for k below 1 and another gradient.
    """

    k: int
    gradient: Gradient = "chosen"
    name: ClassVar[str] = "topk"
    single: ClassVar[bool] = True
    cost: ClassVar[str] = "O(n k), scoring O(n²)"

    def __post_init__(self) -> None:
        require_whole("topk k", self.k, least=1, most=LARGEST)
        if self.gradient not in get_args(Gradient):
            raise InputError(f"topk gradient = {self.gradient!r} is not allowed: choose chosen or straight")

    def relaxed(self) -> Pattern:
        """All keys where gradients go straight through the choice."""
        return self if self.gradient == "chosen" else Dense(is_causal=self.is_causal)

    def targets(self, k: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """The keys themselves."""
        return k, torch.ones(k.shape[1], dtype=torch.bool, device=k.device) if real is None else real

    def choose(self, scores: Tensor, there: Tensor, query: Tensor) -> Spans:
        """An interval of one key for each of the k."""
        key = torch.arange(len(there), device=there.device)
        return _best(self.k, scores, self.past(there, query[:, None], key))

    def bare_text(self) -> str:
        """For example ``topk(32)``."""
        return f"{self.name}({self.k}{'' if self.gradient == 'chosen' else f', {self.gradient}'})"


@dataclass(frozen=True)
class BlockTopK(Scoring):
    """The query's own block of keys and the k − 1 others that fit it best (MoBA, Lu 2025). Text ``blocktopk(64, 8)``.

    A block fits by q · mean of its keys. Causal: the others are past blocks, and j <= i in the own one.

    Raises:
        InputError: for a block or k below 1.
    """

    block: int
    k: int
    name: ClassVar[str] = "blocktopk"
    single: ClassVar[bool] = False
    cost: ClassVar[str] = "O(n k b), scoring O(n² / b)"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_whole("blocktopk block", self.block, least=1, most=LARGEST)
        require_whole("blocktopk k", self.k, least=1, most=LARGEST)

    def targets(self, k: Tensor, real: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each block's mean over its real keys."""
        n_keys = k.shape[1]
        block = torch.arange(n_keys, device=k.device) // self.block
        counted = torch.ones(n_keys, dtype=k.dtype, device=k.device) if real is None else real.to(k.dtype)
        blocks = -(-n_keys // self.block)
        tokens = counted.new_zeros(blocks).index_add_(0, block, counted)
        total = k.new_zeros(k.shape[0], blocks, k.shape[2]).index_add_(1, block, k * counted[:, None])
        return total / tokens.clamp(min=1)[:, None], tokens > 0

    def choose(self, scores: Tensor, there: Tensor, query: Tensor) -> Spans:
        """An interval for each block, the own one first."""
        block, own = torch.arange(len(there), device=there.device), query[:, None] // self.block
        others = _best(self.k - 1, scores, there & (block < own if self.is_causal else block != own))
        own = own.expand(len(scores), -1, 1)
        start, stop = torch.cat([own, others.start], 2), torch.cat([own + 1, others.stop], 2)
        return Spans(start * self.block, stop * self.block)

    def bare_text(self) -> str:
        """For example ``blocktopk(64, 8)``."""
        return f"{self.name}({self.block}, {self.k})"


def _best(k: int, scores: Tensor, candidate: Tensor) -> Spans:
    """The up to ``k`` candidates [C, M] of largest score [H, C, M] as intervals [H, C, k] in rising order."""
    scores = scores.masked_fill(~candidate, -torch.inf)
    values, index = scores.topk(min(k, scores.shape[2]), dim=2)
    start = torch.where(values == -torch.inf, scores.shape[2], index).sort(2).values
    return Spans(start, torch.where(start == scores.shape[2], start, start + 1))


def require_scores(q: Tensor, k: Tensor, mask: Tensor | None) -> None:
    """Refuse queries, keys and padding that no selection can be made of."""
    shapes = f"q {list(q.shape)} and k {list(k.shape)}"
    if q.dim() != 4 or k.dim() != 4 or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise InputError(f"select cannot take {shapes}: give [B, H, N, D] of both, with one B and D")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise InputError(f"select cannot take {shapes}: give q a whole multiple of the heads of k")
    if 0 in (q.shape[0], q.shape[2], k.shape[2]):
        raise InputError(f"select cannot take {shapes}: give at least one sequence, query and key")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (k.shape[0], k.shape[2])):
        raise InputError(
            f"padding mask {mask.dtype} {list(mask.shape)} does not fit: give bool [{k.shape[0]}, {k.shape[2]}]"
        )
