"""The two factorised patterns of sparse transformers (Child 2019), in which two steps connect every pair of tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attention.patterns.base import Piece
from attention.patterns.family import Family
from attention.patterns.heads import PerHead
from attention.patterns.intervals import Spans
from attention.patterns.rows import LARGEST
from attention.patterns.tokens import Dense
from crossbar.errors import InputError, require_whole

_PARTS = ("both", "local", "stride")


@dataclass(frozen=True)
class Strided(Family):
    """Keys at most ``stride`` away, and every ``stride``-th key. Text ``strided(64)``.

    With l = stride. Bidirectional: |i − j| <= l or (i − j) mod l = 0; causal: the same with j <= i (Child 2019, section
    4.2). O(n √n) pairs for l near √n. ``part`` is ``"local"`` for the first set alone, ``"stride"`` for the second,
    which Child gives to different heads (`per_head`); text ``strided(64, local)``.

    Raises:
        InputError: for a stride below 1 or another part.
    """

    stride: int
    part: Literal["both", "local", "stride"] = "both"
    name: ClassVar[str] = "strided"
    traceable: ClassVar[bool] = True
    cost: ClassVar[str] = "O(n (l + n / l))"

    def __post_init__(self) -> None:
        require_whole("strided stride", self.stride, least=1, most=LARGEST)
        if self.part not in _PARTS:
            raise InputError(f"strided part = {self.part!r} is not allowed: give one of {', '.join(_PARTS)}")

    def per_head(self, heads: int) -> PerHead:
        """The first half of the heads local, the second half strided.

        Raises:
            InputError: for an odd number of heads.
        """
        require_whole("heads", heads, least=2)
        if heads % 2:
            raise InputError(f"{heads} heads do not divide into the two sets of {str(self)!r}: give an even number")
        return PerHead([replace(self, part=part) for part in ("local", "stride") for _ in range(heads // 2)])

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """|i − j| <= l or (i − j) mod l = 0, or the one that ``part`` names; causal: and j <= i."""
        distance = query - key
        local, strided = distance.abs() <= self.stride, distance % self.stride == 0
        pairs = {"both": local | strided, "local": local, "stride": strided}[self.part]
        return self.past(pairs, query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """The local interval in the place of the query itself, among intervals of one key; rising."""
        until = self.until(query, n_keys)
        start, stop = query[:, None] - self.stride, query[:, None] + self.stride + 1
        if self.part == "local":
            return Spans(start, torch.minimum(stop, until))
        column = _columns(self, self.stride, query, n_keys)
        key = column * self.stride + query[:, None] % self.stride
        if self.part == "stride":
            return Spans(key, torch.minimum(key + 1, until))
        own = column == query[:, None] // self.stride
        return Spans(torch.where(own, start, key), torch.minimum(torch.where(own, stop, key + 1), until))

    def bare_text(self) -> str:
        """For example ``strided(64)`` or ``strided(64, local)``."""
        part = "" if self.part == "both" else f", {self.part}"
        return f"{self.name}({self.stride}{part})"

    def pieces(self) -> tuple[Piece, ...]:
        """The local set, and what it leaves of the strided set: keys two or more places away in a class of residue."""
        local = Piece(replace(self, part="local"))
        apart = Piece(Apart(2, is_causal=self.is_causal), self.stride)
        strided = Piece(Dense(is_causal=self.is_causal), self.stride)
        return {"both": (local, apart), "local": (local,), "stride": (strided,)}[self.part]


@dataclass(frozen=True)
class Fixed(Family):
    """The query's block of ``stride`` tokens, and the last ``c`` keys of every block. Text ``fixed(128, 8)``.

    With l = stride. Bidirectional: ⌊j / l⌋ = ⌊i / l⌋ or j mod l >= l − c; causal: the same with j <= i (Child 2019,
    section 4.2). ``sub`` counts sub-blocks of c keys back from a block's end, so that heads can read distinct ones
    (`per_head`): l − c (sub + 1) <= j mod l < l − c sub; text ``fixed(128, 8, 1)``.

    Raises:
        InputError: for a stride or c below 1, and a sub-block that does not fit into a block.
    """

    stride: int
    c: int
    sub: int = 0
    name: ClassVar[str] = "fixed"
    traceable: ClassVar[bool] = True
    cost: ClassVar[str] = "O(n (l + c n / l))"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_whole("fixed stride", self.stride, least=1, most=LARGEST)
        require_whole("fixed c", self.c, least=1, most=self.stride)
        require_whole("fixed sub", self.sub, least=0, most=self.stride // self.c - 1)

    def per_head(self, heads: int) -> PerHead:
        """Head h with the sub-block h modulo the number of sub-blocks in a block."""
        require_whole("heads", heads, least=1)
        return PerHead([replace(self, sub=head % (self.stride // self.c)) for head in range(heads)])

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """⌊j / l⌋ = ⌊i / l⌋ or j mod l in the sub-block; causal: and j <= i."""
        place = key % self.stride
        pairs = (key // self.stride == query // self.stride) | (
            (place >= self._first()) & (place < self._first() + self.c)
        )
        return self.past(pairs, query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """A sub-block for every block, and the whole block in the place of the query's own; rising."""
        column = _columns(self, self.stride, query, n_keys)
        own = column == query[:, None] // self.stride
        block = column * self.stride
        start = block + torch.where(own, 0, self._first())
        stop = block + torch.where(own, self.stride, self._first() + self.c)
        return Spans(start, torch.minimum(stop, self.until(query, n_keys)))

    def bare_text(self) -> str:
        """For example ``fixed(128, 8)`` or ``fixed(128, 8, 1)``."""
        sub = f", {self.sub}" if self.sub else ""
        return f"{self.name}({self.stride}, {self.c}{sub})"

    def _first(self) -> int:
        return self.stride - self.c * (self.sub + 1)


@dataclass(frozen=True)
class Apart(Family):
    """Keys ``gap`` or more positions away: |i − j| >= gap; causal: i − j >= gap. No text: it occurs in pieces only."""

    gap: int
    name: ClassVar[str] = "apart"
    traceable: ClassVar[bool] = True
    cost: ClassVar[str] = "O(n²)"

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """|i − j| >= gap; causal: i − j >= gap."""
        return self.past((query - key).abs() >= self.gap, query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """An interval before the query and, if not causal, one after it."""
        before, after = query - self.gap + 1, query + self.gap
        start, stop = torch.zeros_like(query), torch.full_like(query, n_keys)
        if self.is_causal:
            return Spans(start[:, None], torch.minimum(before, query + 1)[:, None])
        return Spans(torch.stack([start, after], 1), torch.stack([before, stop], 1))

    def bare_text(self) -> str:
        """For example ``<2 or more apart>``."""
        return f"<{self.gap} or more apart>"


def _columns(pattern: Family, stride: int, query: Tensor, n_keys: int) -> Tensor:
    """The blocks of ``stride`` positions that queries, and keys that they may attend, stand in."""
    last = int(query.max()) + 1
    return torch.arange(-(-(last if pattern.is_causal else max(last, n_keys)) // stride), device=query.device)
