"""Who attends to whom: what a sparse attention pattern is, and patterns made of patterns, ``a | b`` and ``a & b``.

A pattern is a set of pairs (i, j), query i attends key j, where i and j are absolute token positions. Each family gives
its set twice, in two forms that the tests hold together: `Pattern.allowed` says whether a pair is in the set, and
`Pattern.spans` lists the keys of each query as intervals, from which rows are made without ever looking at a pair that
is not attended. A new family is a frozen dataclass with these two methods (`attention.patterns.family`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from attention.patterns.intervals import Spans, overlap, repeat
from attention.patterns.picture import draw
from attention.patterns.rows import CSR, LARGEST, compressed
from attention.patterns.statistics import Statistics, statistics
from crossbar.errors import InputError, require_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""FlexAttention's mask function: (batch, head, query index, key index) to bool, elementwise."""


class Piece(NamedTuple):
    """A part of a pattern that a kernel may compute by itself; no pair is in two pieces of a pattern.

    With ``stride`` 1 the piece's pairs are those of ``pattern``. With a greater ``stride`` l, query i attends key j if
    i mod l = j mod l and ``pattern`` holds the pair (i // l, j // l): inside each class of equal residue the tokens, in
    their order, attend each other by ``pattern``, the same for every class. Laying tokens out class after class makes
    keys that stand l apart neighbours. Outputs of pieces merge by their log-sum-exp.

    Attributes:
        pattern: who attends to whom, in the piece's own positions.
        stride: how many classes the tokens fall into.
    """

    pattern: Pattern
    stride: int = 1


