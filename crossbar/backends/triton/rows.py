"""What opened rows of cells read, each at its own age, in one launch."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from crossbar.backends.protocol import AgedRows, RowNumbers
from crossbar.devices import Decaying, span
from crossbar.hardware import CellNoise
from crossbar.native import gpu
from crossbar.random.streams import words

_BLOCK = 1024  # numbers that a program works on, of rows of at most ...
_WIDEST = 128


def read(aged: AgedRows) -> tuple[Tensor, Tensor | None]:
    """Digits of rows, and the variance of their white noise, [B, H, L, D], of a device that is `Decaying`."""
    from crossbar.backends.triton import triton_kernels as kernels

    device, slots, numbers = cast(Decaying, aged.device), aged.slots, aged.numbers
    state = {name: cells.contiguous() for name, cells in aged.state.items()}
    noise = aged.hardware.read_noise or CellNoise(constant=0.0, relative=0.0)
    digit = aged.hardware.tile.pairs * span(aged.device)[1]  # µS that all pairs of a full digit have together
    programmed = state["programmed"]
    count, batch, heads, rows, size = programmed.shape
    shape = (batch, heads, len(slots), size)
    digits = programmed.new_empty(shape)
    variance = programmed.new_empty(shape) if noise.constant or noise.relative else None
    if not digits.numel():
        return digits, variance
    start = key = slots  # not looked at without a fluctuation
    if "amplitude" in state:
        start, key = _counters(numbers, count * size)
    block, lines = min(_WIDEST, 1 << (size - 1).bit_length()), batch * heads * len(slots)
    together = min(_BLOCK // block, 1 << (lines - 1).bit_length())
    kernels.age_rows[(-(-lines // together), -(-size // block))](
        programmed, state.get("exponent"), state.get("amplitude"), slots, device.halvings(aged.seconds).float(),
        device.band(aged.seconds).float(), start, key, digits, variance, count // 2, batch * heads, rows, len(slots),
        size, numbers.lines * words(count * size), 1 / digit, (noise.constant / digit) ** 2,
        (noise.relative / digit) ** 2, EXPONENT="exponent" in state, AMPLITUDE="amplitude" in state,
        VARIANCE=variance is not None, BL=together, BLOCK=block, **gpu.OPTIONS,
    )  # fmt: skip
    return digits, variance


def _counters(numbers: RowNumbers, width: int) -> tuple[Tensor, Tensor]:
    """Where each row's ``width`` normal numbers start, and their keys, int64 [L]; without waiting for the GPU."""
    device = numbers.tile.device
    found = torch.tensor([(stream.start, stream.word_key) for stream in numbers.streams(device)], device="cpu").t()
    start, key = gpu.sent(found, device)
    return start[numbers.tile] + numbers.line * words(width), key[numbers.tile].contiguous()
