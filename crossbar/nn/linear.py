"""A linear layer on analog tiles."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from crossbar.adapters import LayerAdapter, OwnForward, Part, adapter_of, is_rows
from crossbar.adapters.stand_in import stand_in
from crossbar.backends import dispatch, eager
from crossbar.backends.converters import found_range
from crossbar.backends.protocol import Read
from crossbar.costs.counts import book_line_reads, book_masked_reads, book_reads, book_writes
from crossbar.costs.ledger import book, counting
from crossbar.devices import State
from crossbar.errors import InputError, require_whole
from crossbar.hardware import Hardware, WriteVerify
from crossbar.nn import operator
from crossbar.nn.digital_names import as_inside
from crossbar.nn.per_thread import PerThread
from crossbar.nn.rotation import LARGEST, additions, rotate, rotate_back
from crossbar.random.streams import Stream
from crossbar.tiles import mapping
from crossbar.tiles.readout import Readout, read_digits
from crossbar.tiles.tile_array import TileArray

CORRECTIONS = ("output_gain", "output_offset", "adapter_down", "adapter_up")
"""What digital logic makes of the tiles' output ``y [B, O]`` for inputs x: ``gain · y + offset + x @ down @ up``.

`AnalogLinear.digital_lines` come on top.
"""


MOST_AVERAGED = 1000
"""Reads that an output can be the mean of: the noise that is left is 3% of one read's."""


class PartOf:
    """One matrix of a digital layer, found anew whenever it is asked for, as its parameters may be replaced.

    Args:
        module: the layer.
        adapter: of its kind.
        name: which of its parts.
    """

    def __init__(self, module: nn.Module, adapter: LayerAdapter, name: str) -> None:
        self.module, self.adapter, self.name = module, adapter, name

    def part(self) -> Part:
        """The matrix and its bias as they are now."""
        if isinstance(self.adapter, OwnForward):
            return self.adapter.part(self.module, self.name)  # there may be hundreds
        return self.adapter.parts(self.module)[self.name]