class Pattern(ABC):
    """A set of attended (query, key) pairs; compose with ``|`` (union) and ``&`` (intersection).

    A pattern may still lack what it depends on. Each of these gives the pattern that has it, and gives a pattern that
    does not depend on it back unchanged: `at` the sequence length, `select` queries and keys, `sequence` the place in
    the batch, `head` the head. A pattern that lacks nothing has `rows`.
    """

    length_invariant: ClassVar[bool] = True
    """Whether a pair's membership is independent of the sequence length, as step-by-step decoding needs."""

    shift_invariant: ClassVar[bool] = True
    """Whether moving query and key together keeps a pair attended, so that padding on the left does no harm."""

    is_static: ClassVar[bool] = True
    """Whether the set is known without queries and keys; if not, `select` makes it so."""

    traceable: ClassVar[bool] = False
    """Whether `allowed` is arithmetic of positions alone, which a compiler can put into a kernel."""

    n_heads: ClassVar[int | None] = None
    """How many heads the pattern tells apart; None if all heads have the same."""

    n_sequences: ClassVar[int | None] = None
    """How many sequences of a batch the pattern tells apart; None if all have the same."""

    cost: ClassVar[str]
    """How the attended pairs grow with the number of tokens n, such as ``O(n w)``."""

    is_causal: bool
    """Whether every part is in its causal mode."""

    _made_from_mask_mod: ClassVar[Callable[[MaskMod, int | None, int | None], Pattern]]
    # `attention.patterns.mask_mods` enters it: a pattern from a function is a family, and families come after this.

    @abstractmethod
    def causal(self) -> Pattern:
        """The same pattern with every part in its causal form, which each family defines (docs/attention.md)."""

    @abstractmethod
    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether ``query`` attends ``key``: integer position tensors of one shape in, a bool tensor out."""

    @abstractmethod
    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """The keys that each position in ``query`` (int64 [N_queries]) attends among ``n_keys`` keys."""

    @abstractmethod
    def bare_text(self) -> str:
        """The text form without the word ``causal``; a description in ``<>`` for a pattern that no text can make."""

    def __str__(self) -> str:
        return f"causal({self.bare_text()})" if self.is_causal else self.bare_text()

    def __or__(self, other: Pattern) -> Pattern:
        return Union((self, other)) if isinstance(other, Pattern) else NotImplemented

    def __and__(self, other: Pattern) -> Pattern:
        return Intersection((self, other)) if isinstance(other, Pattern) else NotImplemented

    @staticmethod
    def from_mask_mod(mask_mod: MaskMod, *, heads: int | None = None, sequences: int | None = None) -> Pattern:
        """The pattern of a FlexAttention ``mask_mod(b, h, q_idx, kv_idx)``.

        Rows are found by asking for every pair, in chunks: O(n²) time, memory of a chunk and of the attended pairs.

        Args:
            mask_mod: the function, called as FlexAttention calls it (vectorised by ``torch.vmap``). Two patterns are
                equal if their functions are the same object.
            heads: number of heads that the function tells apart; unless given, it is asked with ``h = 0`` only.
            sequences: number of sequences that it tells apart; unless given, it is asked with ``b = 0`` only.

        Raises:
            InputError: for a function that gives anything but bool.
        """
        return Pattern._made_from_mask_mod(mask_mod, heads, sequences)

    @property
    def mask_mod(self) -> MaskMod:
        """The pattern as FlexAttention's ``mask_mod(b, h, q_idx, kv_idx)``; bind a length it depends on with `at`."""

        def mask_mod(b: Tensor, h: Tensor, q_idx: Tensor, kv_idx: Tensor) -> Tensor:
            query, key = torch.broadcast_tensors(q_idx, kv_idx)
            if self.n_sequences is None and self.n_heads is None:
                return self.allowed(query, key)
            pairs: Tensor = (b != b) & (h != h) & (query != key)  # nowhere, in the shape of all four
            for sequence in range(self.n_sequences or 1):
                here = b == sequence if self.n_sequences else b == b
                for head in range(self.n_heads or 1):
                    chosen = here & (h == head) if self.n_heads else here
                    pairs = pairs | (chosen & self.sequence(sequence).head(head).allowed(query, key))
            return pairs

        return mask_mod

    def at(self, n: int) -> Pattern:
        """The pattern of sequences of ``n`` tokens, where it depends on their length; a bound length stays."""
        return self

    def select(self, q: Tensor, k: Tensor, *, mask: Tensor | None = None, offset: int = 0) -> Pattern:
        """The static pattern of these queries and keys, where it depends on them; no gradient flows through the choice.

        A choice made from scores differs by head (`attention.PerHead`) and, in a batch of more than one sequence, by
        sequence (`attention.PerSequence`, each sequence's part being a PerHead).

        Args:
            q: queries [B, H, N_queries, D].
            k: keys [B, H_kv, N_keys, D]; H is a multiple of H_kv.
            mask: padding, bool [B, N_keys], True for a real key; others are not selected.
            offset: position of the first query.
        """
        return self

    def relaxed(self) -> Pattern:
        """The pairs that gradients flow through: the attended ones, unless a family passes them straight through."""
        return self

    def sequence(self, index: int) -> Pattern:
        """The pattern of one sequence of the batch."""
        return self

    def head(self, index: int) -> Pattern:
        """The pattern of one head."""
        return self

    def pieces(self) -> tuple[Piece, ...]:
        """The pattern in disjoint pieces that a kernel may compute apart; unless a family knows better, itself."""
        return (Piece(self),)

    def require_pairs(self) -> None:  # noqa: B027  # nearly all patterns are sets of pairs
        """Refuse what only a set of pairs can do, such as ``|`` and ``&``; a family that is no such set overrides it.

        Raises:
            InputError: if the pattern is no set of pairs.
        """

    def require_decodable(self, offset: int) -> None:
        """Refuse queries after position 0 of a causal pattern whose past would change as the sequence grows.

        Raises:
            InputError: if ``offset`` is not 0 and the pattern is causal and not `length_invariant`.
        """
        if offset and self.is_causal and not self.length_invariant:
            raise InputError(
                f"pattern {str(self)!r} cannot decode from position {offset}, because it depends on the length of the "
                "sequence: attend the whole sequence at once, or bind its final length with pattern.at(n)"
            )

    def rows(self, n_queries: int, n_keys: int | None = None, offset: int = 0) -> CSR:
        """The keys that each query attends, in O(attended pairs) memory, on the CPU.

        Args:
            n_queries: number of queries; query row i stands at position ``offset + i``.
            n_keys: number of keys, at positions 0 to n_keys − 1; ``offset + n_queries`` unless given. It is the length
                of the sequence for a pattern that depends on it.
            offset: position of the first query, as in decoding with a key cache.

        Raises:
            InputError: for no query, no key, a negative offset, and a pattern that depends on the head or on scores.
        """
        require_whole("n_queries", n_queries, least=1, most=LARGEST)
        require_whole("offset", offset, least=0, most=LARGEST)
        n_keys = offset + n_queries if n_keys is None else n_keys
        require_whole("n_keys", n_keys, least=1, most=LARGEST)
        return compressed(self.spans, n_queries, n_keys, offset)

    def to_dense(self, n: int) -> Tensor:
        """The pattern of a sequence of ``n`` tokens as bool [n, n], True where row attends column."""
        require_whole("n", n, least=1, most=LARGEST)
        indptr, indices = self.rows(n)
        dense = torch.zeros(n, n, dtype=torch.bool, device="cpu")
        row = repeat(torch.arange(n, device="cpu"), indptr.diff())
        dense.view(-1).index_fill_(0, row * n + indices, True)
        return dense

    def stats(self, n: int, *, tile: int = 64) -> Statistics:
        """What the pattern costs a sequence of ``n`` tokens; ``tile`` tokens stand in a tile."""
        return statistics(self.rows, self.cost, n, tile)

    def plot(self, n: int, *, axes: Axes | None = None) -> Axes:
        """The pattern of ``n`` tokens drawn into matplotlib ``axes`` (its own unless given): query down, key across."""
        return draw(self.rows, str(self), n, axes)


