"""What a layer's reads cost in events (docs/energy.md, "The ledger")."""

from __future__ import annotations

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


def book_reads(layer: str, hardware: Hardware, in_features: int, out_features: int, vectors: int) -> None:
    """Book products with ``vectors`` inputs.

    Each tile drives its own word lines, with as many pulses as the input coding takes at most; each column of each tile
    is converted once, or once for each bit of a bit-serial input. Inputs are read from a buffer once, outputs written
    to one.
    """
    tile, dac, adc = hardware.tile, hardware.dac, hardware.adc
    t_out, t_in = tile_grid(in_features, out_features, tile)
    driven = vectors * in_features * t_out * tile.slices
    serial = dac.bits - 1 if dac is not None and dac.coding == "bit_serial" else 1
    pulses = dac.levels if dac is not None and dac.coding == "rate" else serial
    sensed = vectors * out_features * t_in * tile.slices * serial
    input_bytes = -(-dac.bits // 8) if dac is not None else _OUTPUT_BYTES
    book(layer, "row_activations", driven * pulses)
    book(layer, "dac_conversions", driven, dac.bits if dac else None)
    book(layer, "adc_conversions", sensed, adc.bits if adc else None)
    book(layer, "cell_macs", vectors * in_features * out_features * tile.slices * tile.pairs * pulses)
    book(layer, "tile_reads", vectors * t_out * t_in * tile.slices * serial)
    book(layer, "digital_macs", sensed)  # scale and add each converted column
    book(layer, "sram_bytes", vectors * (input_bytes * in_features + _OUTPUT_BYTES * out_features))
    if tile.encoding == "offset":  # sum the inputs of each row tile, subtract their share from each output
        book(layer, "digital_macs", vectors * (in_features + t_in * out_features))


def book_masked_reads(layer: str, hardware: Hardware, devices: Tensor | None, vectors: int, inputs: int) -> None:
    """Book products of tiles that have devices in some places only, one range of word lines, with ``vectors`` inputs.

    Word lines that have a device in a tile are driven there, and columns that have one are converted.

    Args:
        layer: whose tiles they are.
        hardware: their converters and pairs.
        devices: where they are, bool ``[I, O]``.
        vectors: products.
        inputs: numbers that one of them converts, at most.
    """
    assert devices is not None
    tiles, dac, adc = devices.view(len(devices), -1, hardware.tile.cols), hardware.dac, hardware.adc
    rows, columns = int(tiles.any(2).sum()), int(devices.any(0).sum())
    book(layer, "row_activations", vectors * rows)
    book(layer, "dac_conversions", vectors * min(rows, inputs), dac.bits if dac else None)
    book(layer, "adc_conversions", vectors * columns, adc.bits if adc else None)
    book(layer, "cell_macs", vectors * int(devices.sum()) * hardware.tile.pairs)
    book(layer, "digital_macs", vectors * columns)
