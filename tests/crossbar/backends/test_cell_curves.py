"""Cells that are not ohmic: amplitude inputs are bent by their curve, pulses of one height are not."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from crossbar import (
    AnalogLinear,
    Cell,
    Converter,
    Hardware,
    InputError,
    Tile,
    Wire,
    backend_names,
    presets,
    using_backend,
)
from tests.crossbar.conftest import inputs64

SINH = Cell("sinh", v0=0.1, v_read=0.2)
TABLE = Cell("table", v_read=0.2, table=((0.05, 0.02), (0.1, 0.06), (0.3, 0.5)))


def layer_of(cell, coding="amplitude", wide=True, **parts):
    hardware = dataclasses.replace(
        presets.ideal(), tile=Tile(6, 5), dac=Converter(7, "static", 3.0, coding), cell=cell, **parts
    )
    weight = torch.as_tensor(np.random.default_rng(0).standard_normal((12, 14)))
    return AnalogLinear.from_matrix(weight if wide else weight.float(), hardware, "layer")


def factor(cell, part):
    volts = abs(part) * cell.v_read
    if cell.iv == "sinh":
        return math.copysign(math.sinh(volts / cell.v0) / math.sinh(cell.v_read / cell.v0), part)
    points = np.array([(0.0, 0.0), *cell.table]).T
    return math.copysign(np.interp(volts, *points) / np.interp(cell.v_read, *points), part)


@pytest.mark.parametrize("cell", [SINH, TABLE], ids=["sinh", "table"])
@pytest.mark.parametrize("name", ["eager", "naive"])
def test_amplitudes_are_bent_by_the_curve(cell, name):
    layer, x = layer_of(cell), inputs64(5, 14)
    codes = (x / 3.0 * 63).round().clamp(-63, 63) / 63
    driven = torch.tensor([[factor(cell, part) for part in row] for row in codes.tolist()], dtype=torch.float64)
    expected = driven @ layer.target_weight().t() * 3.0
    with using_backend(name):
        found = layer(x)
    assert (found - expected).abs().max() < 1e-9 * expected.abs().max()
    plain = layer_of(None)(x)
    assert (found - plain).norm() > 0.1 * plain.norm()


@pytest.mark.parametrize("cell", [SINH, TABLE, Cell()], ids=["sinh", "table", "linear"])
@pytest.mark.parametrize("coding", ["pwm", "bit_serial", "rate"])
def test_pulses_of_one_height_meet_one_conductance(cell, coding):
    parts = {"adc": Converter(full_scale=4.0), "output_noise": 0.01}
    bent, plain = (layer_of(curve, coding, wide=False, **parts) for curve in (cell, None))
    x = inputs64(5, 14).float()
    with torch.no_grad():
        assert torch.equal(bent(x), plain(x))


def test_amplitudes_of_ohmic_cells_are_lengths():
    x = inputs64(5, 14)
    assert torch.equal(layer_of(Cell())(x), layer_of(None, "pwm")(x))


def test_backends_that_drive_whole_codes_leave_amplitudes_to_others():
    layer, x = layer_of(SINH, wide=False, adc=Converter(full_scale=4.0)), inputs64(2, 14).float()
    assert "cpu" in backend_names()
    with torch.no_grad(), using_backend("cpu"), pytest.raises(InputError, match=r"hardware with dac\.coding:amplitude"):
        layer(x)


@pytest.mark.parametrize("cell", [SINH, TABLE], ids=["sinh", "table"])
def test_gradients_follow_the_curve(cell):
    layer = layer_of(cell)
    x = torch.full((1, 14), 0.9, dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    step = 1e-4
    code = round(0.9 / 3 * 63) / 63
    slope = (factor(cell, code + step) - factor(cell, code - step)) / (2 * step)
    assert torch.allclose(x.grad[0], layer.target_weight().sum(0) * slope, rtol=1e-4)


def test_expected_read_outs_are_those_of_unbent_inputs():
    x = inputs64(5, 14)
    assert torch.equal(layer_of(SINH).expected_read_out(x), layer_of(None).expected_read_out(x))


def test_yaml(tmp_path):
    hardware = Hardware(dac=Converter(coding="amplitude"), cell=TABLE)
    hardware.to_yaml(tmp_path / "hardware.yaml")
    assert Hardware.from_yaml(tmp_path / "hardware.yaml") == hardware
    assert {"cell", "cell.iv:table", "dac.coding:amplitude"} <= hardware.features()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cell": {"iv": "cubic"}}, r"cell field iv = 'cubic' is not allowed: choose one of linear, sinh, table"),
        ({"cell": {"v0": 0}}, r"cell field v0 = 0 is not allowed: give a finite number from 0\.001 to 1000"),
        ({"cell": {"v_read": -1}}, r"cell field v_read = -1 is not allowed"),
        ({"cell": {"iv": "table"}}, r"cell field table ends at 0 V, below v_read = 0\.2 V: measure further"),
        ({"cell": {"iv": "table", "table": [[0.1, 1], [0.1, 2]]}}, r"table has points that do not rise"),
        (
            {"cell": {"table": [[0.1, -1]]}},
            r"a number of cell field table = -1 is not allowed: give a finite number above",
        ),
        ({"cell": {"table": 3}}, r"cell field table = 3 is not allowed: give pairs of volts and currents"),
        (
            {"cell": {"iv": "sinh"}, "wire": {}},
            r"^in hardware: hardware field cell\.iv = 'sinh' is not solved together",
        ),
        ({"cell": {"iv": "sinh"}, "tile": {"encoding": "offset"}}, r"cell\.iv = 'sinh' is not allowed with the offset"),
    ],
)
def test_refusals(values, message):
    with pytest.raises(InputError, match=message):
        Hardware.from_dict(values)


def test_linear_cells_and_wires_without_resistance_are_allowed():
    assert Hardware(cell=Cell(), wire=Wire(1.0)).wire == Wire(1.0)
    assert Hardware(cell=SINH, wire=Wire(0.0, 0.0)).cell == SINH
