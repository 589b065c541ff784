"""A linear layer on analog tiles."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from crossbar import mapping, mvm, trajectory
from crossbar.devices import State
from crossbar.errors import InputError
from crossbar.hardware import Hardware
from crossbar.ledger import book, counting
from crossbar.streams import ReadNoise


class AnalogLinear(nn.Module):
    """A digital linear layer computed by analog tiles: inputs ``[..., I]``, outputs ``[..., O]``.

    Until it is programmed, the cells hold their targets exactly, so that converters and output noise can be studied
    alone. The digital layer stays inside: its bias is added after the tiles, and `crossbar.restore` puts it back.
    Programmed state is not part of ``state_dict()``; `crossbar.save_state` keeps it.

    Attributes:
        digital: the layer that was converted.
        hardware: what the tiles are.
        name: keys the layer's random streams, so it must be unique in a model.
        scales: digital scale of each column of each row tile, ``[T_in, O]``, weight units.
        column_gain: calibrated correction of ``scales``, ``[T_in, O]``; 1 until calibration.
        line_scale: calibrated digital scale of each word line, ``[I]``; None until calibration. Inputs are divided by
            it before the DAC, and weights multiplied by it before they are mapped.
        input_range: calibrated DAC range, 0-d, activation units; None until calibration.
        seed: which chip this is; None until it is programmed.
        seconds: time since programming.
        bypass: compute with the digital layer instead (`crossbar.bypassed`).
    """

    scales: Tensor
    column_gain: Tensor
    line_scale: Tensor | None
    cell_weight: Tensor
    input_range: Tensor | None

    def __init__(self, digital: nn.Module, hardware: Hardware, name: str = "linear") -> None:
        super().__init__()
        self.digital, self.hardware, self.name = digital, hardware, name
        weight = digital_weight(digital)
        self.out_features, self.in_features = weight.shape
        self.training = digital.training
        self.seed: int | None = None
        self.seconds = 0.0
        self._reads = 0
        self.bypass = False
        self._cells: tuple[str, ...] = ()
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        self.register_buffer("scales", mapping.column_scales(weight.to(dtype), hardware.tile, name), persistent=False)
        self.register_buffer("line_scale", None, persistent=False)
        self.register_buffer("column_gain", torch.ones_like(self.scales), persistent=False)
        self.register_buffer("input_range", None, persistent=False)
        self.register_buffer("cell_weight", self._signed(self._targets()), persistent=False)

    @classmethod
    def from_digital(cls, linear: nn.Module, hardware: Hardware, name: str = "linear") -> AnalogLinear:
        """An analog layer with the weights and bias of an ``nn.Linear`` or transformers ``Conv1D``.

        Raises:
            InputError: for another kind of module, and for weights that are NaN or infinite.
        """
        return cls(linear, hardware, name)

    def forward(self, x: Tensor) -> Tensor:
        """``[..., I]`` to ``[..., O]``, in the dtype of ``x``; computed in float32, or float64 for float64 weights."""
        vectors = self._vectors(x)
        if self.bypass:
            digital: Tensor = self.digital(x)
            return digital
        if self.line_scale is not None:
            vectors = vectors / self.line_scale
            self._book_line_scaling(vectors.shape[0])
        self._book_reads(vectors.shape[0])
        scales = self.scales * self.column_gain
        with torch.autocast(x.device.type, enabled=False):
            noise = self._noise("read", self._reads)
            y = mvm.multiply(vectors, self.cell_weight, scales, self.hardware, self.input_range, noise)
        self._reads += 1
        if isinstance(self.digital.bias, Tensor):
            y += self.digital.bias
        return y.to(x.dtype).view(*x.shape[:-1], self.out_features)

    def read_out(self, x: Tensor, read: int = 0) -> Tensor:
        """One converted read of every tile column, before digital scales: what a chip can measure of itself.

        Args:
            x: test inputs ``[B, I]``, as they reach the DACs (after ``line_scale``).
            read: which read-out at this time; each has noise of its own, apart from that of `forward`.

        Returns:
            ``[T_in, B, O]`` in unit outputs times input units. The reads are booked in open ledgers.
        """
        x = self._vectors(x)
        self._book_reads(x.shape[0])
        row_tiles = self.scales.shape[0]
        noise = self._noise("read-out", read)
        return mvm.read_columns(x, self.cell_weight, row_tiles, self.hardware, self.input_range, noise)

    def expected_read_out(self, x: Tensor) -> Tensor:
        """What `read_out` would give if the cells held their targets and the ADCs were ideal: digital arithmetic."""
        quiet = replace(self.hardware, adc=None, output_noise=0.0)
        row_tiles = self.scales.shape[0]
        return mvm.read_columns(
            self._vectors(x), self._signed(self._targets()), row_tiles, quiet, self.input_range, None
        )

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
        self.scales = mapping.column_scales(weight, self.hardware.tile, self.name)
        self.line_scale = scale
        self.column_gain, self.input_range = torch.ones_like(self.scales), None
        self.set_state({}, None, 0.0)

    def program(self, seed: int) -> None:
        """Write the targets into the cells of chip ``seed``; the layer is then 0 s old, and gains are 1 again."""
        self.column_gain = torch.ones_like(self.scales)
        if counting():
            t_out, _ = mapping.tile_grid(self.in_features, self.out_features, self.hardware.tile)
            book(self.name, "row_writes", self.in_features * t_out)
        state = trajectory.program(self.hardware.device, self._targets(), (seed, self.name))
        self.set_state(state, seed, 0.0)

    def age(self, seconds: float) -> None:
        """Move to ``seconds`` after programming, forwards or backwards.

        Raises:
            InputError: if the layer was not programmed.
        """
        self.require_programmed()
        self.seconds = float(seconds) + 0.0  # one key for 1, 1.0 and numpy's 1.0, and for -0.0 and 0.0
        self.cell_weight = self._signed(self._conductances(noise=True))

    def require_programmed(self) -> None:
        """Refuse a layer that has no age because it was not programmed."""
        if self.seed is None:
            raise InputError(f"{self.name} was not programmed: call crossbar.program(model, seed) first")

    def state(self) -> State:
        """What the cells keep from programming, each tensor ``[2, I, O]``, G⁺ first; empty before programming."""
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
        self.seed, self.seconds = seed, float(seconds) + 0.0
        self.reset_reads()
        self.cell_weight = self._signed(self._conductances(noise=True))

    def reset_reads(self) -> None:
        """Start the read-noise stream again."""
        self._reads = 0

    def conductances(self, noise: bool = True) -> tuple[Tensor, Tensor]:
        """``(G⁺, G⁻)`` in µS as they are now, each ``[T_out, T_in, R, C]``; absent cells are NaN.

        Args:
            noise: with the 1/f fluctuation of this time, or without.
        """
        cells = self._conductances(noise)
        tile = self.hardware.tile
        return mapping.to_tiles(cells[0], tile), mapping.to_tiles(cells[1], tile)

    def effective_weight(self) -> Tensor:
        """What noise-free converters would see now, ``[O, I]`` in weight units, calibrated gains included."""
        scales = (self.scales * self.column_gain).repeat_interleave(self.hardware.tile.rows, 0)
        weight = self.cell_weight * scales[: self.in_features]
        return (weight if self.line_scale is None else weight / self.line_scale.unsqueeze(1)).t()

    def target_weight(self) -> Tensor:
        """The digital weight ``[O, I]`` that the cells stand for."""
        return digital_weight(self.digital).to(self.scales.dtype)

    def _vectors(self, x: Tensor) -> Tensor:
        """Inputs as ``[B, I]`` in the dtype that tiles are computed in."""
        if x.dim() == 0 or x.shape[-1] != self.in_features or not x.is_floating_point():
            raise InputError(
                f"{self.name} got {x.dtype} inputs {list(x.shape)}: give floating point [..., {self.in_features}]"
            )
        return x.reshape(-1, self.in_features).to(self.scales.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AnalogLinear:
        """Move with the model (``.to``, ``.half()``), but compute in the precision of the conversion."""
        buffers, self._buffers = self._buffers, {}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch's own
        self._buffers = buffers
        for name, buffer in buffers.items():
            if buffer is not None:
                buffers[name] = buffer.to(fn(buffer.new_empty(0)).device)
        return self

    def _targets(self) -> Tensor:
        rows, g_max = self.hardware.tile.rows, self.hardware.device.g_max
        return mapping.target_conductances(self._mapped_weight(), self.scales, rows, g_max)

    def _mapped_weight(self) -> Tensor:
        weight = self.target_weight()
        return weight if self.line_scale is None else weight * self.line_scale

    def _conductances(self, noise: bool) -> Tensor:
        if self.seed is None:
            return self._targets()
        key = (self.seed, self.name)
        return trajectory.conductances(self.hardware.device, self.state(), self.seconds, key, noise)

    def _signed(self, cells: Tensor) -> Tensor:
        return (cells[0] - cells[1]) / self.hardware.device.g_max

    def _noise(self, purpose: str, index: int) -> ReadNoise | None:
        if self.hardware.output_noise == 0:
            return None
        return ReadNoise((self.seed or 0, self.name, purpose, self.seconds, index), self.scales.device)

    def _book_reads(self, vectors: int) -> None:
        """Each tile drives its own word lines; each column of each tile is converted."""
        if not counting():
            return
        t_out, t_in = mapping.tile_grid(self.in_features, self.out_features, self.hardware.tile)
        dac, adc = self.hardware.dac, self.hardware.adc
        driven, sensed = vectors * self.in_features * t_out, vectors * self.out_features * t_in
        book(self.name, "row_activations", driven)
        book(self.name, "dac_conversions", driven, dac.bits if dac else None)
        book(self.name, "adc_conversions", sensed, adc.bits if adc else None)
        book(self.name, "cell_macs", vectors * self.in_features * self.out_features)
        book(self.name, "digital_macs", sensed)  # scale and add each converted column

    def _book_line_scaling(self, vectors: int) -> None:
        if counting():
            book(self.name, "digital_macs", vectors * self.in_features)

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


def is_linear(module: nn.Module) -> bool:
    """Whether a module is an ``nn.Linear`` or a transformers ``Conv1D``."""
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def digital_weight(linear: nn.Module) -> Tensor:
    """The weight ``[O, I]`` of a linear layer; transformers' ``Conv1D`` (GPT-2) stores its transpose.

    Raises:
        InputError: for another kind of module.
    """
    if not is_linear(linear):
        raise InputError(f"a {type(linear).__name__} cannot become analog: give an nn.Linear or a transformers Conv1D")
    weight = linear.weight
    assert isinstance(weight, Tensor)
    return weight.detach().t() if _is_conv1d(linear) else weight.detach()


def _is_conv1d(module: nn.Module) -> bool:
    # A Conv1D exists only once transformers is loaded; crossbar itself never loads it.
    transformers = sys.modules.get("transformers.pytorch_utils")
    return transformers is not None and isinstance(module, transformers.Conv1D)
