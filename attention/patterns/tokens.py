"""Patterns that name tokens: all of them, the first ones, chosen ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attention.patterns.family import Family
from attention.patterns.intervals import Spans
from attention.patterns.rows import LARGEST
from crossbar.errors import InputError, require_whole


@dataclass(frozen=True)
class Dense(Family):
    """Every key; causal: every key up to the query. Text ``dense``."""

    name: ClassVar[str] = "dense"
    traceable: ClassVar[bool] = True
    cost: ClassVar[str] = "O(n²)"

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """All j; causal: j <= i."""
        return self.past(torch.ones_like(query, dtype=torch.bool), query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """One interval a query."""
        return Spans(torch.zeros_like(query)[:, None], self.until(query, n_keys))

    def bare_text(self) -> str:
        """``dense``."""
        return self.name


@dataclass(frozen=True)
class Sinks(Family):
    """The first ``n`` keys (attention sinks, Xiao 2023); causal: those up to the query. Text ``sinks(4)``.

    Raises:
        InputError: for a negative n.
    """

    n: int
    name: ClassVar[str] = "sinks"
    traceable: ClassVar[bool] = True
    cost: ClassVar[str] = "O(n s)"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_whole("sinks n", self.n, least=0, most=LARGEST)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Bidirectional: j < n; causal: j < n and j <= i."""
        return self.past(key < self.n, query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """One interval a query."""
        return Spans(torch.zeros_like(query)[:, None], self.until(query, n_keys).clamp(max=self.n))

    def bare_text(self) -> str:
        """For example ``sinks(4)``."""
        return f"{self.name}({self.n})"


@dataclass(frozen=True)
class GlobalTokens(Family):
    """Tokens that attend every token and are attended by every token (Beltagy 2020, mask only). Text ``global(0, 5)``.

    Longformer also projects global tokens with matrices of their own, which no pattern can say.

    Raises:
        InputError: for no token or a negative one.
    """

    tokens: tuple[int, ...]
    name: ClassVar[str] = "global"
    traceable: ClassVar[bool] = True
    cost: ClassVar[str] = "O(n g)"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.tokens, tuple | list) or not self.tokens:
            raise InputError(
                f"global tokens {self.tokens!r} are not usable: give a tuple of one or more positions such as (0, 5)"
            )
        for token in self.tokens:
            require_whole("global token", token, least=0, most=LARGEST)
        object.__setattr__(self, "tokens", tuple(sorted(set(self.tokens))))

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Bidirectional: i in G or j in G; causal: and j <= i."""
        pairs = torch.zeros_like(query, dtype=torch.bool)
        for token in self.tokens:  # elementwise, so that FlexAttention can trace it
            pairs = pairs | (query == token) | (key == token)
        return self.past(pairs, query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """One interval of one key for each global token; a global query's first interval holds every key."""
        tokens = torch.tensor(self.tokens, device=query.device)
        last = self.until(query, n_keys)
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
