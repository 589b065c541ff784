"""Does a pattern fit a machine? Its routing tables against the platform's limits."""

from __future__ import annotations

from typing import NamedTuple

import torch

from attention.controller.events import Placement
from attention.controller.platforms import Platform
from attention.controller.routing_tables import RoutingTables
from attention.patterns.rows import CSR
from crossbar.errors import InputError, require_whole


class Excess(NamedTuple):
    """A limit that a pattern exceeds: what, the limit, what is needed, and the split that would fit."""

    what: str
    limit: int
    needed: int
    split: str

    def __str__(self) -> str:
        return f"{self.what}: {self.needed:,} needed, {self.limit:,} there; {self.split}"


def excesses(platform: Platform, csr: CSR, placement: Placement, weight_bits: int = 8) -> tuple[Excess, ...]:
    """Every limit of a platform that a pattern exceeds; empty if it fits.

    A core holds the lines of one tile, and query i stands on core i // (neurons of a core).

    Args:
        platform: with limits; one without has none to exceed.
        csr: rows of the pattern.
        placement: of the keys.
        weight_bits: of a pair's strength, where the platform stores them.
    """
    require_whole("weight_bits", weight_bits, least=1)
    if len(csr.indices) and int(csr.indices.max()) >= len(placement.tile):
        raise InputError(
            f"token {int(csr.indices.max())} is attended but only {len(placement.tile)} tokens have a place"
        )
    limits, tables = platform.limits, RoutingTables.of(csr, placement)
    found: list[Excess] = []

    def hold(what: str, limit: int | None, needed: int, split: str) -> None:
        if limit is not None and needed > limit:
            found.append(Excess(what, limit, needed, split))

    tiles = len(tables.bounds) - 1
    lines = int(placement.line.max()) + 1 if len(placement.line) else 0
    hold("token lines of a tile", platform.rows, lines, f"cut each tile into {_parts(lines, platform.rows)}")
    neurons = limits.neurons or max(1, tables.n_queries)
    cores = max(tiles, _parts(tables.n_queries, neurons))
    hold("cores", limits.cores, cores, f"take {_parts(cores, limits.cores)} chips")
    tile, query = tables.links()
    most = _most(torch.bincount(tile))
    hold(
        "sources (queries) of one core",
        limits.inputs,
        most,
        f"copy each tile onto {_parts(most, limits.inputs)} cores, each for a part of the queries",
    )
    edges = _most(torch.bincount(query.div(neurons, rounding_mode="floor")))
    hold(
        "output edges of one core",
        limits.output_edges,
        edges,
        f"spread its queries over {_parts(edges, limits.output_edges)} cores",
    )
    fan_out = csr.indptr.diff()
    splitters = int((fan_out[fan_out > (limits.targets or 0)]).sum())
    hold(
        "lines that one query reaches",
        limits.targets,
        _most(fan_out),
        f"add {splitters:,} splitter neurons on {_parts(splitters, neurons):,} cores",
    )
    size = -(-_most(tables.bounds.diff()) * weight_bits // 8)
    hold(
        "bytes of synapses of one core",
        limits.synapse_bytes,
        size,
        f"cut each tile into {_parts(size, limits.synapse_bytes)}",
    )
    hold(
        "bits of a strength",
        limits.weight_bits,
        weight_bits,
        f"store each in {_parts(weight_bits, limits.weight_bits)} slices",
    )
    return tuple(found)


def _parts(needed: int, limit: int | None) -> int:
    return -(-needed // limit) if limit else 1


def _most(counts: torch.Tensor) -> int:
    return int(counts.max()) if len(counts) else 0
