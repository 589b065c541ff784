"""Which features of hardware a reader of cells honours: what nobody named is refused, by one function.

A reader is whatever computes with cells: a layer, keys and values in rows, attention strengths, a backend. It names
the features that it honours (`crossbar.Hardware.features`), so that one which is added later is refused until it is
named.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Literal, get_args, get_origin, get_type_hints

from crossbar.errors import InputError, shown
from crossbar.hardware import Converter, Hardware

NOISES = frozenset({"output_noise", "read_noise", "read_noise.form:exact", "read_noise.form:cheap"})
"""Noise of each read."""

MISMATCH = frozenset({"dac.gain_std", "dac.offset_std", "adc.gain_std", "adc.offset_std"})
"""Errors of each word line's and column's own circuit."""

CELLS = frozenset(
    {
        "tile.encoding:balanced", "tile.encoding:offset", "tile.pairs", "tile.slices", "tile.scale:tile",
        "tile.scale:layer", "verify", "faults", "device:redrawn",
    }
)  # fmt: skip
"""How weights are laid onto cells, and what becomes of them there."""

CONVERTERS = frozenset(
    {
        "dac:ideal", "adc:ideal", "dac.bits:1", "adc.bits:1", "dac.range:per_token", "dac.range:max",
        "adc.range:active_rows", "dac.coding:bit_serial", "dac.coding:rate",
        "dac.coding:amplitude", "cell", "cell.iv:linear", "cell.iv:sinh", "cell.iv:table",
    }
)  # fmt: skip
"""How inputs are driven, what cells make of their height, and how columns are converted."""

WIRES = frozenset(
    {
        "wire", "wire.drive:left", "wire.drive:both", "wire.sense:bottom", "wire.sense:top", "wire.layout:separate",
        "wire.layout:interleaved", "wire.solution:auto", "wire.solution:exact", "wire.solution:first_order",
    }
)  # fmt: skip
"""Resistance of word lines and bit lines."""


def missing(hardware: Hardware, honoured: Set[str]) -> str | None:
    """The first feature of hardware that is not honoured, in the order of names; None: all are."""
    features = hardware.features()
    return None if features <= honoured else min(features - honoured)


def require_honoured(hardware: Hardware, honoured: Set[str], reader: str) -> None:
    """Refuse hardware with a feature that a reader of cells does not honour.

    Args:
        hardware: what the cells are.
        honoured: features that the reader honours.
        reader: what reads, in the plural or as a mass: ``"keys and values"``.

    Raises:
        InputError: naming the field, its value, the reader, and what is allowed there.
    """
    feature = missing(hardware, honoured)
    if feature is None:
        return
    field = feature.partition(":")[0]
    value = shown(_value(hardware, field))
    raise InputError(
        f"hardware field {field} = {value} is not supported for {reader}: give {_allowed(hardware, field, honoured)}"
    )


def _value(hardware: Hardware, field: str) -> object:
    value: object = hardware
    for name in field.split("."):
        value = getattr(value, name, None)
    return value


def _allowed(hardware: Hardware, field: str, honoured: Set[str]) -> str:
    """What a reader allows in a field: the choices that it honours, or the plain value."""
    part, _, name = field.rpartition(".")
    owner = _value(hardware, part) if part else hardware
    if name == "bits":
        return "2 or more"
    if name in ("dac", "adc"):
        return "a Converter"
    if name == "device":
        return "a device whose errors are not drawn anew at each time"
    plain = _value(Hardware(dac=Converter(), output_noise=0.0), field)
    kind = get_type_hints(type(owner))[name]
    if get_origin(kind) is Literal:
        choices = [choice for choice in get_args(kind) if f"{field}:{choice}" in honoured or choice == plain]
        return " or ".join(choices) or (f"no {part}" if part else "None")
    if plain is None and isinstance(_value(hardware, field), int | float):
        return "0"
    return f"{plain:g}" if isinstance(plain, int | float) else "None"
