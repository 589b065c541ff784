"""Which row of which tile a token's key and value stand in, and which token's row is used again."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attention.controller.events import Placement
from attention.patterns.base import Pattern
from attention.patterns.tokens import Sinks
from attention.patterns.windows import LocalWindow
from crossbar.errors import InputError, require_whole

Order = Literal["sequential", "striped"]


@dataclass(frozen=True)
class AddressMap:
    """Rows of a memory, as a function of a token's position alone.

    The first ``sinks`` tokens have rows of their own for good; the others take the remaining rows in ring order, so
    that a token's row is that of the token ``capacity - sinks`` positions before it.

    Attributes:
        capacity: token rows.
        rows: of a tile.
        sinks: first tokens whose rows are never used again.
        order: ``sequential``: neighbouring rows share a tile, so that a window touches few tiles; ``striped``: row
            after row on the next tile, so that a window's rows are spread and each tile has few of them open.

    Raises:
        InputError: for numbers that do not fit together.
    """

    capacity: int
    rows: int = 256
    sinks: int = 0
    order: Order = "sequential"

    def __post_init__(self) -> None:
        require_whole("memory capacity", self.capacity, least=1)
        require_whole("memory rows of a tile", self.rows, least=1)
        require_whole("memory sinks", self.sinks, least=0)
        if self.sinks >= self.capacity:
            raise InputError(
                f"memory sinks = {self.sinks} leave no row of a capacity of {self.capacity}: give a larger capacity"
            )
        if self.order not in ("sequential", "striped"):
            raise InputError(f"memory placement {self.order!r} is not known: choose sequential or striped")

    @property
    def ring(self) -> int:
        """Rows that are used again."""
        return self.capacity - self.sinks

    @property
    def tiles(self) -> int:
        """Tiles that hold all rows."""
        return -(-self.capacity // self.rows)

    def slot(self, position: Tensor) -> Tensor:
        """The row of each token, 0 to capacity - 1, in the order in which rows are first used."""
        return torch.where(position < self.sinks, position, self.sinks + (position - self.sinks) % self.ring)

    def tile(self, position: Tensor) -> Tensor:
        """The tile of each token."""
        slot = self.slot(position)
        return slot % self.tiles if self.order == "striped" else slot // self.rows

    def line(self, position: Tensor) -> Tensor:
        """The row of its tile of each token."""
        slot = self.slot(position)
        return slot // self.tiles if self.order == "striped" else slot % self.rows

    def placement(self, position: Tensor) -> Placement:
        """Tile and line of tokens at these positions, none of which has another's row: what a controller takes."""
        return Placement(self.tile(position).int(), self.line(position).int())

    def resident(self) -> Pattern:
        """The keys that a causal query finds: those whose row no later token, up to the query, has taken."""
        window = LocalWindow(self.ring).causal()
        return (window | Sinks(self.sinks)).causal() if self.sinks else window
