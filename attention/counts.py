"""How often attention drives lines and converts, whoever counts it, and how that is booked in open ledgers.

What the numbers count is in docs/physics.md, "Attention"; the counters are those of docs/energy.md, "The ledger".
"""

from __future__ import annotations

from dataclasses import dataclass, fields

from crossbar.costs.ledger import book


@dataclass(frozen=True)
class Counts:
    """Line drives and conversions of attention; add counts of parts, multiply by a number of repetitions.

    Attributes:
        score_sense_lines: K-tile token lines opened for sensing.
        score_conversions: analog-to-digital conversions of scores.
        query_drives: K-tile lines that queries drive.
        value_row_drives: V-tile token rows driven by attention weights.
        value_conversions: analog-to-digital conversions of outputs.
    """

    score_sense_lines: int = 0
    score_conversions: int = 0
    query_drives: int = 0
    value_row_drives: int = 0
    value_conversions: int = 0

    def __add__(self, other: Counts) -> Counts:
        if not isinstance(other, Counts):
            return NotImplemented
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, times: int) -> Counts:
        if isinstance(times, bool) or not isinstance(times, int):
            return NotImplemented
        return Counts(*(getattr(self, f.name) * times for f in fields(self)))

    __rmul__ = __mul__

    def of_head(self, head_dim: int, columns: int = 256, value_dim: int | None = None) -> Counts:
        """Counts for a head of one dimension as those for one of ``head_dim``, in tiles of ``columns`` columns.

        ``value_dim``: of its values, where they have other dimensions than its keys.
        """
        value_dim = head_dim if value_dim is None else value_dim
        across, across_values = -(-head_dim // columns), -(-value_dim // columns)
        return Counts(
            score_sense_lines=across * self.score_sense_lines,
            score_conversions=across * self.score_conversions,
            query_drives=head_dim * self.query_drives,
            value_row_drives=across_values * self.value_row_drives,
            value_conversions=value_dim * self.value_conversions,
        )


def book_attention(
    layer: str,
    counts: Counts,
    *,
    head_dim: int,
    value_dim: int | None = None,
    queries: int,
    columns: int = 256,
    pairs: int = 1,
    dac: int | None = None,
    adc: int | None = None,
    capped: bool = False,
    biased: bool = False,
) -> None:
    """Book counts of attention in open ledgers, with the digital work that goes with them.

    Digital logic scales and adds each conversion; the softmax subtracts the largest score of each attended pair, adds
    its exponential, and takes a reciprocal for each query.

    Args:
        layer: whose they are.
        counts: of all heads and sequences.
        head_dim: D.
        value_dim: D of the values; None: the same.
        queries: all heads' and sequences' together.
        columns: of a tile.
        pairs: copies of each number in the cells.
        dac, adc: the converters' bits.
        capped: whether a tanh bends each pair's score.
        biased: whether something is added to each pair's score.
    """
    value_dim = head_dim if value_dim is None else value_dim
    across, across_values = -(-head_dim // columns), -(-value_dim // columns)
    attended = counts.score_conversions // across
    conversions = counts.score_conversions + counts.value_conversions
    book(layer, "column_activations", counts.score_sense_lines)
    book(layer, "row_activations", counts.value_row_drives)
    book(layer, "query_drives", counts.query_drives)
    book(layer, "dac_conversions", counts.query_drives + counts.value_row_drives, dac)
    book(layer, "adc_conversions", conversions, adc)
    book(layer, "cell_macs", attended * (head_dim + value_dim) * pairs)
    reads = across * counts.query_drives // head_dim + across_values * counts.value_conversions // value_dim
    book(layer, "tile_reads", reads)
    book(layer, "attended_pairs", attended)
    book(layer, "digital_macs", conversions + attended * (1 + biased))
    book(layer, "special_functions", attended * (1 + capped) + queries)
