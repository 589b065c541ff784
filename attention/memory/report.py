"""What became of a memory's rows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class MemoryReport:
    """What became of a memory's rows, for one sequence and one head.

    Attributes:
        tokens: appended so far.
        held: whose row no other token has taken.
        capacity: token rows.
        tiles: that hold them, for keys and again for values, for each ⌈D / columns⌉.
        evicted: tokens whose row was given up.
        lost_pairs: pairs of the pattern that were not read because the key was evicted.
        expired_reads: rows opened at an age at which their largest value had leaked away.
        clipped: numbers beyond a fixed scale, all heads and sequences together.
        most_writes: of the row that was written most often.
    """

    tokens: int
    held: int
    capacity: int
    tiles: int
    evicted: int
    lost_pairs: int
    expired_reads: int
    clipped: int
    most_writes: int
