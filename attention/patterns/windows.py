"""Patterns of keys near the query: windows, windows with gaps, and neighbourhoods that keep their size at the edges.

Libraries count windows differently; `attention.patterns.conventions` names each one's way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attention.patterns.base import Piece
from attention.patterns.family import Family, SizedFamily
from attention.patterns.intervals import Spans
from attention.patterns.rows import LARGEST
from crossbar.errors import InputError, require_whole


@dataclass(frozen=True)
class LocalWindow(Family):
    """Keys near the query. Text ``window(64)``.

    Causal: i − window < j <= i, so ``window`` counts the keys, as in transformers' sliding-window models.
    Bidirectional: |i − j| <= window // 2.

    Raises:
        InputError: for a window below 1.
    """

    window: int
    name: ClassVar[str] = "window"
    traceable: ClassVar[bool] = True
    cost: ClassVar[str] = "O(n w)"

    def __post_init__(self) -> None:
        require_whole("window", self.window, least=1, most=LARGEST)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Causal: i − window < j <= i; bidirectional: |i − j| <= window // 2."""
        before, after = _reach(self.window, self.is_causal)
        return (key >= query - before) & (key <= query + after)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """One interval a query."""
        before, after = _reach(self.window, self.is_causal)
        return Spans((query - before)[:, None], (query + after + 1)[:, None])

    def bare_text(self) -> str:
        """For example ``window(64)``."""
        return f"{self.name}({self.window})"


@dataclass(frozen=True)
class Dilated(Family):
    """Every ``dilation``-th key of a window: LocalWindow(window) and (i − j) mod dilation = 0.

    Text ``dilated(256, 4)``.

    Raises:
        InputError: for a window or dilation below 1.
    """

    window: int
    dilation: int
    name: ClassVar[str] = "dilated"
    traceable: ClassVar[bool] = True
    cost: ClassVar[str] = "O(n w / d)"

    def __post_init__(self) -> None:
        require_whole("dilated window", self.window, least=1, most=LARGEST)
        require_whole("dilated dilation", self.dilation, least=1, most=LARGEST)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """As `LocalWindow`, and (i − j) mod dilation = 0."""
        before, after = _reach(self.window, self.is_causal)
        return (key >= query - before) & (key <= query + after) & ((query - key) % self.dilation == 0)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """An interval of one key for each key of the window; one interval in all for dilation 1."""
        before, after = _reach(self.window, self.is_causal)
        if self.dilation == 1:
            return Spans((query - before)[:, None], (query + after + 1)[:, None])
        # Steps that leave the sequence from every query are left out.
        back = min(before, int(query.max())) // self.dilation
        forth = min(after, max(0, n_keys - int(query.min()))) // self.dilation
        step = torch.arange(-back, forth + 1, device=query.device) * self.dilation
        key = query[:, None] + step
        return Spans(key, key + 1)

    def bare_text(self) -> str:
        """For example ``dilated(256, 4)``."""
        return f"{self.name}({self.window}, {self.dilation})"

    def pieces(self) -> tuple[Piece, ...]:
        """One window in each class of residue."""
        before, after = (reach // self.dilation for reach in _reach(self.window, self.is_causal))
        window = LocalWindow(before + after + 1, is_causal=self.is_causal)
        return (Piece(window, self.dilation),)


@dataclass(frozen=True)
class Neighborhood(SizedFamily):
    """The ``kernel`` keys nearest to the query, as many at the edges: NATTEN's rule. Text ``neighborhood(7)``.

    With n tokens and h = kernel // 2, query i attends |c − j| <= h with c = clamp(i, h, n − 1 − h) (Hassani 2023); a
    sequence no longer than the kernel attends all of itself. With a ``dilation`` d the rule holds inside each class of
    equal position modulo d; text ``neighborhood(7, 2)``. Causal: of these keys those with j <= i. (NATTEN's own causal
    mode keeps the kernel's size in the past: `attention.patterns.conventions.natten_causal`.)

    Raises:
        InputError: for a kernel that is even or below 1, or a dilation below 1.
    """

    kernel: int
    dilation: int = 1
    name: ClassVar[str] = "neighborhood"
    traceable: ClassVar[bool] = True
    cost: ClassVar[str] = "O(n k)"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_whole("neighborhood kernel", self.kernel, least=1, most=LARGEST)
        require_whole("neighborhood dilation", self.dilation, least=1, most=LARGEST)
        if self.kernel % 2 == 0:
            raise InputError(f"neighborhood kernel = {self.kernel} is not allowed: give an odd number, such as 7")

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the key is in the query's class of residue and, there, among the kernel's places."""
        first = self._first(query, self.bound())
        place = key // self.dilation - first
        same = (key - query) % self.dilation == 0
        return self.past(same & (place >= 0) & (place < self.kernel), query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """One interval a query; with a dilation, one of one key for each place of the kernel."""
        n = self.length(query, n_keys)
        first, until = self._first(query, n)[:, None], self.until(query, n_keys)
        if self.dilation == 1:
            return Spans(first, torch.minimum(first + self.kernel, until))
        place = torch.arange(min(self.kernel, -(-n // self.dilation)), device=query.device)
        key = (first + place) * self.dilation + query[:, None] % self.dilation
        return Spans(key, torch.minimum(key + 1, until))

    def bare_text(self) -> str:
        """For example ``neighborhood(7)`` or ``neighborhood(7, 2)``."""
        dilation = f", {self.dilation}" if self.dilation > 1 else ""
        return self.described(f"{self.name}({self.kernel}{dilation})")

    def _first(self, query: Tensor, n: int) -> Tensor:
        """The first place of each query's kernel in its class of residue."""
        size = (n - 1 - query % self.dilation) // self.dilation + 1  # tokens in the class
        first = (query // self.dilation - self.kernel // 2).clamp(min=0)
        return torch.minimum(first, (size - self.kernel).clamp(min=0))


def _reach(window: int, is_causal: bool) -> tuple[int, int]:
    """How far before and after the query a window of `LocalWindow`'s convention reaches."""
    return (window - 1, 0) if is_causal else (window // 2, window // 2)
