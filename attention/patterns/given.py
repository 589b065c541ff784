"""Pairs that somebody else has decided: a mask as a tensor, and a pattern whose keys begin behind the first token."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from attention.patterns.base import Compound, Pattern
from attention.patterns.family import Constant, Family
from attention.patterns.heads import PerHead, per_sequence
from attention.patterns.intervals import Spans, runs


@dataclass(frozen=True)
class Given(Family):
    """The pairs of a mask, for queries from a position on; causal: and j <= i. No text.

    Attributes:
        pairs: bool [N_queries, N_keys], True where the query attends the key.
        first: position of the first query.
    """

    pairs: Constant
    first: int = 0
    name: ClassVar[str] = "given"
    cost: ClassVar[str] = "O(n²)"
    shift_invariant: ClassVar[bool] = False

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """What the mask says; nothing beyond it."""
        pairs = self.pairs.tensor.to(query.device)
        row = query - self.first
        inside = (row >= 0) & (row < pairs.shape[0]) & (key < pairs.shape[1])
        row, column = row.clamp(0, pairs.shape[0] - 1), key.clamp(0, pairs.shape[1] - 1)
        return self.past(pairs[row, column] & inside, query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """An interval for each run of keys."""
        key = torch.arange(n_keys, device=query.device)
        return runs(self.allowed(query[:, None].expand(-1, n_keys), key.expand(len(query), -1)))

    def bare_text(self) -> str:
        """A description: no text makes it."""
        return f"<mask {list(self.pairs.tensor.shape)}>"


def given(pairs: Tensor, first: int = 0) -> Pattern:
    """The pattern of a mask, bool [B or 1, H or 1, N_queries, N_keys], for queries from position ``first`` on.

    Sequences and heads that have the same pairs share them.
    """

    def of_sequence(sequence: Tensor) -> Pattern:
        if len(sequence) == 1 or bool((sequence == sequence[:1]).all()):
            return Given(Constant(sequence[0]), first)
        return PerHead([Given(Constant(head), first) for head in sequence])

    if len(pairs) == 1 or bool((pairs == pairs[:1]).all()):
        return of_sequence(pairs[0])
    return per_sequence(len(pairs), lambda b: of_sequence(pairs[b]))


@dataclass(frozen=True)
class Behind(Compound):
    """A pattern of keys that begin at position ``first``, as in a cache that has dropped those before.

    Queries and keys are counted from there: pair (i, j) is the pattern's pair (i + first, j + first).
    """

    first: int = 0

    def each(self, change: Callable[[Pattern], Pattern]) -> Pattern:
        """The same behind the same position, with ``change`` made to the pattern."""
        return replace(self, parts=tuple(map(change, self.parts)))

    @property
    def cost(self) -> str:  # type: ignore[override]  # derived here, a constant in a family
        """The pattern's own."""
        return self.parts[0].cost

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """What the pattern says of both, moved."""
        return self.parts[0].allowed(query + self.first, key + self.first)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """The pattern's intervals, moved back."""
        spans = self.parts[0].spans(query + self.first, n_keys + self.first)
        return Spans(spans.start - self.first, spans.stop - self.first)

    def sequence(self, index: int) -> Pattern:
        """That of one sequence of the batch."""
        return self.each(lambda part: part.sequence(index)) if self.n_sequences else self

    def head(self, index: int) -> Pattern:
        """That of one head."""
        return self.each(lambda part: part.head(index)) if self.n_heads else self

    def bare_text(self) -> str:
        """A description: no text makes it."""
        return f"<{self.part_text(self.parts[0])} behind {self.first} tokens>"


def behind(pattern: Pattern, first: int) -> Pattern:
    """The pattern of the keys from position ``first`` on; itself where these are all."""
    return pattern if first == 0 else Behind((pattern,), first)
