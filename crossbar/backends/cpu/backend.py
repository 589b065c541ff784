"""The CPU backend: whole numbers where converters allow them, and rows of cells of any age in one pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from crossbar.backends.cpu import integers, rows
from crossbar.backends.protocol import AgedRows, Columns, Read, Work
from crossbar.devices import Decaying, window
from crossbar.features import CELLS, CONVERTERS, MISMATCH, NOISES, WIRES


@dataclass(frozen=True)
class Cpu:
    """Compiled kernels (`crossbar.backends.cpu.integers`, `crossbar.backends.cpu.rows`), without gradients."""

    name: str = "cpu"
    honours: frozenset[str] = CELLS | CONVERTERS | MISMATCH | NOISES | WIRES  # rows have no converters: see integers
    cuts_inputs: bool = True

    def refuses(self, work: Work, device: torch.device, dtype: torch.dtype, gradient: bool) -> str | None:
        """What is not on the CPU, not in float32, has gradients, or is no product of whole numbers."""
        if device.type != "cpu":
            return f"tensors on {device.type}"
        if dtype != torch.float32:
            return f"numbers in {str(dtype).removeprefix('torch.')}"
        if isinstance(work, Columns):
            return "cells that are not kept in fixed point"
        if isinstance(work, AgedRows):
            decays = _decays(type(work.device)) and window(work.device) == (0.0, math.inf)
            return None if decays else f"drift of device {work.device.kind!r}, which is no factor"
        if gradient:
            return "gradients"
        return integers.refuses(work)

    def multiply(self, read: Read) -> Tensor:
        """`crossbar.backends.protocol.Backend.multiply`."""
        return integers.multiply(read)

    def read_columns(self, read: Read) -> Tensor:
        """`crossbar.backends.protocol.Backend.read_columns`."""
        return integers.read_columns(read)

    def sense(self, columns: Columns) -> Tensor:
        """Refused: `crossbar.backends.cpu.integers.sense` takes codes and cells that are whole numbers."""
        raise NotImplementedError("the CPU backend senses tiles in fixed point alone")

    def age_rows(self, aged: AgedRows) -> tuple[Tensor, Tensor | None]:
        """`crossbar.backends.protocol.Backend.age_rows`."""
        return rows.read(aged)


@cache
def _decays(kind: type) -> bool:
    """Whether a kind of device is `Decaying`: found once, since asking a protocol takes longer than a small read."""
    return issubclass(kind, Decaying)
