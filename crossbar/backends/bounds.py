"""Cells in fixed point of 16 bits and whole input codes: what products in integers can have, on any processor.

`crossbar.backends.cpu.integers` says how such a product is computed.
"""

from __future__ import annotations

from collections.abc import Set

from crossbar.backends.protocol import Read
from crossbar.features import CELLS, MISMATCH, NOISES, WIRES, missing

HONOURED = CELLS - {"tile.encoding:offset"} | MISMATCH | NOISES | WIRES | {"dac.range:per_token", "dac.range:max"}
"""Features of hardware that products in integers have on any processor."""
LARGEST = 127 * 256 + 126
"""The largest cell of a column: it rounds to high and low bytes within ±127, -128 … 127."""
MOST_ROWS = 1024
"""Word lines of a tile: high parts of more could pass 2^24, where float32 ends to be exact."""
_MOST_BITS = 8  # codes within ±127


def refuses(read: Read, honoured: Set[str]) -> str | None:
    """What of converters, tiles and cells products cannot be computed with; None: nothing.

    Args:
        read: the product.
        honoured: features of hardware that the backend has.
    """
    dac, tile, feature = read.hardware.dac, read.hardware.tile, missing(read.hardware, honoured)
    if feature is not None:
        return f"hardware with {feature}"
    if dac is not None and dac.bits > _MOST_BITS:
        return f"input codes of more than {_MOST_BITS} bits"
    if tile.rows > MOST_ROWS:
        return f"tiles of more than {MOST_ROWS} word lines"
    if read.cells.variance is not None and read.cells.variance.dim() > 2:
        return "read noise of each cell by its own conductance"
    return None
