"""Different patterns for different heads, and for different sequences of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from torch import Tensor

from attention.patterns.base import Compound, Pattern
from attention.patterns.intervals import Spans
from crossbar.errors import InputError


@dataclass(frozen=True)
class _Listed(Compound):
    """A list of patterns, of which `Pattern.allowed` and `Pattern.rows` exist for each but not for the whole."""

    def __init__(self, parts: Sequence[Pattern]) -> None:
        object.__setattr__(self, "parts", tuple(parts) if isinstance(parts, Sequence) else ())
        if not self.parts or not all(isinstance(part, Pattern) for part in self.parts):
            raise InputError(f"{type(self).__name__} cannot have {parts!r}: give a list of one or more patterns")

    @property
    def cost(self) -> str:  # type: ignore[override]  # derived here, a constant in a family
        """Each different part's own."""
        return ", ".join(dict.fromkeys(part.cost for part in self.parts))

    def allowed(self, query: Tensor, key: Tensor) -> NoReturn:
        """Refused: ask one of the list."""
        self._refuse()

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """Refused: ask one of the list."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise InputError(f"{self.bare_text()!r} is not one pattern: choose with pattern.sequence(b) or pattern.head(h)")

    def _chosen(self, index: int, what: str) -> Pattern:
        if not 0 <= index < len(self.parts):
            raise InputError(f"{what} {index} is not there: there are patterns for {len(self.parts)}, from 0")
        return self.parts[index]


@dataclass(frozen=True, init=False)
class PerHead(_Listed):
    """A pattern for each head, in order: ``PerHead([Dense(), LocalWindow(64)])``. Text ``heads(dense, window(64))``.

    Raises:
        InputError: for an empty list, and for parts that themselves differ by head or sequence.
    """

    def __init__(self, parts: Sequence[Pattern]) -> None:
        super().__init__(parts)
        if any(part.n_heads or part.n_sequences for part in self.parts):
            raise InputError(
                "PerHead cannot have parts that differ by head or sequence: give patterns of one head each"
            )

    @property
    def n_heads(self) -> int:  # type: ignore[override]  # derived here, None in a family
        """The length of the list."""
        return len(self.parts)

    def head(self, index: int) -> Pattern:
        """The pattern of one head."""
        return self._chosen(index, "head")

    def select(self, q: Tensor, k: Tensor, *, mask: Tensor | None = None, offset: int = 0) -> Pattern:
        """Each head's selection by its own queries and keys."""
        if self.is_static:
            return self
        if q.shape[1] != len(self.parts):
            raise InputError(
                f"patterns for {len(self.parts)} heads do not fit queries of {q.shape[1]}: give one a head"
            )
        group = q.shape[1] // k.shape[1]
        chosen = [
            part.select(q[:, h : h + 1], k[:, h // group : h // group + 1], mask=mask, offset=offset)
            for h, part in enumerate(self.parts)
        ]
        return per_sequence(q.shape[0], lambda b: PerHead([part.sequence(b).head(0) for part in chosen]))

    def bare_text(self) -> str:
        """For example ``heads(dense, window(64))``."""
        return f"heads({', '.join(self.part_text(part) for part in self.parts)})"


@dataclass(frozen=True, init=False)
class PerSequence(_Listed):
    """A pattern for each sequence of a batch, in order; each may differ by head. No text.

    Raises:
        InputError: for an empty list, for parts that themselves differ by sequence, and for different numbers of heads.
    """

    def __init__(self, parts: Sequence[Pattern]) -> None:
        super().__init__(parts)
        if any(part.n_sequences for part in self.parts):
            raise InputError(
                "PerSequence cannot have parts that differ by sequence: give patterns of one sequence each"
            )
        _ = self.n_heads  # refuses different numbers

    @property
    def n_sequences(self) -> int:  # type: ignore[override]  # derived here, None in a family
        """The length of the list."""
        return len(self.parts)

    def sequence(self, index: int) -> Pattern:
        """The pattern of one sequence."""
        return self._chosen(index, "sequence")

    def head(self, index: int) -> Pattern:
        """The patterns of one head."""
        return self.each(lambda part: part.head(index)) if self.n_heads else self

    def select(self, q: Tensor, k: Tensor, *, mask: Tensor | None = None, offset: int = 0) -> Pattern:
        """Each sequence's selection by its own queries and keys."""
        if self.is_static:
            return self
        if q.shape[0] != len(self.parts):
            raise InputError(
                f"patterns for {len(self.parts)} sequences do not fit a batch of {q.shape[0]}: give one each"
            )
        return PerSequence(
            [
                part.select(q[b : b + 1], k[b : b + 1], mask=None if mask is None else mask[b : b + 1], offset=offset)
                for b, part in enumerate(self.parts)
            ]
        )

    def bare_text(self) -> str:
        """For example ``<2 sequences: dense, window(64)>``."""
        return f"<{len(self.parts)} sequences: {', '.join(dict.fromkeys(map(self.part_text, self.parts)))}>"


def per_sequence(sequences: int, pattern: Callable[[int], Pattern]) -> Pattern:
    """The pattern that ``pattern`` gives for each sequence of a batch; the one itself for a batch of 1."""
    return pattern(0) if sequences == 1 else PerSequence([pattern(b) for b in range(sequences)])
