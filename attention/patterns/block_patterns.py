"""Patterns made of square blocks of pairs: given layouts, random blocks, BigBird."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from attention.patterns.family import Constant, Family, SizedFamily, as_tensor
from attention.patterns.intervals import Spans, runs
from attention.patterns.rows import LARGEST
from crossbar.errors import InputError, require_whole
from crossbar.random.streams import uniform

_MOST_COMPARED = 2**32  # drawn blocks with each other: some seconds


@dataclass(frozen=True)
class BlockSparse(Family):
    """Any choice of blocks: query i attends key j if ``layout[i // block, j // block]``; causal: and j <= i.

    It has no text.

    Args:
        layout: bool [blocks, blocks], a tensor, an array or lists; a copy is kept. For a layout a head,
            give `PerHead` one pattern each.
        block: tokens to a side. The pattern is that of up to blocks · block tokens, and refuses more.

    Raises:
        InputError: for a layout that is not bool or not square, and for a block below 1.
    """

    layout: Tensor = field(compare=False)
    block: int
    _content: Constant = field(init=False, repr=False)
    name: ClassVar[str] = "blocks"
    cost: ClassVar[str] = "O(blocks b²)"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_whole("block", self.block, least=1, most=LARGEST)
        layout = as_tensor("block layout", self.layout)
        square = layout.dim() == 2 and layout.shape[0] == layout.shape[1] > 0
        if layout.dtype != torch.bool or not square:
            raise InputError(
                f"block layout {layout.dtype} {list(layout.shape)} does not fit: give bool [blocks, blocks], True "
                "where a block of queries attends a block of keys"
            )
        object.__setattr__(self, "_content", Constant(layout))
        object.__setattr__(self, "layout", self._content.tensor)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """layout[⌊i / b⌋, ⌊j / b⌋]; causal: and j <= i."""
        return self.past(self.layout.to(query.device)[query // self.block, key // self.block], query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """An interval for each run of blocks in the query's row of the layout."""
        covered, needed = len(self.layout) * self.block, max(n_keys, int(query.max()) + 1)
        if needed > covered:
            raise InputError(
                f"block layout of {len(self.layout)} x {len(self.layout)} blocks of {self.block} covers {covered} "
                f"tokens, not {needed}: give a layout of {-(-needed // self.block)} blocks a side"
            )
        row = query // self.block
        start, stop = (x.index_select(0, row) * self.block for x in self._runs)
        return Spans(start, torch.minimum(stop, self.until(query, n_keys)))

    @cached_property
    def _runs(self) -> Spans:
        return runs(self.layout)

    def bare_text(self) -> str:
        """For example ``<layout of 4 x 4 blocks of 64>``."""
        return f"<layout of {len(self.layout)} x {len(self.layout)} blocks of {self.block}>"


@dataclass(frozen=True)
class RandomBlocks(SizedFamily):
    """``r`` random blocks of keys for each block of queries, of ``block`` tokens each. Text ``random(3, 64, 0)``.

    The blocks of a row are distinct and drawn evenly, from all blocks of the sequence, or, causal, from those up to the
    row's own (then j <= i); all of them where they are fewer than ``r``. Drawn from ``seed`` for a length: the same in
    training and evaluation.

    Raises:
        InputError: for r or block below 1, or a negative seed.
    """

    r: int
    block: int
    seed: int = 0
    name: ClassVar[str] = "random"
    cost: ClassVar[str] = "O(n r b)"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_whole("random r", self.r, least=1, most=LARGEST)
        require_whole("random block", self.block, least=1, most=LARGEST)
        require_whole("random seed", self.seed, least=0, most=LARGEST)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the key's block is one of those drawn for the query's block; causal: and j <= i."""
        drawn = self._drawn(self.bound()).to(query.device)[query // self.block]
        return self.past((drawn == (key // self.block)[..., None]).any(-1), query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """An interval for each block."""
        start = self._drawn(self.length(query, n_keys)).index_select(0, query // self.block) * self.block
        return Spans(start, torch.minimum(start + self.block, self.until(query, n_keys)))

    def bare_text(self) -> str:
        """For example ``random(3, 64, 0)``."""
        return self.described(f"{self.name}({self.r}, {self.block}, {self.seed})")

    def _drawn(self, n: int) -> Tensor:
        """The blocks of each row, int64 [blocks, r]; −1 for none."""
        return _random_blocks(self.r, -(-n // self.block), self.seed, self.is_causal)


@dataclass(frozen=True)
class BigBird(SizedFamily):
    """Global, neighbouring and random blocks of ``block`` tokens (Zaheer 2020). Text ``bigbird(64, 3)``.

    Block row b attends blocks 0, b − 1, b, b + 1, the last one, and ``r`` random others, all of them where they are
    fewer; the first and the last row attend every block. Causal: of these the pairs with j <= i, where random blocks
    are drawn from those before b − 1. Drawn from ``seed`` for a length, the same in training and evaluation; text
    ``bigbird(64, 3, 1)`` for a seed other than 0. BigBird's "ITC" is this pattern; its "ETC" adds tokens of its own.

    Raises:
        InputError: for a block below 1, or a negative r or seed.
    """

    block: int = 64
    r: int = 3
    seed: int = 0
    name: ClassVar[str] = "bigbird"
    cost: ClassVar[str] = "O(n (5 + r) b)"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_whole("bigbird block", self.block, least=1, most=LARGEST)
        require_whole("bigbird r", self.r, least=0, most=LARGEST)
        require_whole("bigbird seed", self.seed, least=0, most=LARGEST)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether a block is at an edge, the two are neighbours, or the key's was drawn; causal: and j <= i."""
        n = self.bound()
        last = (n - 1) // self.block
        row, column = query // self.block, key // self.block
        edge = (row == 0) | (row == last) | (column == 0) | (column == last)
        drawn = (self._drawn(n).to(query.device)[row] == column[..., None]).any(-1)
        return self.past(edge | ((row - column).abs() <= 1) | drawn, query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """Intervals of the first and last block, the neighbours and each random block; a dense row's first is all."""
        n = self.length(query, n_keys)
        last = (n - 1) // self.block
        row = (query // self.block)[:, None]
        drawn = self._drawn(n).index_select(0, row[:, 0])
        dense = (row == 0) | (row == last)
        first = torch.cat([torch.zeros_like(row), row - 1, torch.full_like(row, last), drawn], 1)
        after = torch.cat([torch.where(dense, last + 1, 1), row + 2, torch.full_like(row, last + 1), drawn + 1], 1)
        return Spans(first * self.block, torch.minimum(after * self.block, self.until(query, n_keys)))

    def bare_text(self) -> str:
        """For example ``bigbird(64, 3)`` or, with a seed, ``bigbird(64, 3, 1)``."""
        seed = f", {self.seed}" if self.seed else ""
        return self.described(f"{self.name}({self.block}, {self.r}{seed})")

    def _drawn(self, n: int) -> Tensor:
        """The random blocks of each row, int64 [blocks, r]; −1 for none."""
        return _bigbird_blocks(self.r, -(-n // self.block), self.seed, self.is_causal)


@lru_cache(maxsize=16)
def _random_blocks(r: int, blocks: int, seed: int, is_causal: bool) -> Tensor:
    row = torch.arange(blocks, device="cpu")
    return _distinct(r, row + 1 if is_causal else torch.full_like(row, blocks), (seed, "random blocks", blocks))


@lru_cache(maxsize=16)
def _bigbird_blocks(r: int, blocks: int, seed: int, is_causal: bool) -> Tensor:
    row = torch.arange(blocks, device="cpu")
    before = (row - 2).clamp(min=0)  # blocks 1 to b − 2
    after = torch.zeros_like(row) if is_causal else (blocks - row - 3).clamp(min=0)  # blocks b + 2 to the last but one
    drawn = _distinct(r, before + after, (seed, "bigbird", blocks))
    block = torch.where(drawn < before[:, None], drawn + 1, drawn - before[:, None] + row[:, None] + 2)
    return torch.where(drawn < 0, -1, block)


def _distinct(r: int, choices: Tensor, key: tuple[str | int, ...]) -> Tensor:
    """``r`` distinct numbers below each entry of ``choices`` [blocks], evenly drawn: int64 [blocks, r].

    Floyd's algorithm: O(r²) for each row however many choices there are. Where they are fewer than r, all of them and
    −1 for the rest; columns that would be −1 in every row are left out.

    Raises:
        InputError: for so many that drawing them would take minutes.
    """
    r = min(r, max(int(choices.max()), 1))
    if len(choices) * r * r > _MOST_COMPARED:
        raise InputError(
            f"{r:,} random blocks for each of {len(choices):,} take too long to draw: give fewer or larger blocks, or "
            "the pattern dense"
        )
    draws = uniform((len(choices), r), key).double()
    drawn = torch.full((len(choices), r), -1, dtype=torch.int64, device="cpu")
    for i in range(r):
        last = choices - r + i
        number = (draws[:, i] * (last + 1)).long().clamp(max=last)
        taken = (drawn[:, :i] == number[:, None]).any(1)
        drawn[:, i] = torch.where(taken, last, number).clamp(min=-1)
    return drawn
