"""Analog layers as aihwkit's: the same cells and converters, computed by its tiles."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from crossbar.devices.aihwkit import require_aihwkit
from crossbar.hardware import Hardware
from crossbar.nn.chip import analog_layers
from crossbar.nn.linear import CORRECTIONS, AnalogLinear
from crossbar.nn.rotation import rotate

if TYPE_CHECKING:
    from aihwkit.simulator.configs import TorchInferenceRPUConfig


class AihwkitTiles(nn.Module):
    """A layer whose every tile row is an ``aihwkit.nn.AnalogLinear``; inputs ``[..., I]``, outputs ``[..., O]``.

    What aihwkit has no place for is digital here, as it is in `AnalogLinear`: word-line scales and the rotation before
    the tiles, the input range that all tile rows share, word lines that are digital, output correction, adapter and
    bias after them.
    """

    input_range: Tensor | None
    digital_lines: Tensor | None
    line_weight: Tensor | None
    line_scale: Tensor | None
    output_gain: Tensor | None
    output_offset: Tensor | None
    adapter_down: Tensor | None
    adapter_up: Tensor | None
    bias: Tensor | None

    def __init__(self, layer: AnalogLinear) -> None:
        super().__init__()
        from aihwkit.nn import AnalogLinear as AihwkitLinear

        self.rows, self.block = layer.hardware.tile.rows, 0 if layer.rotation is None else int(layer.rotation)
        self.per_token = layer.hardware.dac is not None and layer.static_input_range() is None
        ranges = _adc_ranges(layer)
        weights, scales = _by_tile(layer, ranges)
        config = _config(layer.hardware, float(ranges.mean()))
        self.tiles = nn.ModuleList()
        for weight, scale in zip(weights, scales, strict=True):
            tile = AihwkitLinear(weight.shape[1], weight.shape[0], bias=False, rpu_config=config)
            (module,) = tile.analog_tiles()
            module.set_weights(weight.float(), apply_weight_scaling=False)
            module.set_mapping_scales(scale.float())
            self.tiles.append(tile.eval())
        own = {"input_range": layer.static_input_range(), "line_scale": layer.line_scale, "bias": layer.bias}
        for name, tensor in {**own, **{name: getattr(layer, name) for name in CORRECTIONS}}.items():
            self.register_buffer(name, None if tensor is None else tensor.detach().float().clone())
        self.register_buffer("digital_lines", layer.digital_lines)
        self.register_buffer("line_weight", None if layer.digital_lines is None else layer.line_weight().float())

    def forward(self, x: Tensor) -> Tensor:
        """``[..., I]`` to ``[..., O]``, in the dtype of ``x``."""
        vectors = x.reshape(-1, x.shape[-1]).float()  # aihwkit's torch tiles compute in float32
        driven = vectors if self.digital_lines is None else vectors.index_fill(1, self.digital_lines, 0)
        driven = driven if self.line_scale is None else driven / self.line_scale
        driven = rotate(driven, self.block) if self.block else driven
        unit = driven.abs().amax(1, keepdim=True) if self.per_token else self.input_range
        if unit is not None:
            driven = driven / torch.where(unit > 0, unit, 1.0)
        slices = len(self.tiles) // len(driven.split(self.rows, 1))
        y = sum(tile(part) for tile, part in zip(self.tiles, driven.split(self.rows, 1) * slices, strict=True))
        assert isinstance(y, Tensor)
        y = y if unit is None else y * unit
        y = y if self.output_gain is None else y * self.output_gain
        y = y if self.output_offset is None else y + self.output_offset
        if self.adapter_down is not None and self.adapter_up is not None:
            y = y + vectors @ self.adapter_down @ self.adapter_up
        if self.digital_lines is not None and self.line_weight is not None:
            y = y + vectors[:, self.digital_lines] @ self.line_weight
        y = y if self.bias is None else y + self.bias
        return y.to(x.dtype).view(*x.shape[:-1], -1)


def to_aihwkit(model: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy of a model whose analog layers are computed by aihwkit, and what of them aihwkit does not honour.

    The cells are those of now, as numbers: the copy does not age. aihwkit's torch tiles draw output noise from torch's
    global generator.

    Raises:
        InputError: for a model without analog layers, and where aihwkit is not installed.
    """
    require_aihwkit()
    layers = analog_layers(model)
    missed = tuple(dict.fromkeys(text for layer in layers.values() for text in _missed(layer)))
    with torch.no_grad():
        replaced: dict[int, Any] = {id(layer): AihwkitTiles(layer) for layer in layers.values()}
    return copy.deepcopy(model, replaced), missed


