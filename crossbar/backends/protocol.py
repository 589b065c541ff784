"""What a backend is: it drives word lines, senses columns and converts them, on one kind of processor.

There are three kinds of work. `Read` is a product of a layer's tiles with input vectors. `Columns` are bit lines that
are sensed at once, whatever their codes and cells come from: rows of keys, of values, of attention strengths, tiles of
a layer. `AgedRows` are rows of cells, each at its own age. A backend says which it refuses; the backends are asked in
their order (`crossbar.backends.dispatch`).
"""

from __future__ import annotations

from collections.abc import Callable, Set
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor

from crossbar.devices import AnyDevice, Device, State
from crossbar.hardware import Hardware
from crossbar.random.streams import Key, Stream
from crossbar.tiles import ageing
from crossbar.tiles.readout import Readout


class Read(NamedTuple):
    """A product of tiles with input vectors.

    Attributes:
        x: ``[B, I]``, in the dtype of the cells' scales, or in 16 bits: a backend gets these as they are if it has an
            attribute ``narrow_inputs`` that is true, or else widened. Results are in the dtype of the scales.
        cells: the tiles, as their columns see them now.
        hardware: geometry, converters and output noise.
        input_range: calibrated DAC range, 0-d, activation units; None: found as ``hardware.dac.range`` says.
        noise: the random numbers of this read; None for a quiet one. The normal numbers of all columns, ``[T, B, O]``,
            are ``noise.columns(T, B, O)``, those from input vector b on ``first=b`` of it. With bit-serial inputs bit
            p, from the least significant on, takes those of the B vectors that follow: ``first=p * B``. The pulses of
            ``rate`` inputs are the binomial numbers of the key with ``"pulses"`` behind.
        taken: how many of the last dimensions of ``x`` are word lines, the others being B: of patches, which overlap in
            memory. A backend gets more than one if it has an attribute ``cuts_inputs`` that is true, or else a copy
            ``[B, I]``.
    """

    x: Tensor
    cells: Readout
    hardware: Hardware
    input_range: Tensor | None = None
    noise: Stream | None = None
    taken: int = 1


class Product(NamedTuple):
    """The sums of some columns: ``codes @ cells``.

    Attributes:
        place: which of the N these are: a number, a slice, or None for all.
        codes: ``[n, B, R]``, or ``[B, R]`` for a single one: word-line codes.
        cells: ``[n, R, O]`` or ``[R, O]``: digits.
    """

    place: int | slice | None
    codes: Tensor
    cells: Tensor


@dataclass(frozen=True)
class Columns:
    """Bit lines that are sensed at once, ``[N, B, O]``: N batches of columns, each read with B vectors of codes.

    Attributes:
        products: what is summed; together they have each of the N in one of them.
        shape: N, B and O.
        unit: the part of full scale that a code of 1 drives.
        hardware: the ADC and output noise.
        step: unit outputs that sums are counted in before the conversion; a code of a static ADC is one such step.
        spans: steps that one code of the ADC stands for, where columns have ranges of their own: broadcasts to
            ``[N, B, O]``; None: 1.
        normals: gives the noise's standard normal numbers ``[N, B, O]``; None: a quiet read.
        variance: of the cells' white noise under these drives, ``[N, B, O]`` or ``[N, B, 1]``, unit outputs squared;
            overwritten; None: no such noise.
        offset: what each column adds, ``[N, O]``, unit outputs; None: nothing.
    """

    products: tuple[Product, ...]
    shape: tuple[int, int, int]
    unit: float
    hardware: Hardware
    step: float
    spans: Tensor | None = None
    normals: Callable[[], Tensor] | None = None
    variance: Tensor | None = None
    offset: Tensor | None = None


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
            for stream in self.streams(device)
        ]
        whole = tiles[0] if len(tiles) == 1 else torch.cat(tiles, 2)
        return whole.index_select(2, self.tile * self.lines + self.line).permute(3, 0, 1, 2, 4)

    def streams(self, device: torch.device) -> list[Stream]:
        """The stream of each tile."""
        return [Stream((*self.key, number), device) for number in self.tiles]


@dataclass(frozen=True)
class AgedRows:
    """Rows of pairs of cells that are opened, each at its own age.

    Attributes:
        state: as the device programmed it, each tensor [K, B, H, S, D], G⁺ of all pairs before G⁻; with the
            ``amplitude`` of a fluctuation that is one factor (`crossbar.devices.Decaying`).
        slots: which of the S rows are opened, int64 [L].
        seconds: their ages, float64 [L].
        numbers: of the fluctuation.
        hardware: device, pairs and read noise.
    """

    state: State
    slots: Tensor
    seconds: Tensor
    numbers: RowNumbers
    hardware: Hardware

    @property
    def device(self) -> AnyDevice:
        """Of the cells."""
        return self.hardware.device

    def conductances(self) -> Tensor:
        """Of the cells of opened rows at their ages (µS), ``[K, B, H, L, D]``."""
        state = {name: cells.index_select(3, self.slots) for name, cells in self.state.items()}
        shape = tuple(next(iter(state.values())).shape)
        device = cast(Device, self.device)  # one that is drawn anew at each time has no rows of many ages
        return ageing.aged(device, state, self.seconds[:, None], lambda: self.numbers.drawn(shape, self.slots.device))


Work = Read | Columns | AgedRows

REDRAWN = "rows of a device that is drawn anew at each time"
"""A reason to refuse work."""


@runtime_checkable
class Backend(Protocol):
    """One way to compute with cells.

    Results are tensors of their own, in the dtype and on the device of the work's, which the caller may overwrite. An
    input of NaN gives NaN in the outputs of its own vector, and in others only where they share a range with it.

    Attributes:
        name: by which `crossbar.using_backend` picks it.
        honours: features of hardware (`crossbar.Hardware.features`) that it computes; it is not asked with others.
    """

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def honours(self) -> Set[str]:
        """Features of hardware that it computes."""
        ...

    def refuses(self, work: Work, device: torch.device, dtype: torch.dtype, gradient: bool) -> str | None:
        """Why it cannot have a piece of work, in a few words, such as ``"tensors on cuda"``; None: it can.

        Args:
            work: what is to be computed.
            device, dtype: of the tensors.
            gradient: whether one may be asked for.
        """
        ...

    def multiply(self, read: Read) -> Tensor:
        """Products of a layer's row tiles with input vectors, accumulated in digital, ``[B, O]``.

        DAC codes drive the word lines, each column of each row tile sums its cells, noise is added, the ADC converts,
        and the digital side scales and adds the row tiles (docs/physics.md).
        """
        ...

    def read_columns(self, read: Read) -> Tensor:
        """What the ADCs deliver, before any digital scale: ``[T, B, O]`` in unit outputs x activation units."""
        ...

    def sense(self, columns: Columns) -> Tensor:
        """What the ADCs deliver of bit lines, ``[N, B, O]`` in `Columns.step`: sums, noise and offset, converted."""
        ...

    def age_rows(self, rows: AgedRows) -> tuple[Tensor, Tensor | None]:
        """Digits [B, H, L, D] of opened rows at their ages, and the variance of their white noise (digits squared)."""
        ...
