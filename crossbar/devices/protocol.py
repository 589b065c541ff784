"""What a memory device is to the rest of the package: how it is written, how it drifts, how it fluctuates.

A device is a frozen description with the statistics of one cell. All tensors are conductances in microsiemens (µS) of
any shape, cell by cell; times are seconds since programming, where 0 s is as long after the last programming pulse as
the device's first characterised read.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, Protocol, runtime_checkable

from torch import Tensor

from crossbar.errors import require_number

MOST_SCALE = 1000.0
"""Of what multiplies a published error."""

Draw = Callable[[str], Tensor]
"""Gives standard normal numbers, shaped like the target, for a named purpose; the same name gives the same bits."""

State = dict[str, Tensor]
"""What a cell keeps from programming: tensors by name, each shaped like the target."""


@runtime_checkable
class Device(Protocol):
    """A device whose statistics split into programming error, drift and a read fluctuation."""

    kind: ClassVar[str]

    @property
    def g_max(self) -> float:
        """Conductance (µS) of the largest weight."""
        ...

    def program(self, target: Tensor, draw: Draw) -> State:
        """Write ``target`` (µS): the state that the cell keeps until it is written again."""
        ...

    def drifted(self, state: State, seconds: float) -> Tensor:
        """Conductance (µS) at a time, without fluctuation."""
        ...

    def fluctuation(self, state: State, drifted: Tensor, seconds: float) -> Tensor | None:
        """Standard deviation (µS) of accumulated 1/f noise around ``drifted`` at a time; None where there is none."""
        ...


@runtime_checkable
class RedrawDevice(Protocol):
    """A device whose statistics do not split: its error is drawn anew for each time, from that time's own seed.

    The same seed must give the same bits, whatever was drawn before and with any number of threads.
    """

    kind: ClassVar[str]

    @property
    def g_max(self) -> float:
        """Conductance (µS) of the largest weight."""
        ...

    def write(self, target: Tensor, seed: int) -> State:
        """Write ``target`` (µS): the state that the cell keeps until it is written again."""
        ...

    def read(self, state: State, seconds: float, seed: int, noise: bool = True) -> Tensor:
        """Conductance (µS) at a time, with or without 1/f noise.

        Raises:
            InputError: for a time at which the device is not defined, and without noise where it cannot be told apart.
        """
        ...


AnyDevice = Device | RedrawDevice


@runtime_checkable
class AgesApart(Protocol):
    """A device whose ``drifted`` and ``fluctuation`` also take a time for each cell, as rows written one by one need.

    The times are a tensor that broadcasts to the state's cells.
    """

    ages_apart: ClassVar[bool]


@runtime_checkable
class Decaying(Protocol):
    """A device whose drift and fluctuation are factors, so that rows of any age can be read in one pass.

    A cell's conductance is ``P 2^(-exponent halvings(t)) (1 + amplitude band(t) z)``, at least 0, with P and the
    exponent the cell's state ``programmed`` and ``exponent`` (1 where there is none) and z a standard normal number:
    the same as ``drifted`` and ``fluctuation`` say.
    """

    def halvings(self, seconds: Tensor) -> Tensor:
        """How often a cell of exponent 1 has lost half of its conductance at each of some times."""
        ...

    def amplitude(self, state: State) -> Tensor | None:
        """What ``band`` multiplies, of each cell; None: there is no fluctuation."""
        ...

    def band(self, seconds: Tensor) -> Tensor:
        """Growth of the fluctuation, at each of some times."""
        ...


@runtime_checkable
class Windowed(Protocol):
    """A device whose cells read within a window of conductances, whatever their error and noise."""

    @property
    def g_min(self) -> float:
        """The smallest conductance (µS)."""
        ...

    @property
    def g_max(self) -> float:
        """The largest conductance (µS)."""
        ...


def require_conductance(what: str, value: object, most: float = 1e5) -> None:
    """Refuse what is no conductance (µS) of a largest weight: a nanosiemens to 0.1 S, unless ``most`` is given."""
    require_number(what, value, least=1e-3, most=most)


def window(device: AnyDevice) -> tuple[float, float]:
    """Least and greatest conductance (µS) that a cell can be read at: 0 and infinity where the device sets no other."""
    g_min = getattr(device, "g_min", None)  # what makes a device `Windowed`; to ask the protocol takes 20 µs
    return (0.0, math.inf) if g_min is None else (g_min, device.g_max)


def span(device: AnyDevice) -> tuple[float, float]:
    """Conductance (µS) that stands for a weight of 0, and the width up to the one of the largest weight."""
    g_min = window(device)[0]
    return g_min, device.g_max - g_min
