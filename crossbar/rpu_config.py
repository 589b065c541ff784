"""aihwkit's inference configurations as hardware."""

from __future__ import annotations

import dataclasses
import math
import warnings
from enum import Enum
from typing import TYPE_CHECKING, Any

from crossbar.devices import PCM, AnyDevice, span
from crossbar.devices.aihwkit import AihwkitDevice, require_aihwkit
from crossbar.devices.hermes import Hermes
from crossbar.errors import InputError
from crossbar.hardware import CellNoise, Converter, Hardware, Tile

if TYPE_CHECKING:
    from aihwkit.inference.noise.base import BaseNoiseModel
    from aihwkit.simulator.configs import InferenceRPUConfig

_TAKEN = frozenset(
    {
        *("forward.is_perfect", "forward.inp_bound", "forward.inp_res", "forward.noise_management", "forward.nm_thres"),
        *("forward.out_bound", "forward.out_res", "forward.out_noise"),
        *("mapping.max_input_size", "mapping.max_output_size"),
        *("mapping.weight_scaling_omega", "mapping.weight_scaling_columnwise"),
        *("pre_post.input_range.enable", "pre_post.input_range.init_value", "noise_model"),
    }
)
"""Fields that the functions below turn into hardware."""

_ELSEWHERE = frozenset({"tile_class", "tile_array_class", "simulator_tile_class", "runtime", "device", "update"})
"""How aihwkit computes, and what an inference configuration keeps fixed."""

_OFF: dict[str, object] = {
    "forward.bound_management": "NONE",
    "forward.ir_drop": 0.0,
    "drift_compensation": None,
}
"""Values that ask for nothing, where aihwkit's default asks for something. Enum members by name."""

_WHOLE = "of a token's whole vector and not of each tile's part"
_FILLED = "tiles are filled up: a last one may be narrow where aihwkit splits evenly"
_REMAPS = {"tile_column": "CHANNELWISE_SYMMETRIC", "tile": "LAYERWISE_SYMMETRIC"}

_Missed = dict[str, str]


class NotHonouredWarning(UserWarning):
    """Some fields of a foreign configuration have no counterpart here."""


def from_rpu_config(rpu_config: InferenceRPUConfig) -> Hardware:
    """Hardware with the device, tiles, converters and noise of an aihwkit inference configuration.

    - ``noise_model``: `crossbar.devices.PCM` or `crossbar.devices.Hermes` with the same parameters where they are
      aihwkit's own statistics of a single pair, else `crossbar.devices.AihwkitDevice`.
    - ``mapping``: ``max_input_size`` rows, ``max_output_size`` columns (0, no limit, gives those of `crossbar.Tile`), a
      scale for each tile column or tile. aihwkit counts outputs in units of a weight of 1, `crossbar` in units of the
      largest weight, which ``weight_scaling_omega`` converts.
    - ``forward``: converter bits from ``inp_res`` and ``out_res`` (``2^bits - 2`` steps), bounds, output noise, and
      ``w_noise`` of the type ``ADDITIVE_CONSTANT`` as white noise of the cells. The DAC range is each token's abs-max
      under ``ABS_MAX`` noise management, else static; a learnt input range starts at its ``init_value``.
      ``is_perfect`` leaves converters and noise out.

    Warns:
        NotHonouredWarning: once, with the dotted names and values of all fields that ask for something else. Two are
            always named where they are used, because they matter to layers larger than a tile alone: under ``ABS_MAX``
            aihwkit finds an abs-max for each tile's part of a vector, here it is the whole vector's (at 512 inputs on
            256 rows with 4 and 5 bits an error of 0.200 instead of 0.188), and it splits 300 inputs on 256 rows into
            150 + 150, where here a tile is filled up, 256 + 44.

    Raises:
        InputError: for what is not an inference configuration, for a noise model that `AihwkitDevice` refuses, and
            where aihwkit is not installed.
    """
    require_aihwkit()
    from aihwkit.simulator.configs import InferenceRPUConfig

    if not isinstance(rpu_config, InferenceRPUConfig):
        given = rpu_config if isinstance(rpu_config, type) else type(rpu_config)
        what = "the class" if isinstance(rpu_config, type) else "a"
        raise InputError(
            f"{what} {given.__name__} is not an inference configuration: give an instance of aihwkit's "
            "InferenceRPUConfig, TorchInferenceRPUConfig or one of their presets"
        )
    missed: _Missed = {}
    device, tile = _device(rpu_config.noise_model, missed), _tile(rpu_config.mapping, missed)
    if rpu_config.forward.is_perfect:
        hardware = Hardware(device, tile, dac=None, adc=None, output_noise=0.0)
    else:
        dac, unit = _dac(rpu_config, missed)
        if rpu_config.mapping.weight_scaling_omega > 0:
            unit *= rpu_config.mapping.weight_scaling_omega
        else:
            _miss(missed, "mapping.weight_scaling_omega", rpu_config.mapping.weight_scaling_omega, "1 used")
        adc, output_noise = _adc(rpu_config.forward, unit, missed), max(rpu_config.forward.out_noise, 0.0) / unit
        hardware = Hardware(device, tile, dac, adc, output_noise, _read_noise(rpu_config, device))
    _miss_others(rpu_config, InferenceRPUConfig(), "", missed)
    if hardware.read_noise is not None:
        del missed["forward.w_noise"], missed["forward.w_noise_type"]
    if "drift_compensation" in missed:
        missed["drift_compensation"] += " (calibrate with DriftCompensation(per='tile'))"
    if rpu_config.remap.type.name == _REMAPS[tile.scale]:
        missed.pop("remap.type", None)  # what mapping by abs-max does in any case
    if missed:
        warnings.warn(
            f"not honoured of this {type(rpu_config).__name__}: {', '.join(missed.values())}",
            NotHonouredWarning,
            stacklevel=2,
        )
    return hardware


