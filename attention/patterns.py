"""Who attends to whom: sparse attention patterns as small immutable values.

A pattern is a set of pairs (i, j), query i attends key j, where i and j are absolute token positions. Each family gives
its set twice, in two forms that the tests hold together: `Pattern.allowed` says whether a pair is in the set, and
`Pattern.spans` lists the keys of each query as intervals, from which rows are made without ever looking at a pair that
is not attended. A new family is a frozen dataclass with these two methods.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from crossbar.errors import InputError

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""FlexAttention's mask function: (batch, head, query index, key index) to bool, elementwise."""

_LARGEST = 2**31 - 1  # positions are summed and multiplied as int64, and event lines are int32


class CSR(NamedTuple):
    """Attended keys in compressed rows: query i attends ``indices[indptr[i] : indptr[i + 1]]``, in rising order.

    Shapes: ``indptr`` int64 [N_queries + 1], ``indices`` int64 [attended pairs].
    """

    indptr: Tensor
    indices: Tensor


class Spans(NamedTuple):
    """Attended keys as half-open intervals: query row i attends ``start[i, s] <= j < stop[i, s]`` for every s.

    Shapes: int64 [N_queries, S] both. Intervals may overlap, be empty, come in any order, and reach past the keys.
    """

    start: Tensor
    stop: Tensor


