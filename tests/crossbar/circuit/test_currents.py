"""Currents of arrays with wires: against Kirchhoff's law by sparse LU, and what they must do in limits."""

import itertools

import numpy as np
import pytest
import torch

from crossbar import InputError, cell_voltages, circuit_currents, transfer_matrix
from crossbar.circuit import currents, reference

SOLVERS = ("sweeps", "elimination", None)
OPTIONS = [
    # r_row, r_col, drive, sense
    (1.0, 1.0, "left", "bottom"),
    (3.0, 0.5, "both", "top"),
    (0.2, 4.0, "left", "top"),
    (30.0, 20.0, "both", "bottom"),
]


def cells(*shape, seed=0, most=25.0):
    return torch.as_tensor(np.random.default_rng(seed).uniform(0, most, shape))


def kirchhoff(conductance, volts, *options):
    return torch.as_tensor(reference.solve(conductance.numpy(), volts.numpy(), *options)[0])


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (6, 1), (7, 5), (5, 9), (40, 33), (64, 64)])
@pytest.mark.parametrize(("r_row", "r_col", "drive", "sense"), OPTIONS)
def test_every_option_solves_kirchhoffs_equations(shape, r_row, r_col, drive, sense, solver):
    conductance, active = cells(*shape), torch.as_tensor(np.random.default_rng(1).random(shape[0]) < 0.7)
    active[0] = True
    volts = torch.as_tensor(np.random.default_rng(2).standard_normal((3, shape[0])))
    expected = kirchhoff(conductance * active[:, None], volts, r_row, r_col, drive, sense)
    found = circuit_currents(conductance, volts, r_row, r_col, active, drive=drive, sense=sense, solver=solver)
    assert distance(found, expected) < 1e-10
    matrix = transfer_matrix(conductance, r_row, r_col, active, drive=drive, sense=sense, solver=solver)
    assert (matrix[~active] == 0).all()
    assert distance(volts @ matrix, expected) < 1e-10


def test_128_by_128():
    conductance, volts = cells(128, 128), torch.as_tensor(np.random.default_rng(2).standard_normal((1, 128)))
    expected = kirchhoff(conductance, volts, 2.0, 1.0)
    for solver in ("sweeps", "elimination"):
        assert distance(circuit_currents(conductance, volts, 2.0, 1.0, solver=solver), expected) < 1e-10


def test_the_reference_by_name():
    conductance = cells(4, 5)
    found = transfer_matrix(conductance, 5.0, solver="reference")
    assert torch.equal(found, kirchhoff(conductance, torch.eye(4).double(), 5.0, 5.0))


