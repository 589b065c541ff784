"""Physics of analog crossbar tiles: devices, converters, linear layers, what they count and what that costs.

``convert`` puts a model's linear layers on tiles, ``program`` writes them as one chip, ``age`` moves the chip in time.
"""

from crossbar import devices, presets
from crossbar.adapters import register_adapter
from crossbar.backends.dispatch import backend_names, register_backend, using_backend
from crossbar.circuit.currents import cell_voltages, circuit_currents, transfer_matrix
from crossbar.costs.baselines import Baseline, digital_baselines
from crossbar.costs.energy import EnergyReport
from crossbar.costs.ledger import Ledger
from crossbar.costs.prices import Price, PriceBook, price
from crossbar.errors import InputError
from crossbar.hardware import Cell, CellNoise, Converter, Faults, Hardware, Tile, Wire, WriteVerify
from crossbar.nn.chip import age, analog_layers, bypassed, new_chip, program, reset_gains, reset_reads
from crossbar.nn.convert import ConversionReport, LayerReport, convert, restore
from crossbar.nn.linear import AnalogLinear
from crossbar.nn.shard import shard, unshard
from crossbar.nn.state import load_state, save_state
from crossbar.nn.training import clip_weights, learn_ranges, replayed_reads
from crossbar.units import format_seconds, to_seconds

__all__ = [
    "AnalogLinear",
    "Baseline",
    "Cell",
    "CellNoise",
    "ConversionReport",
    "Converter",
    "EnergyReport",
    "Faults",
    "Hardware",
    "InputError",
    "LayerReport",
    "Ledger",
    "Price",
    "PriceBook",
    "Tile",
    "Wire",
    "WriteVerify",
    "age",
    "analog_layers",
    "backend_names",
    "bypassed",
    "cell_voltages",
    "circuit_currents",
    "clip_weights",
    "convert",
    "devices",
    "digital_baselines",
    "format_seconds",
    "learn_ranges",
    "load_state",
    "new_chip",
    "presets",
    "price",
    "program",
    "register_adapter",
    "register_backend",
    "replayed_reads",
    "reset_gains",
    "reset_reads",
    "restore",
    "save_state",
    "shard",
    "to_seconds",
    "transfer_matrix",
    "unshard",
    "using_backend",
]
