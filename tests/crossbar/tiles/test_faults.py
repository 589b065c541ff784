"""Defects of a chip: their rates, their extent, and that nothing but a new chip mends them."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crossbar import (
    AnalogLinear,
    Faults,
    InputError,
    Tile,
    age,
    convert,
    devices,
    load_state,
    presets,
    program,
    save_state,
)
from crossbar.tiles.faults import Fault, apply, around, draw
from crossbar.tiles.mapping import column_scales, target_conductances
from tests.crossbar.conftest import QUIET, inputs64, linear_layer

CPU = torch.device("cpu")
SOME = Faults(stuck_min=0.1, stuck_max=0.1, shorts=0.02, broken_rows=0.1, broken_cols=0.1)


def drawn(faults, tile, size, name="layer"):
    """A map as ``[planes, slices, I, O]``."""
    found = draw(faults, tile, *size, (name,), CPU)
    assert found.dtype == torch.uint8
    return found.view(tile.signs * tile.pairs, tile.slices, *size)


def faulty(found, in_features, out_features, tile):
    """Faults of each column of each tile, ``[S, T_in, O]``."""
    bad = (found != Fault.NONE).sum(0)
    tiles = range(0, in_features, tile.rows)
    return torch.stack([bad[:, r : r + tile.rows].sum(1) for r in tiles], 1)


# Rates and extents


@pytest.mark.parametrize(
    ("field", "code"), [("stuck_min", Fault.STUCK_MIN), ("stuck_max", Fault.STUCK_MAX), ("shorts", Fault.SHORT)]
)
@pytest.mark.parametrize("rate", [0.001, 0.05, 0.5])
def test_cells_fail_at_their_rate(field, code, rate):
    found = drawn(Faults(**{field: rate}), Tile(), (512, 512))
    n = found.numel()
    share = float((found == code).sum()) / n
    assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / n)  # four standard errors
    assert ((found == code) | (found == Fault.NONE)).all()
    each_row = (found == code).double().sum((0, 1, 3)).numpy()  # independent cells: binomial along rows
    assert each_row.var() == pytest.approx(1024 * rate * (1 - rate), rel=5 * (2 / 512) ** 0.5)


def test_kinds_of_faults_exclude_each_other():
    rates = {Fault.STUCK_MIN: 0.2, Fault.STUCK_MAX: 0.3, Fault.SHORT: 0.1, Fault.NONE: 0.4}
    found = drawn(Faults(stuck_min=0.2, stuck_max=0.3, shorts=0.1), Tile(), (512, 512))
    for code, rate in rates.items():
        share = float((found == code).sum()) / found.numel()
        assert abs(share - rate) < 4 * math.sqrt(rate * (1 - rate) / found.numel())
    assert (drawn(Faults(stuck_min=0.5, shorts=0.5), Tile(), (512, 512)) != Fault.NONE).all()


@pytest.mark.parametrize("tile", [Tile(5, 7), Tile(5, 7, pairs=2, slices=3), Tile(5, 7, encoding="offset")], ids=str)
def test_a_broken_row_takes_all_cells_of_one_tile(tile):
    size = (203, 211)
    found = drawn(Faults(broken_rows=0.1), tile, size)
    assert torch.equal(found, found[:1].expand_as(found))  # all planes of a tile share their lines
    open_ = (found[0] == Fault.OPEN).numpy()
    lines = np.stack([open_[:, :, c : c + 7].any(2) for c in range(0, 211, 7)])  # [T_out, S, I]
    for t, c in enumerate(range(0, 211, 7)):
        assert (open_[:, :, c : c + 7] == lines[t][:, :, None]).all()  # a line is broken along a tile or not at all
    n = lines.size
    assert abs(lines.mean() - 0.1) < 4 * math.sqrt(0.09 / n)
    assert not (lines == lines[:1]).all()  # and in the other tiles it is another line


@pytest.mark.parametrize("tile", [Tile(5, 7), Tile(5, 7, pairs=2, slices=3), Tile(5, 7, encoding="offset")], ids=str)
def test_a_broken_column_takes_all_cells_of_one_tile(tile):
    size = (203, 211)
    found = drawn(Faults(broken_cols=0.1), tile, size)
    assert torch.equal(found, found[:1].expand_as(found))
    open_ = (found[0] == Fault.OPEN).numpy()
    columns = np.stack([open_[:, r : r + 5].any(1) for r in range(0, 203, 5)])  # [T_in, S, O]
    for t, r in enumerate(range(0, 203, 5)):
        assert (open_[:, r : r + 5] == columns[t][:, None, :]).all()
    assert abs(columns.mean() - 0.1) < 4 * math.sqrt(0.09 / columns.size)
    assert not (columns == columns[:1]).all()


def test_another_seed_or_layer_is_another_map():
    base = drawn(SOME, Tile(), (40, 30))
    assert torch.equal(drawn(SOME, Tile(), (40, 30)), base)
    assert not torch.equal(drawn(dataclasses.replace(SOME, seed=1), Tile(), (40, 30)), base)
    assert not torch.equal(drawn(SOME, Tile(), (40, 30), "other"), base)


def test_no_rates_are_no_faults():
    assert not drawn(Faults(spare_cols=2), Tile(4, 3), (10, 7)).any()


# What faulty cells do


def test_faults_by_hand():
    codes = torch.tensor([Fault.NONE, Fault.STUCK_MIN, Fault.STUCK_MAX, Fault.SHORT, Fault.OPEN], dtype=torch.uint8)
    cells = torch.full((5,), 12.5)
    assert apply(codes, cells, 9.0, 88.2, 1000.0).tolist() == pytest.approx([12.5, 9.0, 88.2, 1000.0, 0.0])


def test_a_layer_with_faults_by_hand():
    linear = nn.Linear(2, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 0.5], [-0.5, 1.0]]))
    layer = AnalogLinear.from_digital(linear, QUIET)
    layer.program(0)
    codes = torch.zeros(2, 2, 2, dtype=torch.int64)  # [G⁺ and G⁻, inputs, outputs]
    codes[0, 0, 0] = Fault.STUCK_MIN
    codes[0, 1, 0] = Fault.STUCK_MAX
    codes[1, 0, 1] = Fault.SHORT
    codes[0, 1, 1] = Fault.OPEN
    layer.set_faults(codes)
    expected = torch.tensor([[0.0, 1.0], [-1000 / 25.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(layer.effective_weight(), expected, rtol=1e-14, atol=0)
    assert layer.conductances()[1][0, 0, 0, 1] == 1000.0
    assert layer.conductances()[0][0, 0, :2, :2].tolist() == [[0.0, 0.0], [25.0, 0.0]]
    layer.set_faults(None)
    torch.testing.assert_close(layer.effective_weight(), linear.weight.detach(), rtol=1e-14, atol=0)


def test_stuck_at_the_foot_of_a_window():
    layer = linear_layer(10, 7, dataclasses.replace(presets.reram("cmo"), faults=Faults(stuck_min=0.5, stuck_max=0.5)))
    layer.program(0)
    layer.age(3600.0)
    for cells in layer.conductances():
        present = cells[~cells.isnan()]
        assert ((present == 9.0) | (present == 88.2)).all()


def test_a_broken_column_reads_nothing():
    layer = linear_layer(10, 7, dataclasses.replace(QUIET, faults=Faults(broken_cols=0.4)))
    layer.program(0)
    broken = (layer.fault_map[0] == Fault.OPEN).numpy()
    columns = layer.read_out(inputs64(5, 10))
    for t, r in enumerate((0, 4, 8)):
        for o in range(7):
            assert bool((columns[t, :, o] == 0).all()) is bool(broken[r, o])


# There for good


@pytest.mark.parametrize("device", [devices.Ideal(), devices.PCM()], ids=["ideal", "pcm"])
def test_stuck_cells_survive_programming_and_age(device):
    layer = linear_layer(40, 30, dataclasses.replace(QUIET, device=device, faults=SOME))
    assert layer.fault_map is None
    exact = linear_layer(40, 30, QUIET)
    assert torch.equal(layer.cells.digits, exact.cells.digits)  # targets, until it is programmed
    layer.program(0)
    codes = layer.fault_map.clone()
    assert (codes != Fault.NONE).any()

    def stuck():
        cells = layer.cells.conductances()
        return [cells[codes == code] for code in (Fault.STUCK_MIN, Fault.STUCK_MAX, Fault.SHORT, Fault.OPEN)]

    for change in (lambda: None, lambda: layer.age(1e7), lambda: layer.program(5), lambda: layer.age(60.0)):
        change()
        assert torch.equal(layer.fault_map, codes)
        for found, value in zip(stuck(), (0.0, 25.0, 1000.0, 0.0), strict=True):
            assert (found == value).all()


def test_cells_without_a_fault_are_as_they_would_be():
    with_faults = linear_layer(40, 30, dataclasses.replace(presets.pcm(), faults=SOME))
    without = linear_layer(40, 30, presets.pcm())
    for layer in (with_faults, without):
        layer.program(3)
        layer.age(3600.0)
    good = with_faults.fault_map == Fault.NONE
    assert torch.equal(with_faults.cells.conductances()[good], without.cells.conductances()[good])


@pytest.mark.parametrize("explicit", [False, True])
def test_faults_return_with_a_saved_chip(tmp_path, explicit):
    hardware = dataclasses.replace(presets.pcm(), faults=SOME, tile=Tile(4, 3))

    def model():
        found = nn.Sequential(linear_layer(10, 7, hardware, name="0"), linear_layer(7, 4, hardware, name="1"))
        program(found, 1)
        return found

    one, two = model(), model()
    if explicit:
        codes = torch.zeros(2, 10, 7, dtype=torch.uint8)
        codes[1, 3, 2] = Fault.SHORT
        one[0].set_faults(codes)
    age(one, "1h")
    save_state(one, tmp_path / "chip")
    load_state(two, tmp_path / "chip")
    assert torch.equal(two[0].fault_map, one[0].fault_map)
    assert torch.equal(one(inputs64(3, 10)), two(inputs64(3, 10)))
    program(two, 2)
    assert torch.equal(two[0].fault_map, one[0].fault_map)


def test_a_chip_without_faults_loads_as_one(tmp_path):
    one, two = (nn.Sequential(linear_layer(10, 7, QUIET)) for _ in range(2))
    for model in (one, two):
        program(model)
    save_state(one, tmp_path / "chip")
    two[0].set_faults(torch.ones(2, 10, 7, dtype=torch.uint8))
    load_state(two, tmp_path / "chip")
    assert two[0].fault_map is None
    assert torch.equal(one(inputs64(3, 10)), two(inputs64(3, 10)))


def test_an_explicit_map_is_not_drawn_over():
    layer = linear_layer(10, 7, dataclasses.replace(QUIET, faults=SOME))
    codes = torch.zeros(2, 10, 7, dtype=torch.uint8)
    layer.set_faults(codes)
    layer.program(0)
    assert not layer.fault_map.any()


def test_layers_of_a_model_have_maps_of_their_own():
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    convert(model, dataclasses.replace(presets.pcm(), faults=SOME))
    program(model)
    assert not torch.equal(model[0].fault_map, model[1].fault_map)


# Partners


def test_partners_by_hand():
    """Pairs for 12.5, -12.5, 12.5, -12.5 and 25 µS; G⁺ of three stuck high, high and low, G⁻ of two open and short."""
    targets = torch.tensor([[12.5, 0.0, 12.5, 0.0, 25.0], [0.0, 12.5, 0.0, 12.5, 0.0]]).view(2, 1, 5)
    codes = torch.zeros(2, 1, 5, dtype=torch.uint8)
    codes[0, 0, :3] = torch.tensor([Fault.STUCK_MAX, Fault.STUCK_MAX, Fault.STUCK_MIN])
    codes[1, 0, 3:] = torch.tensor([Fault.OPEN, Fault.SHORT])
    written = around(codes, targets, 0.0, 25.0, 1000.0)
    assert written[:, 0].tolist() == [[12.5, 0.0, 12.5, 0.0, 25.0], [12.5, 25.0, 0.0, 12.5, 0.0]]
    held = apply(codes, written, 0.0, 25.0, 1000.0)[:, 0]
    assert (held[0] - held[1]).tolist() == [12.5, 0.0, 0.0, 0.0, -975.0]


@given(
    tile=st.builds(
        Tile,
        encoding=st.sampled_from(["differential", "balanced"]),
        pairs=st.integers(1, 2),
        slices=st.integers(1, 2),
    ),
    rates=st.tuples(st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0, 0.3)),
    low=st.sampled_from([0.0, 3.0]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=100, deadline=None)
def test_partners_never_harm_a_pair(tile, rates, low, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(7, 10, generator=generator, dtype=torch.float64)
    targets = target_conductances(weight, column_scales(weight, tile), tile, 25.0, low)
    codes = draw(Faults(*rates, seed=seed), tile, 10, 7, ("layer",), CPU)
    written = around(codes, targets, low, 25.0, 1000.0)

    def missed(cells):
        plus, minus = apply(codes, cells, low, 25.0, 1000.0).unflatten(0, (2, -1))
        wanted = targets.unflatten(0, (2, -1))
        return (plus - minus - (wanted[0] - wanted[1])).abs()

    assert (missed(written) <= missed(targets) + 1e-9).all()
    assert ((written >= low) & (written <= 25.0)).all()
    good = (codes == Fault.NONE).unflatten(0, (2, -1)).all(0)
    assert torch.equal(written.unflatten(0, (2, -1))[:, good], targets.unflatten(0, (2, -1))[:, good])


@pytest.mark.parametrize("device", [devices.Ideal(), devices.PCM()], ids=["ideal", "pcm"])
def test_a_chip_that_is_written_around_its_faults(device, tmp_path):
    faults = Faults(stuck_min=0.01, stuck_max=0.01)
    hardware = dataclasses.replace(QUIET, device=device, faults=faults)
    errors, models = {}, {}
    for partners in (False, True):
        own = dataclasses.replace(hardware, faults=dataclasses.replace(faults, partners=partners))
        model = nn.Sequential(linear_layer(40, 30, own, name="0"))
        program(model, 2)
        missed = model[0].effective_weight() - model[0].target_weight()
        errors[partners], models[partners] = float(missed.square().sum()), model
    assert torch.equal(models[True][0].fault_map, models[False][0].fault_map)
    if device == devices.Ideal():
        weight, (plus, minus) = models[True][0].target_weight().t(), models[True][0].fault_map == Fault.STUCK_MAX
        kept = models[True][0].effective_weight().t()
        one, scales = plus ^ minus, models[True][0].scales.repeat_interleave(4, 0)[:40]
        of_sign = one & ((weight > 0) == plus) & (models[True][0].fault_map != Fault.STUCK_MIN).all(0)
        assert of_sign.any()
        torch.testing.assert_close((kept / scales)[of_sign], (weight / scales)[of_sign], rtol=0, atol=1e-6)
    assert errors[True] < 0.6 * errors[False]  # weights of the other sign become 0, and cells at 0 stay
    chip = models[True]
    age(chip, "1h")
    save_state(chip, tmp_path / "chip")
    other = nn.Sequential(linear_layer(40, 30, chip[0].hardware, name="0"))
    load_state(other, tmp_path / "chip")
    assert torch.equal(chip(inputs64(3, 40)), other(inputs64(3, 40)))
    assert torch.equal(chip[0].target_conductances()[1].nan_to_num(), other[0].target_conductances()[1].nan_to_num())


def test_partners_need_pairs():
    with pytest.raises(InputError, match=r"faults\.partners = True is not allowed with the offset encoding"):
        dataclasses.replace(QUIET, tile=Tile(encoding="offset"), faults=Faults(partners=True))
    with pytest.raises(InputError, match=r"faults field partners = 1 is not allowed: give true or false"):
        Faults(partners=1)


# Spare columns


@given(
    tile=st.builds(
        Tile,
        rows=st.integers(1, 9),
        cols=st.integers(1, 7),
        encoding=st.sampled_from(["differential", "offset"]),
        pairs=st.integers(1, 2),
        slices=st.integers(1, 2),
    ),
    size=st.tuples(st.integers(1, 20), st.integers(1, 15)),
    spares=st.integers(1, 9),
    rate=st.sampled_from([0.02, 0.2, 0.6]),
    broken=st.sampled_from([0.0, 0.3]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_spare_columns_never_raise_the_faults_of_any_column(tile, size, spares, rate, broken, seed):
    faults = Faults(stuck_min=rate, broken_cols=broken, broken_rows=broken, seed=seed)
    before = faulty(drawn(faults, tile, size), *size, tile)
    after = faulty(drawn(dataclasses.replace(faults, spare_cols=spares), tile, size), *size, tile)
    assert (after <= before).all()
    for c in range(0, size[1], tile.cols):
        old, changed = before[:, :, c : c + tile.cols], (after != before)[:, :, c : c + tile.cols]
        assert (changed.sum(2) <= spares).all()
        # The worst go first: a column that stays is no worse than one that is replaced, unless no spare was better.
        kept = old.masked_fill(changed, -1).amax(2)
        gone = old.masked_fill(~changed, 10**6).amin(2)
        assert (kept <= gone).all() or (changed.sum(2) < spares).any()


def test_spare_columns_mend_broken_ones():
    # 64 tiles of 16 columns, 1.6 broken in each: 8 spares of which nearly all work stand in for every one.
    size, tile = (64, 256), Tile(16, 16)
    faults = Faults(broken_cols=0.1)
    broken = drawn(faults, tile, size)
    mended = drawn(dataclasses.replace(faults, spare_cols=8), tile, size)
    assert (broken == Fault.OPEN).float().mean() > 0.05
    assert not mended.any()


def test_spares_are_for_columns_that_exist():
    # One output on tiles of 64 columns: 63 absent columns, whose faults must not use the spare up.
    tile, mended = Tile(16, 64), 0
    for seed in range(40):
        faults = Faults(broken_cols=0.5, seed=seed)
        if drawn(faults, tile, (16, 1)).any():
            mended += not drawn(dataclasses.replace(faults, spare_cols=8), tile, (16, 1)).any()
        else:
            mended += 1
    assert mended >= 39  # 8 spares all broken: a chance of 1/256 for half of the seeds


def test_spares_are_not_turned_down_for_lines_that_do_not_exist():
    # One input on tiles of 64 lines: whatever is wrong with the other 63 of a spare, it serves if the first works.
    tile = Tile(64, 16, encoding="offset")
    faults = Faults(stuck_min=0.3)
    broken, mended = (drawn(dataclasses.replace(faults, spare_cols=n), tile, (1, 160)).float() for n in (0, 16))
    assert 30 < broken.sum() < 66  # 48 expected, of deviation 5.8
    assert not mended.any()  # 16 spares, 11 of them good, for some 5 columns a tile


def test_broken_rows_are_broken_in_spares_too():
    faults = Faults(broken_rows=0.2, spare_cols=3)
    assert torch.equal(
        drawn(faults, Tile(5, 7), (30, 21)), drawn(dataclasses.replace(faults, spare_cols=0), Tile(5, 7), (30, 21))
    )


# Refusals


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (torch.zeros(2, 7, 10, dtype=torch.uint8), r"linear got a bad fault map: give an integer tensor \[2, 10, 7\]"),
        (torch.zeros(1, 10, 7, dtype=torch.uint8), r"give an integer tensor \[2, 10, 7\]"),
        (torch.zeros(2, 10, 7), r"give an integer tensor \[2, 10, 7\]"),
        (torch.full((2, 10, 7), -1), r"linear got fault codes \(-1, -1\): give 0 to 4"),
        (torch.zeros(2, 10, 7, dtype=torch.bool), r"give an integer tensor"),
        ([0, 1], r"give an integer tensor"),
        (torch.full((2, 10, 7), 5), r"fault codes \(5, 5\): give 0 to 4, see crossbar\.tiles\.faults\.Fault"),
        (torch.full((2, 10, 7), 256), r"linear got fault codes \(256, 256\): give 0 to 4"),
    ],
    ids=["turned", "one sign", "floats", "negative", "bools", "a list", "5", "256"],
)
def test_refuses_bad_maps(codes, message):
    layer = linear_layer(10, 7, dataclasses.replace(QUIET, faults=SOME))
    layer.program(0)
    before, weight = layer.fault_map.clone(), layer.cells.digits.clone()
    with pytest.raises(InputError, match=message):
        layer.set_faults(codes)
    assert torch.equal(layer.fault_map, before)
    assert torch.equal(layer.cells.digits, weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stuck_min": 1.5}, r"faults field stuck_min = 1\.5 is not allowed: give a finite number from 0 to 1"),
        ({"stuck_max": -0.1}, r"faults field stuck_max = -0\.1 is not allowed"),
        ({"shorts": math.nan}, r"faults field shorts = nan is not allowed"),
        ({"broken_rows": 2}, r"faults field broken_rows = 2 is not allowed: give a finite number from 0 to 1"),
        ({"broken_cols": "0.1"}, r"faults field broken_cols = '0\.1' is not allowed"),
        ({"stuck_min": 0.6, "stuck_max": 0.6}, r"stuck_min, stuck_max and shorts add up to more than 1: give less"),
        (
            {"short_conductance": 0.0},
            r"faults field short_conductance = 0\.0 is not allowed: give a finite number from",
        ),
        ({"spare_cols": -1}, r"faults field spare_cols = -1 is not allowed: give a whole number from 0 to"),
        ({"spare_cols": 1.0}, r"faults field spare_cols = 1\.0 is not allowed"),
        ({"seed": -1}, r"faults field seed = -1 is not allowed: give a whole number from 0 to"),
    ],
)
def test_refuses_impossible_faults(options, message):
    with pytest.raises(InputError, match=message):
        Faults(**options)
