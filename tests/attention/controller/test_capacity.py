"""Routing tables, and whether a pattern fits a machine."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention import Controller, Dense, Limits, LocalWindow, Placement, Platform, RoutingTables, Sinks
from attention.controller import platforms
from crossbar.errors import InputError

PATTERNS = [Dense(), Dense().causal(), LocalWindow(5) | Sinks(2), Sinks(0)]


@given(st.sampled_from(PATTERNS), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_tables_hold_every_pair_once_by_tile(pattern, n, seed):
    spots = torch.randperm(3 * n, generator=torch.Generator().manual_seed(seed))[:n].int()
    placement, csr = Placement(spots // 8, spots % 8), pattern.rows(n)
    tables = RoutingTables.of(csr, placement)
    found, links = [], set()
    for tile in range(len(tables.bounds) - 1):
        indptr, lines = tables.slice(tile)
        for query in range(n):
            opened = lines[indptr[query] : indptr[query + 1]].tolist()
            assert opened == sorted(opened)
            found += [(query, tile, line) for line in opened]
            links |= {(tile, query)} if opened else set()
    rows = [(q, int(t)) for q in range(n) for t in csr.indices[csr.indptr[q] : csr.indptr[q + 1]]]
    assert sorted(found) == sorted((q, int(placement.tile[t]), int(placement.line[t])) for q, t in rows)
    assert sorted(links) == list(zip(*(x.tolist() for x in tables.links()), strict=True))


def limited(**limits):
    return Controller(Platform("small", rows=8, limits=Limits(**limits)))


def of(controller, pattern, n, **options):
    return {excess.what: excess for excess in controller.check(pattern.rows(n), Placement.sequential(n, 8), **options)}


def test_what_fits_exceeds_nothing():
    roomy = limited(cores=3, inputs=20, targets=20, output_edges=60, neurons=20, synapse_bytes=160, weight_bits=8)
    assert of(roomy, Dense(), 20) == {}
    assert Controller(platforms.ideal()).check(Dense().rows(1000), Placement.sequential(1000)) == ()


@pytest.mark.parametrize(
    ("limits", "what", "needed", "split"),
    [
        ({"cores": 2}, "cores", 3, "2 chips"),  # 20 tokens on tiles of 8
        ({"inputs": 6}, "sources (queries) of one core", 20, "4 cores"),
        ({"neurons": 10, "output_edges": 25}, "output edges of one core", 30, "2 cores"),  # 10 queries, 3 tiles each
        ({"targets": 1, "neurons": 256}, "lines that one query reaches", 20, "400 splitter neurons on 2 cores"),
        ({"synapse_bytes": 100}, "bytes of synapses of one core", 160, "cut each tile into 2"),  # 20 x 8 pairs
        ({"weight_bits": 3}, "bits of a strength", 8, "3 slices"),
    ],
)
def test_each_limit_is_named_with_the_numbers_and_the_split(limits, what, needed, split):
    found = of(limited(**limits), Dense(), 20)
    assert set(found) == {what}
    assert found[what].needed == needed
    assert split in found[what].split
    assert f"{needed} needed" in str(found[what])


def test_strengths_of_fewer_bits_take_less_memory():
    assert of(limited(synapse_bytes=100), Dense(), 20, weight_bits=5) == {}


def test_lines_beyond_a_tile():
    wide = Placement.sequential(20, 16)
    (excess,) = Controller(platforms.ideal(rows=8)).check(Dense().rows(20), wide)
    assert (excess.what, excess.limit, excess.needed) == ("token lines of a tile", 8, 16)


def test_truenorth_wants_splitters_and_loihi_does_not():
    csr, placement = (LocalWindow(8) | Sinks(2)).causal().rows(256), Placement.sequential(256)
    true = {excess.what: excess for excess in Controller(platforms.truenorth()).check(csr, placement)}
    assert set(true) == {"lines that one query reaches"}
    assert true["lines that one query reaches"].needed == 10
    assert Controller(platforms.loihi1()).check(csr, placement) == ()


def test_bad_input_is_named():
    controller = Controller(replace(platforms.ideal(), name="x"))
    with pytest.raises(InputError, match="token 2 is attended but only 2"):
        controller.check(Dense().rows(3), Placement.sequential(2))
    with pytest.raises(InputError, match="weight_bits = 0"):
        controller.check(Dense().rows(2), Placement.sequential(2), weight_bits=0)
