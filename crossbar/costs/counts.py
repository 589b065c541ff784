"""What a layer's reads cost in events (docs/energy.md, "The ledger")."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from crossbar.costs.ledger import book
from crossbar.hardware import Hardware
from crossbar.tiles.mapping import tile_grid

_OUTPUT_BYTES = 2  # of a sum of converted columns, as digital logic keeps it


def book_writes(layer: str, hardware: Hardware, in_features: int, out_features: int, pulses: int) -> None:
    """Book that all cells were written: the rows of each tile, and where cells are verified the pulses that it took."""
    t_out, _ = tile_grid(in_features, out_features, hardware.tile)
    if hardware.verify is not None:
        book(layer, "write_pulses", pulses)
    book(layer, "row_writes", in_features * t_out * hardware.tile.slices)


def book_reads(
    layer: str, hardware: Hardware, in_features: int, out_features: int, vectors: int, idle: int = 0
) -> None:
    """Book products with ``vectors`` inputs, of whose word lines some are never driven.

    Each tile drives its own word lines, with as many pulses as the input coding takes at most; each column of each tile
    is converted once, or once for each bit of a bit-serial input. Inputs are read from a buffer once, outputs written
    to one.
    """
    tile, dac, adc = hardware.tile, hardware.dac, hardware.adc
    t_out, t_in = tile_grid(in_features, out_features, tile)
    lines = in_features - idle
    driven = vectors * lines * t_out * tile.slices
    pulses, serial = _pulses(hardware)
    sensed = vectors * out_features * t_in * tile.slices * serial
    input_bytes = -(-dac.bits // 8) if dac is not None else _OUTPUT_BYTES
    book(layer, "row_activations", driven * pulses)
    book(layer, "dac_conversions", driven, dac.bits if dac else None)
    book(layer, "adc_conversions", sensed, adc.bits if adc else None)
    book(layer, "cell_macs", vectors * lines * out_features * tile.slices * tile.pairs * pulses)
    book(layer, "tile_reads", vectors * t_out * t_in * tile.slices * serial)
    book(layer, "digital_macs", sensed)  # scale and add each converted column
    book(layer, "sram_bytes", vectors * (input_bytes * in_features + _OUTPUT_BYTES * out_features))
    if tile.encoding == "offset":  # sum the inputs of each row tile, subtract their share from each output
        book(layer, "digital_macs", vectors * (in_features + t_in * out_features))


def book_line_reads(layer: str, hardware: Hardware, out_features: int, lines: int) -> None:
    """Book reads of single word lines: each drives a row of tiles with one pulse, whose columns are converted."""
    tile, dac, adc = hardware.tile, hardware.dac, hardware.adc
    driven = lines * tile_grid(tile.rows, out_features, tile)[0] * tile.slices
    sensed = lines * out_features * tile.slices
    book(layer, "row_activations", driven)
    book(layer, "dac_conversions", driven, dac.bits if dac else None)
    book(layer, "adc_conversions", sensed, adc.bits if adc else None)
    book(layer, "cell_macs", sensed * tile.pairs)
    book(layer, "tile_reads", driven)


def book_masked_reads(layer: str, hardware: Hardware, devices: Tensor | None, vectors: int, inputs: int) -> None:
    """Book products of tiles that have devices in some places only, with ``vectors`` inputs.

    Word lines that have a device in a tile are driven there, and columns that have one are converted.

    Args:
        layer: whose tiles they are.
        hardware: their converters and pairs.
        devices: where they are, bool ``[I, O]``.
        vectors: products.
        inputs: numbers that one of them converts, at most.
    """
    assert devices is not None
    tile, dac, adc = hardware.tile, hardware.dac, hardware.adc
    padded = F.pad(devices, (0, -devices.shape[1] % tile.cols, 0, -devices.shape[0] % tile.rows))
    tiles = padded.view(-1, tile.rows, padded.shape[1] // tile.cols, tile.cols)
    pulses, serial = _pulses(hardware)
    rows, columns = int(tiles.any(3).sum()), int(tiles.any(1).sum()) * tile.slices * serial
    book(layer, "row_activations", vectors * rows * tile.slices * pulses)
    book(layer, "dac_conversions", vectors * min(rows, inputs) * tile.slices, dac.bits if dac else None)
    book(layer, "adc_conversions", vectors * columns, adc.bits if adc else None)
    book(layer, "cell_macs", vectors * int(devices.sum()) * tile.slices * tile.pairs * pulses)
    book(layer, "digital_macs", vectors * columns)


def macs_of(hardware: Hardware, cell_macs: int) -> float:
    """Multiply-accumulates of weights and inputs that so many ``cell_macs`` of `book_reads` stand for."""
    tile = hardware.tile
    return cell_macs / (tile.slices * tile.pairs * _pulses(hardware)[0])


def _pulses(hardware: Hardware) -> tuple[int, int]:
    """Pulses that a word line carries for an input, at most, and how often its columns are sensed."""
    dac = hardware.dac
    serial = dac.bits - 1 if dac is not None and dac.coding == "bit_serial" else 1
    return dac.levels if dac is not None and dac.coding == "rate" else serial, serial
