"""What opened rows of cells read, each at its own age, in one pass over them (CPU, float32)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from crossbar.devices import Decaying, State
from crossbar.hardware import CellNoise
from crossbar.random.streams import Key, Stream, words


@dataclass(frozen=True)
class RowNumbers:
    """The standard normal numbers of rows at one time: they depend on a row's place in its tile, not on what is opened.

    Attributes:
        key: of the cells and the time.
        tiles: numbers of the tiles that are touched.
        tile: which of ``tiles`` each row is in, int64 [L].
        line: the row of its tile, int64 [L].
        lines: rows of a tile.
    """

    key: Key
    tiles: tuple[int, ...]
    tile: Tensor
    line: Tensor
    lines: int

    def drawn(self, shape: tuple[int, ...], device: torch.device) -> Tensor:
        """Numbers [K, B, H, L, D], float32, L being that of the rows."""
        count, batch, heads, _, size = shape
        tiles = [
            stream.columns(1, batch * heads * self.lines, count * size).view(batch, heads, self.lines, count, size)
            for stream in self._streams(device)
        ]
        whole = tiles[0] if len(tiles) == 1 else torch.cat(tiles, 2)
        return whole.index_select(2, self.tile * self.lines + self.line).permute(3, 0, 1, 2, 4)

    def counters(self, width: int) -> tuple[Tensor, Tensor]:
        """The same for the kernels of the CPU: where each row's ``width`` numbers start, and their keys, int64 [L]."""
        found = [(stream.start, stream.word_key) for stream in self._streams(self.tile.device)]
        start, key = torch.tensor(found, device=self.tile.device).t()
        return start[self.tile] + self.line * words(width), key[self.tile]

    def _streams(self, device: torch.device) -> list[Stream]:
        return [Stream((*self.key, number), device) for number in self.tiles]


def serves(cells: Tensor) -> bool:
    """Whether `read` can have these cells; `crossbar.tiles.ageing.aged` has all others."""
    return cells.device.type == "cpu" and cells.dtype == torch.float32


def read(
    device: Decaying,
    state: State,
    amplitude: Tensor | None,
    slots: Tensor,
    seconds: Tensor,
    numbers: RowNumbers,
    digit: float,
    noise: CellNoise | None,
) -> tuple[Tensor, Tensor | None]:
    """Digits of rows, and the variance of their white noise, [B, H, L, D].

    Args:
        device: of the cells.
        state: as the device programmed it, [K, B, H, S, D], G⁺ of all pairs before G⁻.
        amplitude: `Decaying.amplitude` of it.
        slots: which of the S rows are opened, int64 [L].
        seconds: their ages, float64 [L].
        numbers: of the fluctuation.
        digit: conductance, µS, that all pairs of a full digit have together.
        noise: white noise of a read.
    """
    from crossbar.backends.cpu import kernels
    from crossbar.native import openmp  # numba takes half a second to load

    programmed, noise = state["programmed"], noise or CellNoise(constant=0.0, relative=0.0)
    count, batch, heads, rows, size = programmed.shape
    shape = (batch, heads, len(slots), size)
    digits = programmed.new_empty(shape)
    variance = programmed.new_empty(shape) if noise.constant or noise.relative else None
    start = key = slots  # not looked at without a fluctuation
    if amplitude is not None:
        start, key = numbers.counters(count * size)
    openmp.run(
        kernels.age_rows, batch * heads * len(slots), programmed, state.get("exponent"), amplitude, slots,
        device.halvings(seconds).float(), device.band(seconds).float(), start, key, digits, variance, count,
        batch * heads, rows, len(slots), size, numbers.lines * words(count * size), 1 / digit,
        (noise.constant / digit) ** 2, (noise.relative / digit) ** 2,
    )  # fmt: skip
    return digits, variance
