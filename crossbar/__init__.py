"""Physics of analog crossbar tiles: devices, converters, linear layers, and what they count.

``convert`` puts a model's linear layers on tiles, ``program`` writes them as one chip, ``age`` moves the chip in time.
"""

from crossbar import devices, presets
from crossbar.chip import age, analog_layers, bypassed, program, reset_reads
from crossbar.convert import ConversionReport, LayerReport, convert, restore
from crossbar.errors import InputError
from crossbar.hardware import Converter, Hardware, Tile
from crossbar.ledger import Ledger
from crossbar.linear import AnalogLinear
from crossbar.state import load_state, save_state
from crossbar.units import format_seconds, to_seconds

__all__ = [
    "AnalogLinear",
    "ConversionReport",
    "Converter",
    "Hardware",
    "InputError",
    "LayerReport",
    "Ledger",
    "Tile",
    "age",
    "analog_layers",
    "bypassed",
    "convert",
    "devices",
    "format_seconds",
    "load_state",
    "presets",
    "program",
    "reset_reads",
    "restore",
    "save_state",
    "to_seconds",
]
