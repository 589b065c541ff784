"""Cells that hold keys or values, one token a row: written one by one, each with its own age (docs/memory.md)."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from attention.kernel.token_rows import HONOURED, TokenRows
from crossbar.backends import dispatch
from crossbar.backends.protocol import AgedRows, RowNumbers
from crossbar.devices import Decaying, PowerLawDrift, RedrawDevice, State, span, window
from crossbar.errors import InputError
from crossbar.features import require_honoured
from crossbar.hardware import Hardware
from crossbar.random.streams import Key, normal
from crossbar.tiles.mapping import target_conductances
from crossbar.tiles.wires import resistive

Scale = Literal["row", "head", "channel"]

_BLOCK = 64  # tokens whose programming errors are drawn at once: a token's error depends on its position alone
_TINY = 1e-30  # a row of nothing but smaller numbers is 0 to a cell


class ProgrammedRows(NamedTuple):
    """What is kept of some tokens.

    Attributes:
        state: of the device, each tensor [K, B, H_kv, L, D], G⁺ first; and the ``amplitude`` of a fluctuation that is
            one factor, which depends on nothing else.
        scale: what a digit of 1 is worth in its row, [B, H_kv, L, 1].
        at: seconds at which each row was written, float64 [L].
    """

    state: State
    scale: Tensor
    at: Tensor

    def take(self, index: Tensor) -> ProgrammedRows:
        """Some tokens, by place."""
        state = {name: cells.index_select(3, index) for name, cells in self.state.items()}
        return ProgrammedRows(state, self.scale.index_select(2, index), self.at.index_select(0, index))

    def sequences(self, index: Tensor) -> ProgrammedRows:
        """Some sequences of the batch."""
        state = {name: cells.index_select(1, index) for name, cells in self.state.items()}
        return ProgrammedRows(state, self.scale.index_select(0, index), self.at)

    def put(self, index: Tensor, rows: ProgrammedRows) -> None:
        """Overwrite tokens, by place."""
        for name, cells in rows.state.items():
            self.state[name].index_copy_(3, index, cells)
        self.scale.index_copy_(2, index, rows.scale)
        self.at.index_copy_(0, index, rows.at)

    def joined(self, other: ProgrammedRows) -> ProgrammedRows:
        """The tokens of both."""
        state = {name: torch.cat([cells, other.state[name]], 3) for name, cells in self.state.items()}
        return ProgrammedRows(state, torch.cat([self.scale, other.scale], 2), torch.cat([self.at, other.at]))


class RowTiles:
    """The tiles of one role (keys or values), for every sequence of a batch and every head.

    Cells are the device's own: each keeps the programming error and the drift exponent of its last write, and reads
    with the 1/f fluctuation of the time of the read. Draws are keyed by sequence, position and purpose, so that writing
    tokens at once or one by one gives the same cells.

    Args:
        hardware: device, encoding and read noise.
        scale: ``row``: the abs-max of each token; ``head`` and ``channel``: the abs-max that each head, or each of its
            dimensions, has among the tokens that are written first; what later tokens have beyond it is clipped.
        key: of all draws: seed, layer and role.

    Raises:
        InputError: for hardware that token rows do not have.
    """

    def __init__(self, hardware: Hardware, scale: Scale, key: Key) -> None:
        device = hardware.device
        # A device that is drawn anew at each time cannot tell rows of different ages apart.
        honoured = HONOURED - {"verify", "device:redrawn"}
        require_honoured(hardware, honoured, "keys and values that are appended")
        assert not isinstance(device, RedrawDevice)  # it has that feature
        if isinstance(device, PowerLawDrift) and device.correlated:
            raise InputError("device field correlated is not supported for keys and values: give false")
        self.hardware, self.device, self.scale, self.key = hardware, device, scale, key
        self._low, self._width = span(device)
        self._decaying = device if isinstance(device, Decaying) and window(device) == (0.0, math.inf) else None
        self.fixed: Tensor | None = None  # [1, H_kv, 1, D or 1], of the scales "head" and "channel"
        self.clipped: Tensor | int = 0  # numbers beyond a fixed scale
        self.rows: ProgrammedRows | None = None  # [.., allocated rows, ..]
        self._drawn: dict[tuple[str, int], Tensor] = {}

    def write(self, x: Tensor, first: int, at: Tensor) -> ProgrammedRows:
        """Cells of tokens at positions ``first`` on, freshly programmed; they are not stored.

        Args:
            x: numbers [B, H_kv, n, D].
            first: position of the first token.
            at: seconds at which each is written, float64 [n].
        """
        x = x.detach().to(torch.float64 if x.dtype == torch.float64 else torch.float32)
        digits, scale = self._digits(x)
        tile, low = self.hardware.tile, self._low
        unit = torch.ones(-(-digits.numel() // tile.rows), 1, dtype=x.dtype, device=x.device)
        target = target_conductances(digits.reshape(1, -1), unit, tile, low + self._width, low).view(-1, *x.shape)

        def draw(purpose: str) -> Tensor:
            return self._draws(purpose, first, target)

        state = {name: cells.view(target.shape) for name, cells in self.device.program(target, draw).items()}
        amplitude = None if self._decaying is None else self._decaying.amplitude(state)
        if amplitude is not None:
            state["amplitude"] = amplitude
        return ProgrammedRows(state, scale, at)

    def store(self, slots: Tensor, rows: ProgrammedRows, needed: int, capacity: int) -> None:
        """Put rows in their places, below ``needed``, taking another tile into use where there are none."""
        have = 0 if self.rows is None else len(self.rows.at)
        if needed > have:
            step = self.hardware.tile.rows
            new = _empty_like(rows, min(capacity, -(-needed // step) * step) - have)
            self.rows = new if self.rows is None else self.rows.joined(new)
        assert self.rows is not None
        self.rows.put(slots, rows)

    def read(self, rows: ProgrammedRows, index: Tensor, now: float, numbers: RowNumbers) -> TokenRows:
        """Rows as they read at a time; a scale of each channel is not in them, but folded into the query.

        Args:
            rows: tokens.
            index: places of those that are opened among them, int64 [L].
            now: seconds.
            numbers: of the 1/f fluctuation.
        """
        ages, scale = now - rows.at.index_select(0, index), rows.scale.index_select(2, index)
        aged = AgedRows(rows.state, index, ages, numbers, self.hardware)
        digits, variance = dispatch.age_rows(aged)
        return TokenRows(digits, scale, variance, aged.conductances() if resistive(self.hardware) else None)

    def select(self, index: Tensor) -> None:
        """Keep some sequences of the batch, in this order."""
        if self.rows is not None:
            self.rows = self.rows.sequences(index.to(self.rows.scale.device))
        self._drawn = {}

    def _digits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if self.scale == "row":
            scale = x.abs().amax(-1, keepdim=True)
            scale = torch.where(scale > _TINY, scale, 1.0)
            return x / scale, scale
        if self.fixed is None:
            over = (0, 2) if self.scale == "channel" else (0, 2, 3)
            largest = x.abs().amax(over, keepdim=True)
            self.fixed = torch.where(largest > _TINY, largest, 1.0)
        digits = x / self.fixed
        self.clipped = self.clipped + (digits.abs() > 1).sum()
        scale = x.new_ones(*x.shape[:3], 1)
        return digits.clamp_(-1.0, 1.0), scale if self.scale == "channel" else scale * self.fixed

    def _draws(self, purpose: str, first: int, target: Tensor) -> Tensor:
        """Standard normal numbers [K, B, H_kv, n, D] of tokens at positions ``first`` on."""
        count, batch, heads, n, size = target.shape
        parts = []
        for block in range(first // _BLOCK, (first + n - 1) // _BLOCK + 1):
            begin, end = max(first - block * _BLOCK, 0), min(first + n - block * _BLOCK, _BLOCK)
            whole = self._drawn.get((purpose, block))
            if whole is None or whole.shape[1] != batch:
                shape = (count, heads, _BLOCK, size)
                own = (normal(shape, (*self.key, purpose, b, block), target.device) for b in range(batch))
                whole = torch.stack(list(own), 1)
                self._drawn = {k: v for k, v in self._drawn.items() if k[1] == block} | {(purpose, block): whole}
            parts.append(whole[:, :, :, begin:end])
        return (parts[0] if len(parts) == 1 else torch.cat(parts, 3)).to(target.dtype)


def _empty_like(rows: ProgrammedRows, count: int) -> ProgrammedRows:
    def empty(x: Tensor, dim: int) -> Tensor:
        shape = list(x.shape)
        shape[dim] = count
        return x.new_zeros(shape)

    return ProgrammedRows({n: empty(c, 3) for n, c in rows.state.items()}, empty(rows.scale, 2), empty(rows.at, 0))
