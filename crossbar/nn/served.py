"""Which backend computes which work of a chip on a device, and why those before it cannot: for people to read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from crossbar.backends import dispatch
from crossbar.backends.protocol import AgedRows, Columns, Product, Read, RowNumbers, Work
from crossbar.hardware import Hardware
from crossbar.native import gpu
from crossbar.nn.linear import AnalogLinear

OVER_ROWS = "attention over rows of cells"
"""The kind of work that `attention` has kernels for on a GPU, which come before the backends."""


@dataclass(frozen=True)
class Served:
    """A kind of work, and who computes it.

    Attributes:
        work: in a few words.
        backend: its name.
        passed: why each backend that is asked before it cannot, by name, without those for other devices.
    """

    work: str
    backend: str
    passed: Mapping[str, str]

    def __str__(self) -> str:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in self.passed.items())
        return f"{self.work} by {self.backend}" + (f" ({reasons})" if reasons else "")


def served(hardware: Hardware, device: torch.device | str) -> tuple[Served, ...]:
    """Who would compute the work of chips with this hardware on a device, which need not be there.

    Cells are in float32, as those of models in float32 and of 16 bits are. It is asked of the backends as
    `crossbar.backends.dispatch` asks them, with the smallest piece of each kind of work. What no backend computes is
    left out.
    """
    found, place = [], torch.device(device)
    elsewhere = {f"tensors on {place.type}", gpu.why_not() if place.type == "cpu" else None}
    for name, work, gradient in _works(hardware):
        backend, passed = dispatch.outcome(work, place, torch.float32, gradient)
        if backend is not None:
            reasons = {other: reason for other, reason in passed.items() if reason not in elsewhere}
            found.append(Served(name, backend, reasons))
    return tuple(found)


def _works(hardware: Hardware) -> Iterator[tuple[str, Work, bool]]:
    one = torch.ones((1, 1), device="cpu")
    cells = AnalogLinear.from_matrix(one, hardware, "served").readout()
    read = Read(one, cells, hardware)
    yield "layers", read, False
    yield "layers in training", _once(read), True
    columns = Columns((Product(None, one, one),), (1, 1, 1), 1.0, hardware, 1.0)
    yield OVER_ROWS, columns, False
    place = torch.zeros(1, dtype=torch.int64, device="cpu")
    numbers = RowNumbers((0, "served"), (0,), place, place, 1)
    rows = AgedRows({"programmed": one.view(1, 1, 1, 1, 1)}, place, place.double(), numbers, hardware)
    yield "rows of a memory, each of its age", rows, False


def _once(read: Read) -> Read:
    """A read of cells that are used once, as training's are."""
    return read._replace(cells=replace(read.cells, forms=None))