def _device(model: BaseNoiseModel, missed: _Missed) -> AnyDevice:
    from aihwkit.inference.converter.conductance import SinglePairConductanceConverter
    from aihwkit.inference.noise.hermes import HermesNoiseModel
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel

    wrapped = AihwkitDevice(model)
    repaired, given = (vars(m).get("coeff_g_max_reference") for m in (wrapped.noise_model, model))
    if repaired != given:
        used = f"{repaired} used: what the default fit was made at and aihwkit's constructor loses"
        _miss(missed, "noise_model.coeff_g_max_reference", given, used)
    converter: Any = getattr(model, "g_converter", None)
    if type(converter) is not SinglePairConductanceConverter:
        _miss(missed, "noise_model.g_converter", converter, "one pair used")
        return wrapped
    if type(model) not in (PCMLikeNoiseModel, HermesNoiseModel) or converter.g_max != model.g_max or converter.g_min:
        return wrapped
    common = ("g_max", "t_0", "t_read", "prog_noise_scale", "drift_scale", "read_noise_scale")
    parameters = {name: getattr(model, name) for name in common}
    is_pcm = type(model) is PCMLikeNoiseModel
    shipped = PCMLikeNoiseModel() if is_pcm else HermesNoiseModel(num_devices=model.num_devices)
    for fitted in ("prog_coeff", "prog_coeff_g_max_reference"):
        if getattr(model, fitted) != getattr(shipped, fitted):
            return wrapped
    return PCM(**parameters) if is_pcm else Hermes(**parameters, devices=model.num_devices)


def _read_noise(config: InferenceRPUConfig, device: AnyDevice) -> CellNoise | None:
    """White noise of each of a pair's cells that adds up to aihwkit's, which is that of a weight."""
    io = config.forward
    if io.w_noise_type.name != "ADDITIVE_CONSTANT" or io.w_noise <= 0:
        return None
    omega = config.mapping.weight_scaling_omega
    return CellNoise(constant=io.w_noise / (omega if omega > 0 else 1.0) * span(device)[1] / math.sqrt(2))


def _tile(mapping: Any, missed: _Missed) -> Tile:
    size = {"rows": mapping.max_input_size, "cols": mapping.max_output_size}
    for part, field in (("rows", "max_input_size"), ("cols", "max_output_size")):
        if size[part] <= 0:
            size[part] = getattr(Tile(), part)
            _miss(missed, f"mapping.{field}", getattr(mapping, field), f"{size[part]} used")
    if mapping.max_input_size > 0:
        _miss(missed, "mapping.max_input_size", mapping.max_input_size, _FILLED)
    return Tile(**size, scale="tile_column" if mapping.weight_scaling_columnwise else "tile")


