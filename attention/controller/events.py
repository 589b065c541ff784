"""Events on memory lines, and where tokens live on them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import torch
from torch import Tensor

from crossbar.errors import InputError, require_whole

MOST_TILES = 2**22
"""Of events: what is counted and timed is kept for each tile, up to the last."""

DROPPED = -1
"""The departure of an event that is lost."""


class Axis(IntEnum):
    """What an event does to a token's line.

    A token has one line in its K tile and one in its V tile, with the same tile and line numbers. In the K tile the
    query drives D lines and each attended token's line is *sensed*: a column's part, whichever way the tile is drawn.
    In the V tile each attended token's line is *driven*, a row's part, and D lines are sensed.
    """

    ROW = 0
    """The token's line is driven: the value stage, which comes second."""
    COL = 1
    """The token's line is sensed: the score stage, which comes first."""


class Events(NamedTuple):
    """A stream of events as one array for each field, all of shape [E].

    Attributes:
        time: int64, step at which the event is issued. Query row i scores in step 2i and reads values in step 2i + 1.
        tile: int32, below `MOST_TILES`.
        line: int32, line of the tile.
        axis: int8, an `Axis`.
        payload: int32, what a driven line carries: the pair's integer weight in the value stage. A sensed line carries
            none and has 1.
        query: int32, row of the query in the CSR that the events came from.
    """

    time: Tensor
    tile: Tensor
    line: Tensor
    axis: Tensor
    payload: Tensor
    query: Tensor

    def where(self, chosen: Tensor) -> Events:
        """The events that a bool mask [E] or an index tensor chooses, in its order."""
        return Events(*(x[chosen] for x in self))

    def of(self, axis: Axis) -> Events:
        """The events of one stage, in order."""
        return self.where(self.axis == axis)

    def with_weights(self, weights: Tensor) -> Events:
        """The same events with integer ``weights`` [value events] as payloads of the value stage, in order.

        Raises:
            InputError: for another number of weights, or weights that are not integers of 32 bits.
        """
        driven = self.axis == Axis.ROW
        if weights.shape != (int(driven.sum()),) or weights.is_floating_point() or weights.dtype == torch.bool:
            raise InputError(
                f"weights {weights.dtype} {list(weights.shape)} do not fit: "
                f"give one integer for each of the {int(driven.sum())} value events"
            )
        limits = torch.iinfo(torch.int32)
        if len(weights) and not limits.min <= int(weights.min()) <= int(weights.max()) <= limits.max:
            raise InputError("weights do not fit payloads of 32 bits: scale them down")
        return self._replace(payload=self.payload.masked_scatter(driven, weights.to(torch.int32)))


@dataclass(frozen=True, eq=False)
class Placement:
    """Where each token's key and value live: token t on line ``line[t]`` of tile ``tile[t]``.

    Attributes:
        tile: int32 [N].
        line: int32 [N].

    Raises:
        InputError: for arrays of different length, negative places, or two tokens in one place.
    """

    tile: Tensor
    line: Tensor

    def __post_init__(self) -> None:
        if self.tile.shape != self.line.shape or self.tile.dim() != 1:
            raise InputError(
                f"placement has tiles {list(self.tile.shape)} and lines {list(self.line.shape)}: give [N] of both"
            )
        if len(self.tile) and min(int(self.tile.min()), int(self.line.min())) < 0:
            raise InputError("placement has a negative tile or line: number both from 0")
        if self.tile.dtype != torch.int32 or self.line.dtype != torch.int32:
            raise InputError(f"placement has tiles {self.tile.dtype} and lines {self.line.dtype}: give int32 of both")
        if len(self._codes.unique()) < len(self.tile):
            raise InputError("placement puts two tokens on one line: give each token a line of its own")

    @classmethod
    def sequential(cls, n_tokens: int, rows: int = 256) -> Placement:
        """Tokens in order, ``rows`` to a tile."""
        require_whole("n_tokens", n_tokens, least=0)
        require_whole("rows", rows, least=1)
        token = torch.arange(n_tokens, dtype=torch.int32, device="cpu")
        return cls(token // rows, token % rows)

    def tokens(self, events: Events) -> Tensor:
        """The token that each event is about, int64 [E].

        Raises:
            InputError: for an event on a line that holds no token.
        """
        return self.tokens_at(events.tile, events.line)

    def tokens_at(self, tile: Tensor, line: Tensor) -> Tensor:
        """The tokens in places, int64, of the places' shape [E].

        Raises:
            InputError: for a place that holds no token.
        """
        codes, wanted = self._codes, tile.long().mul_(self._lines).add_(line)
        if not len(wanted):
            return wanted
        places = int(codes.max()) + 1 if len(codes) else 0
        if places <= 8 * len(codes):  # densely filled: a table of places, which is fast
            table = torch.full((places + 1,), -1, dtype=torch.int64, device=codes.device)
            table[codes] = torch.arange(len(codes), device=codes.device)
            found = table.index_select(0, wanted.clamp_(max=places))
            lost = bool((found < 0).any())
        else:
            codes, order = codes.sort()
            at = torch.searchsorted(codes, wanted).clamp_(max=len(codes) - 1)
            found, lost = order[at], not torch.equal(codes[at], wanted)
        if lost or bool((line >= self._lines).any()):
            raise InputError(
                "an event is on a line that holds no token: use the placement that the events were made with"
            )
        return found

    @property
    def _lines(self) -> int:
        return int(self.line.max()) + 1 if len(self.line) else 1

    @property
    def _codes(self) -> Tensor:
        return self.tile.long() * self._lines + self.line
