"""A linear layer on analog tiles."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from crossbar.backends import eager
from crossbar.backends.converters import found_range
from crossbar.backends.cpu import integers
from crossbar.costs.counts import book_reads
from crossbar.costs.ledger import book, counting
from crossbar.devices import span
from crossbar.errors import InputError
from crossbar.hardware import Hardware
from crossbar.nn.adapters import raw_weight
from crossbar.nn.cells import ProgrammedCells
from crossbar.nn.per_thread import PerThread
from crossbar.random.streams import Cursor, Stream
from crossbar.tiles import injection, mapping, readout


class AnalogLinear(ProgrammedCells):
    """A digital linear layer computed by analog tiles: inputs ``[..., I]``, outputs ``[..., O]``.

    Until it is programmed, the cells hold their targets exactly, so that converters and output noise can be studied
    alone. The digital layer stays inside: its bias is added after the tiles, and `crossbar.restore` puts it back.
    Programmed state is not part of ``state_dict()``; `crossbar.save_state` keeps it.

    A layer starts in eval mode. In train mode (``.train()``) it stands for any chip instead of the programmed one: each
    call writes the digital weights, as they are now, into cells with errors drawn anew from the device's statistics at
    the present age (`crossbar.tiles.injection`), without mismatch or faults. Gradients go straight through cells and
    converters to the digital weights, the inputs and learned ranges.

    Attributes:
        digital: the layer that was converted.
        hardware: what the tiles are.
        name: keys the layer's random streams, so it must be unique in a model.
        scales: digital scale of each column of each row tile, ``[T_in, O]``, weight units.
        column_gain: calibrated correction of ``scales``, ``[T, O]`` with ``T = slices x T_in``; 1 until calibration.
        line_scale: calibrated digital scale of each word line, ``[I]``; None until calibration. Inputs are divided by
            it before the DAC, and weights multiplied by it before they are mapped.
        weight_range: calibrated weight that a cell at g_max stands for, ``[T_in, O]``, in the units of mapped weights
            (after ``line_scale``); larger ones are clipped. None until calibration: each column's largest.
        weight_correction: calibrated addition to the weights that are mapped, ``[O, I]``, in the same units; None until
            calibration.
        input_range: calibrated or learned DAC range, 0-d, activation units; None until calibration.
        adc_range: calibrated or learned ADC range, 0-d or ``[T, O]``, unit outputs; None until calibration.
        output_gain, output_offset: digital correction of what the tiles deliver, each ``[O]``, the offset in units of
            the output; None until calibration.
        adapter_down, adapter_up: digital low-rank adapter beside the tiles, ``[I, r]`` and ``[r, O]``: the output has
            ``x @ down @ up`` in it; None until calibration. As parameters they can be trained.
        fault_map: codes of `crossbar.tiles.faults.Fault`, ``[K, I, O]``; None: no faults. Programming leaves it as it
        is.
        seed: which chip this is; None until it is programmed.
        seconds: time since programming.
        bypass: compute with the digital layer instead (`crossbar.bypassed`), in the thread that sets it.
        reads: index of the next read since programming or `reset_reads`; each thread counts its own.
        replaying: reads repeat earlier ones (`crossbar.replayed_reads`), in the thread that sets it.
    """

    input_range: Tensor | None
    adc_range: Tensor | None

    def __init__(self, digital: nn.Module, hardware: Hardware, name: str = "linear") -> None:
        super().__init__(digital, hardware, name)
        self.training = False
        self._bypass, self._replaying = PerThread(False), PerThread(False)
        for buffer in ("input_range", "adc_range"):
            self.register_buffer(buffer, None, persistent=False)

    @classmethod
    def from_digital(cls, linear: nn.Module, hardware: Hardware, name: str = "linear") -> AnalogLinear:
        """An analog layer with the weights and bias of an ``nn.Linear`` or transformers ``Conv1D``.

        Raises:
            InputError: for another kind of module, and for weights that are NaN or infinite.
        """
        return cls(linear, hardware, name)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., I]`` to ``[..., O]``, in the dtype of ``x``; computed in float32, or float64 for float64 weights.

        `torch.compile` compiles what is around an analog layer and calls the layer as it is.

        Raises:
            InputError: for inputs of another size or kind, and when gradient checkpointing reads the layer again
                without its noise (`crossbar.replayed_reads`).
        """
        if torch.compiler.is_compiling():
            # Keyed noise is drawn outside of compiled graphs. As a decorator this would load torch's compiler for all.
            called: Tensor = torch.compiler.disable(self._forward)(x)
            return called
        return self._forward(x)

    def _forward(self, x: Tensor) -> Tensor:
        inputs = vectors = self._vectors(x)
        if self.bypass:
            digital: Tensor = self.digital(x)
            return digital
        if self.line_scale is not None:
            vectors = inputs / self.line_scale
            book(self.name, "digital_macs", vectors.numel())
        self._book_reads(vectors.shape[0])
        with torch.autocast(x.device.type, enabled=False):
            noise = self._noise("read", self.reads)
            if (noise is not None or self.training) and not self.replaying:
                self._require_first_read()
            cells = self._fresh_array() if self.training else self._array()
            y = eager.multiply(vectors, cells, self.hardware, self.input_range, noise)
            y = self._corrected(y, inputs)
        self.reads += 1
        if isinstance(self.digital.bias, Tensor):
            y = y + self.digital.bias if y.requires_grad else y.add_(self.digital.bias)
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def read_out(self, x: Tensor, read: int = 0) -> Tensor:
        """One converted read of every tile column, before digital scales: what a chip can measure of itself.

        Args:
            x: test inputs ``[B, I]``, as they reach the DACs (after ``line_scale``).
            read: which read-out at this time; each has noise of its own, apart from that of `forward`.

        Returns:
            ``[T, B, O]`` in unit outputs times input units. The reads are booked in open ledgers.
        """
        x = self._vectors(x)
        self._book_reads(x.shape[0])
        return eager.read_columns(x, self._array(), self.hardware, self.input_range, self._noise("read-out", read))

    def expected_read_out(self, x: Tensor) -> Tensor:
        """What `read_out` would give if the cells held their targets and the ADCs were ideal: digital arithmetic."""
        weight, _ = readout.digits(self._targets(), self.hardware, None)
        return eager.ideal_columns(self._vectors(x), weight, self.hardware, self.input_range)

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
        self.line_scale, self.weight_range, self.weight_correction = scale, None, None
        self.fix_ranges()
        self.input_range = None
        self.map_anew()

    @torch.inference_mode(False)
    def set_weight_range(self, weight_range: Tensor | None) -> None:
        """Map the weights anew with the weight that a cell at g_max stands for, ``[T_in, O]``; larger ones are clipped.

        It is in the units of the mapped weights, which ``line_scale`` multiplied; None: each column's largest one. The
        cells must be written again.

        Raises:
            InputError: for a range of another shape or one that is not finite and above 0.
        """
        if weight_range is not None:
            shape = self.scales.shape
            if weight_range.shape != shape or not (weight_range.isfinite() & (weight_range > 0)).all():
                raise InputError(f"{self.name} got a bad weight range: give {list(shape)} finite numbers above 0")
            weight_range = weight_range.to(self.scales)
        self.weight_range, self.weight_correction = weight_range, None
        self.map_anew()

    @torch.inference_mode(False)
    def set_weight_correction(self, correction: Tensor | None) -> None:
        """Map the weights anew with something added to them, ``[O, I]``; the cells must be written again.

        It is in the units of the mapped weights, like ``weight_range``, which it was found for: a new range drops it.

        Raises:
            InputError: for a correction of another shape or one that is not finite.
        """
        if correction is not None:
            shape = self.out_features, self.in_features
            if correction.shape != shape or not correction.isfinite().all():
                raise InputError(f"{self.name} got a bad weight correction: give {list(shape)} finite numbers")
            correction = correction.to(self.scales)
        self.weight_correction = correction
        self.map_anew()

    @torch.inference_mode(False)
    def map_anew(self) -> None:
        """Map the digital weights as they are now; drops the chip, and what was calibrated for those before."""
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
        cells, rows = self._array(), self.hardware.tile.rows
        weight = eager.folded(cells.weight, cells.scales, rows)
        if cells.bias_scales is not None:
            weight = weight - cells.bias_scales.repeat_interleave(rows, 0)[: self.in_features]
        return self.corrected_weight(weight if self.line_scale is None else weight / self.line_scale.unsqueeze(1)).t()

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

    def _vectors(self, x: Tensor) -> Tensor:
        """Inputs as ``[B, I]`` in the dtype that tiles are computed in."""
        if x.dim() == 0 or x.shape[-1] != self.in_features or not x.is_floating_point():
            raise InputError(
                f"{self.name} got {x.dtype} inputs {list(x.shape)}: give floating point [..., {self.in_features}]"
            )
        return x.reshape(-1, self.in_features).to(self.scales.dtype)

    def _require_first_read(self) -> None:
        """Refuse a read within a backward pass: it repeats one whose noise it does not know."""
        if torch._C._current_graph_task_id() != -1:
            raise InputError(
                f"{self.name} is read again in the backward pass and would get other noise: call checkpoint with "
                "use_reentrant=False and context_fn=crossbar.replayed_reads(model)"
            )

    def _array(self) -> readout.Array:
        scales = self._column_scales(self.scales)
        bias_scales = self._bias_scales(self.scales)
        weight = self.cell_weight
        whole = self.scales.device.type == "cpu" and self.scales.dtype == torch.float32
        exact = self._variance is not None and self._variance.dim() > 2
        fixed = self._fixed_point if whole and not exact and integers.serves(self.hardware) else None
        return readout.Array(weight, scales, self._offset, self._variance, bias_scales, self.adc_range, fixed)

    def _fresh_array(self) -> readout.Array:
        """Cells of a chip that nobody has seen, written with the digital weights as they are now."""
        hardware = self.hardware
        weight = raw_weight(self.digital).to(self.scales.dtype)
        if self.line_scale is not None:
            weight = weight * self.line_scale
        weight = self._written(weight)
        scales = self._found_scales(weight)
        targets = self._mapped(weight, scales)
        draws = Stream((self.seed or 0, self.name, "training", self.seconds, self.reads), scales.device)
        cells = injection.written(targets, hardware, self.seconds, draws)
        digits, _ = readout.digits(cells, hardware, None)
        per_digit = (scales * (2 / hardware.tile.signs)).repeat_interleave(hardware.tile.rows, 0)[: self.in_features]
        variance = readout.read_variance(cells, hardware.read_noise, hardware)
        bias_scales = self._bias_scales(scales)
        weight = injection.noisy_digits(weight.t(), per_digit, digits)
        return readout.Array(weight, self._column_scales(scales), None, variance, bias_scales, self.adc_range)

    def _bias_scales(self, scales: Tensor) -> Tensor | None:
        """Of the ``offset`` encoding: a weight of 0 is half the window above its foot."""
        g_min, width = span(self.hardware.device)
        return scales * (1 + 2 * g_min / width) if self.hardware.tile.signs == 1 else None

    def _column_scales(self, scales: Tensor) -> Tensor:
        """Scales of each conversion, ``[T, O]``: what a digit is worth, calibrated gains included."""
        slices = mapping.slice_weights(self.hardware.tile)
        if slices != [1.0]:
            scales = torch.cat([scales * share for share in slices])
        return scales * self.column_gain

    def _noise(self, purpose: str, index: int) -> Cursor | None:
        dac = self.hardware.dac
        noisy = self.hardware.output_noise > 0 or self.hardware.read_noise is not None
        if not noisy and (dac is None or dac.coding != "rate"):
            return None
        return Cursor((self.seed or 0, self.name, purpose, self.seconds, index), self.scales.device)

    def _book_reads(self, vectors: int) -> None:
        if counting():
            book_reads(self.name, self.hardware, self.in_features, self.out_features, vectors)

    def extra_repr(self) -> str:
        """Shape and age, for ``print(model)``."""
        when = "not programmed" if self.seed is None else f"chip {self.seed} at {self.seconds:g} s"
        return f"{self.in_features}, {self.out_features}, {when}"

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                "an analog layer has no 'weight', since code that reads it goes past the tiles: exclude the layer from "
                "conversion, or ask for effective_weight()"
            )
        return super().__getattr__(name)
