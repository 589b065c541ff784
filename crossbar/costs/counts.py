"""What a layer's reads cost in events (docs/energy.md, "The ledger")."""

from __future__ import annotations

from crossbar.costs.ledger import book
from crossbar.hardware import Hardware
from crossbar.tiles.mapping import tile_grid

_OUTPUT_BYTES = 2  # of a sum of converted columns, as digital logic keeps it


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