class AnalogLinear(nn.Module):
    """A matrix, and what is added to its products, on analog tiles: inputs ``[..., I]``, outputs ``[..., O]``.

    It stands in the place of a digital linear layer, or computes a part of another layer (`crossbar.nn.module`).

    Until it is programmed, the cells hold their targets exactly, so that converters and output noise can be studied
    alone. A digital layer stays inside: its bias is added after the tiles, and `crossbar.restore` puts it back.
    Programmed state is not part of ``state_dict()``; `crossbar.save_state` keeps it.

    A layer starts in eval mode. In train mode (``.train()``) it stands for any chip instead of the programmed one: each
    call writes the digital weights, as they are now, into cells with errors drawn anew from the device's statistics at
    the present age (`crossbar.tiles.injection`), without mismatch or faults. Gradients go straight through cells and
    converters to the digital weights, the inputs and learned ranges.

    Attributes:
        digital: the layer in whose place it stands; None for a part of another layer, and for a matrix by itself.
        cells: the tiles that hold its weights.
        hardware: what the tiles are.
        name: keys the layer's random streams, so it must be unique in a model.
        scales: digital scale of each column of each row tile, ``[T_in, O]``, weight units.
        column_gain: calibrated correction of ``scales``, ``[T, O]`` with ``T = slices x T_in``; 1 until calibration.
        line_scale: calibrated digital scale of each word line, ``[I]``; None until calibration. Inputs are divided by
            it before the DAC, and weights multiplied by it before they are mapped.
        digital_lines: word lines that digital arithmetic computes, int64 ``[n]`` in rising order: their cells hold 0
            and are never driven, and DAC ranges do not see their inputs. None until calibration: none.
        rotation: lines in a block of the Hadamard rotation (`crossbar.nn.rotation`) that inputs take after
            ``line_scale``, and weights with them, int64, 0-d; None: they are not rotated. ``digital_lines`` then have 0
            in the rotation, and all word lines are driven.
        weight_range: calibrated weight that a cell at g_max stands for, ``[T_in, O]``, in the units of mapped weights
            (after ``line_scale`` and ``rotation``); larger ones are clipped. None until calibration: each column's
            largest.
        weight_correction: calibrated addition to the weights that are mapped, ``[O, I]``, in the same units; None until
            calibration.
        target_correction: calibrated addition to these, ``[O, I]``, in the same units, which wires or drift take away
            again: what columns see of the sum is what the weights without it stand for. None until calibration.
        chip_correction: calibrated addition to all these, ``[O, I]``, in the same units, for the chip at hand alone;
            None unless it was written with one.
        input_range: calibrated or learned DAC range, 0-d, activation units; None until calibration.
        adc_range: calibrated or learned ADC range, 0-d or ``[T, O]``, unit outputs; None until calibration.
        output_gain, output_offset: digital correction of what the tiles deliver, each ``[O]``, the offset in units of
            the output; None until calibration.
        averaged_reads: how often tiles are read for each output, the mean of which it is, int64, 0-d; None until
            calibration: once.
        adapter_down, adapter_up: digital low-rank adapter beside the tiles, ``[I, r]`` and ``[r, O]``: the output has
            ``x @ down @ up`` in it; None until calibration. As parameters they can be trained.
        fault_map: codes of `crossbar.tiles.faults.Fault`, ``[K, I, O]``; None: no faults. Programming leaves it as it
        is.
        seed: which chip this is; None until it is programmed.
        seconds: time since programming.
        bypass: compute with the digital layer instead (`crossbar.bypassed`), in the thread that sets it.
        reads: index of the next read since programming or `reset_reads`; each thread counts its own.
        replaying: reads repeat earlier ones (`crossbar.replayed_reads`), in the thread that sets it.
        number, calls: by which compiled graphs know it, and how often they called it (`crossbar.nn.operator`), 0-d.
    """

    digital: nn.Module | None
    column_gain: Tensor
    line_scale: Tensor | None
    digital_lines: Tensor | None
    weight_correction: Tensor | None
    target_correction: Tensor | None
    chip_correction: Tensor | None
    input_range: Tensor | None
    adc_range: Tensor | None
    output_gain: Tensor | None
    output_offset: Tensor | None
    adapter_down: Tensor | None
    adapter_up: Tensor | None
    number: Tensor
    calls: Tensor

    cuts_inputs = True
    """Its ``forward`` takes ``taken`` (`crossbar.adapters.protocol.multiplied`)."""

    books_itself = True
    """It counts what it does in open ledgers (`crossbar.costs.digital_layers`)."""

    def __init__(
        self,
        weight: nn.Module | Tensor | PartOf,
        hardware: Hardware,
        name: str = "linear",
        devices: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.training = False
        self.digital = weight if isinstance(weight, nn.Module) else None
        self._source: PartOf | None = weight if isinstance(weight, PartOf) else None
        if isinstance(weight, nn.Module):
            self._source = _only_part(weight)
        for buffer in (
            "digital_lines",
            "line_scale",
            "weight_correction",
            "target_correction",
            "chip_correction",
            "input_range",
            "adc_range",
        ):
            self.register_buffer(buffer, None, persistent=False)
        self._averaged, self._block = 1, 0  # plain numbers, which a GPU is not asked for
        self.register_buffer("_weight", weight.detach() if isinstance(weight, Tensor) else None, persistent=False)
        self.cells = TileArray(self._mapped_weight, hardware, name, devices)
        self.register_buffer("column_gain", self._unit_gain(), persistent=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64, device=self.scales.device), persistent=False)
        self.number = operator.entered(self)
        self._reads, self._bypass, self._replaying = PerThread(0), PerThread(False), PerThread(False)
        self.drop_corrections()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]  # torch's own
        self.number = operator.entered(self)

    _weight: Tensor | None

    @classmethod
    def from_digital(cls, linear: nn.Module, hardware: Hardware, name: str = "linear") -> AnalogLinear:
        """An analog layer with the weights and bias of an ``nn.Linear`` or transformers ``Conv1D``.

        Raises:
            InputError: for another kind of module, and for weights that are NaN or infinite.
        """
        return cls(linear, hardware, name)

    @classmethod
    def from_part(cls, source: PartOf, hardware: Hardware, name: str) -> AnalogLinear:
        """One matrix of a digital layer on tiles.

        Raises:
            InputError: for weights that are NaN or infinite.
        """
        return cls(source, hardware, name)

    @classmethod
    def from_matrix(cls, weight: Tensor, hardware: Hardware, name: str, devices: Tensor | None = None) -> AnalogLinear:
        """A matrix ``[O, I]`` on tiles, without a digital layer; ``devices``, bool ``[O, I]``: where there are any.

        Raises:
            InputError: for weights that are NaN or infinite.
        """
        return cls(weight, hardware, name, devices)

    def forward(self, x: Tensor, taken: int = 1) -> Tensor:
        """``[..., I]`` to ``[..., O]``, in the dtype of ``x``; computed in float32, or float64 for float64 weights.

        In graphs of `torch.compile` and `torch.export` it is one operation (`crossbar.nn.operator`).

        Args:
            x: the inputs.
            taken: how many of the last dimensions of ``x`` are together the I inputs: patches that overlap in memory
                are then not copied where compiled kernels can cut them.

        Raises:
            InputError: for inputs of another size or kind, and when gradient checkpointing reads the layer again
                without its noise (`crossbar.replayed_reads`).
        """
        if torch.compiler.is_compiling():
            return cast(Tensor, operator.call(self, [*x.shape[:-taken], self.out_features], x.flatten(-taken)))
        return self._forward(x, taken=taken)

    def read(self, x: Tensor) -> Tensor:
        """`forward` of a graph that runs, which is not being made."""
        return self._forward(x)

    def matrices(self) -> list[AnalogLinear]:
        """What is read of the layer."""
        return [self]

    def _forward(self, x: Tensor, with_bias: bool = True, taken: int = 1) -> Tensor:
        if taken > 1 and not self._drives_alone(x):
            x, taken = x.flatten(-taken), 1
        inputs = self._rows(x) if taken == 1 else x
        if self.bypass:
            return self.digital_outputs(x) if with_bias else nn.functional.linear(x, self._digital_weight())
        vectors = self.driven(inputs)
        if self.line_scale is not None:
            book(self.name, "digital_macs", vectors.numel())
        if self._block:
            count = math.prod(vectors.shape[:-1]) * additions(self.in_features, self._block)
            book(self.name, "digital_macs", count)
        self._book_reads(math.prod(vectors.shape[:-taken]) * self._averaged)
        with torch.autocast(x.device.type, enabled=False):
            noise = self.read_noise("read", self.reads)
            if (noise is not None or self.training) and not self.replaying:
                self._require_first_read()
            cells = self._fresh() if self.training else self.readout()
            read = Read(vectors, cells, self.hardware, self.input_range, noise, taken)
            y = dispatch.multiply(read)
            for again in range(1, self._averaged):
                y = y + dispatch.multiply(read._replace(noise=self.read_noise("read", self.reads + again)))
            y = self._corrected(y if self._averaged == 1 else y / self._averaged, inputs)
        self.reads += self._averaged
        bias = self.bias if with_bias else None
        if bias is None:
            y = y.to(x.dtype)
        elif torch.is_grad_enabled() and (y.requires_grad or bias.requires_grad):
            y = (y + bias).to(x.dtype)
        else:  # in one pass, whatever the dtypes
            y = torch.add(y, bias, out=y if y.dtype == x.dtype else torch.empty_like(y, dtype=x.dtype))
        return y.view(*x.shape[:-taken], self.out_features)

    def _drives_alone(self, x: Tensor) -> bool:
        """Whether inputs reach the DACs as they are, and nothing else."""
        as_they_are = self.is_plain() and self.adapter_down is None
        return not self.bypass and as_they_are and x.dtype == self.scales.dtype

    def trained(self) -> list[nn.Parameter]:
        """The parameters that outputs depend on, those of the digital layer among them, in an order of their own."""
        source = [] if self._source is None or self.digital is not None else [*self._source.module.parameters()]
        return [*self.parameters(), *source]

    def digital_outputs(self, x: Tensor) -> Tensor:
        """What the digital layer computes, or a matrix by itself."""
        if self.digital is not None:
            outputs: Tensor = self.digital.forward(x)  # its hooks are this layer's too
            return outputs
        if self._source is None:
            return nn.functional.linear(x, self.target_weight())
        part = self._source.part()
        return nn.functional.linear(x, part.matrix, part.bias)

    def on_tiles(self, x: Tensor) -> Tensor:
        """Inputs ``[B, I]`` of the layer, or its weights ``[O, I]``, with 0 on ``digital_lines``."""
        return x if self.digital_lines is None else x.index_fill(1, self.digital_lines, 0)

    def driven(self, x: Tensor) -> Tensor:
        """Inputs ``[B, I]`` as they reach the DACs: `on_tiles`, divided by ``line_scale``, and rotated."""
        x = self.on_tiles(x)
        x = x if self.line_scale is None else x / self.line_scale
        return rotate(x.to(self.scales.dtype), self._block) if self._block else x

    def read_out(self, x: Tensor, read: int = 0) -> Tensor:
        """One converted read of every tile column, before digital scales: what a chip can measure of itself.

        Args:
            x: test inputs ``[B, I]``, as they reach the DACs (after ``line_scale`` and ``rotation``); ``digital_lines``
                are left out, but where inputs are rotated.
            read: which read-out at this time; each has noise of its own, apart from that of `forward`.

        Returns:
            ``[T, B, O]`` in unit outputs times input units. The reads are booked in open ledgers.
        """
        x = self._rows(x) if self._block else self.on_tiles(self._rows(x))
        self._book_reads(x.shape[0])
        noise = self.read_noise("read-out", read)
        return dispatch.read_columns(Read(x, self.readout(), self.hardware, self.input_range, noise))

    def expected_read_out(self, x: Tensor) -> Tensor:
        """What `read_out` would give if the cells held their targets and the ADCs were ideal: digital arithmetic.

        Targets are those of the wanted weights, without ``target_correction``.
        """
        wanted = self._mapped_weight()
        wanted = wanted if self.target_correction is None else wanted - self.target_correction
        digits, _ = read_digits(self.cells.targets(wanted), self.hardware, None)
        return eager.ideal_columns(self._rows(x).to(digits.dtype), digits, self.hardware, self.input_range)

    def readout(self) -> Readout:
        """The tiles as their columns see them now."""
        return self.cells.readout(self.column_gain, self.adc_range)

    def read_noise(self, purpose: str, index: int) -> Stream | None:
        """The random numbers of a read, by purpose and index; None for hardware whose reads have no chance in them."""
        hardware = self.hardware
        noisy = hardware.output_noise > 0 or hardware.read_noise is not None
        if not noisy and (hardware.dac is None or hardware.dac.coding != "rate"):
            return None
        return Stream((self.seed or 0, self.name, purpose, self.seconds, index), self.scales.device)

    def program(self, seed: int) -> None:
        """Write the targets into the cells of chip ``seed``; the layer is then 0 s old, without gain or correction."""
        self.chip_correction = None
        self.reset_gains()
        pulses = self.cells.program(seed)
        book_writes(self.name, self.hardware, self.in_features, self.out_features, pulses)
        self.reset_reads()

    @torch.inference_mode(False)
    @torch.no_grad()
    def reprogram(self, columns: Tensor, verify: WriteVerify) -> None:
        """Write and verify the cells of some columns again, bool ``[T_in, O]``, right after programming.

        Raises:
            InputError: for a layer that was not programmed or is older than 0 s, and for columns of another shape.
        """
        book(self.name, "write_pulses", self.cells.write_again(columns, verify))
        self.reset_reads()

    def write_errors(self, weight: Tensor, lines: slice, instants: Sequence[float]) -> Tensor:
        """By how much word lines miss mapped weights ``[O, I]`` that this chip is written with, ``[O, r]``.

        As `crossbar.tiles.tile_array.TileArray.write_errors` has it; the reads of each line are booked in open ledgers.
        """
        if counting():
            count = len(range(*lines.indices(self.in_features))) * len(instants)
            book_line_reads(self.name, self.hardware, self.out_features, count)
        return self.cells.write_errors(weight, lines, instants)

    @torch.inference_mode(False)
    @torch.no_grad()
    def write_corrected(self, correction: Tensor) -> None:
        """Have the chip at hand written from the start with something added to the mapped weights, ``[O, I]``.

        It is in the units of the mapped weights; the scales stay, so larger sums are clipped. Writing the layer anew
        drops it. Nothing is booked: each cell is written once, as `program` booked it.

        Raises:
            InputError: for a layer that was not programmed or is older than 0 s, and for a correction of another shape
                or one that is not finite.
        """
        seed = self.cells.seed
        if seed is None or self.cells.seconds != 0:
            raise InputError(f"{self.name} is not at 0 s: correct what is written right after crossbar.program")
        self.chip_correction = self._required_correction("chip correction", correction)
        self.cells.program(seed, keep_scales=True)
        self.reset_reads()

    def new_chip(self) -> None:
        """Forget the chip: its faults, its cells, the gains and the corrections that were measured on it."""
        self.chip_correction = None
        self.cells.new_chip()
        self.reset_gains()
        self.reset_reads()

    def reset_gains(self) -> None:
        """Make the calibrated gains 1 again, read once, and drop output correction and adapter."""
        self.column_gain = self._unit_gain()
        self.averaged_reads = None
        self.drop_corrections()

    def age(self, seconds: float) -> None:
        """Move to ``seconds`` after programming, forwards or backwards.

        Raises:
            InputError: if the layer was not programmed, and for a time before programming.
        """
        self.cells.age(seconds)

    def require_programmed(self) -> None:
        """Refuse a layer that has no age because it was not programmed."""
        self.cells.require_programmed()

    def state(self) -> State:
        """What the cells keep from programming, each tensor ``[K, I, O]``, G⁺ first; empty before programming."""
        return self.cells.state()

    def set_state(self, state: State, seed: int | None, seconds: float) -> None:
        """Take over cells that were programmed as chip ``seed``, at ``seconds`` after programming.

        Without a seed the cells hold their targets exactly again.
        """
        self.cells.set_state(state, seed, seconds)
        self.reset_reads()

    def set_faults(self, fault_map: Tensor | None) -> None:
        """Take over a map of faults, codes of `crossbar.tiles.faults.Fault`, ``[K, I, O]``, in the place of drawn ones.

        Raises:
            InputError: for a map of another shape or with other codes.
        """
        self.cells.set_faults(fault_map)

    def conductances(self, noise: bool = True) -> tuple[Tensor, Tensor]:
        """``(G⁺, G⁻)`` in µS as they are now, each ``[T_out, T_in, R, C]``; absent cells are NaN.

        Where a weight has several pairs or slices, these come first: ``[pairs, slices, T_out, T_in, R, C]``, without
        those of 1. The ``offset`` encoding has no G⁻: all of it is NaN.

        Args:
            noise: with the 1/f fluctuation of this time, or without.
        """
        return self.cells.placed(self.cells.conductances(noise))

    def target_conductances(self) -> tuple[Tensor, Tensor]:
        """What programming aims at, in µS, in the form of `conductances`."""
        return self.cells.placed(self.cells.targets())

    def target_weight(self) -> Tensor:
        """The digital weight ``[O, I]`` that the cells stand for."""
        return self._digital_weight().detach().to(self.scales.dtype)

    def scaled_weight(self) -> Tensor:
        """The digital weight ``[O, I]`` as word lines see it: 0 on ``digital_lines``, times ``line_scale``, rotated."""
        weight = self.on_tiles(self.target_weight())
        weight = weight if self.line_scale is None else weight * self.line_scale
        return rotate(weight, self._block) if self._block else weight

    def wanted_weight(self) -> Tensor:
        """`scaled_weight` with ``weight_correction``, ``[O, I]``: what the tiles are to stand for."""
        weight = self.scaled_weight()
        return weight if self.weight_correction is None else weight + self.weight_correction

    def largest_weight(self) -> Tensor:
        """The mapped weight that a cell at g_max stands for, at each place, ``[O, I]``."""
        return mapping.of_lines(self.scales, self.hardware.tile.rows, self.in_features, slice(None)).t()

    def unscaled_weight(self, mapped: Tensor) -> Tensor:
        """What mapped weights ``[O, I]`` are of the digital weights: `scaled_weight` taken back."""
        weight = rotate_back(mapped, self._block) if self._block else mapped
        return self.on_tiles(weight if self.line_scale is None else weight / self.line_scale)

    def is_plain(self) -> bool:
        """Whether cells hold the digital weights as they are: without digital lines, line scales and rotation."""
        return self.line_scale is None and self.digital_lines is None and not self._block

    @torch.inference_mode(False)
    def set_digital_lines(self, lines: Tensor | None) -> None:
        """Compute some word lines in digital, int64 ``[n]`` in rising order, and map the others anew; None: none.

        Their multiply-and-adds are booked in open ledgers. It drops ranges and corrections of weights and ranges of
        converters, which were found with these lines; the cells must be written again.

        Raises:
            InputError: for lines that the layer has not, or that are not in rising order.
        """
        if lines is not None:
            good = lines.dim() == 1 and lines.dtype == torch.int64 and bool((lines.diff() > 0).all())
            if not good or (len(lines) and not 0 <= int(lines[0]) <= int(lines[-1]) < self.in_features):
                raise InputError(
                    f"{self.name} got bad digital lines: give int64 numbers from 0 to {self.in_features - 1}, each "
                    "larger than the one before"
                )
            lines = lines.to(self.scales.device) if len(lines) else None
        self.digital_lines = lines
        self._forget_mapped()

    def _forget_mapped(self) -> None:
        """Drop what was calibrated for other mapped weights, and map anew."""
        self.weight_correction = self.target_correction = None
        self.cells.set_weight_range(None)
        self.fix_ranges()
        self.input_range = None
        self.map_anew()

    @torch.inference_mode(False)
    def set_line_scale(self, scale: Tensor | None) -> None:
        """Map the weights anew with a digital scale for each word line, ``[I]``; the cells must be written again.

        Raises:
            InputError: for a scale of another shape or one that is not finite and above 0.
        """
        if scale is not None:
            if scale.shape != (self.in_features,) or not (scale.isfinite() & (scale > 0)).all():
                raise InputError(f"{self.name} got a bad line scale: give {self.in_features} finite numbers above 0")
            scale = scale.to(self.scales)
        weight = self.target_weight() if scale is None else self.target_weight() * scale
        mapping.column_scales(weight, self.hardware.tile, self.name)  # refuses what overflows
        self.line_scale = scale
        self._forget_mapped()

    @torch.inference_mode(False)
    def set_rotation(self, block: int | None) -> None:
        """Rotate inputs and weights in blocks of lines, a power of 2 up to 4,096, and map anew; None: not.

        The additions of a fast transform are booked in open ledgers as multiply-and-adds. It drops ranges and
        corrections of weights and ranges of converters, which were found without it; the cells must be written again.

        Raises:
            InputError: for a block of another size, or of more lines than the layer has.
        """
        self.rotation = None if block is None else torch.tensor(block, device="cpu")
        self._forget_mapped()

    @property
    def rotation(self) -> Tensor | None:
        """Lines in a block of the rotation, int64, 0-d, on the CPU; None: inputs are not rotated."""
        return torch.tensor(self._block, device="cpu") if self._block else None

    @rotation.setter
    def rotation(self, block: Tensor | None) -> None:
        lines = 0 if block is None else int(block)
        most = min(LARGEST, self.in_features)
        if block is not None and (lines < 2 or lines & (lines - 1) or lines > most):
            raise InputError(f"{self.name} got rotation = {lines}: give a power of 2 from 2 to {most}")
        self._block = lines

    @torch.inference_mode(False)
    def set_weight_range(self, weight_range: Tensor | None) -> None:
        """Map the weights anew with the weight that a cell at g_max stands for, ``[T_in, O]``; larger ones are clipped.

        It is in the units of the mapped weights, which ``line_scale`` multiplied; None: each column's largest one. The
        cells must be written again.

        Raises:
            InputError: for a range of another shape or one that is not finite and above 0.
        """
        self.cells.set_weight_range(weight_range)
        self.weight_correction = self.target_correction = None
        self.map_anew()

    @torch.inference_mode(False)
    def set_weight_correction(self, correction: Tensor | None) -> None:
        """Map the weights anew with something added to them, ``[O, I]``; the cells must be written again.

        It is in the units of the mapped weights, like ``weight_range``, which it was found for: a new range drops it.

        Raises:
            InputError: for a correction of another shape or one that is not finite.
        """
        self.weight_correction = self._required_correction("weight correction", correction)
        self.map_anew()

    @torch.inference_mode(False)
    def set_target_correction(self, correction: Tensor | None) -> None:
        """Map the weights anew with something added to them, ``[O, I]``, that wires or drift take away again.

        Unlike `set_weight_correction` it is no part of what read-outs are expected to give. A new range drops it too.

        Raises:
            InputError: for a correction of another shape or one that is not finite.
        """
        self.target_correction = self._required_correction("target correction", correction)
        self.map_anew()

    def _required_correction(self, what: str, correction: Tensor | None) -> Tensor | None:
        if correction is None:
            return None
        self._require(what, correction, (self.out_features, self.in_features))
        return correction.to(self.scales)

    @torch.inference_mode(False)
    def map_anew(self) -> None:
        """Map the digital weights as they are now; drops the chip, and what was calibrated for those before."""
        self.chip_correction = None
        self.column_gain = self._unit_gain()
        self.set_adc_range(None)
        self.drop_corrections()
        self.set_state({}, None, 0.0)

    @torch.inference_mode(False)
    @torch.no_grad()
    def train(self, mode: bool = True) -> AnalogLinear:
        """Set train or eval mode; cells that were not programmed take over the trained weights when training ends."""
        ends = self.training and not mode
        super().train(mode)
        if ends and self.seed is None:
            self.set_state({}, None, 0.0)
        return self

    def effective_weight(self) -> Tensor:
        """What noise-free converters would see now, ``[O, I]`` in weight units, with calibrated gains and adapter."""
        weight = replace(self.readout(), digits=self.cells.digits).effective(self.hardware.tile.rows)
        return self.corrected_weight(self.unscaled_weight(weight.t()).t()).t()

    def static_input_range(self) -> Tensor | None:
        """The DAC range that does not depend on the input, 0-d; None where there is none."""
        dac = self.hardware.dac
        if self.input_range is not None or dac is None or dac.range != "static":
            return self.input_range
        return self.scales.new_tensor(dac.full_scale)

    def learn_ranges(self) -> list[nn.Parameter]:
        """Make the converters' ranges parameters of this layer (`crossbar.learn_ranges`)."""
        adc, ranges = self.hardware.adc, {"input_range": self.static_input_range()}
        if adc is not None:
            present = self.adc_range
            ranges["adc_range"] = self.scales.new_tensor(adc.full_scale) if present is None else present
        learned = []
        for name, value in ranges.items():
            if isinstance(value, nn.Parameter):
                learned.append(value)
            elif value is not None:
                parameter = nn.Parameter(value.detach().clone())
                delattr(self, name)
                self.register_parameter(name, parameter)
                learned.append(parameter)
        return learned

    def full_scale(self, x: Tensor) -> Tensor:
        """The activation that a full-scale drive stands for, when these inputs ``[B, I]`` reach the DACs."""
        dac = self.hardware.dac
        if dac is None:
            return self.scales.new_ones(())
        return found_range(x, dac) if self.input_range is None else self.input_range

    @torch.inference_mode(False)
    def set_adc_range(self, adc_range: Tensor | None) -> None:
        """Set the calibrated range of the ADCs, 0-d or one for each column, ``[T, O]``; None: the converter's own.

        Raises:
            InputError: for a range of another shape or one that is not finite and above 0.
        """
        if adc_range is not None:
            shape = tuple(self.column_gain.shape)
            good = adc_range.shape in ((), shape) and (adc_range.isfinite() & (adc_range > 0)).all()
            if not good:
                raise InputError(f"{self.name} got a bad ADC range: give one finite number above 0, or {list(shape)}")
        if self._parameters.pop("adc_range", None) is not None:
            self.register_buffer("adc_range", None, persistent=False)
        self.adc_range = adc_range

    def fix_ranges(self) -> None:
        """Make learned ranges plain values again, so that a calibration can replace them."""
        for name in ("input_range", "adc_range"):
            parameter = self._parameters.pop(name, None)
            if parameter is not None:
                self.register_buffer(name, parameter.detach(), persistent=False)

    @property
    def bias(self) -> Tensor | None:
        """What is added to the outputs in digital, ``[O]``."""
        if self._source is None or isinstance(self._source.adapter, OwnForward):  # whose forward adds its own
            return None
        return self._source.part().bias

    @property
    def source(self) -> PartOf | None:
        """Whose matrix it is; None for a matrix by itself."""
        return self._source

    @property
    def hardware(self) -> Hardware:
        """What the tiles are."""
        return self.cells.hardware

    @property
    def name(self) -> str:
        """Keys the layer's random streams."""
        return self.cells.name

    @property
    def in_features(self) -> int:
        """Word lines, ``I``."""
        return self.cells.in_features

    @property
    def out_features(self) -> int:
        """Outputs, ``O``."""
        return self.cells.out_features

    @property
    def scales(self) -> Tensor:
        """Digital scale of each column of each row tile, ``[T_in, O]``, weight units."""
        return self.cells.scales

    @property
    def weight_range(self) -> Tensor | None:
        """Calibrated weight that a cell at g_max stands for, ``[T_in, O]``."""
        return self.cells.weight_range

    @property
    def fault_map(self) -> Tensor | None:
        """Codes of `crossbar.tiles.faults.Fault`, ``[K, I, O]``."""
        return self.cells.fault_map

    @property
    def seed(self) -> int | None:
        """Which chip this is."""
        return self.cells.seed

    @property
    def seconds(self) -> float:
        """Time since programming."""
        return self.cells.seconds

    @property
    def reads(self) -> int:
        """Index of the calling thread's next read: each counts its own, so what it gets depends on no other."""
        return self._reads.get()

    @reads.setter
    def reads(self, index: int) -> None:
        self._reads.set(index)

    def reset_reads(self) -> None:
        """Start the read-noise stream again, for every thread."""
        self._reads = PerThread(0)

    @property
    def averaged_reads(self) -> Tensor | None:
        """How often tiles are read for each output, int64, 0-d, on the CPU; None: once."""
        return None if self._averaged == 1 else torch.tensor(self._averaged, device="cpu")

    @averaged_reads.setter
    def averaged_reads(self, count: Tensor | None) -> None:
        reads = 1 if count is None else int(count)
        require_whole(f"averaged reads of {self.name}", reads, least=1, most=MOST_AVERAGED)
        self._averaged = reads

    @property
    def bypass(self) -> bool:
        """Whether the calling thread gets what the digital layer computes."""
        return self._bypass.get()

    @bypass.setter
    def bypass(self, bypass: bool) -> None:
        self._bypass.set(bypass)

    @property
    def replaying(self) -> bool:
        """Whether reads of the calling thread repeat earlier ones."""
        return self._replaying.get()

    @replaying.setter
    def replaying(self, replaying: bool) -> None:
        self._replaying.set(replaying)

    def drop_corrections(self) -> None:
        """Take output correction and adapter away, trained ones too."""
        self._put(**dict.fromkeys(CORRECTIONS))

    @torch.inference_mode(False)
    def set_output_correction(self, gain: Tensor | None, offset: Tensor | None) -> None:
        """Correct what the tiles deliver by a gain and an offset, each ``[O]``; None: without it.

        Given as parameters, they are trained with the model.

        Raises:
            InputError: for another shape, or numbers that are not finite.
        """
        for tensor in (gain, offset):
            if tensor is not None:
                self._require("output correction", tensor, (self.out_features,))
        self._put(output_gain=gain, output_offset=offset)

    @torch.inference_mode(False)
    def set_adapter(self, down: Tensor | None, up: Tensor | None) -> None:
        """Put a digital adapter ``x @ down @ up`` beside the tiles, ``[I, r]`` and ``[r, O]``; None takes it away.

        Given as parameters, it is trained with the model.

        Raises:
            InputError: for one half alone, another shape, or numbers that are not finite.
        """
        if (down is None) != (up is None):
            raise InputError(f"{self.name} got half an adapter: give down [I, r] and up [r, O], or neither")
        if down is not None and up is not None:
            rank = down.shape[-1] if down.dim() else 0
            self._require("adapter down", down, (self.in_features, rank))
            self._require("adapter up", up, (rank, self.out_features))
        self._put(adapter_down=down, adapter_up=up)

    def corrected_weight(self, weight: Tensor) -> Tensor:
        """The weight ``[I, O]`` that inputs meet when the tiles stand for ``weight``."""
        if self.output_gain is not None:
            weight = weight * self.output_gain
        if self.digital_lines is not None:  # their cells hold about 0, but are never driven
            weight = weight.index_copy(0, self.digital_lines, self.line_weight().to(weight.dtype))
        if self.adapter_down is not None and self.adapter_up is not None:
            weight = weight + self.adapter_down @ self.adapter_up
        return weight

    def line_weight(self) -> Tensor:
        """The digital weights of ``digital_lines``, ``[n, O]``, with gradient."""
        assert self.digital_lines is not None
        return self._digital_weight().index_select(1, self.digital_lines).t().to(self.scales.dtype)

    def beside(self, x: Tensor) -> Tensor | float:
        """What is added in digital to the tiles' outputs for inputs ``[B, I]``: bias, adapter, ``digital_lines``."""
        beside: Tensor | float = 0.0 if self.bias is None else self.bias
        if self.adapter_down is not None and self.adapter_up is not None:
            beside = x @ self.adapter_down @ self.adapter_up + beside
        if self.digital_lines is not None:
            beside = x.index_select(1, self.digital_lines) @ self.line_weight() + beside
        return beside

    def _corrected(self, y: Tensor, x: Tensor) -> Tensor:
        """Outputs ``[B, O]`` of the tiles for inputs ``[B, I]``, corrected and booked."""
        if self.output_gain is not None:
            y = y * self.output_gain
        if self.output_offset is not None:
            y = y + self.output_offset
        if self.output_gain is not None or self.output_offset is not None:
            book(self.name, "digital_macs", y.numel())
        if self.adapter_down is not None and self.adapter_up is not None:
            y = torch.addmm(y, x.to(self.adapter_down.dtype) @ self.adapter_down, self.adapter_up)
            book(self.name, "digital_macs", len(x) * (self.adapter_down.numel() + self.adapter_up.numel()))
        if self.digital_lines is not None:
            lines = x.index_select(1, self.digital_lines).to(self.scales.dtype)
            y = torch.addmm(y, lines, self.line_weight())
            book(self.name, "digital_macs", lines.numel() * self.out_features)
        return y

    def _put(self, **corrections: Tensor | None) -> None:
        """Set corrections in the place of plain or trained ones."""
        for name, value in corrections.items():
            self._parameters.pop(name, None)
            self.register_buffer(name, None, persistent=False)
            setattr(self, name, value)

    def _require(self, what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tensor.shape != shape or not tensor.isfinite().all():
            raise InputError(f"{self.name} got a bad {what}: give {list(shape)} finite numbers")

    def extra_repr(self) -> str:
        """Shape and age, for ``print(model)``."""
        when = "not programmed" if self.seed is None else f"chip {self.seed} at {self.seconds:g} s"
        return f"{self.in_features}, {self.out_features}, {when}"

    def _rows(self, x: Tensor) -> Tensor:
        """Inputs along the last dimension as ``[B, I]``, in the dtype that tiles are computed in, or in 16 bits."""
        if not x.is_floating_point() or not x.dim() or x.shape[-1] != self.in_features:
            raise InputError(
                f"{self.name} got {x.dtype} inputs {list(x.shape)}: give floating point [..., {self.in_features}]"
            )
        vectors = x.reshape(-1, self.in_features)
        narrow = vectors.dtype.itemsize == 2  # widened, which is exact, where they are read
        return vectors if narrow else vectors.to(self.scales.dtype)

    def _require_first_read(self) -> None:
        """Refuse a read within a backward pass: it repeats one whose noise it does not know."""
        if torch._C._current_graph_task_id() != -1:
            raise InputError(
                f"{self.name} is read again in the backward pass and would get other noise: call checkpoint with "
                "use_reentrant=False and context_fn=crossbar.replayed_reads(model)"
            )

    def _digital_weight(self) -> Tensor:
        """The digital weight ``[O, I]``, with gradient."""
        if self._source is not None:
            return self._source.part().matrix
        assert self._weight is not None
        return self._weight

    def _mapped_weight(self) -> Tensor:
        """What the cells are to hold, ``[O, I]``, as the calibration of word lines and weights has it."""
        weight = self.on_tiles(self._digital_weight())
        if self.line_scale is not None:
            weight = weight.to(self.line_scale.dtype) * self.line_scale
        if self._block:
            weight = rotate(weight.to(self.scales.dtype), self._block)
        for correction in (self.weight_correction, self.target_correction, self.chip_correction):
            if correction is not None:
                weight = weight.to(correction.dtype) + correction
        return weight

    def _fresh(self) -> Readout:
        """Tiles of a chip that nobody has seen, written with the digital weights as they are now."""
        weight = self._mapped_weight().to(self.scales.dtype)
        draws = Stream((self.seed or 0, self.name, "training", self.seconds, self.reads), self.scales.device)
        return self.cells.fresh(weight, draws, self.column_gain, self.adc_range)

    def _unit_gain(self) -> Tensor:
        return self.scales.new_ones(self.hardware.tile.slices * self.scales.shape[0], self.out_features)

    def _book_reads(self, vectors: int) -> None:
        if not counting():
            return
        if self.cells.devices is None:
            idle = 0 if self.digital_lines is None or self._block else len(self.digital_lines)
            book_reads(self.name, self.hardware, self.in_features, self.out_features, vectors, idle)
        else:
            inputs = self.cells.devices.numel()
            book_masked_reads(self.name, self.hardware, self.cells.devices, vectors, inputs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Load weights under digital names too, such as those of a folder for ``from_pretrained``."""
        as_inside(self.digital, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move with the model (``.to``, ``.half()``), but compute in the precision of the conversion."""
        if recurse:
            for part in self.children():
                part._apply(fn)
        super()._apply(lambda own: own.to(fn(own.new_empty(0)).device), False)  # type: ignore[no-untyped-call]  # torch's own
        return self

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "weight":
            super().__setattr__(name, value)
        elif value is not getattr(self.digital, "weight", None):  # which models tie again, as they please
            raise InputError(
                f"the weight of {self.name} is in cells: call crossbar.restore(model), give the digital layer another, "
                "and convert again"
            )

    def __getattr__(self, name: str) -> Any:
        if name != "weight":
            return super().__getattr__(name)
        # Models ask for their dtype and device. What multiplies with it gets products of the tiles.
        weight = self._digital_weight().detach()
        return stand_in(weight, f"{self.name}.weight", [partial(self._forward, with_bias=False)])


def _only_part(module: nn.Module) -> PartOf:
    adapter = adapter_of(module)
    if not is_rows(adapter):
        raise InputError(
            f"{adapter.name} is no linear layer: put it into a model, such as nn.Sequential(layer), and convert that"
        )
    (name,) = adapter.parts(module)
    return PartOf(module, adapter, name)
