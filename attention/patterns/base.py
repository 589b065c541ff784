"""Who attends to whom: what a sparse attention pattern is.

A pattern is a set of pairs (i, j), query i attends key j, where i and j are absolute token positions. Each family gives
its set twice, in two forms that the tests hold together: `Pattern.allowed` says whether a pair is in the set, and
`Pattern.spans` lists the keys of each query as intervals, from which rows are made without ever looking at a pair that
is not attended. A new family is a frozen dataclass with these two methods (`attention.patterns.family`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from attention.patterns.intervals import Spans, disjoint, repeat
from crossbar.errors import InputError, require_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from attention.patterns.statistics import Statistics

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""FlexAttention's mask function: (batch, head, query index, key index) to bool, elementwise."""

LARGEST = 2**31 - 1
"""Greatest parameter of a pattern: positions are summed and multiplied as int64, and event lines are int32."""

_AT_A_TIME = 4096  # queries whose intervals exist at once while rows are made: bounds memory


class CSR(NamedTuple):
    """Attended keys in compressed rows: query i attends ``indices[indptr[i] : indptr[i + 1]]``, in rising order.

    Shapes: ``indptr`` int64 [N_queries + 1], ``indices`` int64 [attended pairs].
    """

    indptr: Tensor
    indices: Tensor


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

    n_heads: ClassVar[int | None] = None
    """How many heads the pattern tells apart; None if all heads have the same."""

    n_sequences: ClassVar[int | None] = None
    """How many sequences of a batch the pattern tells apart; None if all have the same."""

    cost: ClassVar[str]
    """How the attended pairs grow with the number of tokens n, such as ``O(n w)``."""

    is_causal: bool
    """Whether every part is in its causal mode."""

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
        from attention.patterns.composition import Union

        return Union((self, other)) if isinstance(other, Pattern) else NotImplemented

    def __and__(self, other: Pattern) -> Pattern:
        from attention.patterns.composition import Intersection

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
        from attention.patterns.mask_mods import from_mask_mod

        return from_mask_mod(mask_mod, heads, sequences)

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
        lengths, indices = [], []
        for first in range(0, n_queries, _AT_A_TIME):
            query = torch.arange(first, min(first + _AT_A_TIME, n_queries), device="cpu") + offset
            start, stop = disjoint(self.spans(query, n_keys), n_keys)
            length = stop - start
            lengths.append(length.sum(1))
            # A position of the output lies in one interval; its key is the position less where that interval begins in
            # the output, plus the interval's start.
            length = length.flatten()
            key = repeat(start.flatten() - (length.cumsum(0) - length), length)
            indices.append(key.add_(torch.arange(len(key), device="cpu")))
        indptr = torch.zeros(n_queries + 1, dtype=torch.int64, device="cpu")
        torch.cumsum(torch.cat(lengths), 0, out=indptr[1:])
        return CSR(indptr, indices[0] if len(indices) == 1 else torch.cat(indices))

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
        from attention.patterns.statistics import statistics

        return statistics(self, n, tile)

    def plot(self, n: int, *, axes: Axes | None = None) -> Axes:
        """The pattern of ``n`` tokens drawn into matplotlib ``axes`` (its own unless given): query down, key across."""
        from attention.patterns.picture import draw

        return draw(self, n, axes)