def _adc_ranges(layer: AnalogLinear) -> Tensor:
    """The ADC range of each conversion, ``[T, O]`` in unit outputs; 1 without an ADC."""
    cells, adc = layer.readout(), layer.hardware.adc
    found = cells.scales.new_tensor(1.0 if adc is None else adc.full_scale)
    return (found if cells.adc_range is None else cells.adc_range.detach()).expand_as(cells.scales)


def _by_tile(layer: AnalogLinear, ranges: Tensor) -> tuple[list[Tensor], Tensor]:
    """Weights ``[O, R]`` in units of the ADC range, and digital scales ``[T, O]``, of each conversion."""
    cells, rows = layer.readout(), layer.hardware.tile.rows
    weight = cells.weight
    if cells.bias_scales is not None:  # taken off in digital by the offset encoding, here before the conversion
        weight = weight - (cells.bias_scales / layer.scales).repeat_interleave(rows, 0)[: layer.in_features]
    parts = [part.t() for digits in weight for part in digits.split(rows)]
    return [part / span.unsqueeze(1) for part, span in zip(parts, ranges, strict=True)], cells.scales * ranges


def _config(hardware: Hardware, adc_range: float) -> TorchInferenceRPUConfig:
    """Aihwkit's settings of a tile whose full-scale input and whose ADC range are 1."""
    from aihwkit.simulator.configs import BoundManagementType, NoiseManagementType, TorchInferenceRPUConfig

    config = TorchInferenceRPUConfig()
    dac, adc, io = hardware.dac, hardware.adc, config.forward
    io.noise_management, io.bound_management = NoiseManagementType.NONE, BoundManagementType.NONE
    io.is_perfect = dac is None and adc is None and hardware.output_noise == 0
    io.inp_bound, io.inp_res = (1.0, 0.5 / dac.levels) if dac is not None else (-1.0, -1.0)
    io.out_bound, io.out_res = (1.0, 0.5 / adc.levels) if adc is not None else (-1.0, -1.0)
    io.out_noise, io.w_noise = hardware.output_noise / adc_range, 0.0
    config.mapping.max_input_size = config.mapping.max_output_size = 0
    config.mapping.weight_scaling_omega = 1.0
    config.mapping.weight_scaling_columnwise = True
    config.drift_compensation = None
    return config


def _missed(layer: AnalogLinear) -> list[str]:
    """What of a layer the tiles above leave out, a phrase each."""
    hardware, cells = layer.hardware, layer.readout()
    dac, adc = hardware.dac, hardware.adc
    uncalibrated = layer.input_range is None
    own_ranges = hardware.output_noise > 0 and cells.adc_range is not None and cells.adc_range.dim() > 0
    parts = {
        f"input coding {dac.coding if dac else ''} (one pulse used)": dac is not None and dac.coding != "pwm",
        "DAC range max (each token's own abs-max used)": dac is not None and dac.range == "max" and uncalibrated,
        "converters of 1 bit (three levels used)": 1 in [part.bits for part in (dac, adc) if part is not None],
        "ADC range active_rows (its full scale used)": adc is not None and adc.range == "active_rows",
        "output noise of columns with ADC ranges of their own (it grows with the range)": own_ranges,
        "column offsets of converter mismatch": cells.offset is not None,
        "several reads for each output (one used)": layer.averaged_reads is not None,
        "white read noise of cells": cells.variance is not None,
        "the offset encoding's sum of inputs (taken off before the conversion)": cells.bias_scales is not None,
    }
    return [text for text, applies in parts.items() if applies]