@dataclass(frozen=True)
class Compound(Pattern):
    """A pattern made of others."""

    parts: tuple[Pattern, ...]

    @property
    def is_causal(self) -> bool:  # type: ignore[override]  # derived here, a field in a family
        """Whether every part is."""
        return all(part.is_causal for part in self.parts)

    @property
    def length_invariant(self) -> bool:  # type: ignore[override]  # derived, as above
        """Whether every part is."""
        return all(part.length_invariant for part in self.parts)

    @property
    def shift_invariant(self) -> bool:  # type: ignore[override]  # derived, as above
        """Whether every part is."""
        return all(part.shift_invariant for part in self.parts)

    @property
    def is_static(self) -> bool:  # type: ignore[override]  # derived, as above
        """Whether every part is."""
        return all(part.is_static for part in self.parts)

    @property
    def traceable(self) -> bool:  # type: ignore[override]  # derived, as above
        """Whether every part is."""
        return all(part.traceable for part in self.parts)

    @property
    def n_heads(self) -> int | None:  # type: ignore[override]  # derived, as above
        """The number that parts have, which is one for all."""
        return common("heads", [part.n_heads for part in self.parts])

    @property
    def n_sequences(self) -> int | None:  # type: ignore[override]  # derived, as above
        """The number that parts have, which is one for all."""
        return common("sequences", [part.n_sequences for part in self.parts])

    def each(self, change: Callable[[Pattern], Pattern]) -> Pattern:
        """The same with ``change`` made to every part."""
        return type(self)(tuple(change(part) for part in self.parts))

    def causal(self) -> Pattern:
        """Every part in its causal mode."""
        return self.each(lambda part: part.causal())

    def at(self, n: int) -> Pattern:
        """Every part at this length."""
        return self.each(lambda part: part.at(n))

    def relaxed(self) -> Pattern:
        """Every part relaxed."""
        return self.each(lambda part: part.relaxed())

    def part_text(self, part: Pattern) -> str:
        """A part's text, without the word ``causal`` where that stands around the whole."""
        return part.bare_text() if self.is_causal else str(part)


@dataclass(frozen=True)
class _Composition(Compound):
    """Patterns under one operator; nested compositions of the same operator are flattened."""

    operator: ClassVar[str]

    def __post_init__(self) -> None:
        flat: list[Pattern] = []
        for part in self.parts:
            flat.extend(part.parts if isinstance(part, type(self)) else [part])
        for part in flat:
            part.require_pairs()
        object.__setattr__(self, "parts", tuple(flat))
        common("heads", [part.n_heads for part in flat])
        common("sequences", [part.n_sequences for part in flat])

    def select(self, q: Tensor, k: Tensor, *, mask: Tensor | None = None, offset: int = 0) -> Pattern:
        """Every part's selection, made apart from the others'."""
        return self.each(lambda part: part.select(q, k, mask=mask, offset=offset))

    def sequence(self, index: int) -> Pattern:
        """Every part's pattern of one sequence of the batch."""
        return self.each(lambda part: part.sequence(index)) if self.n_sequences else self

    def head(self, index: int) -> Pattern:
        """Every part's pattern of one head."""
        return self.each(lambda part: part.head(index)) if self.n_heads else self

    def bare_text(self) -> str:
        """The parts' texts between operators, in parentheses where ``&`` would bind tighter."""
        texts = []
        for part in self.parts:
            wrapped = part.is_causal and not self.is_causal  # then the part writes causal(...) around itself
            loose = isinstance(part, Union) and isinstance(self, Intersection) and not wrapped
            texts.append(f"({self.part_text(part)})" if loose else self.part_text(part))
        return f" {self.operator} ".join(texts)


@dataclass(frozen=True)
class Union(_Composition):
    """Pairs of any part: ``a | b``."""

    operator: ClassVar[str] = "|"

    @property
    def cost(self) -> str:  # type: ignore[override]  # derived here, a constant in a family
        """The sum of the parts'."""
        return " + ".join(dict.fromkeys(part.cost for part in self.parts))

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

    @property
    def cost(self) -> str:  # type: ignore[override]  # derived here, a constant in a family
        """The least of the parts'."""
        return f"min({', '.join(dict.fromkeys(part.cost for part in self.parts))})"

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether every part allows the pair."""
        pairs = self.parts[0].allowed(query, key)
        for part in self.parts[1:]:
            pairs = pairs & part.allowed(query, key)
        return pairs

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """The keys that every part's intervals hold."""
        spans = self.parts[0].spans(query, n_keys)
        for part in self.parts[1:]:
            spans = overlap(spans, part.spans(query, n_keys), n_keys)
        return spans


def common(what: str, numbers: list[int | None]) -> int | None:
    """The one number in a list, None where there is none.

    Raises:
        InputError: for two that differ.
    """
    found = sorted({number for number in numbers if number is not None})
    if len(found) > 1:
        raise InputError(
            f"patterns for {found[0]} and {found[1]} {what} do not fit together: give all the same number of {what}"
        )
    return found[0] if found else None
