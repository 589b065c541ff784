"""What opened rows of cells read, each at its own age, in one pass over them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from crossbar.backends.protocol import AgedRows, RowNumbers
from crossbar.devices import Decaying, span
from crossbar.hardware import CellNoise
from crossbar.random.streams import words


def read(aged: AgedRows) -> tuple[Tensor, Tensor | None]:
    """Digits of rows, and the variance of their white noise, [B, H, L, D], of a device that is `Decaying`."""
    from crossbar.backends.cpu import kernels
    from crossbar.native import openmp  # numba takes half a second to load

    device, state, slots, numbers = cast(Decaying, aged.device), aged.state, aged.slots, aged.numbers
    noise = aged.hardware.read_noise or CellNoise(constant=0.0, relative=0.0)
    digit = aged.hardware.tile.pairs * span(aged.device)[1]  # µS that all pairs of a full digit have together
    programmed = state["programmed"]
    count, batch, heads, rows, size = programmed.shape
    shape = (batch, heads, len(slots), size)
    digits = programmed.new_empty(shape)
    variance = programmed.new_empty(shape) if noise.constant or noise.relative else None
    start = key = slots  # not looked at without a fluctuation
    if "amplitude" in state:
        start, key = _counters(numbers, count * size)
    openmp.run(
        kernels.age_rows, batch * heads * len(slots), programmed, state.get("exponent"), state.get("amplitude"), slots,
        device.halvings(aged.seconds).float(), device.band(aged.seconds).float(), start, key, digits, variance, count,
        batch * heads, rows, len(slots), size, numbers.lines * words(count * size), 1 / digit,
        (noise.constant / digit) ** 2, (noise.relative / digit) ** 2,
    )  # fmt: skip
    return digits, variance


def _counters(numbers: RowNumbers, width: int) -> tuple[Tensor, Tensor]:
    """Where each row's ``width`` normal numbers start, and their keys, int64 [L]."""
    found = [(stream.start, stream.word_key) for stream in numbers.streams(numbers.tile.device)]
    start, key = torch.tensor(found, device=numbers.tile.device).t()
    return start[numbers.tile] + numbers.line * words(width), key[numbers.tile]
