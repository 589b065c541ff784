"""The tile core: cells of a weight matrix that someone hands it, from programming through their life."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from crossbar.devices import RedrawDevice, State, span, window
from crossbar.errors import InputError
from crossbar.features import CELLS, CONVERTERS, MISMATCH, NOISES, WIRES, require_honoured
from crossbar.hardware import Faults, Hardware, WriteVerify
from crossbar.random.streams import Stream
from crossbar.tiles import ageing, faults, injection, mapping, programming, wires
from crossbar.tiles.readout import Readout, cell_variance, of_columns, read_digits, read_variance, with_mismatch
from crossbar.units import to_seconds

HONOURED = CELLS | CONVERTERS | MISMATCH | NOISES | WIRES
"""Features of hardware that arrays of tiles, and layers on them, have."""

_READING = threading.RLock()  # threads that run one model wait for the one that reads its cells
_CODES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


class TileArray(nn.Module):
    """Cells ``[K, I, O]`` that stand for a matrix ``[O, I]``: written, aged, faulty, read.

    ``K`` counts the devices that make up one weight (`crossbar.tiles.mapping`). Until they are programmed, the cells
    hold their targets exactly. Nothing here is part of ``state_dict()``.

    Wires have a resistance once the cells are programmed: columns then see the transfer matrix of each tile at this age
    (`crossbar.tiles.wires`).

    Programming errors and drift are functions of target, chip and time, so what programming leaves in the cells is not
    kept but made again, from a copy of the matrix, whenever they are read (`crossbar.tiles.ageing.keeps_no_state`). It
    is kept where it is more than that: of cells that were verified or written again, and of a user's devices.

    Args:
        matrix: the weights, or what gives them as they are now (a bound method, so that copies take their own).
        hardware: what the cells and their tiles are.
        name: keys the random streams, so it must be unique in a model.
        devices: bool ``[O, I]``: where there are devices at all; None: everywhere.

    Attributes:
        alone: each read opens a single row of a tile, so wires meet no other: false unless its owner says so.
        scales: the weight that a cell at g_max stands for, of each column of each row tile, ``[T_in, O]``.
        weight_range: the same, chosen; larger weights are clipped. None: each column's largest.
        fault_map: codes of `crossbar.tiles.faults.Fault`, ``[K, I, O]``; None: no faults. Programming leaves it as it
            is.
        seed: which chip this is; None until it is programmed.
        seconds: time since programming.
        row_places: of each input's word line in its tile, 0 at the top, int64 ``[T_out, I]``; None: in order.
        column_places: of each output's bit line in its tile, 0 at the left, int64 ``[T_in, O]``; None: in order.
        error_spread: what deviations of the errors that training meets (`fresh`) are multiplied by; 0: errors are their
            mean.

    Raises:
        InputError: for hardware with a feature that tiles do not have (faults, where devices are in some places only),
            weights that are NaN, infinite or no matrix, and devices of another shape.
    """

    scales: Tensor
    weight_range: Tensor | None
    fault_map: Tensor | None
    row_places: Tensor | None
    column_places: Tensor | None
    devices: Tensor | None
    _kept: Tensor | None
    _digits: Tensor | None
    _offset: Tensor | None
    _variance: Tensor | None

    def __init__(
        self,
        matrix: Tensor | Callable[[], Tensor],
        hardware: Hardware,
        name: str,
        devices: Tensor | None = None,
    ) -> None:
        super().__init__()
        require_honoured(hardware, HONOURED, "analog layers")
        if devices is not None:
            require_honoured(hardware, HONOURED - {"faults"}, "tiles with devices in some places only")
        self.hardware, self.name = hardware, name
        given = matrix if isinstance(matrix, Tensor) else None
        self.register_buffer("_given", given, persistent=False)
        self._matrix = None if isinstance(matrix, Tensor) else matrix
        self.alone, self.error_spread = False, 1.0
        weight = self.matrix()
        if weight.dim() != 2:
            raise InputError(f"{name} got weights {list(weight.shape)}: give a matrix [O, I]")
        if devices is not None and (devices.dtype != torch.bool or devices.shape != weight.shape):
            raise InputError(f"{name} got bad places of devices: give bool {list(weight.shape)}")
        self.out_features, self.in_features = weight.shape
        self.seed: int | None = None
        self.seconds = 0.0
        self._cells: tuple[str, ...] = ()
        self._forms: dict[str, Any] = {}
        self._seen = self._asked = False
        self._passed: Tensor | None = None
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.register_buffer("scales", mapping.column_scales(weight.to(dtype), hardware.tile, name), persistent=False)
        self.register_buffer("devices", None if devices is None else devices.t().contiguous(), persistent=False)
        for buffer in (
            "weight_range",
            "fault_map",
            "row_places",
            "column_places",
            "_kept",
            "_digits",
            "_offset",
            "_variance",
        ):
            self.register_buffer(buffer, None, persistent=False)
        self._leave_out()

    _given: Tensor | None

    def matrix(self) -> Tensor:
        """The weights ``[O, I]`` that the cells stand for, as they are now, without gradient."""
        weight = self._given if self._matrix is None else self._matrix()
        assert weight is not None
        return weight.detach()

    def program(self, seed: int, *, keep_scales: bool = False) -> int:
        """Write the targets into the cells of chip ``seed``; they are then 0 s old. Returns the number of pulses.

        A pulse is a write of one cell. Scales are found for the matrix as it is now, or kept.
        """
        if not keep_scales:
            self.rescale()
        tile, device, key = self.hardware.tile, self.hardware.device, (seed, self.name)
        if self.fault_map is None and self.hardware.faults is not None:
            size = (self.in_features, self.out_features)
            self.fault_map = faults.draw(self.hardware.faults, tile, *size, key, self.scales.device)
        state, pulses = State(), math.prod(self.shape)
        if self.hardware.verify is not None:
            state, pulses = programming.write(device, self._targets(), key, self.hardware.verify)
        elif not ageing.keeps_no_state(device):
            state = ageing.program(device, self._targets(), key)
        self.set_state(state, seed, 0.0)
        return pulses

    @torch.no_grad()
    def write_errors(self, matrix: Tensor, lines: slice, instants: Sequence[float]) -> Tensor:
        """By how much word lines miss a matrix that this chip is written with, as read-outs show it.

        The same cells have the same errors when the whole matrix is written. A read-out has the 1/f noise of its
        instant; the gain that drift has left all cells with by then is taken back.

        Args:
            matrix: ``[O, I]``, no larger than the scales.
            lines: which word lines, ``r`` of them.
            instants: of the read-outs, seconds since programming; what they show is averaged.

        Returns:
            ``[O, r]`` in units of the matrix; wires, and mismatch of columns, left out.

        Raises:
            InputError: for cells that were not programmed, that are written and verified, or whose device is not one
                of this package.
        """
        self.require_programmed()
        device, tile, key = self.hardware.device, self.hardware.tile, (self.seed or 0, self.name)
        if self.hardware.verify is not None or isinstance(device, RedrawDevice) or not ageing.keeps_no_state(device):
            raise InputError(
                f"{self.name} has cells whose errors are not known line by line: compensate what is written once, in "
                "devices of crossbar.devices without write-and-verify"
            )
        targets, width = self._mapped(matrix, self.scales, lines), span(device)[1]
        state = ageing.program_lines(device, self._around(targets, lines), key, self.shape, lines)
        wanted = mapping.cell_weights(targets, tile, width)
        found = torch.zeros_like(wanted)
        for seconds in instants:
            cells = ageing.conductances_lines(device, state, seconds, key, self.shape, lines, noise=True)
            if self.fault_map is not None:
                cells = faults.apply(self.fault_map[:, lines], cells, *self._held())
            digits = mapping.cell_weights(cells, tile, width)
            gain = (digits * wanted).sum() / wanted.square().sum().clamp(min=torch.finfo(wanted.dtype).tiny)
            found = found + digits / torch.where(gain > 0, gain, 1.0) / len(instants)
        places = torch.tensor(mapping.slice_weights(tile), dtype=wanted.dtype, device=wanted.device)
        missed = ((found - wanted) * places.view(-1, 1, 1)).sum(0)
        return (missed * mapping.of_lines(self.scales, tile.rows, self.in_features, lines)).t()

    @torch.inference_mode(False)
    @torch.no_grad()
    def write_again(self, columns: Tensor, verify: WriteVerify) -> int:
        """Write and verify the cells of some columns again, bool ``[T_in, O]``, right after programming.

        Returns:
            The number of pulses.

        Raises:
            InputError: for cells that were not programmed or are older than 0 s, and for columns of another shape.
        """
        self.require_programmed()
        if self.seconds != 0:
            raise InputError(f"{self.name} is {self.seconds:g} s old: write columns again right after programming")
        if columns.shape != self.scales.shape or columns.dtype != torch.bool:
            raise InputError(f"{self.name} got bad columns to write again: give bool {list(self.scales.shape)}")
        cells = columns.repeat_interleave(self.hardware.tile.rows, 0)[: self.in_features]
        key = (self.seed or 0, self.name, "again")
        written, pulses = programming.write(self.hardware.device, self._targets()[:, cells], key, verify)
        state = {name: old.clone() for name, old in self.state().items()}
        for name, new in written.items():
            state[name][:, cells] = new
        self.set_state(state, self.seed, 0.0)
        return pulses

    def new_chip(self) -> None:
        """Forget the chip: its faults and its cells."""
        self.fault_map = None
        self._leave_out()
        self.set_state({}, None, 0.0)

    def age(self, seconds: float) -> None:
        """Move to ``seconds`` after programming, forwards or backwards.

        Raises:
            InputError: if the cells were not programmed, and for a time before programming.
        """
        self.require_programmed()
        self.seconds = to_seconds(seconds) + 0.0  # one key for 1, 1.0 and numpy's 1.0, and for -0.0 and 0.0
        self._read()

    def require_programmed(self) -> None:
        """Refuse cells that have no age because they were not programmed."""
        if self.seed is None:
            raise InputError(f"{self.name} was not programmed: call crossbar.program(model, seed) first")

    def state(self) -> State:
        """What programming left in the cells, each tensor ``[K, I, O]``, G⁺ first; empty before programming."""
        if self.seed is None or self._cells:
            return {name: getattr(self, f"cells_{name}") for name in self._cells}
        parts = list(self._states())
        return {name: torch.cat([part[name] for _, part in parts], 1) for name in parts[0][1]}

    def state_of(self, lines: slice) -> State:
        """`state` of some word lines, ``r`` of them: each tensor ``[K, r, O]``.

        Raises:
            InputError: if the cells were not programmed.
        """
        self.require_programmed()
        if self._cells:
            return {name: getattr(self, f"cells_{name}")[:, lines] for name in self._cells}
        device = self.hardware.device
        assert self._kept is not None
        assert not isinstance(device, RedrawDevice)
        key = (self.seed or 0, self.name)
        return ageing.program_lines(device, self._targets(self._kept, lines), key, self.shape, lines)

    def set_state(self, state: State, seed: int | None, seconds: float) -> None:
        """Take over cells that were programmed as chip ``seed``, at ``seconds`` after programming.

        Without a seed the cells hold their targets exactly again. With a seed and no state, the state is what
        programming the matrix as that chip leaves.
        """
        for name in self._cells:
            delattr(self, f"cells_{name}")
        for name, cells in state.items():
            self.register_buffer(f"cells_{name}", cells, persistent=False)
        self._cells = tuple(state)
        if seed is None:
            self.rescale()
        self.seed, self.seconds = seed, float(seconds) + 0.0
        self._kept = (
            None if seed is None or state else self.matrix().t().clone(memory_format=torch.contiguous_format).t()
        )
        self._forget()

    @torch.inference_mode(False)
    @torch.no_grad()
    def drop_state(self) -> None:
        """Drop a state that was given, such as one from a file, if it can be made again bit for bit."""
        given, seed, device = self.state(), self.seed, self.hardware.device
        if seed is None or not given or isinstance(device, RedrawDevice) or not ageing.keeps_no_state(device):
            return
        weight = self.matrix()
        for lines in ageing.pieces_of_lines(self.shape, weight.device):
            made = ageing.program_lines(device, self._targets(weight, lines), (seed, self.name), self.shape, lines)
            if made.keys() != given.keys() or not all(torch.equal(given[n][:, lines], made[n]) for n in made):
                return
        self.set_state({}, seed, self.seconds)

    @torch.inference_mode(False)
    def set_faults(self, fault_map: Tensor | None) -> None:
        """Take over a map of faults, codes of `crossbar.tiles.faults.Fault`, ``[K, I, O]``, in the place of drawn ones.

        A chip that is written around its faults (`crossbar.Faults`) has to be programmed again then.

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
        self._forget()

    def conductances(self, noise: bool = True) -> Tensor:
        """Conductances in µS as they are now, ``[K, I, O]``, with or without the 1/f fluctuation of this time.

        Raises:
            InputError: for a device that gives no number.
        """
        return torch.cat([cells for _, cells in self._present(noise)], 1)

    def targets(self, matrix: Tensor | None = None) -> Tensor:
        """What programming aims at, in µS, ``[K, I, O]``, of the matrix as it is now, or of another ``[O, I]``."""
        return self._targets(matrix)

    def placed(self, cells: Tensor) -> tuple[Tensor, Tensor]:
        """``(G⁺, G⁻)`` in tile form, each ``[T_out, T_in, R, C]``, of cells ``[K, I, O]``; absent cells are NaN.

        Where a weight has several pairs or slices, these come first: ``[pairs, slices, T_out, T_in, R, C]``, without
        those of 1. The ``offset`` encoding has no G⁻: all of it is NaN.
        """
        tile = self.hardware.tile
        cells = mapping.to_tiles(cells, tile)
        kept = [count for count in (tile.pairs, tile.slices) if count > 1]
        places = cells.view(tile.signs, *kept, *cells.shape[1:])
        return places[0], (places[1] if tile.signs == 2 else torch.full_like(places[0], torch.nan))

    @property
    def digits(self) -> Tensor:
        """Signed digits as the columns see them now, ``[S, I, O]``."""
        digits = self._digits
        if digits is None:
            with _READING:
                digits = self._read() if self._digits is None else self._digits
        return digits

    @property
    def cells_a_weight(self) -> int:
        """``K``: devices that make up one weight."""
        tile = self.hardware.tile
        return tile.signs * tile.pairs * tile.slices

    @property
    def is_made_again(self) -> bool:
        """Whether seed and matrix, as it is now, make these very cells again."""
        return self.seed is not None and self._kept is not None and torch.equal(self._kept, self.matrix())

    @property
    def shape(self) -> tuple[int, int, int]:
        """K, I and O."""
        return self.cells_a_weight, self.in_features, self.out_features

    def readout(self, column_gain: Tensor, adc_range: Tensor | None) -> Readout:
        """The array as its columns see it now, for `crossbar.backends`.

        Args:
            column_gain: digital correction of ``scales``, ``[T, O]``.
            adc_range: of the ADCs, 0-d or ``[T, O]``, unit outputs; None: the converter's own.
        """
        if not self._seen:
            with _READING:
                if not self._seen:
                    self._read()
        return Readout(
            digits=self._now,
            scales=self._of_conversions(self.scales, column_gain),
            offset=self._offset,
            variance=self._variance,
            bias_scales=self._bias_scales(self.scales),
            adc_range=adc_range,
            forms=self._form,
        )

    def fresh(self, matrix: Tensor, draws: Stream, column_gain: Tensor, adc_range: Tensor | None) -> Readout:
        """An array of a chip that nobody has seen, written with a matrix ``[O, I]``, which has its gradient.

        Errors are those of the device's statistics at the present age, with ``error_spread`` times their deviation;
        without mismatch and faults.
        """
        hardware = self.hardware
        scales = self._found_scales(matrix)
        cells = injection.written(self._mapped(matrix, scales), hardware, self.seconds, draws, self.error_spread)
        through = self._through_wires()
        digits, _ = read_digits(cells if through is None else cells * through, hardware, None)
        per_digit = (scales * (2 / hardware.tile.signs)).repeat_interleave(hardware.tile.rows, 0)[: self.in_features]
        variance = read_variance(cells, hardware.read_noise, hardware)
        digits = injection.noisy_digits(matrix.t(), per_digit, digits)
        conversions = self._of_conversions(scales, column_gain)
        return Readout(digits, conversions, None, variance, self._bias_scales(scales), adc_range)

    @torch.inference_mode(False)
    def set_placement(self, row_places: Tensor | None, column_places: Tensor | None) -> None:
        """Choose where the lines of each tile lie among its wires; None: in the order of inputs and outputs.

        Raises:
            InputError: for one of them alone, and for places that are not each of a tile's once.
        """
        if (row_places is None) != (column_places is None):
            raise InputError(f"{self.name} got half a placement: give places of rows and of columns, or neither")
        tile = self.hardware.tile
        t_out, t_in = mapping.tile_grid(self.in_features, self.out_features, tile)
        shapes = ((t_out, self.in_features, tile.rows), (t_in, self.out_features, tile.cols))
        for part, shape in zip((row_places, column_places), shapes, strict=True):
            if part is not None and not wires.are_places(part, *shape):
                raise InputError(
                    f"{self.name} got a bad placement: give int64 {list(shape[:2])}, each place of a tile once"
                )
        self.row_places = None if row_places is None else row_places.to(self.scales.device)
        self.column_places = None if column_places is None else column_places.to(self.scales.device)
        self._forget()

    def through_wires(self, matrix: Tensor, scales: Tensor, part: float = 1.0) -> Tensor:
        """What columns would make of a matrix that is written exactly, ``[O, I]``, in its units.

        Args:
            matrix: ``[O, I]``.
            scales: the weight that a cell at g_max stands for, ``[T_in, O]``.
            part: of its target that each cell has left, as by drift; currents are then taken as much larger.
        """
        tile, width = self.hardware.tile, span(self.hardware.device)[1]
        seen = wires.seen(self._mapped(matrix, scales) * part, self.hardware, self._placement(), self.alone) / part
        digits, ones = mapping.cell_weights(seen, tile, width), scales.new_ones(tile.slices * len(scales), 1)
        conversions, bias = self._of_conversions(scales, ones), self._bias_scales(scales)
        return Readout(digits, conversions, bias_scales=bias).effective(tile.rows).t()

    @torch.inference_mode(False)
    def set_weight_range(self, weight_range: Tensor | None) -> None:
        """Choose the weight that a cell at g_max stands for, ``[T_in, O]``; the cells must be written again.

        Raises:
            InputError: for a range of another shape or one that is not finite and above 0.
        """
        if weight_range is not None:
            shape = self.scales.shape
            if weight_range.shape != shape or not (weight_range.isfinite() & (weight_range > 0)).all():
                raise InputError(f"{self.name} got a bad weight range: give {list(shape)} finite numbers above 0")
            weight_range = weight_range.to(self.scales)
        self.weight_range = weight_range

    def rescale(self) -> None:
        """Find the scales of the matrix as it is now."""
        self.scales = self._found_scales(self.matrix().to(self.scales.dtype))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move with the model (``.to``, ``.half()``), but compute in the precision of the conversion."""
        super()._apply(lambda own: own.to(fn(own.new_empty(0)).device), False)  # type: ignore[no-untyped-call]  # torch's own
        self._forms = {}
        return self

    def _forget(self) -> None:
        self._digits, self._forms, self._seen, self._asked, self._passed = None, {}, False, False, None

    @torch.no_grad()
    def _through_wires(self) -> Tensor | None:
        """What part of each cell's current wires leave, ``[K, I, O]``, in an array of the targets; None: all of it.

        It is found for the weights as training starts and kept, since it changes little with them and noise.
        """
        if not wires.resistive(self.hardware):
            return None
        if self._passed is None:
            targets = self._targets()
            seen = wires.seen(targets, self.hardware, self._placement(), self.alone)
            self._passed = torch.where(targets > 0, seen / targets.clamp(min=1e-30), 1.0)
        return self._passed

    def _placement(self) -> wires.Placement | None:
        if self.row_places is None or self.column_places is None:
            return None
        return wires.Placement(self.row_places, self.column_places)

    def _now(self) -> Tensor:
        """The digits for a backend that computes with them: kept until they change."""
        with _READING:
            self._asked, self._digits = True, self.digits
        return self._digits

    def _form(self, name: str, make: Callable[[Tensor], Any]) -> Any:
        """The digits as a backend holds them: made once, and these kept in the place of the digits themselves."""
        form = self._forms.get(name)
        if form is None:
            with _READING:
                form = self._forms.get(name)
                if form is None:
                    form = self._forms[name] = make(self.digits)
                    self._digits = self._digits if self._asked else None
        return form

    def _states(self) -> Iterator[tuple[slice, State]]:
        """What programming left in the cells, some word lines after another, each tensor ``[K, r, O]``."""
        device = self.hardware.device
        assert not isinstance(device, RedrawDevice)
        weight = self._kept
        for lines in ageing.pieces_of_lines(self.shape, self.scales.device):
            if weight is None:
                yield lines, {name: getattr(self, f"cells_{name}")[:, lines].contiguous() for name in self._cells}
            else:
                key = (self.seed or 0, self.name)
                yield lines, ageing.program_lines(device, self._targets(weight, lines), key, self.shape, lines)

    def _conductances(self, noise: bool) -> Iterator[tuple[slice, Tensor]]:
        """Conductances (µS) without faults, some word lines after another, ``[K, r, O]``."""
        device = self.hardware.device
        if self.seed is None:
            weight = self.matrix()
            for lines in ageing.pieces_of_lines(self.shape, self.scales.device):
                yield lines, self._mapped(weight, self.scales, lines)
            return
        key = (self.seed, self.name)
        if isinstance(device, RedrawDevice) or (noise and ageing.is_correlated(device)):
            yield slice(0, self.in_features), ageing.conductances(device, self.state(), self.seconds, key, noise)
            return
        if noise and self._kept is not None and ageing.reads_again(device, self.scales):
            for lines in ageing.pieces_of_lines(self.shape, self.scales.device):
                targets = list(self._targets(self._kept, lines))
                yield lines, ageing.read_again(device, targets, self.seconds, key, self.shape, lines)
            return
        for lines, state in self._states():
            yield lines, ageing.conductances_lines(device, state, self.seconds, key, self.shape, lines, noise)

    def _pairs_again(self, digits: Tensor) -> bool:
        """Read differential pairs of cells in the fewest passes, into digits ``[I, O]``; False: it cannot be."""
        tile, device, seed = self.hardware.tile, self.hardware.device, self.seed
        plain = tile.encoding == "differential" and self.cells_a_weight == 2 and self.fault_map is None
        plain = plain and not wires.resistive(self.hardware)
        if seed is None or self._kept is None or not plain or not ageing.reads_again(device, digits):
            return False
        key, scaling = (seed, self.name), (span(device)[1] / self.scales, tile.rows)
        for lines in ageing.pieces_of_lines(self.shape, digits.device):
            weights = mapping.line_weights(self._kept, self.scales, lines)
            ageing.read_again(device, [weights], self.seconds, key, self.shape, lines, digits[lines], scaling)
        return ageing.are_digits(digits)

    def _present(self, noise: bool) -> Iterator[tuple[slice, Tensor]]:
        """Conductances (µS) as they are, some word lines after another, ``[K, r, O]``."""
        device = self.hardware.device
        for lines, cells in self._conductances(noise):
            if self.seed is None:
                yield lines, cells
                continue
            if not ageing.are_conductances(device, cells):
                every = torch.cat([cells for _, cells in self._conductances(noise)], 1)
                ageing.require_conductances(device, every, self.seconds, self.name)
            if self.fault_map is not None:
                cells = faults.apply(self.fault_map[:, lines], cells, *self._held())
            yield lines, cells

    def _found_scales(self, weight: Tensor) -> Tensor:
        """Scales ``[T_in, O]`` of a matrix ``[O, I]``: the chosen range, or each column's largest weight."""
        if self.weight_range is not None:
            return self.weight_range.clone()
        return mapping.column_scales(weight, self.hardware.tile, self.name)

    def _of_conversions(self, scales: Tensor, column_gain: Tensor) -> Tensor:
        """Scales of each conversion, ``[T, O]``: what a digit is worth, calibrated gains included."""
        slices = mapping.slice_weights(self.hardware.tile)
        if slices != [1.0]:
            scales = torch.cat([scales * share for share in slices])
        return scales * column_gain

    def _bias_scales(self, scales: Tensor) -> Tensor | None:
        """Of the ``offset`` encoding: a weight of 0 has a conductance in the middle of the window, not at its foot."""
        g_min, width = span(self.hardware.device)
        return scales * (1 + 2 * g_min / width) if self.hardware.tile.signs == 1 else None

    def _targets(self, weight: Tensor | None = None, lines: slice = slice(None)) -> Tensor:
        """Targets (µS) of word lines of a matrix ``[O, I]``, the present one unless given, ``[K, r, O]``."""
        return self._around(self._mapped(self.matrix() if weight is None else weight, self.scales, lines), lines)

    def _around(self, targets: Tensor, lines: slice) -> Tensor:
        """Targets of word lines of a chip that is written around its faults, where hardware says so."""
        if self.fault_map is None or self.hardware.faults is None or not self.hardware.faults.partners:
            return targets
        return faults.around(self.fault_map[:, lines], targets, *self._held())

    def _held(self) -> tuple[float, float, float]:
        """What faulty cells hold, µS: the least conductance, the greatest, and that of a short."""
        device = self.hardware.device
        return window(device)[0], device.g_max, (self.hardware.faults or Faults()).short_conductance

    def _mapped(self, weight: Tensor, scales: Tensor, lines: slice = slice(None)) -> Tensor:
        device, tile = self.hardware.device, self.hardware.tile
        return mapping.target_conductances(weight, scales, tile, device.g_max, window(device)[0], lines)

    def _leave_out(self) -> None:
        """Mark where there is no device, on every chip."""
        if self.devices is not None:
            absent = torch.where(self.devices, int(faults.Fault.NONE), int(faults.Fault.OPEN)).to(torch.uint8)
            self.set_faults(absent.expand(self.cells_a_weight, -1, -1).contiguous())

    @torch.inference_mode(False)
    @torch.no_grad()
    def _read(self) -> Tensor:
        """Keep what the columns see of the cells at this time."""
        hardware, noise = self.hardware, self.hardware.read_noise
        noisy = noise is not None and (noise.constant > 0 or noise.relative > 0)
        digits = self.scales.new_empty(hardware.tile.slices, self.in_features, self.out_features)
        each = torch.empty_like(digits) if noisy else None
        width, any_open = span(hardware.device)[1], False
        done = each is None and self._pairs_again(digits[0])
        wired = wires.resistive(hardware) and self.seed is not None
        seen = self.scales.new_empty(self.shape) if wired else None
        for lines, cells in () if done else self._present(noise=True):
            if seen is not None:
                seen[:, lines] = cells
            digits[:, lines] = mapping.cell_weights(cells, hardware.tile, width)
            if each is not None and noise is not None:
                is_open = None if self.fault_map is None else self.fault_map[:, lines] == faults.Fault.OPEN
                any_open = any_open or (is_open is not None and bool(is_open.any()))
                each[:, lines] = cell_variance(cells, noise, hardware, is_open)
        if seen is not None:
            digits = mapping.cell_weights(
                wires.seen(seen, hardware, self._placement(), self.alone), hardware.tile, width
            )
        key = None if self.seed is None else (self.seed, self.name)
        digits, self._offset = with_mismatch(digits, hardware, key)
        self._variance = of_columns(each, noise, hardware, any_open) if each is not None and noise is not None else None
        self._forget()
        self._digits, self._seen = digits, True
        return digits
