"""Layers whose lines have a resistance: the currents of each tile's circuit, at the cost of a plain read."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from crossbar import (
    AnalogLinear,
    Converter,
    Faults,
    Hardware,
    InputError,
    Ledger,
    Tile,
    Wire,
    age,
    convert,
    presets,
    program,
    using_backend,
)
from crossbar.circuit import reference
from crossbar.tiles import wires
from crossbar.tiles.mapping import slice_weights
from crossbar.tiles.tile_array import TileArray
from tests.crossbar.conftest import inputs64

WIRE = Wire(40.0, 25.0)
IDEAL = dataclasses.replace(presets.ideal(), tile=Tile(6, 5), wire=WIRE)


def layer_of(hardware, outputs=12, inputs=14, seed=0):
    weight = torch.as_tensor(np.random.default_rng(seed).standard_normal((outputs, inputs)))
    layer = AnalogLinear.from_matrix(weight, hardware, "layer")
    layer.program(3)
    return layer


def currents(layer, volts):
    """What the columns of each row tile carry, ``[S T_in, B, O]`` in unit outputs, plane by plane."""
    hardware, wire = layer.hardware, layer.hardware.wire
    tile, g_max = hardware.tile, hardware.device.g_max
    cells = layer.cells.conductances().numpy()
    places = cells.reshape(tile.signs, tile.pairs, tile.slices, *cells.shape[1:])
    found = []
    for s in range(tile.slices):
        for top in range(0, cells.shape[1], tile.rows):
            rows, columns = slice(top, top + tile.rows), []
            for left in range(0, cells.shape[2], tile.cols):
                here = places[:, :, s, rows, left : left + tile.cols]
                if wire.layout == "interleaved":
                    beside = np.moveaxis(here, (0, 1), (2, 3)).reshape(here.shape[2], -1)
                    total = reference.solve(beside, volts[:, rows], wire.r_row, wire.r_col, wire.drive, wire.sense)[0]
                    total = np.moveaxis(total.reshape(len(volts), -1, tile.signs, tile.pairs), (2, 3), (0, 1))
                else:
                    total = np.stack(
                        [
                            reference.solve(one, volts[:, rows], wire.r_row, wire.r_col, wire.drive, wire.sense)[0]
                            for one in here.reshape(-1, *here.shape[2:])
                        ]
                    ).reshape(tile.signs, tile.pairs, len(volts), -1)
                total = total.mean(1)
                columns.append((total[0] - total[1] if tile.signs == 2 else total[0]) / g_max)
            found.append(np.concatenate(columns, 1))
    return torch.as_tensor(np.stack(found))


@pytest.mark.parametrize(
    ("tile", "wire"),
    [
        (Tile(6, 5), WIRE),
        (Tile(6, 5), Wire(40.0, 25.0, drive="both", sense="top")),
        (Tile(6, 5, pairs=2), Wire(40.0, 25.0, layout="interleaved")),
        (Tile(6, 5, slices=2, slice_bits=2), Wire(10.0, 0.0)),
        (Tile(6, 5, encoding="balanced", scale="tile"), Wire(0.0, 30.0, layout="interleaved")),
        (Tile(6, 5, encoding="offset"), WIRE),
        (Tile(32, 32), WIRE),
    ],
)
def test_columns_carry_the_currents_of_the_circuit(tile, wire):
    layer = layer_of(dataclasses.replace(IDEAL, tile=tile, wire=wire))
    x = inputs64(3, 14, seed=1)
    expected = currents(layer, x.numpy())
    found = layer.read_out(x)
    assert (found - expected).abs().max() < 1e-9 * expected.abs().max()
    ideal = layer_of(dataclasses.replace(IDEAL, tile=tile, wire=None)).read_out(x)
    assert (found - ideal).norm() > 1e-3 * ideal.norm()
    scales = torch.cat([layer.scales * share for share in slice_weights(tile)])
    total = (expected * scales.unsqueeze(1)).sum(0)
    if tile.signs == 1:
        sums = torch.stack([part.sum(1) for part in x.split(tile.rows, 1)], 1)
        total = total - sums @ layer.scales
    assert (layer(x) - total).abs().max() < 1e-9 * total.abs().max()
    assert (x @ layer.effective_weight().t() - total).abs().max() < 1e-9 * total.abs().max()


def test_the_first_order_of_layers_by_name():
    found = {}
    for name in ("auto", "exact", "first_order"):
        hardware = dataclasses.replace(IDEAL, wire=dataclasses.replace(WIRE, solution=name))
        found[name] = layer_of(hardware).effective_weight()
    assert torch.equal(found["auto"], found["exact"])
    ideal = layer_of(dataclasses.replace(IDEAL, wire=None)).effective_weight()
    off, lost = ((one - found["exact"]).norm() for one in (found["first_order"], ideal))
    assert 0 < off < lost / 20


def test_ideal_wires_change_no_bit():
    hardware = presets.pcm()
    found = []
    for wire in (None, Wire(0.0, 0.0)):
        layer = AnalogLinear.from_matrix(torch.linspace(-1, 1, 30 * 20).view(30, 20), hardware, "layer")
        layer = AnalogLinear.from_matrix(layer.target_weight(), dataclasses.replace(hardware, wire=wire), "layer")
        layer.program(1)
        layer.age(3600.0)
        found.append(layer(torch.linspace(-1, 1, 40).view(2, 20)))
    assert torch.equal(*found)


def test_cells_hold_their_targets_until_they_are_programmed():
    weight = torch.as_tensor(np.random.default_rng(0).standard_normal((12, 14)))
    layer, x = AnalogLinear.from_matrix(weight, IDEAL, "layer"), inputs64(2, 14)
    assert torch.allclose(layer(x), x @ weight.t())
    layer.program(0)
    assert not torch.allclose(layer(x), x @ weight.t(), rtol=1e-3)


def test_faults_are_in_the_circuit():
    faults = Faults(stuck_max=0.05, shorts=0.02, broken_rows=0.1, broken_cols=0.1, short_conductance=2000.0)
    layer = layer_of(dataclasses.replace(IDEAL, faults=faults))
    x = inputs64(3, 14, seed=1)
    expected = currents(layer, x.numpy())
    assert (layer.cells.conductances() == 2000.0).any()
    assert (layer.read_out(x) - expected).abs().max() < 1e-9 * expected.abs().max()


def test_drift_moves_the_matrix():
    hardware = dataclasses.replace(presets.pcm(), tile=Tile(32, 32), wire=Wire(20.0, 20.0))
    layer = AnalogLinear.from_matrix(torch.as_tensor(np.random.default_rng(0).standard_normal((32, 32))), hardware, "a")
    layer.program(0)
    lost = []
    for seconds in (0.0, 86400.0, 3e7):
        layer.age(seconds)
        cells = layer.cells.conductances()
        seen = layer.cells.digits[0] * 25.0
        lost.append(1 - float((seen * (cells[0] - cells[1])).sum() / (cells[0] - cells[1]).square().sum()))
        expected = currents(layer, np.eye(32))[0]
        assert (seen / 25.0 - expected).norm() < 1e-6 * expected.norm()
    assert lost[0] > lost[1] > lost[2] > 0  # smaller conductances lose less in wires


@pytest.mark.parametrize("coding", ["pwm", "bit_serial"])
def test_bit_serial_inputs_meet_the_same_matrix(coding):
    adc = Converter(bits=16, full_scale=4.0)
    dac = Converter(bits=7, range="per_token", coding=coding)
    layer = layer_of(dataclasses.replace(IDEAL, dac=dac, adc=adc, wire=Wire(400.0, 250.0)))
    x = inputs64(4, 14, seed=2)
    expected = x @ layer.effective_weight().t()
    assert (layer(x) - expected).norm() < 0.02 * expected.norm()  # 7 bits of input
    quiet = layer_of(dataclasses.replace(IDEAL, dac=dac, adc=adc, wire=None))
    assert (layer(x) - quiet(x)).norm() > 0.05 * expected.norm()


def test_every_backend_reads_the_same():
    hardware = dataclasses.replace(presets.pcm(), tile=Tile(6, 5), wire=WIRE, output_noise=0.0)
    weight = torch.as_tensor(np.random.default_rng(0).standard_normal((12, 14))).float()
    layer = AnalogLinear.from_matrix(weight, hardware, "layer")
    layer.program(0)
    found = []
    for name in ("cpu", "eager", "naive"):
        with torch.no_grad(), using_backend(name):
            found.append(layer(inputs64(3, 14).float()))
    assert torch.allclose(found[1], found[2], atol=1e-4)
    assert torch.allclose(found[0], found[2], atol=0.05 * float(found[2].abs().max()))


def test_ledgers_do_not_see_wires():
    counts = []
    for wire in (None, WIRE):
        layer = layer_of(dataclasses.replace(IDEAL, wire=wire))
        with Ledger() as ledger:
            layer(inputs64(3, 14))
        counts.append(ledger.to_dict())
    assert counts[0] == counts[1]


def test_ages_that_come_again_are_not_solved_again(monkeypatch):
    model = nn.Sequential(nn.Linear(14, 12), nn.ReLU(), nn.Linear(12, 6))
    convert(model, dataclasses.replace(presets.pcm(), tile=Tile(6, 5), wire=WIRE))
    program(model, 0)
    age(model, "1h")
    first = model[0].cells.digits.clone()
    age(model, "1d")
    monkeypatch.setattr(wires, "_solved", None)
    age(model, "1h")
    assert torch.equal(model[0].cells.digits, first)


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(wires, "_MOST_KEPT", 3 * 2 * 14 * 12 * 8)
    monkeypatch.setattr(wires, "_kept", type(wires._kept)())
    for seed in range(5):
        layer_of(IDEAL, seed=seed)(inputs64(1, 14))
    assert len(wires._kept) == 3


def test_placement_moves_lines_among_the_wires():
    layer, x = layer_of(dataclasses.replace(IDEAL, tile=Tile(14, 12))), inputs64(3, 14, seed=1)
    draw = np.random.default_rng(5)
    rows, columns = torch.as_tensor(draw.permutation(14)), torch.as_tensor(draw.permutation(12))
    layer.cells.set_placement(rows[None], columns[None])
    moved = layer_of(dataclasses.replace(IDEAL, tile=Tile(14, 12)))
    cells = layer.cells.conductances()
    beside = torch.empty_like(cells)
    beside[:, rows[:, None], columns] = cells
    expected = np.stack([reference.solve(one.numpy(), np.eye(14), WIRE.r_row, WIRE.r_col)[0] for one in beside])
    expected = torch.as_tensor(expected[0] - expected[1])[rows[:, None], columns] / layer.hardware.device.g_max
    assert (layer.cells.digits[0] - expected).norm() < 1e-9 * expected.norm()
    assert not torch.allclose(layer(x), moved(x), rtol=1e-3)
    layer.cells.set_placement(None, None)
    assert torch.equal(layer(x), moved(x))


def test_placement_within_tiles():
    layer = layer_of(IDEAL)
    straight = layer.cells.digits.clone()
    rows = (torch.arange(14) % 6).expand(3, -1).clone()
    columns = (torch.arange(12) % 5).expand(3, -1).clone()
    layer.cells.set_placement(rows, columns)
    assert torch.equal(layer.cells.digits, straight)
    columns[1, 5:10] = columns[1, 5:10].flip(0)
    layer.cells.set_placement(rows, columns)
    changed = (layer.cells.digits[0] - straight[0]).abs() > 1e-9
    assert changed[6:12, 5:10].any()
    changed[6:12, 5:10] = False
    assert not changed.any()


@pytest.mark.parametrize("bad", ["shape", "twice", "elsewhere"])
def test_bad_placements(bad):
    cells = TileArray(torch.ones(12, 14), IDEAL, "cells")
    rows = (torch.arange(14) % 6).expand(3, -1).clone()
    columns = (torch.arange(12) % 5).expand(3, -1).clone()
    if bad == "shape":
        rows = rows[:2]
    elif bad == "twice":
        columns[0, 0] = 1
    else:
        rows[1, 0] = 13
    with pytest.raises(
        InputError, match=r"^cells got a bad placement: give int64 \[3, 1[24]\], each place of a tile once$"
    ):
        cells.set_placement(rows, columns)
    with pytest.raises(
        InputError, match=r"^cells got half a placement: give places of rows and of columns, or neither"
    ):
        cells.set_placement(None, columns)


def test_training_meets_the_wires_too():
    hardware = dataclasses.replace(IDEAL, wire=Wire(400.0, 250.0))
    x, programmed = inputs64(4, 14), layer_of(hardware)(inputs64(4, 14))
    linear = nn.Linear(14, 12, bias=False).double()
    linear.weight.data = torch.as_tensor(np.random.default_rng(0).standard_normal((12, 14)))
    y = AnalogLinear.from_digital(linear, hardware, "layer").train()(x)
    y.sum().backward()
    assert linear.weight.grad is not None
    lost = (linear(x) - programmed).norm()
    assert lost > 0.05 * programmed.norm()
    assert (y - programmed).norm() < 0.1 * lost  # the currents of empty cells, which others push through, are left out


def test_yaml_and_features(tmp_path):
    hardware = Hardware(wire=Wire(1.0, 2.0, drive="both", sense="top", layout="interleaved"))
    hardware.to_yaml(tmp_path / "hardware.yaml")
    assert Hardware.from_yaml(tmp_path / "hardware.yaml") == hardware
    assert Hardware.from_dict({"wire": {}}).wire == Wire() == Wire(0.35, 0.35)
    assert all(presets.get(name).wire is None for name in ("pcm", "hermes", "reram", "gain_cell", "ideal"))
    added = hardware.features() - Hardware().features()
    assert added == {"wire", "wire.drive:both", "wire.sense:top", "wire.layout:interleaved", "wire.solution:auto"}