class Pattern(ABC):
    """A set of attended (query, key) pairs; compose with ``|`` (union) and ``&`` (intersection)."""

    length_invariant: ClassVar[bool] = True
    """Whether a pair's membership is independent of the sequence length, as step-by-step decoding needs."""

    shift_invariant: ClassVar[bool] = True
    """Whether moving query and key together keeps a pair attended, so that padding on the left does no harm."""

    is_causal: bool
    """Whether every part is in its causal mode."""

    @abstractmethod
    def causal(self) -> Pattern:
        """The same pattern with every part in its causal mode, which is each family's own definition (patterns.md)."""

    @abstractmethod
    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether ``query`` attends ``key``: integer position tensors of one shape in, a bool tensor out."""

    @abstractmethod
    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """The keys that each position in ``query`` (int64 [N_queries]) attends among ``n_keys`` keys."""

    @abstractmethod
    def bare_text(self) -> str:
        """The text form without the word ``causal``."""

    def __str__(self) -> str:
        return f"causal({self.bare_text()})" if self.is_causal else self.bare_text()

    def __or__(self, other: Pattern) -> Pattern:
        return Union((self, other)) if isinstance(other, Pattern) else NotImplemented

    def __and__(self, other: Pattern) -> Pattern:
        return Intersection((self, other)) if isinstance(other, Pattern) else NotImplemented

    @property
    def mask_mod(self) -> MaskMod:
        """The pattern as FlexAttention's ``mask_mod(b, h, q_idx, kv_idx)``, the same for every batch and head."""

        def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            return self.allowed(*torch.broadcast_tensors(q_idx, kv_idx))

        return mask_mod

    def rows(self, n_queries: int, n_keys: int | None = None, offset: int = 0) -> CSR:
        """The keys that each query attends, in O(attended pairs) memory, on the CPU.

        Args:
            n_queries: number of queries; query row i stands at position ``offset + i``.
            n_keys: number of keys, at positions 0 to n_keys − 1; ``offset + n_queries`` unless given.
            offset: position of the first query, as in decoding with a key cache.

        Raises:
            InputError: for a negative count or offset.
        """
        n_keys = offset + n_queries if n_keys is None else n_keys
        for name, value in (("n_queries", n_queries), ("n_keys", n_keys), ("offset", offset)):
            require_integer("rows", name, value, least=0)
        query = torch.arange(offset, offset + n_queries, device="cpu")
        start, stop = _disjoint(self.spans(query, n_keys), n_keys)
        length = stop - start
        indptr = torch.zeros(n_queries + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(length.sum(1), 0, out=indptr[1:])
        # Position p of the output lies in one span; its key is p less where that span begins in the output, plus start.
        length = length.flatten()
        shift = start.flatten() - (length.cumsum(0) - length)
        indices = repeat(shift, length)
        return CSR(indptr, indices.add_(torch.arange(len(indices), device="cpu")))

    def to_dense(self, n: int) -> Tensor:
        """The pattern of a sequence of ``n`` tokens as bool [n, n], True where row attends column."""
        indptr, indices = self.rows(n)
        dense = torch.zeros(n, n, dtype=torch.bool, device="cpu")
        row = repeat(torch.arange(n, device="cpu"), indptr.diff())
        dense.view(-1).index_fill_(0, row * n + indices, True)
        return dense


@dataclass(frozen=True)
class Family(Pattern):
    """A pattern with parameters of its own, as opposed to a composition."""

    name: ClassVar[str]
    """The family's name in the text form."""

    is_causal: bool = field(default=False, kw_only=True)

    def causal(self) -> Pattern:
        """The same family in its causal mode."""
        return replace(self, is_causal=True)


@dataclass(frozen=True)
class Dense(Family):
    """Every key; causal: every key up to the query. Text ``dense``."""

    name: ClassVar[str] = "dense"

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """All j; causal: j <= i."""
        return key <= query if self.is_causal else torch.ones_like(query, dtype=torch.bool)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """One interval a query."""
        stop = query + 1 if self.is_causal else torch.full_like(query, n_keys)
        return Spans(torch.zeros_like(query)[:, None], stop[:, None])

    def bare_text(self) -> str:
        """``dense``."""
        return self.name


@dataclass(frozen=True)
class LocalWindow(Family):
    """Keys near the query. Text ``window(64)``.

    Causal: i − window < j <= i, so ``window`` counts the keys, as in transformers' sliding-window models.
    Bidirectional: |i − j| <= window // 2. Other libraries count otherwise (patterns.md).

    Raises:
        InputError: for a window below 1.
    """

    window: int
    name: ClassVar[str] = "window"

    def __post_init__(self) -> None:
        require_integer(self.name, "window", self.window, least=1)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Causal: i − window < j <= i; bidirectional: |i − j| <= window // 2."""
        before, after = self._reach()
        return (key >= query - before) & (key <= query + after)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """One interval a query."""
        before, after = self._reach()
        return Spans((query - before)[:, None], (query + after + 1)[:, None])

    def bare_text(self) -> str:
        """For example ``window(64)``."""
        return f"{self.name}({self.window})"

    def _reach(self) -> tuple[int, int]:
        return (self.window - 1, 0) if self.is_causal else (self.window // 2, self.window // 2)


@dataclass(frozen=True)
class Sinks(Family):
    """The first ``n`` keys (attention sinks, Xiao 2023); causal: those up to the query. Text ``sinks(4)``.

    Raises:
        InputError: for a negative n.
    """

    n: int
    name: ClassVar[str] = "sinks"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_integer(self.name, "n", self.n, least=0)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Bidirectional: j < n; causal: j < n and j <= i."""
        return (key < self.n) & (key <= query) if self.is_causal else key < self.n

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """One interval a query."""
        stop = (query + 1).clamp(max=self.n) if self.is_causal else torch.full_like(query, self.n)
        return Spans(torch.zeros_like(query)[:, None], stop[:, None])

    def bare_text(self) -> str:
        """For example ``sinks(4)``."""
        return f"{self.name}({self.n})"


@dataclass(frozen=True)
class GlobalTokens(Family):
    """Tokens that attend every token and are attended by every token (Beltagy 2020, mask only). Text ``global(0, 5)``.

    Raises:
        InputError: for no token or a negative one.
    """

    tokens: tuple[int, ...]
    name: ClassVar[str] = "global"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, tuple | list) or not self.tokens:
            raise InputError(
                f"global tokens {self.tokens!r} are not usable: give a tuple of one or more positions such as (0, 5)"
            )
        for token in self.tokens:
            require_integer(self.name, "token", token, least=0)
        object.__setattr__(self, "tokens", tuple(sorted(set(self.tokens))))

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Bidirectional: i in G or j in G; causal: and j <= i."""
        pairs = torch.zeros_like(query, dtype=torch.bool)
        for token in self.tokens:  # elementwise, so that FlexAttention can trace it
            pairs = pairs | (query == token) | (key == token)
        return pairs & (key <= query) if self.is_causal else pairs

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """One interval of one key for each global token; a global query's first interval holds every key."""
        tokens = torch.tensor(self.tokens, device=query.device)
        last = query[:, None] + 1 if self.is_causal else torch.full_like(query, n_keys)[:, None]
        is_global = torch.isin(query, tokens)[:, None]
        start = tokens.expand(len(query), -1)
        stop = torch.minimum(start + 1, last)
        is_first = torch.arange(len(self.tokens), device=query.device) == 0
        start = torch.where(is_global & is_first, 0, start)
        stop = torch.where(is_global & is_first, last, stop)
        return Spans(start, stop)

    def bare_text(self) -> str:
        """For example ``global(0, 5)``."""
        return f"{self.name}({', '.join(map(str, self.tokens))})"


@dataclass(frozen=True)
class _Composition(Pattern):
    """Patterns under one operator; nested compositions of the same operator are flattened."""

    parts: tuple[Pattern, ...]
    operator: ClassVar[str]

    def __post_init__(self) -> None:
        flat: list[Pattern] = []
        for part in self.parts:
            flat.extend(part.parts if isinstance(part, type(self)) else [part])
        object.__setattr__(self, "parts", tuple(flat))

    @property
    def is_causal(self) -> bool:  # type: ignore[override]  # derived here, a field in Family
        return all(part.is_causal for part in self.parts)

    @property
    def length_invariant(self) -> bool:  # type: ignore[override]  # derived, as above
        return all(part.length_invariant for part in self.parts)

    @property
    def shift_invariant(self) -> bool:  # type: ignore[override]  # derived, as above
        return all(part.shift_invariant for part in self.parts)

    def causal(self) -> Pattern:
        """Every part in its causal mode."""
        return type(self)(tuple(part.causal() for part in self.parts))

    def bare_text(self) -> str:
        """The parts' texts between operators, in parentheses where ``&`` would bind tighter."""
        texts = []
        for part in self.parts:
            wrapped = part.is_causal and not self.is_causal  # then the part writes causal(...) around itself
            text = str(part) if wrapped else part.bare_text()
            loose = isinstance(part, Union) and isinstance(self, Intersection) and not wrapped
            texts.append(f"({text})" if loose else text)
        return f" {self.operator} ".join(texts)


@dataclass(frozen=True)
class Union(_Composition):
    """Pairs of any part: ``a | b``."""

    operator: ClassVar[str] = "|"

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether any part allows the pair."""
        pairs = self.parts[0].allowed(query, key)
        for part in self.parts[1:]:
            pairs = pairs | part.allowed(query, key)
        return pairs

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """All parts' intervals side by side."""
        spans = [part.spans(query, n_keys) for part in self.parts]
        return Spans(torch.cat([s.start for s in spans], 1), torch.cat([s.stop for s in spans], 1))


@dataclass(frozen=True)
class Intersection(_Composition):
    """Pairs of every part: ``a & b``."""

    operator: ClassVar[str] = "&"

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether every part allows the pair."""
        pairs = self.parts[0].allowed(query, key)
        for part in self.parts[1:]:
            pairs = pairs & part.allowed(query, key)
        return pairs

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """The overlap of every interval of one part with every interval of the next."""
        start, stop = self.parts[0].spans(query, n_keys)
        for part in self.parts[1:]:
            other = part.spans(query, n_keys)
            start = torch.maximum(start[:, :, None], other.start[:, None, :]).flatten(1)
            stop = torch.minimum(stop[:, :, None], other.stop[:, None, :]).flatten(1)
        return Spans(start, stop)


def require_integer(owner: str, name: str, value: object, least: int) -> None:
    """Refuse a parameter that is not an integer from ``least`` to 2³¹ − 1, naming it."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= _LARGEST:
        raise InputError(f"{owner} cannot have {name} {value!r}: give an integer from {least} to {_LARGEST}")


def repeat(x: Tensor, times: Tensor) -> Tensor:
    """Each entry of ``x`` as often as ``times`` says: ``torch.repeat_interleave`` that wakes no threads."""
    return torch.from_numpy(np.repeat(x.numpy(), times.numpy()))


def _disjoint(spans: Spans, n_keys: int) -> Spans:
    """The same keys in disjoint, sorted intervals inside 0 to n_keys, where ``start <= stop``."""
    start, stop = spans.start.clamp(0, n_keys), spans.stop.clamp(0, n_keys)
    # An empty interval must not claim keys: put it where it starts, so that it never moves the next one's start.
    stop = torch.maximum(start, stop)
    if start.shape[1] == 1:
        return Spans(start, stop)
    start, order = start.sort(1)
    stop = stop.gather(1, order)
    claimed = torch.cummax(stop, 1).values  # keys below this are in an earlier interval
    start[:, 1:] = torch.maximum(start[:, 1:], claimed[:, :-1])
    return Spans(start, torch.maximum(start, stop))
