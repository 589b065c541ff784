"""Line scales: inputs are divided by them before the DAC, weights multiplied before they are mapped."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from crossbar import AnalogLinear, Converter, Hardware, InputError, Ledger, Tile, presets
from tests.crossbar.conftest import digital, inputs, programmed


def test_line_scales_cancel_in_ideal_hardware():
    linear = digital()
    layer = AnalogLinear.from_digital(linear, dataclasses.replace(presets.ideal(), tile=Tile(3, 4)))
    scale = inputs(10, seed=3).abs() + 0.1
    layer.set_line_scale(scale)
    x = inputs(5, 10)
    assert (layer(x) - linear(x)).norm() / linear(x).norm() < 1e-5
    torch.testing.assert_close(layer.effective_weight(), linear.weight.detach(), rtol=1e-6, atol=1e-7)
    mapped = (linear.weight * scale).detach()
    assert torch.equal(layer.scales[0], mapped[:, :3].abs().amax(1))
    assert torch.equal(layer.scales[3], mapped[:, 9:].abs().amax(1))


def test_line_scales_by_hand():
    # Without a scale the second input sets the range and the first, 0.4 of a code, is lost.
    linear = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[4.0, 1.0]]))
    hardware = dataclasses.replace(presets.ideal(), dac=Converter(bits=4, range="per_token"))
    layer = AnalogLinear.from_digital(linear, hardware)
    x = torch.tensor([[0.4, 7.0]], dtype=torch.float64)
    torch.testing.assert_close(layer(x).item(), 7.0)
    layer.set_line_scale(torch.tensor([0.1, 1.75], dtype=torch.float64))  # now [4, 4] drive the lines
    torch.testing.assert_close(layer(x).item(), 4 * 0.4 + 7.0)


def test_new_line_scales_need_new_cells():
    layer = programmed(Hardware())
    layer.input_range = torch.tensor(2.0)
    layer.column_gain.fill_(2.0)
    layer.set_line_scale(torch.full((10,), 2.0))
    assert layer.seed is None
    assert layer.input_range is None
    assert layer.state() == {}
    assert (layer.column_gain == 1).all()
    with pytest.raises(InputError, match="was not programmed"):
        layer.age(1.0)
    layer.program(1)
    layer.set_line_scale(None)
    assert torch.equal(layer.cells.digits, AnalogLinear.from_digital(layer.digital, Hardware()).cells.digits)


@pytest.mark.parametrize(
    "scale", [torch.ones(9), torch.ones(10, 1), torch.zeros(10), -torch.ones(10), torch.full((10,), math.nan)]
)
def test_bad_line_scales_are_refused(scale):
    layer = programmed(Hardware())
    before = layer.cells.digits.clone()
    with pytest.raises(InputError, match=r"linear got a bad line scale: give 10 finite numbers above 0"):
        layer.set_line_scale(scale)
    assert layer.line_scale is None
    assert layer.seed == 0
    assert torch.equal(layer.cells.digits, before)


def test_a_line_scale_that_overflows_leaves_the_layer():
    layer = programmed(Hardware())
    before = layer.cells.digits.clone()
    with pytest.raises(InputError, match="NaN or infinite"):
        layer.set_line_scale(torch.full((10,), 3e38))
    assert layer.line_scale is None
    assert layer.seed == 0
    assert torch.equal(layer.cells.digits, before)


@pytest.mark.parametrize(
    ("read", "scalings"), [(AnalogLinear.forward, 10), (AnalogLinear.read_out, 0)], ids=["forward", "read_out"]
)
def test_line_scaling_is_counted_where_it_is_done(read, scalings):
    layer = AnalogLinear.from_digital(digital(), Hardware(tile=Tile(4, 3)), "one")
    layer.set_line_scale(torch.full((10,), 2.0))
    with Ledger() as ledger:
        read(layer, inputs(6, 10))
    assert ledger.totals()["digital_macs"] == 6 * (7 * 3 + scalings)


def test_expected_read_out_is_the_target_product():
    layer = programmed(Hardware(tile=Tile(4, 3)), dtype=torch.float64)
    layer.set_line_scale(inputs(10, dtype=torch.float64).abs() + 0.5)
    layer.program(0)
    x = inputs(5, 10, dtype=torch.float64)
    full = x.abs().amax(1, keepdim=True)
    driven = (x / full * 127).round() / 127 * full
    weight = (layer.digital.weight * layer.line_scale).detach()
    for j, rows in enumerate((slice(0, 4), slice(4, 8), slice(8, 10))):
        expected = driven[:, rows] @ (weight[:, rows] / weight[:, rows].abs().amax(1, keepdim=True)).t()
        torch.testing.assert_close(layer.expected_read_out(x)[j], expected, rtol=1e-12, atol=1e-13)
