"""Frozen descriptions of an analog tile: device, geometry and converters."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from crossbar.devices import PCM, Device, Ideal
from crossbar.errors import InputError, require_number, require_whole
from crossbar.hermes import Hermes

_T = TypeVar("_T")

DacRange = Literal["static", "per_token", "max"]
ScaleGranularity = Literal["tile_column", "tile", "layer"]

_DEVICES: dict[str, type[Ideal | PCM | Hermes]] = {device.kind: device for device in (Ideal, PCM, Hermes)}


@dataclass(frozen=True)
class Converter:
    """A digital-to-analog or analog-to-digital converter: symmetric, uniform, ``2^bits - 1`` levels over ± its range.

    Attributes:
        bits: resolution, 2 to 16.
        range: how the range is found until it is calibrated. ``static``: ``full_scale``; ``per_token``: the abs-max of
            each input vector; ``max``: the abs-max of the whole batch. The last two are for DACs only.
        full_scale: the static range before calibration: unit outputs for an ADC (one cell at g_max under a full-scale
            input gives 1), activation units for a DAC. 10 is aihwkit's ``out_bound``.
    """

    bits: int = 8
    range: DacRange = "static"
    full_scale: float = 10.0

    def __post_init__(self) -> None:
        require_whole("converter field bits", self.bits, least=2, most=16)
        _require_choice("converter field range", self.range, get_args(DacRange))
        require_number("converter field full_scale", self.full_scale, above=0)

    @property
    def levels(self) -> int:
        """Steps on each side of zero: ``2^(bits-1) - 1``."""
        return (1 << (self.bits - 1)) - 1


@dataclass(frozen=True)
class Tile:
    """Geometry of a tile and how weights are scaled onto it.

    Attributes:
        rows: word lines (inputs) of a tile.
        cols: bit lines (outputs) of a tile.
        scale: what shares one digital scale, the abs-max of its weights: each column of a tile, a tile, or a layer.
    """

    rows: int = 256
    cols: int = 256
    scale: ScaleGranularity = "tile_column"

    def __post_init__(self) -> None:
        require_whole("tile field rows", self.rows, least=1)
        require_whole("tile field cols", self.cols, least=1)
        _require_choice("tile field scale", self.scale, get_args(ScaleGranularity))


@dataclass(frozen=True)
class Hardware:
    """Everything that decides what a layer computes on analog tiles. A part set to None is ideal.

    Attributes:
        device: the memory device of every cell; a weight is a pair of them.
        tile: geometry and mapping.
        dac: input converter, one a word line.
        adc: output converter, one a bit-line pair of each tile.
        output_noise: deviation of amplifier and ADC noise, added to each column of each tile at every read, in unit
            outputs (aihwkit's ``out_noise``).
    """

    device: Device = field(default_factory=PCM)
    tile: Tile = field(default_factory=Tile)
    dac: Converter | None = field(default_factory=lambda: Converter(range="per_token"))
    adc: Converter | None = field(default_factory=Converter)
    output_noise: float = 0.04

    def __post_init__(self) -> None:
        if isinstance(self.device, type) or not isinstance(self.device, Device):
            raise InputError(f"hardware field device = {self.device!r} is not a device: give one of crossbar.devices")
        for name, part in (("tile", Tile), ("dac", Converter), ("adc", Converter)):
            value = getattr(self, name)
            if not isinstance(value, part) and (value is not None or name == "tile"):
                raise InputError(f"hardware field {name} = {value!r} is not allowed: give a {part.__name__}")
        if self.adc is not None and self.adc.range != "static":
            raise InputError(f"hardware field adc.range = {self.adc.range!r} is not allowed: choose 'static'")
        require_number("hardware field output_noise", self.output_noise)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `from_dict` takes them back if the device is one of this package."""
        values: dict[str, Any] = dataclasses.asdict(self)
        values["device"] = {"kind": self.device.kind, **values["device"]}
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Hardware:
        """Hardware from nested plain values; a missing field keeps its default, ``None`` makes a part ideal.

        Raises:
            InputError: for an unknown field, with its dotted name and what is allowed, and for a value out of range.

        >>> Hardware.from_dict({"device": "pcm", "adc": {"bits": 6}, "dac": None}).adc.bits
        6
        """
        parts = dict(_mapping("hardware", values))
        if "device" in parts:
            given = parts["device"]
            device = dict({"kind": given} if isinstance(given, str) else _mapping("hardware.device", given))
            kind = device.pop("kind", None)
            _require_choice("hardware field device.kind", kind, tuple(_DEVICES))
            parts["device"] = _build(_DEVICES[kind], "hardware.device", device)
        default = cls()
        for name in ("tile", "dac", "adc"):
            if name in parts and (parts[name] is not None or name == "tile"):
                given = dict(_mapping(f"hardware.{name}", parts[name]))
                parts[name] = _build(type(getattr(default, name)), f"hardware.{name}", given, getattr(default, name))
        return _build(cls, "hardware", parts)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Hardware:
        """Hardware from a YAML file with the fields of this class.

        Raises:
            InputError: for a missing file, text that is not YAML, or what `from_dict` refuses.
        """
        import yaml

        path = Path(path)
        if not path.is_file():
            raise InputError(f"hardware file {str(path)!r} does not exist: give the path of a YAML file")
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(f"hardware file {str(path)!r} is not YAML: {reason}") from None
        return cls.from_dict(values)


def _mapping(name: str, values: Any) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise InputError(f"{name} = {values!r} is not allowed: give a mapping of field names to values")
    return values


def _build(part: type[_T], name: str, values: Any, default: _T | None = None) -> _T:
    """``part`` with the given fields; the others are those of ``default``, or the class's own."""
    allowed = [f.name for f in dataclasses.fields(part)]  # type: ignore[arg-type]  # all parts are dataclasses
    for key in _mapping(name, values):
        if key not in allowed:
            raise InputError(f"{name} has no field {key!r}: allowed are {', '.join(allowed)}")
    try:
        return part(**values) if default is None else dataclasses.replace(default, **values)  # type: ignore[type-var]  # as above
    except InputError as error:
        raise InputError(f"in {name}: {error}") from None


def _require_choice(what: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{what} = {value!r} is not allowed: choose one of {', '.join(allowed)}")
