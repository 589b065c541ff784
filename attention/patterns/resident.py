"""Pairs by where a memory has the key: beyond the near and the first tokens, or resident, that is not evicted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attention.patterns.family import Family
from attention.patterns.intervals import Spans
from crossbar.errors import require_whole


@dataclass(frozen=True)
class Beyond(Family):
    """Keys that are neither among the first ``sinks`` nor less than ``recent`` away from the query.

    Causal: sinks <= j <= i − recent; bidirectional also j >= i + recent. What is left out is
    ``causal(window(recent) | sinks(sinks))``, and its likeness on both sides.

    Raises:
        InputError: for a negative number.
    """

    sinks: int
    recent: int
    name: ClassVar[str] = "beyond"
    traceable: ClassVar[bool] = True
    cost: ClassVar[str] = "O(n²)"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_whole("beyond sinks", self.sinks, least=0)
        require_whole("beyond recent", self.recent, least=0)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Not a sink, and not near."""
        far = key <= query - self.recent
        if not self.is_causal:
            far = far | (key >= query + self.recent)
        return self.past((key >= self.sinks) & far, query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """One interval before the query; bidirectional: another after it."""
        before = Spans(torch.full_like(query, self.sinks)[:, None], (query - self.recent + 1)[:, None])
        if self.is_causal:
            return Spans(before.start, torch.minimum(before.stop, (query + 1)[:, None]))
        after = (query + self.recent).clamp(min=self.sinks)[:, None]
        return Spans(torch.cat([before.start, after], 1), torch.cat([before.stop, torch.full_like(after, n_keys)], 1))

    def bare_text(self) -> str:
        """A description: no text makes it."""
        return f"<beyond {self.sinks} sinks and {self.recent} near keys>"


@dataclass(frozen=True)
class Resident(Family):
    """Keys that were not evicted: the first ``sinks``, and those from position ``first`` on.

    Raises:
        InputError: for a negative number.
    """

    sinks: int
    first: int
    name: ClassVar[str] = "resident"
    traceable: ClassVar[bool] = True
    cost: ClassVar[str] = "O(n²)"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_whole("resident sinks", self.sinks, least=0)
        require_whole("resident first", self.first, least=0)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """A sink, or not before ``first``."""
        return self.past((key < self.sinks) | (key >= self.first), query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """Two intervals a query."""
        start = torch.tensor([0, self.first], device=query.device).expand(len(query), -1)
        last = self.until(query, n_keys)
        stop = torch.cat([last.clamp(max=self.sinks), last], 1)
        return Spans(start, stop)

    def bare_text(self) -> str:
        """A description: no text makes it."""
        return f"<{self.sinks} sinks and keys from {self.first}>"
