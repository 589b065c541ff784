"""Closed forms of lines: against the solvers, which share no code with them."""

import numpy as np
import pytest
import torch

from crossbar import transfer_matrix
from crossbar.circuit import ladders

OPTIONS = [
    (30.0, 20.0, "left", "bottom"),
    (3.0, 50.0, "both", "top"),
    (0.0, 40.0, "both", "bottom"),
    (60.0, 0.0, "left", "top"),
]


def cells(*shape, seed=0, most=25.0):
    return torch.as_tensor(np.random.default_rng(seed).uniform(0, most, shape))


def relative(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("r_row", "r_col", "drive", "sense"), OPTIONS)
def test_the_first_order_is_that_of_sweeps(r_row, r_col, drive, sense):
    conductance = cells(2, 9, 7)
    expected = transfer_matrix(conductance, r_row, r_col, drive=drive, sense=sense, solver="first_order")
    turned = conductance.flip(1) if sense == "top" else conductance
    found = ladders.first_order(turned, r_row, r_col, drive == "both")
    found = found.flip(1) if sense == "top" else found
    assert relative(found, expected) < 1e-13
    narrow = ladders.first_order(conductance.float(), r_row, r_col, drive == "both")
    wide = ladders.first_order(conductance, r_row, r_col, drive == "both")
    assert relative(narrow, wide) < 1e-6


@pytest.mark.parametrize(("r_row", "r_col", "drive", "sense"), OPTIONS)
def test_a_row_alone_is_exact(r_row, r_col, drive, sense):
    conductance = cells(5, 6)
    found = ladders.rows_alone(conductance, r_row, r_col, drive == "both", sense == "top")
    for row in range(5):
        only = torch.arange(5) == row
        expected = transfer_matrix(conductance, r_row, r_col, only, drive=drive, sense=sense, solver="reference")
        assert relative(found[row], expected[row]) < 1e-9


def test_reads_that_open_rows_of_their_own():
    """Rows 1, 4, 5 and 9 of 12 are there, and each read opens some of them."""
    lines, rows, r_row, r_col = torch.tensor([1, 4, 5, 9]), 12, 30.0, 70.0
    conductance, drive = cells(4, 3), cells(2, 4, seed=1, most=1.0)
    opened = torch.tensor([[True, False, True, True], [True, True, False, False]])
    drive = drive * opened
    load, source = conductance * (r_col * 1e-6), ladders.word_lines(conductance, r_row)
    segments = torch.diff(lines, append=torch.tensor([rows]))[None].double()
    found = ladders.collected(load[None], source[None], opened[None], drive[None], segments)[0]
    reached = ladders.shares(opened.t()[..., None] * load[:, None], segments[0, :, None, None])
    for read in range(2):
        whole, active = torch.zeros(rows, 3, dtype=torch.float64), torch.zeros(rows, dtype=torch.bool)
        whole[lines], active[lines] = conductance, opened[read]
        expected = transfer_matrix(whole, r_row, r_col, active, solver="first_order")[lines]
        assert relative(found[read], drive[read] @ expected) < 1e-12
        assert relative((reached[:, read] * source)[opened[read]], expected[opened[read]]) < 1e-12


def test_no_resistance_is_the_limit():
    conductance = cells(4, 3)
    for found in (
        ladders.first_order(conductance, 0.0, 0.0, True),
        ladders.rows_alone(conductance, 0.0, 0.0),
        ladders.first_order(conductance, 1e-9, 1e-9, True),
    ):
        assert relative(found, conductance) < 1e-12


@pytest.mark.parametrize("columns", [5, 32, 37])
@pytest.mark.parametrize("some", [True, False])
def test_compiled_walks_are_those_in_torch(columns, some):
    """Float32 against float64, which torch computes, of rows that are close and far, with reads that open none."""
    draw = torch.Generator().manual_seed(0)
    load = torch.rand(3, 11, columns, generator=draw) * 1e-3
    source, volts = torch.randn(3, 11, columns, generator=draw), torch.randn(3, 6, columns, generator=draw)
    opened = torch.rand(3, 6, 11, generator=draw) < torch.tensor([0.0, 0.2, 0.5, 0.5, 0.9, 1.0])[:, None]
    opened = opened if some else None
    drive = torch.randn(3, 6, 11, generator=draw) * (1 if opened is None else opened)
    segments = torch.randint(0, 50, (3, 11), generator=draw).float()
    for walk, given in ((ladders.collected, drive), (ladders.reached, volts)):
        narrow = walk(load, source, opened, given, segments)
        wide = walk(load.double(), source.double(), opened, given.double(), segments.double())
        if walk is ladders.reached and opened is not None:
            wide = wide * opened
        assert relative(narrow, wide) < 3e-6
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(2)
            assert torch.equal(walk(load, source, opened, given, segments), narrow)
        finally:
            torch.set_num_threads(before)