def _dac(config: InferenceRPUConfig, missed: _Missed) -> tuple[Converter | None, float]:
    """The DAC, and how many of aihwkit's unit inputs its full scale is."""
    io, learnt = config.forward, config.pre_post.input_range
    management = io.noise_management.name
    if management not in ("NONE", "CONSTANT"):
        used = _WHOLE if management == "ABS_MAX" else "ABS_MAX of a token's whole vector used"
        _miss(missed, "forward.noise_management", io.noise_management, used)
        for field, neutral in (("nm_thres", 0.0), ("inp_bound", 1.0)):
            if getattr(io, field) != neutral:
                _miss(missed, f"forward.{field}", getattr(io, field))
        if learnt.enable:
            _miss(missed, "pre_post.input_range.enable", learnt.enable)
        return Converter(_bits("forward.inp_res", io.inp_res, missed), range="per_token"), 1.0
    unit_input = io.nm_thres if management == "CONSTANT" and io.nm_thres > 0 else 1.0
    bound = io.inp_bound
    if learnt.enable:
        unit_input *= learnt.init_value
        if bound > 1:
            _miss(missed, "forward.inp_bound", bound, "1 used")
        bound = 1.0 if bound <= 0 else min(bound, 1.0)  # aihwkit clips at the learnt range itself
    if bound <= 0:
        if io.inp_res > 0:
            _miss(missed, "forward.inp_res", io.inp_res, "no DAC used")
        return None, 1.0 / unit_input
    bits = _bits("forward.inp_res", io.inp_res, missed)
    return Converter(bits, full_scale=unit_input * bound), bound


def _adc(io: Any, unit: float, missed: _Missed) -> Converter | None:
    if io.out_bound <= 0:
        if io.out_res > 0:
            _miss(missed, "forward.out_res", io.out_res, "no ADC used")
        return None
    return Converter(_bits("forward.out_res", io.out_res, missed), full_scale=io.out_bound / unit)


def _bits(path: str, resolution: float, missed: _Missed) -> int:
    """Bits with the nearest number of steps; aihwkit gives steps, their inverse, or 0 and less for a smooth range."""
    steps = math.inf if resolution <= 0 else resolution if resolution > 1 else 1 / resolution
    bits = 16 if steps == math.inf else min(max(round(math.log2(steps + 2)), 2), 16)
    if not math.isclose(steps, 2**bits - 2, rel_tol=1e-6):
        _miss(missed, path, resolution, f"{bits} bits used")
    return bits


def _miss_others(part: Any, plain: Any, prefix: str, missed: _Missed) -> None:
    """Note every field that nothing above takes and that differs from the plain configuration's."""
    for field in dataclasses.fields(part):
        path, value = prefix + field.name, getattr(part, field.name)
        if path in _TAKEN or path in _ELSEWHERE or (prefix and _is_idle(prefix, field.name, part)):
            continue
        neutral = getattr(plain, field.name) if hasattr(plain, field.name) else _default(field)
        if dataclasses.is_dataclass(value):
            _miss_others(value, neutral, f"{path}.", missed)
        elif _name(value) != _name(_OFF.get(path, neutral)):
            _miss(missed, path, value)


def _is_idle(section: str, field: str, part: Any) -> bool:
    """Whether another field of its section makes a field irrelevant."""
    if section in ("forward.", "backward."):
        return bool(part.is_perfect)
    if section in ("clip.", "remap."):
        return field != "type" and part.type.name == "NONE"
    return section == "pre_post.input_range." and not part.enable


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _miss(missed: _Missed, path: str, value: object, instead: str = "") -> None:
    missed[path] = f"{path} = {_name(value)}" + (f" ({instead})" if instead else "")


def _name(value: object) -> str:
    if isinstance(value, Enum):
        return value.name
    plain = value is None or isinstance(value, bool | int | float | str | list | tuple | dict)
    return str(value) if plain else type(value).__name__
