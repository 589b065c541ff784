"""What tokens that are written and read cost, booked in open ledgers (docs/energy.md, "The ledger")."""

from __future__ import annotations

from torch import Tensor

from attention.counts import Counts
from attention.kernel.analog_booking import book_reads, book_tokens, book_writes, count_reads
from attention.kernel.schedule import Schedule
from crossbar.costs.digital_layers import BYTES
from crossbar.costs.ledger import book, counting
from crossbar.hardware import Hardware


def book_row_writes(
    layer: str, k: Tensor, v: Tensor, padding: Tensor | None, hardware: Hardware, digital: bool
) -> None:
    """Book that a key and a value are written for each real token of k [B, H_kv, n, D] and v [B, H_kv, n, D_v].

    Args:
        layer: whose memory it is.
        k, v: keys and values.
        padding: bool [B, n], True for a real token.
        hardware: geometry.
        digital: whether the tokens go into a digital buffer, whose numbers have 16 bits, or into rows of cells.
    """
    if not digital:
        book_writes(layer, k, v, padding, hardware)
    elif counting():
        each = k.shape[1] * (k.shape[3] + v.shape[3]) * BYTES
        book_tokens(layer, k, padding, lambda tokens: book(layer, "sram_bytes", tokens * each))


def book_row_reads(
    layer: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    schedule: Schedule,
    padding: Tensor | None,
    hardware: Hardware,
    digital: bool,
    asking: Tensor | None,
    kv_heads: int,
    capped: bool = False,
    biased: bool = False,
) -> None:
    """Book both stages on analog rows, or what a digital buffer reads and multiplies; arguments as `book_reads`.

    A digital buffer reads the key and the value of each opened token once a call for all queries that share them, of
    ``kv_heads`` different heads. A pair takes D multiply-adds with each, and in the softmax what a pair on analog rows
    takes; the softmax is over both together, so its reciprocal of each query is booked elsewhere.
    """
    if not digital:
        book_reads(
            layer, q, k, v, schedule, padding, hardware, asking=asking, normalised=False, capped=capped, biased=biased
        )
    elif counting():
        size, both = q.shape[3], q.shape[3] + v.shape[3]
        across = -(-size // hardware.tile.cols)

        def booked(counts: Counts, _: int) -> None:
            pairs = counts.score_conversions // across
            book(layer, "digital_pairs", pairs)
            book(layer, "digital_macs", pairs * (both + 1 + biased))
            book(layer, "special_functions", pairs * (1 + capped))

        count_reads(layer, q, (size, v.shape[3]), schedule, padding, hardware, asking, booked)
        book_tokens(layer, k, padding, lambda tokens: book(layer, "sram_bytes", kv_heads * tokens * both * BYTES))
