"""The backend of CUDA GPUs: the CPU's whole numbers and bits (`crossbar.backends.cpu`), by kernels of Triton."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from crossbar.backends import bounds
from crossbar.backends.protocol import AgedRows, Columns, Read, Work
from crossbar.backends.triton import products, rows
from crossbar.devices import Decaying, window
from crossbar.features import CELLS, CONVERTERS, MISMATCH, NOISES, WIRES
from crossbar.native import gpu


@dataclass(frozen=True)
class Triton:
    """Fused kernels: `crossbar.backends.triton.products`, with gradients of inputs and cells, and ``rows``.

    Where kernels are interpreted (``TRITON_INTERPRET=1``, to test them without a GPU) it takes tensors of the CPU.
    """

    name: str = "triton"
    honours: frozenset[str] = CELLS | CONVERTERS | MISMATCH | NOISES | WIRES  # rows have no converters: see products
    narrow_inputs: bool = True

    def refuses(self, work: Work, device: torch.device, dtype: torch.dtype, gradient: bool) -> str | None:
        """What is not on a GPU, not in float32, wants gradients of ranges, or is no product of whole numbers."""
        if gpu.why_not() is not None:
            return gpu.why_not()
        if device.type != ("cpu" if gpu.interpreted() else "cuda"):
            return f"tensors on {device.type}"
        if isinstance(work, Columns):
            return "cells that are not kept in fixed point"
        if dtype != torch.float32:
            return f"numbers in {str(dtype).removeprefix('torch.')}"
        if isinstance(work, AgedRows):
            decays = isinstance(work.device, Decaying) and window(work.device) == (0.0, math.inf)
            return None if decays else f"drift of device {work.device.kind!r}, which is no factor"
        return bounds.refuses(work, bounds.HONOURED) or (products.refuses_gradient(work) if gradient else None)

    def multiply(self, read: Read) -> Tensor:
        """`crossbar.backends.protocol.Backend.multiply`; float32 for inputs of 16 bits."""
        with gpu.on(read.x.device):
            return products.multiply(read)

    def read_columns(self, read: Read) -> Tensor:
        """`crossbar.backends.protocol.Backend.read_columns`; float32 for inputs of 16 bits."""
        with gpu.on(read.x.device):
            return products.read_columns(read)

    def sense(self, columns: Columns) -> Tensor:
        """Refused: sums of columns are those of tiles in fixed point."""
        raise NotImplementedError("the Triton backend senses tiles in fixed point alone")

    def age_rows(self, aged: AgedRows) -> tuple[Tensor, Tensor | None]:
        """`crossbar.backends.protocol.Backend.age_rows`."""
        with gpu.on(aged.slots.device):
            return rows.read(aged)
