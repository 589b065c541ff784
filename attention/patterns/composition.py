"""Patterns made of patterns: ``a | b`` and ``a & b``, and what every pattern made of others derives from its parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attention.patterns.base import Pattern
from attention.patterns.hierarchical import Hierarchical
from attention.patterns.intervals import Spans, overlap
from crossbar.errors import InputError


@dataclass(frozen=True)
class Compound(Pattern):
    """A pattern made of others."""

    parts: tuple[Pattern, ...]

    @property
    def is_causal(self) -> bool:  # type: ignore[override]  # derived here, a field in Family
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
            if isinstance(part, Hierarchical):
                part.refuse()
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
