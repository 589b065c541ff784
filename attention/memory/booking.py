"""What tokens that are written and read cost, booked in open ledgers (gating.md)."""

from __future__ import annotations

from torch import Tensor

from attention.kernel.analog_counts import book_reads, read_counts
from attention.kernel.schedule import Schedule
from crossbar.hardware import Hardware
from crossbar.ledger import book, counting


def book_rows(layer: str, k: Tensor, padding: Tensor | None, hardware: Hardware, digital: bool) -> None:
    """Book a row of K and one of V for each real token of k [B, H_kv, n, D], in each of its tiles: one pulse a cell.

    Args:
        layer: whose memory it is.
        k: keys; values are as many.
        padding: bool [B, n], True for a real token.
        hardware: geometry.
        digital: whether the tokens go into a digital buffer.
    """
    if not counting():
        return
    batch, heads, n, size = k.shape
    rows = 2 * heads * (batch * n if padding is None else int(padding.sum()))
    if digital:
        book(layer, "sram_bytes", rows * size * k.element_size())
        return
    book(layer, "row_writes", rows * -(-size // hardware.tile.cols))
    book(layer, "write_pulses", rows * size * hardware.tile.signs * hardware.tile.pairs)


def book_attention(
    layer: str, q: Tensor, k: Tensor, work: Schedule, padding: Tensor | None, hardware: Hardware, digital: bool
) -> None:
    """Book both stages on analog rows, or what a digital buffer multiplies and reads; arguments as `book_reads`."""
    if not digital:
        book_reads(layer, q, k, work, padding, hardware)
    elif counting():
        pairs = read_counts(q, k, work, padding, hardware).score_conversions
        book(layer, "digital_macs", 2 * pairs * q.shape[3])
