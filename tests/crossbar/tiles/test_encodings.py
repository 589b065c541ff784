"""How weights are laid onto cells: encodings, pairs, slices, and devices whose window does not begin at 0 µS."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crossbar import AnalogLinear, Converter, Ledger, Tile, devices, load_state, presets, save_state
from crossbar.backends.naive_cells import cells, weight_of, weight_step
from crossbar.devices import window
from crossbar.devices.reram import CmoReRam
from crossbar.tiles.mapping import cell_weights, column_scales, slice_weights, target_conductances
from tests.crossbar.conftest import inputs64, linear_layer

QUIET = presets.ideal()
ENCODINGS = ["differential", "balanced", "offset"]
each_encoding = pytest.mark.parametrize("encoding", ENCODINGS)
tiles = st.builds(
    Tile,
    rows=st.integers(1, 6),
    cols=st.integers(1, 5),
    scale=st.sampled_from(["tile_column", "tile", "layer"]),
    encoding=st.sampled_from(ENCODINGS),
    pairs=st.integers(1, 3),
    slices=st.integers(1, 4),
    slice_bits=st.integers(1, 5),
)
windows = st.sampled_from([devices.Ideal(), CmoReRam()])  # 0 to 25 µS, and 9 to 88.2 µS


def tiled(encoding="differential", rows=4, cols=3, **options):
    return dataclasses.replace(QUIET, tile=Tile(rows, cols, encoding=encoding, **options))


# One weight


@given(weight=st.floats(-1, 1), tile=tiles, device=windows)
@settings(max_examples=300, deadline=None)
def test_the_oracles_cells_stand_for_the_weight(weight, tile, device):
    g_min = window(device)[0]
    plus, minus = cells(weight, tile, device.g_max, g_min)
    assert all(g_min <= g <= device.g_max * (1 + 2**-52) for g in plus + minus)
    assert len(plus) == tile.slices
    back = weight_of((plus, minus), tile, device.g_max, g_min)
    # digits are exact to half a step; a window of 79 µS at 88 µS costs some 20 roundings of float64
    assert abs(back - weight) <= weight_step(tile) * (1 + 1e-12) + 20 * 2**-52


@given(
    tile=tiles,
    device=windows,
    shape=st.tuples(st.integers(1, 9), st.integers(1, 13)),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_targets_are_those_of_the_oracle(tile, device, shape, dtype, seed):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    scales = column_scales(weight, tile)
    g_min, g_max = window(device)[0], device.g_max
    found = target_conductances(weight, scales, tile, g_max, g_min)
    assert found.dtype == dtype
    assert (found >= g_min).all()
    assert (found <= g_max).all()
    found = found.double().view(tile.signs, tile.pairs, tile.slices, *weight.t().shape)
    eps = torch.finfo(dtype).eps
    for o, i in np.ndindex(*shape):
        scaled = (weight[o, i] / scales[i // tile.rows, o]).item()
        expected = cells(scaled, tile, g_max, g_min)
        copies = found[:, :, :, i, o]
        assert torch.equal(copies, copies[:, :1].expand_as(copies))  # pairs are copies
        sides = copies[:, 0].tolist()
        # A weight within some roundings of a tie between two codes may become either: the same weight to a step
        minus = sides[1] if tile.signs == 2 else []
        assert abs(weight_of((sides[0], minus), tile, g_max, g_min) - scaled) <= weight_step(tile) + 20 * eps
        if tile.slices == 1:
            assert np.abs(np.subtract(sides, [side for side in expected if side])).max() <= 5 * eps * g_max


def test_targets_by_hand():
    # 0.5 and -1 of a window of 4 to 24 µS; digits to the base 4: 0.5 is 7.5 of 15, ties to even, 8 = 2 * 4 + 0
    weight = torch.tensor([[0.5, -1.0]], dtype=torch.float64)
    scales = torch.ones(1, 1, dtype=torch.float64)

    def found(encoding, slices=1):
        tile = Tile(encoding=encoding, slices=slices, slice_bits=2)
        return target_conductances(weight, scales, tile, 24.0, 4.0).squeeze(-1)

    def asserted(found, expected):
        torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-15, atol=0)

    asserted(found("differential"), [[14.0, 4.0], [4.0, 24.0]])
    asserted(found("balanced"), [[19.0, 4.0], [9.0, 24.0]])
    asserted(found("offset"), [[19.0, 4.0]])
    third = 20 / 3
    asserted(found("differential", 2), [[4 + 2 * third, 4.0], [4.0, 4.0], [4.0, 24.0], [4.0, 24.0]])
    # 0.75 is 11.25 of 15, 11 = 2 * 4 + 3
    asserted(found("offset", 2), [[4 + 2 * third, 4.0], [24.0, 4.0]])


@given(tile=tiles)
def test_shares_of_slices_sum_to_the_whole(tile):
    # A full cell in every slice is a weight of 1, or the whole window from -1 to 1
    shares = slice_weights(tile)
    assert len(shares) == tile.slices
    assert math.isclose(sum(shares), 2 if tile.encoding == "offset" else 1, rel_tol=1e-14)
    assert all(math.isclose(a / b, 2**tile.slice_bits, rel_tol=1e-14) for a, b in itertools.pairwise(shares))


def test_cells_to_digits_by_hand():
    tile = Tile(encoding="differential", pairs=2, slices=2)
    values = torch.tensor([10.0, 20, 30, 40, 1, 2, 3, 4]).view(8, 1, 1)  # G⁺: pair 0 slices 0 1, pair 1; then G⁻
    assert cell_weights(values, tile, 20.0).flatten().tolist() == pytest.approx([(20 - 2) / 20, (30 - 3) / 20])


# A layer


@given(
    tile=tiles,
    device=windows,
    shape=st.tuples(st.integers(1, 13), st.integers(1, 9)),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=150, deadline=None)
def test_ideal_cells_reproduce_the_layer_within_the_slices_quantisation(tile, device, shape, seed):
    layer = linear_layer(*shape, dataclasses.replace(QUIET, device=device, tile=tile), seed=seed)
    weight, x = layer.digital.weight.detach(), inputs64(3, shape[0], seed=seed)
    scales = layer.scales.repeat_interleave(tile.rows, 0)[: shape[0]].t()
    # some 40 roundings, of numbers that are up to 4 times the scale: G⁺ and G⁻ from g_min, half the window
    error = (weight_step(tile) + 160 * 2**-53) * scales
    assert ((layer.effective_weight() - weight).abs() <= error).all()
    assert ((layer(x) - x @ weight.t()).abs() <= x.abs() @ error.t()).all()


@each_encoding
@pytest.mark.parametrize("options", [{}, {"pairs": 2}, {"slices": 3}, {"pairs": 2, "slices": 3}], ids=str)
@pytest.mark.parametrize("device", [devices.PCM(), CmoReRam()], ids=["pcm", "cmo"])
def test_effective_weight_is_what_ideal_converters_see(encoding, options, device):
    layer = linear_layer(10, 7, dataclasses.replace(tiled(encoding, **options), device=device))
    layer.program(0)
    layer.age(3600.0)
    layer.column_gain.copy_(inputs64(*layer.column_gain.shape).abs() + 0.5)
    layer.set_line_scale(inputs64(10, seed=4).abs() + 0.2)
    layer.program(0)
    seen = layer(torch.eye(10, dtype=torch.float64)).t()
    torch.testing.assert_close(layer.effective_weight(), seen.detach(), rtol=1e-12, atol=1e-13)  # float64, order 1


@each_encoding
def test_read_out_is_what_forward_adds_up(encoding):
    hardware = dataclasses.replace(tiled(encoding, slices=2), dac=Converter(range="static", full_scale=2.0))
    layer = linear_layer(10, 7, dataclasses.replace(hardware, device=devices.PCM(), adc=Converter()))
    layer.program(0)
    x = inputs64(5, 10)
    columns = layer.read_out(x)
    assert columns.shape == (2 * 3, 5, 7)
    codes = (x / 2 * 127).round().clamp(-127, 127) / 127 * 2
    total = torch.zeros(5, 7, dtype=torch.float64)
    for s, share in enumerate((16 / 17, 1 / 17)):  # 4 bits a slice
        for j in range(3):
            total += columns[3 * s + j] * layer.scales[j] * share * (2 if encoding == "offset" else 1)
    if encoding == "offset":
        for j in range(3):
            total -= codes[:, 4 * j : 4 * j + 4].sum(1, keepdim=True) * layer.scales[j]
    torch.testing.assert_close(layer(x).detach(), total, rtol=1e-12, atol=1e-12)  # float64, order 10


@each_encoding
@pytest.mark.parametrize(("pairs", "slices"), [(1, 1), (2, 1), (1, 3), (2, 3)])
def test_conductances_show_every_cell_once(encoding, pairs, slices):
    layer = linear_layer(10, 7, tiled(encoding, pairs=pairs, slices=slices))
    leading = [count for count in (pairs, slices) if count > 1]
    for cells_, there in zip(layer.conductances(), (True, encoding != "offset"), strict=True):
        assert list(cells_.shape) == [*leading, 3, 3, 4, 3]  # 7 outputs on 3 columns, 10 inputs on 4 rows
        absent = cells_.isnan()
        assert int((~absent).sum()) == (70 * pairs * slices if there else 0)
        assert absent[..., :, 2, 2:, :].all()  # inputs 10 and 11
        assert absent[..., 2, :, :, 1:].all()  # outputs 7 and 8


@each_encoding
def test_window_devices_never_leave_their_window(encoding):
    hardware = dataclasses.replace(presets.reram("cmo"), tile=Tile(4, 3, encoding=encoding, slices=2))
    layer = linear_layer(10, 7, hardware)
    for cells_ in layer.conductances():
        present = cells_[~cells_.isnan()]
        assert ((present >= 9.0) & (present <= 88.2)).all()
    layer.program(0)
    layer.age(86400.0)
    for cells_ in layer.conductances():
        present = cells_[~cells_.isnan()]
        assert ((present >= 9.0) & (present <= 88.2)).all()


@each_encoding
def test_a_window_above_zero_costs_no_accuracy(encoding):
    # The mean relaxation of all cells alike is left in a single cell, and cancels in a pair.
    device = CmoReRam(prog_noise_scale=0.0, read_noise_scale=0.0)
    layer = linear_layer(64, 32, dataclasses.replace(tiled(encoding, 64, 32), device=device))
    layer.program(0)
    error = (layer.effective_weight() - layer.digital.weight).detach() / layer.scales.t()
    assert error.abs().max() < 1e-13  # 0 s is as programmed: roundings only
    layer.age(86400.0)
    error = (layer.effective_weight() - layer.digital.weight).detach() / layer.scales.t()
    shift = -0.08900206 * math.log(86400.0) / (88.2 - 9.0)
    tolerance = 5 * float(error.std()) / error.numel() ** 0.5
    if encoding == "offset":
        # a weight is twice its one cell; the few cells at the ends of the window, held by it, are within the error
        assert float(error.mean()) == pytest.approx(2 * shift, abs=tolerance)
    elif encoding == "balanced":
        assert float(error.mean()) == pytest.approx(0.0, abs=tolerance)


@pytest.mark.parametrize("pairs", [2, 4, 9])
@pytest.mark.parametrize("encoding", ["balanced", "offset"])
def test_pairs_lower_the_device_error_by_their_root(encoding, pairs):
    # Cells far from the clamp at 0 µS, all of one target: their errors are normal and of one deviation.
    def deviation(count):
        tile = Tile(256, 64, encoding=encoding, pairs=count, scale="layer")
        linear = nn.Linear(256, 64, bias=False, dtype=torch.float64)
        with torch.no_grad():
            linear.weight.fill_(0.1)
            linear.weight[0, 0] = 1.0
        layer = AnalogLinear.from_digital(linear, dataclasses.replace(presets.ideal(), device=devices.PCM(), tile=tile))
        layer.program(1)
        return (layer.effective_weight() - linear.weight).detach().flatten()[1:].std()

    n = 256 * 64 - 1
    # each deviation of n samples has a relative standard error of 1/sqrt(2 n), their ratio sqrt(2) times that
    assert float(deviation(1) / deviation(pairs)) == pytest.approx(pairs**0.5, rel=5 / n**0.5)


def test_slices_are_cells_of_their_own():
    layer = linear_layer(64, 32, dataclasses.replace(tiled(slices=2, rows=64, cols=32), device=devices.PCM()))
    layer.program(0)
    target = AnalogLinear.from_digital(layer.digital, layer.hardware).conductances()[0]
    errors = layer.conductances()[0] - target
    middle = (target > 3) & (target < 22)  # away from the clamp at 0
    both = (middle[0] & middle[1]).flatten()
    first, second = errors[0].flatten()[both].numpy(), errors[1].flatten()[both].numpy()
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / len(first) ** 0.5
    first, second = (layer.conductances()[side][0].flatten() for side in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("options", [{"encoding": "offset"}, {"pairs": 3}, {"slices": 4}], ids=str)
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_tiles_do_not_matter_to_ideal_converters(options, rows):
    # With one scale for the layer, digits are the same wherever a weight lies.
    whole = linear_layer(37, 11, dataclasses.replace(QUIET, tile=Tile(scale="layer", **options)))
    cut = AnalogLinear.from_digital(
        whole.digital, dataclasses.replace(QUIET, tile=Tile(rows, 4, scale="layer", **options))
    )
    x = inputs64(6, 37)
    torch.testing.assert_close(whole(x), cut(x), rtol=1e-12, atol=1e-12)  # 37 float64 terms of order 1


@each_encoding
def test_zero_columns_give_zero(encoding):
    linear = nn.Linear(5, 4, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.zero_()
    for options in ({}, {"slices": 2}):
        layer = AnalogLinear.from_digital(linear, tiled(encoding, **options))
        # a weight of 0 lies half a step beside a code where the window of -1 to 1 has an even number of codes
        allowed = inputs64(3, 5).abs().sum(1, keepdim=True) * (weight_step(layer.hardware.tile) + 1e-15)
        assert (layer(inputs64(3, 5)).abs() <= allowed).all()


@pytest.mark.parametrize("data", [torch.float32, torch.float64])
def test_twenty_bits_of_slices_are_exact_in_float32(data):
    # The most that is allowed: whole numbers up to 2^20 and their rounding
    hardware = tiled(slices=5, slice_bits=4)
    layer = linear_layer(64, 16, hardware, dtype=data)
    digits = layer.conductances()[0].double() / 25.0 * 15
    present = digits[~digits.isnan()]
    assert (present - present.round()).abs().max() < 1e-5  # digits 0 … 15 within a float32 rounding of 25 µS
    assert present.round().max() == 15
    error = (layer.effective_weight() - layer.digital.weight).abs() / layer.scales.repeat_interleave(4, 0).t()
    assert error.max() < 0.5 / (2**20 - 1) + 8 * torch.finfo(data).eps


def test_programmed_state_of_every_cell_is_kept(tmp_path):
    hardware = dataclasses.replace(tiled("balanced", pairs=2, slices=2), device=devices.PCM(), output_noise=0.04)
    one, two = (nn.Sequential(linear_layer(10, 7, hardware)) for _ in range(2))
    one[0].program(3)
    one[0].age(60.0)
    assert one[0].state()["programmed"].shape == (8, 10, 7)
    save_state(one, tmp_path / "chip")
    load_state(two, tmp_path / "chip")
    assert torch.equal(one(inputs64(3, 10)), two(inputs64(3, 10)))


# Counts


@pytest.mark.parametrize("encoding", ["differential", "balanced"])
def test_counts_of_pairs_and_slices_by_hand(encoding):
    layer = linear_layer(10, 7, dataclasses.replace(tiled(encoding, cols=2, pairs=3, slices=2), adc=Converter()))
    with Ledger() as ledger:
        layer.program(0)
        layer(inputs64(6, 10))
    assert ledger.to_dict() == {
        "linear": {
            "row_writes": 10 * 4 * 2,  # all pairs of a row are written with it; slices are rows of other tiles
            "row_activations": 6 * 10 * 4 * 2,
            "dac_conversions": 6 * 10 * 4 * 2,
            "adc_conversions_8bit": 6 * 7 * 3 * 2,
            "cell_macs": 6 * 70 * 3 * 2,
            "tile_reads": 6 * 4 * 3 * 2,
            "sram_bytes": 6 * (2 * 10 + 2 * 7),
            "digital_macs": 6 * 7 * 3 * 2,
        }
    }