def test_one_cell_is_three_resistances_in_series():
    # 1 ohm to the cell of 1000 ohms, 1 ohm from it: 1 V through 1002 ohms.
    cell, volt = torch.tensor([[1000.0]], dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    assert float(circuit_currents(cell, volt, 1.0)) == pytest.approx(1e6 / 1002, rel=1e-14)
    assert float(circuit_currents(cell, volt, 1.0, drive="both")) == pytest.approx(1e6 / 1001.5, rel=1e-14)


@pytest.mark.parametrize("solver", ["sweeps", "elimination", None])
def test_without_resistance_it_is_the_product(solver):
    conductance, volts = cells(6, 5), cells(3, 6, seed=1)
    for r_row, r_col in ((0.0, 0.0), (1e-9, 0.0), (0.0, 1e-9)):
        found = circuit_currents(conductance, volts, r_row, r_col, solver=solver)
        assert distance(found, volts @ conductance) < 1e-12
    assert torch.equal(transfer_matrix(conductance, 0.0), conductance)
    # and it is the limit of small ones
    errors = [distance(circuit_currents(conductance, volts, ohms), volts @ conductance) for ohms in (1.0, 0.1, 0.01)]
    assert errors[0] > 9 * errors[1] > 81 * errors[2] > 0


def test_shorts_and_absurd_wires():
    conductance = cells(12, 9)
    conductance[3, 4], conductance[8, 1] = 1e6, 1e5  # 1 and 10 ohms
    volts = torch.as_tensor(np.random.default_rng(2).standard_normal((2, 12)))
    for ohms in (1.0, 100.0, 1e5):
        expected = kirchhoff(conductance, volts, ohms, ohms)
        assert distance(circuit_currents(conductance, volts, ohms), expected) < 1e-8
    assert currents.solution(cells(20, 20, most=1e5), 1e4).eliminated == 1  # where sweeps converge slowly


def test_batches_share_what_they_lack():
    conductance = torch.stack([cells(7, 5, seed=seed) for seed in range(6)]).view(2, 3, 7, 5)
    volts, active = cells(4, 7, seed=9), torch.arange(7) != 2
    found = circuit_currents(conductance, volts, 5.0, active=active)
    assert found.shape == (2, 3, 4, 5)
    for b, t in itertools.product(range(2), range(3)):
        one = circuit_currents(conductance[b, t], volts, 5.0, active=active)
        assert distance(found[b, t], one) < 1e-12
    own = torch.as_tensor(np.random.default_rng(3).random((2, 3, 7)) < 0.5)
    own[..., 0] = True
    each = circuit_currents(conductance, volts.expand(2, 3, 4, 7), 5.0, active=own)
    assert distance(each[1, 2], circuit_currents(conductance[1, 2], volts, 5.0, active=own[1, 2])) < 1e-12


def test_interleaved_columns_stand_side_by_side():
    pair, volts = torch.stack([cells(6, 4), cells(6, 4, seed=1)]), cells(3, 6, seed=2)
    beside = torch.stack([pair[0], pair[1]], 2).flatten(1)  # G⁺, G⁻ of column 0, then those of column 1
    expected = kirchhoff(beside, volts, 9.0, 9.0).view(3, 4, 2).permute(2, 0, 1)
    found = circuit_currents(pair, volts, 9.0, layout="interleaved")
    assert distance(found, expected) < 1e-11
    separate = circuit_currents(pair, volts, 9.0)
    assert distance(found, separate) > 1e-3  # more load on a word line
    back = circuit_currents(pair, cells(2, 5, 4, seed=3), 9.0, layout="interleaved", transposed=True)
    assert back.shape == (5, 6)


def test_the_transposed_network_drives_bit_lines_where_they_were_sensed():
    conductance, volts = cells(6, 4), cells(2, 4, seed=1)
    # Bit lines as rows, driven at the end that was the bottom; word lines as columns, sensed at the left end.
    turned = conductance.flip(0, 1).t().contiguous()
    expected = kirchhoff(turned, volts.flip(1), 7.0, 3.0).flip(1)
    assert distance(circuit_currents(conductance, volts, 3.0, 7.0, transposed=True), expected) < 1e-11


def test_idle_is_not_the_same_as_undriven():
    conductance, volts = cells(16, 8), torch.ones(16).double()
    volts[8:] = 0.0
    closed = circuit_currents(conductance, volts, 50.0, active=volts > 0)
    driven = circuit_currents(conductance, volts, 50.0)
    assert (closed > driven * 1.01).all()  # cells of rows at 0 V take current from the bit lines


def test_gradients():
    conductance = (cells(2, 3, 3) + 1.0).requires_grad_()
    volts = cells(2, 2, 3, seed=1).requires_grad_()
    active = torch.tensor([True, False, True])
    for options in ({}, {"drive": "both", "sense": "top"}, {"solver": "elimination"}):
        assert torch.autograd.gradcheck(
            lambda g, v, options=options: circuit_currents(g, v, 1e3, 2e3, active, **options),
            (conductance, volts),
            eps=1e-3,
        )
    assert torch.autograd.gradcheck(lambda g: transfer_matrix(g, 1e3, layout="interleaved"), (conductance,), eps=1e-3)


def test_precision_follows_the_dtype():
    conductance = cells(48, 48)
    wide = transfer_matrix(conductance, 10.0)
    narrow = currents.solution(conductance.float(), 10.0)
    assert narrow.matrix.dtype == torch.float32
    assert distance(narrow.matrix.double(), wide) < 1e-6
    assert 0 < narrow.error < 1e-6
    assert narrow.sweeps < currents.solution(conductance, 10.0).sweeps


def test_bits_do_not_depend_on_threads_or_the_batch():
    conductance, before = torch.stack([cells(70, 65, seed=seed) for seed in range(3)]).float(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = transfer_matrix(conductance, 5.0)
        torch.set_num_threads(2)
        two = transfer_matrix(conductance, 5.0)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, two)
    assert torch.equal(one[1], transfer_matrix(conductance[1], 5.0))


def test_the_map_of_voltages_carries_the_currents():
    conductance, volts = cells(9, 6), cells(2, 9, seed=1)
    active = torch.arange(9) != 4
    for drive, sense in itertools.product(("left", "both"), ("bottom", "top")):
        across = cell_voltages(conductance, volts, 11.0, 5.0, active, drive=drive, sense=sense)
        expected = circuit_currents(conductance, volts, 11.0, 5.0, active, drive=drive, sense=sense)
        assert distance((conductance * across).sum(1), expected) < 1e-11
        slow = reference.solve((conductance * active[:, None]).numpy(), volts.numpy(), 11.0, 5.0, drive, sense)[1]
        assert distance(across, torch.as_tensor(slow) * active[:, None]) < 1e-11


def test_far_cells_lose_most():
    across = cell_voltages(torch.full((32, 32), 25.0), torch.ones(1, 32), 10.0)[0]
    assert across[-1, 0] == across.max()  # next to driver and amplifier
    assert across[0, -1] == across.min()
    assert 0 < across.min() < across.max() < 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"r_row": -1.0}, r"^circuit r_row = -1\.0 is not allowed: give a finite number from 0 to 1e\+06$"),
        ({"r_row": float("nan")}, r"^circuit r_row = nan is not allowed"),
        ({"r_col": float("inf")}, r"^circuit r_col = inf is not allowed"),
        ({"r_col": 1e7}, r"^circuit r_col = 10000000\.0 is not allowed: give a finite number from 0 to 1e\+06$"),
        ({"drive": "right"}, r"^circuit drive = 'right' is not allowed: choose one of left, both$"),
        ({"sense": "left"}, r"^circuit sense = 'left' is not allowed: choose one of bottom, top$"),
        ({"layout": "mixed"}, r"^circuit layout = 'mixed' is not allowed: choose one of separate, interleaved$"),
        ({"solver": "spice"}, r"^circuit solver = 'spice' is not allowed: choose one of None, sweeps, elim"),
        ({"conductance": -torch.ones(3, 2)}, r"^circuit conductance -1 µS is not allowed: give 0 to 1e\+09, negative"),
        ({"conductance": torch.full((3, 2), float("nan"))}, r"^circuit conductance nan µS is not allowed"),
        ({"conductance": torch.full((3, 2), 1e10)}, r"^circuit conductance 1e\+10 µS is not allowed"),
        ({"conductance": torch.ones(3)}, r"^circuit conductance torch\.float32 \[3\] is not usable: give floating"),
        ({"conductance": torch.ones(3, 2, dtype=torch.int32)}, r"^circuit conductance torch\.int32 \[3, 2\] is not"),
        ({"conductance": 3.0}, r"^circuit conductance 3\.0 is not usable"),
        ({"layout": "interleaved"}, r"\[3, 2\] is not usable: give floating point \[\.\.\., K, R, C\] in µS$"),
        (
            {"voltage": torch.ones(4, 2)},
            r"^circuit voltage torch\.float32 \[4, 2\] does not fit 3 lines: give ",
        ),
        ({"voltage": torch.full((3,), float("inf"))}, r"^circuit voltage has values that are NaN or infinite"),
        ({"active": torch.ones(3)}, r"^circuit active rows torch\.float32 \[3\] do not fit 3 rows: give bool"),
        ({"active": torch.ones(2, dtype=torch.bool)}, r"^circuit active rows torch\.bool \[2\] do not fit 3 rows"),
    ],
)
def test_refusals(change, message):
    given = {"conductance": torch.ones(3, 2), "voltage": torch.ones(3), "r_row": 1.0} | change
    with pytest.raises(InputError, match=message):
        circuit_currents(**given)


