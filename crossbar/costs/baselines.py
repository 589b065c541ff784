"""The same work on digital hardware, always by two bounds: arithmetic alone, and memory traffic alone.

What they stand for is in docs/energy.md, "Digital machines".
"""

from __future__ import annotations

from typing import NamedTuple

from crossbar.errors import require_whole


class Machine(NamedTuple):
    """A digital machine: one of ``pj_per_mac`` (arithmetic bound) and ``pj_per_byte`` (bandwidth bound) is given."""

    name: str
    bound: str
    source: str
    pj_per_mac: float | None = None
    pj_per_byte: float | None = None
    bytes_per_number: int = 2


MACHINES = (
    Machine("int8 logic, 45 nm", "compute", "Horowitz 2014: add 0.03 and multiply 0.2 pJ", pj_per_mac=29 / 128),
    Machine("H100 at its peak", "compute", "board power over peak bf16 throughput", pj_per_mac=181 / 128),
    Machine("H100 bf16", "bandwidth", "board power over HBM bandwidth", pj_per_byte=53_500 / 256),
    Machine("HBM alone, bf16", "bandwidth", "O'Connor 2017: 3.97 pJ/bit", pj_per_byte=8_130 / 256),
    Machine("Orin Nano int8", "bandwidth", "module power over bandwidth", pj_per_byte=28_200 / 128, bytes_per_number=1),
)


class Baseline(NamedTuple):
    """Energy of a workload on a digital machine if only its ``bound`` cost anything, picojoules."""

    machine: str
    bound: str
    pj: float
    source: str


def digital_baselines(*, macs: int, numbers: int) -> list[Baseline]:
    """Both bounds for a workload of ``macs`` multiply-adds that reads ``numbers`` numbers from memory.

    One attended pair of one head at D = 64 takes 128 multiply-adds, and reads 128 numbers (a key and a value) where
    nothing is reused: the example below.

    Args:
        macs: multiply-adds, those of the sparse pattern where there is one.
        numbers: weights, keys and values read from memory: each weight once for a batch, keys and values once for all
            queries that share them.

    Raises:
        InputError: for negative numbers.

    >>> [round(row.pj) for row in digital_baselines(macs=128, numbers=128)]
    [29, 181, 53500, 8130, 28200]
    """
    require_whole("macs", macs, least=0)
    require_whole("numbers", numbers, least=0)
    return [
        Baseline(
            machine.name,
            machine.bound,
            macs * machine.pj_per_mac
            if machine.pj_per_mac is not None
            else numbers * machine.bytes_per_number * (machine.pj_per_byte or 0.0),
            machine.source,
        )
        for machine in MACHINES
    ]
