"""Near keys one by one, far ones through averages that grow coarser with their distance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NoReturn

import torch
from torch import Tensor

from attention.patterns.family import Family
from crossbar.errors import InputError, require_whole


@dataclass(frozen=True)
class Hierarchical(Family):
    """Every key is attended, far ones as averages: H-Transformer-1D (Zhu and Soricut, ACL 2021).

    Text ``hierarchical(32, 4)``.

    At level l, from 0, a coarse token stands for 2^l neighbouring tokens: its key is their average, its value their
    average too, and its weight in the softmax counts as many times as it has tokens. ``block`` coarse tokens form a
    block. Level 0 attends the query's own block and the neighbouring ones; each further level the neighbouring blocks
    of its own size as far as they lie beyond those of the level before; the last level everything that lies beyond.
    With log2(n / block) levels or more the last has no more blocks than the others.

    Causal: keys j <= i of level 0, and coarser ones of past blocks only, so decoding step by step gives the same;
    every query keeps its own scores at all levels, O(n log n). Bidirectional: queries are averaged like keys, O(n).

    It is no set of pairs: it cannot be united or intersected with others, opens no rows of analog memory one by one and
    has no events. `PerHead` gives it to some heads.

    Raises:
        InputError: for an odd block or one below 2 (where levels is above 1), and levels below 1.
    """

    block: int
    levels: int
    name: ClassVar[str] = "hierarchical"
    cost: ClassVar[str] = "O(n b)"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_whole("hierarchical block", self.block, least=1, most=2**20)
        require_whole("hierarchical levels", self.levels, least=1, most=40)
        if self.levels > 1 and self.block % 2:
            raise InputError(f"hierarchical block = {self.block} cannot be halved: give an even number, or one level")

    @property
    def length_invariant(self) -> bool:  # type: ignore[override]  # here it depends on the mode
        """True if causal: averages are of past blocks, which later tokens do not change."""
        return self.is_causal

    def allowed(self, query: Tensor, key: Tensor) -> NoReturn:
        """Refused: averages are attended."""
        self.require_pairs()

    def spans(self, query: Tensor, n_keys: int) -> NoReturn:
        """Refused: averages are attended."""
        self.require_pairs()

    def scores(self, n: int) -> int:
        """Scores that are computed for ``n`` tokens, those of one coarse query counted once."""
        total, position = 0, torch.arange(n, device="cpu")
        for level in range(self.levels):
            query = (position if self.is_causal else position[:: 2**level] >> level)[:, None]
            key = position[: -(-n >> level)]
            fine = level if self.is_causal else 0
            behind = (query >> fine) // self.block - key // self.block
            allowed = behind.abs() <= 1 if level < self.levels - 1 else behind == behind
            if level:
                half = (query >> fine - 1 if fine else query * 2) // self.block
                allowed = allowed & ((half - 2 * key // self.block).abs() > 1)
            if self.is_causal:
                allowed = allowed & (key << level <= query)
            total += int(allowed.sum())
        return total

    def bare_text(self) -> str:
        """For example ``hierarchical(32, 4)``."""
        return f"{self.name}({self.block}, {self.levels})"

    def require_pairs(self) -> NoReturn:
        """Refuse what only a set of pairs can do."""
        raise InputError(
            f"pattern {str(self)!r} attends averages of keys and is no set of pairs: give it alone to gated_attention, "
            "or to some heads with PerHead, without analog memory or a controller"
        )