def test_batches_that_do_not_fit():
    with pytest.raises(InputError, match=r"does not fit conductances \[2, 3, 2\]: give the same dimensions before"):
        circuit_currents(torch.ones(2, 3, 2), torch.ones(5, 4, 3), 1.0)


def test_the_first_order_is_nearer_than_ideal_wires():
    conductance, only = cells(24, 16), torch.arange(24) == 5
    for active, most in ((only, 1e-3), (torch.ones(24, dtype=torch.bool), 0.02)):
        exact = transfer_matrix(conductance, 20.0, active=active)
        found = transfer_matrix(conductance, 20.0, active=active, solver="first_order")
        assert 0 < distance(found, exact) < most
        assert distance(conductance * active[:, None], exact) > 4 * distance(found, exact)


def test_cells_that_are_not_ohmic():
    def sinh(u):
        return 0.1 * np.sinh(u / 0.1), np.cosh(u / 0.1)

    conductance, volts = cells(5, 4).numpy(), np.full((1, 5), 0.2)
    found, across = reference.solve(conductance, volts, 100.0, 100.0, curve=sinh)
    # The currents are those that cells carry at the voltages that were found.
    assert np.allclose(found[0], (conductance * sinh(across[0])[0]).sum(0), rtol=1e-10)
    ohmic = reference.solve(conductance, volts, 100.0, 100.0)[0]
    assert (found > ohmic * 1.2).all()  # sinh(2) / 2 = 1.8 times an ohmic cell at 0.2 V
