"""The cells that hold a layer's weights, from programming through their life."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from crossbar.backends.cpu import integers
from crossbar.costs.ledger import book
from crossbar.devices import State, window
from crossbar.errors import InputError
from crossbar.hardware import Faults, Hardware, WriteVerify
from crossbar.nn.adapters import digital_weight
from crossbar.nn.corrections import Corrected
from crossbar.nn.per_thread import PerThread
from crossbar.tiles import ageing, faults, mapping, programming, readout
from crossbar.tiles.readout import FixedPoint
from crossbar.units import to_seconds

_READING = threading.RLock()  # threads that run one model wait for the one that reads its cells
_CODES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class ProgrammedCells(Corrected):
    """Cells ``[K, I, O]`` that stand for the weights of a digital layer: written, aged, faulty, read.

    Until they are programmed, they hold their targets exactly. `crossbar.AnalogLinear` computes with them, and says
    what the attributes are.
    """

    scales: Tensor
    column_gain: Tensor
    line_scale: Tensor | None
    weight_range: Tensor | None
    weight_correction: Tensor | None
    fault_map: Tensor | None
    _digits: Tensor | None
    _bytes: Tensor | None
    _steps: Tensor | None
    _offset: Tensor | None
    _variance: Tensor | None

    def __init__(self, digital: nn.Module, hardware: Hardware, name: str) -> None:
        super().__init__()
        self.digital, self.hardware, self.name = digital, hardware, name
        weight = digital_weight(digital)
        self.out_features, self.in_features = weight.shape
        self.seed: int | None = None
        self.seconds = 0.0
        self._reads = PerThread(0)
        self._cells: tuple[str, ...] = ()
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.register_buffer("scales", mapping.column_scales(weight.to(dtype), hardware.tile, name), persistent=False)
        self.register_buffer("column_gain", self._unit_gain(), persistent=False)
        for buffer in (
            "line_scale",
            "weight_range",
            "weight_correction",
            "fault_map",
            "_digits",
            "_bytes",
            "_steps",
            "_offset",
            "_variance",
        ):
            self.register_buffer(buffer, None, persistent=False)

    def program(self, seed: int) -> None:
        """Write the targets into the cells of chip ``seed``; the layer is then 0 s old, without gain or correction."""
        self.reset_gains()
        self._rescale()
        tile, device, key = self.hardware.tile, self.hardware.device, (seed, self.name)
        targets = self._targets()
        if self.hardware.verify is None:
            state = ageing.program(device, targets, key)
        else:
            state, pulses = programming.write(device, targets, key, self.hardware.verify)
            book(self.name, "write_pulses", pulses)
        t_out, _ = mapping.tile_grid(self.in_features, self.out_features, tile)
        book(self.name, "row_writes", self.in_features * t_out * tile.slices)
        if self.fault_map is None and self.hardware.faults is not None:
            size = (self.in_features, self.out_features)
            self.fault_map = faults.draw(self.hardware.faults, tile, *size, key, targets.device)
        self.set_state(state, seed, 0.0)

    @torch.inference_mode(False)
    @torch.no_grad()
    def reprogram(self, columns: Tensor, verify: WriteVerify) -> None:
        """Write and verify the cells of some columns again, bool ``[T_in, O]``, right after programming.

        Raises:
            InputError: for a layer that was not programmed or is older than 0 s, and for columns of another shape.
        """
        self.require_programmed()
        if self.seconds != 0:
            raise InputError(f"{self.name} is {self.seconds:g} s old: write columns again right after programming")
        if columns.shape != self.scales.shape or columns.dtype != torch.bool:
            raise InputError(f"{self.name} got bad columns to write again: give bool {list(self.scales.shape)}")
        cells = columns.repeat_interleave(self.hardware.tile.rows, 0)[: self.in_features]
        key = (self.seed or 0, self.name, "again")
        written, pulses = programming.write(self.hardware.device, self._targets()[:, cells], key, verify)
        book(self.name, "write_pulses", pulses)
        state = {name: old.clone() for name, old in self.state().items()}
        for name, new in written.items():
            state[name][:, cells] = new
        self.set_state(state, self.seed, 0.0)

    def new_chip(self) -> None:
        """Forget the chip: its faults, its cells, the gains and the corrections that were measured on it."""
        self.fault_map = None
        self.reset_gains()
        self.set_state({}, None, 0.0)

    def reset_gains(self) -> None:
        """Make the calibrated gains 1 again, and drop output correction and adapter."""
        self.column_gain = self._unit_gain()
        self.drop_corrections()

    def age(self, seconds: float) -> None:
        """Move to ``seconds`` after programming, forwards or backwards.

        Raises:
            InputError: if the layer was not programmed, and for a time before programming.
        """
        self.require_programmed()
        self.seconds = to_seconds(seconds) + 0.0  # one key for 1, 1.0 and numpy's 1.0, and for -0.0 and 0.0
        self._read_cells()

    def require_programmed(self) -> None:
        """Refuse a layer that has no age because it was not programmed."""
        if self.seed is None:
            raise InputError(f"{self.name} was not programmed: call crossbar.program(model, seed) first")

    def state(self) -> State:
        """What the cells keep from programming, each tensor ``[K, I, O]``, G⁺ first; empty before programming."""
        return {name: getattr(self, f"cells_{name}") for name in self._cells}

    def set_state(self, state: State, seed: int | None, seconds: float) -> None:
        """Take over cells that were programmed as chip ``seed``, at ``seconds`` after programming.

        Without a seed the cells hold their targets exactly again.
        """
        for name in self._cells:
            delattr(self, f"cells_{name}")
        for name, cells in state.items():
            self.register_buffer(f"cells_{name}", cells, persistent=False)
        self._cells = tuple(state)
        if seed is None:
            self._rescale()
        self.seed, self.seconds = seed, float(seconds) + 0.0
        self.reset_reads()
        self._forget_cells()

    @torch.inference_mode(False)
    def set_faults(self, fault_map: Tensor | None) -> None:
        """Take over a map of faults, codes of `crossbar.tiles.faults.Fault`, ``[K, I, O]``, in the place of drawn ones.

        Raises:
            InputError: for a map of another shape or with other codes.
        """
        if fault_map is not None:
            shape = (self.cells_a_weight, self.in_features, self.out_features)
            if not isinstance(fault_map, Tensor) or fault_map.dtype not in _CODES or fault_map.shape != shape:
                raise InputError(f"{self.name} got a bad fault map: give an integer tensor {list(shape)}")
            codes, most = (int(fault_map.amin()), int(fault_map.amax())), int(max(faults.Fault))
            if codes[0] < 0 or codes[1] > most:
                raise InputError(
                    f"{self.name} got fault codes {codes}: give 0 to {most}, see crossbar.tiles.faults.Fault"
                )
            fault_map = fault_map.to(self.scales.device, torch.uint8)
        self.fault_map = fault_map
        self._forget_cells()

    def conductances(self, noise: bool = True) -> tuple[Tensor, Tensor]:
        """``(G⁺, G⁻)`` in µS as they are now, each ``[T_out, T_in, R, C]``; absent cells are NaN.

        Where a weight has several pairs or slices, these come first: ``[pairs, slices, T_out, T_in, R, C]``, without
        those of 1. The ``offset`` encoding has no G⁻: all of it is NaN.

        Args:
            noise: with the 1/f fluctuation of this time, or without.
        """
        return self._placed(self._conductances(noise))

    def target_conductances(self) -> tuple[Tensor, Tensor]:
        """What programming aims at, in µS, in the form of `conductances`."""
        return self._placed(self._targets())

    def _placed(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """``(G⁺, G⁻)`` in tile form of cells ``[K, I, O]``."""
        tile = self.hardware.tile
        cells = mapping.to_tiles(cells, tile)
        kept = [count for count in (tile.pairs, tile.slices) if count > 1]
        places = cells.view(tile.signs, *kept, *cells.shape[1:])
        return places[0], (places[1] if tile.signs == 2 else torch.full_like(places[0], torch.nan))

    @property
    def reads(self) -> int:
        """Index of the calling thread's next read: each counts its own, so what it gets depends on no other."""
        return self._reads.get()

    @reads.setter
    def reads(self, index: int) -> None:
        self._reads.set(index)

    @property
    def cell_weight(self) -> Tensor:
        """Signed digits as the columns see them now, ``[S, I, O]``; read when first asked for after programming."""
        digits = self._digits
        if digits is None:
            with _READING:
                digits = self._read_cells() if self._digits is None else self._digits
        return digits

    @property
    def cells_a_weight(self) -> int:
        """``K``: devices that make up one weight."""
        tile = self.hardware.tile
        return tile.signs * tile.pairs * tile.slices

    def target_weight(self) -> Tensor:
        """The digital weight ``[O, I]`` that the cells stand for."""
        return digital_weight(self.digital).to(self.scales.dtype)

    def scaled_weight(self) -> Tensor:
        """The digital weight ``[O, I]`` as word lines see it: times ``line_scale``."""
        weight = self.target_weight()
        return weight if self.line_scale is None else weight * self.line_scale

    def reset_reads(self) -> None:
        """Start the read-noise stream again, for every thread."""
        self._reads = PerThread(0)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move with the model (``.to``, ``.half()``), but compute in the precision of the conversion."""
        if recurse:
            self.digital._apply(fn)
        super()._apply(lambda own: own.to(fn(own.new_empty(0)).device), False)  # type: ignore[no-untyped-call]  # torch's own
        return self

    def _forget_cells(self) -> None:
        self._digits = self._bytes = self._steps = None

    def _fixed_point(self) -> FixedPoint:
        """The cells in fixed point; found when first asked for after they changed."""
        with _READING:
            if self._bytes is None or self._steps is None:
                fixed = integers.fixed_point(self.cell_weight, self.hardware.tile.rows)
                self._bytes, self._steps = fixed.bytes, fixed.steps
            return FixedPoint(self._bytes, self._steps)

    def _rescale(self) -> None:
        """Find the scales of the digital weights as they are now."""
        self.scales = self._found_scales(self._written(self.scaled_weight()))

    def _found_scales(self, weight: Tensor) -> Tensor:
        """Scales ``[T, O]`` of scaled weights ``[O, I]``: the calibrated range, or each column's largest weight."""
        if self.weight_range is not None:
            return self.weight_range.clone()
        return mapping.column_scales(weight, self.hardware.tile, self.name)

    def _written(self, weight: Tensor) -> Tensor:
        """What is mapped for scaled weights ``[O, I]``."""
        return weight if self.weight_correction is None else weight + self.weight_correction

    def _unit_gain(self) -> Tensor:
        return self.scales.new_ones(self.hardware.tile.slices * self.scales.shape[0], self.out_features)

    def _targets(self) -> Tensor:
        return self._mapped(self._written(self.scaled_weight()), self.scales)

    def _mapped(self, weight: Tensor, scales: Tensor) -> Tensor:
        device = self.hardware.device
        return mapping.target_conductances(weight, scales, self.hardware.tile, device.g_max, window(device)[0])

    def _conductances(self, noise: bool) -> Tensor:
        if self.seed is None:
            return self._targets()
        device, key = self.hardware.device, (self.seed, self.name)
        cells = ageing.conductances(device, self.state(), self.seconds, key, noise)
        ageing.require_conductances(device, cells, self.seconds, self.name)
        if self.fault_map is None:
            return cells
        short = (self.hardware.faults or Faults()).short_conductance
        return faults.apply(self.fault_map, cells, window(device)[0], device.g_max, short)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _read_cells(self) -> Tensor:
        """Keep what the columns see of the cells at this time."""
        cells = self._conductances(noise=True)
        key = None if self.seed is None else (self.seed, self.name)
        digits, self._offset = readout.digits(cells, self.hardware, key)
        self._variance = readout.read_variance(cells, self.hardware.read_noise, self.hardware, self.fault_map)
        self._forget_cells()
        self._digits = digits
        return digits
