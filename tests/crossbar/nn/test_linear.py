"""The analog layer: what it computes, shows and counts."""

import dataclasses

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from crossbar import AnalogLinear, CellNoise, Converter, Hardware, InputError, Ledger, Tile, bypassed, devices, presets
from crossbar.tiles import injection
from crossbar.tiles.weight_errors import weight_errors
from tests.crossbar.conftest import digital, inputs, linear_layer, programmed

QUIET = Hardware(output_noise=0.0)


kinds = pytest.mark.parametrize("kind", [nn.Linear, Conv1D])


@kinds
@pytest.mark.parametrize("tile", [Tile(), Tile(3, 4)])
def test_ideal_hardware_computes_the_digital_layer(kind, tile):
    linear = digital(kind)
    layer = AnalogLinear.from_digital(linear, dataclasses.replace(presets.ideal(), tile=tile))
    x = inputs(2, 5, 10)
    for _ in range(2):
        y, expected = layer(x), linear(x)
        assert y.shape == (2, 5, 7)
        assert (y - expected).norm() / expected.norm() < 1e-5
        layer.program(0)
        layer.age(1e6)


@pytest.mark.parametrize("weights", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("data", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_outputs_have_the_inputs_dtype(weights, data):
    linear = digital(dtype=weights)
    layer = AnalogLinear.from_digital(linear, presets.ideal())
    x = inputs(4, 10, dtype=data)
    y = layer(x)
    assert y.dtype == data
    # Computed in float32, or float64 for float64 weights, and rounded once to the inputs' dtype.
    exact = x.double() @ linear.weight.double().t() + linear.bias.double()
    size = x.double().abs() @ linear.weight.double().abs().t() + linear.bias.double().abs()
    work = torch.finfo(torch.float64 if weights == torch.float64 else torch.float32).eps / 2
    tolerance = 20 * work * size + torch.finfo(data).eps / 2 * (exact.abs() + 20 * work * size)
    assert ((y.double() - exact).abs() <= tolerance).all()


@pytest.mark.parametrize("bias", [True, False])
def test_bias_is_digital(bias):
    linear = nn.Linear(4, 3, bias=bias)
    layer = AnalogLinear.from_digital(linear, QUIET)
    expected = linear.bias if bias else torch.zeros(3)
    assert torch.equal(layer(torch.zeros(1, 4))[0], expected)


@kinds
def test_effective_weight_before_programming_is_the_weight(kind):
    linear = digital(kind)
    layer = AnalogLinear.from_digital(linear, Hardware(tile=Tile(3, 4)))
    weight = linear.weight if kind is nn.Linear else linear.weight.t()
    torch.testing.assert_close(layer.effective_weight(), weight.detach(), rtol=4 * 2**-23, atol=0)  # 5 roundings


def test_effective_weight_is_what_ideal_converters_see():
    layer = programmed(dataclasses.replace(presets.ideal(), device=devices.PCM(), tile=Tile(3, 4)))
    layer.age(3600.0)
    layer.column_gain.copy_(inputs(4, 7).abs() + 0.5)
    seen = layer(torch.eye(10)) - layer.digital.bias
    torch.testing.assert_close(layer.effective_weight(), seen.t().detach(), rtol=1e-6, atol=1e-6)
    assert (layer.effective_weight() - layer.digital.weight).abs().max() > 0.1  # it has drifted by a quarter


def test_conductances_are_tiles_of_absent_and_present_cells():
    layer = programmed(Hardware(tile=Tile(4, 3)))
    for cells in layer.conductances():
        assert cells.shape == (3, 3, 4, 3)  # [T_out, T_in, R, C] of 7 outputs and 10 inputs
        assert int(cells.isnan().sum()) == 9 * 12 - 70
        assert cells[:, 2, 2:].isnan().all()  # inputs 10 and 11
        assert cells[2, :, :, 1:].isnan().all()  # outputs 7 and 8
    plus, minus = layer.conductances()
    net = (plus - minus).permute(1, 2, 0, 3).reshape(12, 9)[:10, :7] / 25
    weight = net * layer.scales.repeat_interleave(4, 0)[:10]
    torch.testing.assert_close(weight.t(), layer.effective_weight(), rtol=1e-6, atol=1e-6)


def test_conductances_without_noise_are_repeatable_drift():
    layer = programmed(Hardware())
    layer.age(86400.0)
    state = layer.state()
    expected = state["programmed"] * ((86400.0 + 20) / 20) ** -state["exponent"].double()
    for cells, by_hand in zip(layer.conductances(noise=False), expected, strict=True):
        torch.testing.assert_close(cells[0, 0, :10, :7], by_hand.float(), rtol=1e-5, atol=0)
    assert not torch.equal(layer.conductances()[0][0, 0, :10, :7], layer.conductances(noise=False)[0][0, 0, :10, :7])


def test_looking_at_the_chip_does_not_change_it():
    layer = programmed(dataclasses.replace(presets.ideal(), tile=Tile(10, 7)))
    before = layer(inputs(3, 10))
    layer.conductances()[0].zero_()
    layer.effective_weight().zero_()
    layer.age(1.0)
    assert torch.equal(layer(inputs(3, 10)), before)


@pytest.mark.parametrize("read", [AnalogLinear.forward, AnalogLinear.read_out, AnalogLinear.expected_read_out])
@pytest.mark.parametrize(
    ("x", "found"),
    [
        (torch.zeros(2, 9), r"float32 inputs \[2, 9\]"),
        (torch.zeros(2, 11), r"float32 inputs \[2, 11\]"),
        (torch.zeros(2, 1), r"float32 inputs \[2, 1\]"),
        (torch.tensor(1.0), r"float32 inputs \[\]"),
        (torch.arange(10), r"int64 inputs \[10\]"),
    ],
    ids=["short", "long", "one", "scalar", "whole numbers"],
)
def test_wrong_inputs_are_refused(read, x, found):
    layer = AnalogLinear.from_digital(digital(), Hardware())
    with pytest.raises(InputError, match=rf"linear got torch\.{found}: give floating point \[\.\.\., 10\]"):
        read(layer, x)


# Precision: tiles keep that of the conversion


@pytest.mark.parametrize("data", [torch.float32, torch.float64, torch.bfloat16])
def test_reads_are_in_the_precision_of_the_conversion(data):
    layer = programmed(QUIET)
    x = inputs(4, 10, dtype=data)
    for read in (layer.read_out, layer.expected_read_out):
        assert torch.equal(read(x), read(x.float()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_moves_leave_the_tiles(dtype):
    layer = programmed(QUIET)
    layer.age(3600.0)
    layer.input_range = torch.tensor(1.0625)
    nn.init.zeros_(layer.digital.bias)
    cells = layer.cells.digits.clone()
    x = inputs(5, 10).to(dtype)
    expected = layer(x.float()).to(dtype)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    nn.Sequential(layer).to(dtype)
    after = dict(layer.named_buffers())
    assert all(torch.equal(after[name], buffer) for name, buffer in before.items())
    assert {buffer.dtype for name, buffer in after.items() if name != "calls"} == {torch.float32}
    assert layer.digital.weight.dtype == dtype
    y = layer(x)
    assert y.dtype == dtype
    assert torch.equal(y, expected)
    layer.age(3600.0)
    assert torch.equal(layer.cells.digits, cells)


@pytest.mark.parametrize("hardware", [presets.ideal(), presets.pcm()], ids=["ideal", "pcm"])
@pytest.mark.parametrize("read", [AnalogLinear.forward, AnalogLinear.read_out, AnalogLinear.expected_read_out])
def test_autocast_changes_no_bit(hardware, read):
    layer = programmed(hardware, in_features=64)
    x = inputs(3, 64)
    expected = read(layer, x)
    layer.reset_reads()
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(read(layer, x), expected)
        layer.program(0)
    assert torch.equal(read(layer, x), expected)


def test_other_modules_are_refused():
    with pytest.raises(
        InputError, match=r"a Embedding cannot become analog: give an nn.Linear or a transformers Conv1D"
    ):
        AnalogLinear.from_digital(nn.Embedding(3, 4), Hardware())


def test_age_needs_programming():
    with pytest.raises(InputError, match=r"linear was not programmed: call crossbar\.program\(model, seed\) first"):
        AnalogLinear.from_digital(digital(), Hardware()).age(1.0)


def test_weight_stands_in_for_what_is_in_cells():
    layer = AnalogLinear.from_digital(digital(), Hardware())
    assert (layer.weight.shape, layer.weight.dtype, layer.weight.device.type) == ((7, 10), torch.float32, "cpu")
    assert repr(layer.weight) == "StandIn('linear.weight', shape=[7, 10], dtype=torch.float32)"
    with pytest.raises(InputError) as caught:
        layer.weight.abs()
    assert str(caught.value) == (
        "'linear.weight' is in cells, and 'abs' would compute past them with its numbers: exclude the layer from "
        "conversion, or register an adapter for what reads it"
    )
    with pytest.raises(AttributeError, match="no attribute 'weights'"):
        _ = layer.weights


def test_a_product_with_the_weight_is_one_of_the_tiles():
    layer, x = AnalogLinear.from_digital(digital(), Hardware(tile=Tile(4, 3))), inputs(5, 10)
    layer.program(1)
    expected = layer(x)
    assert not torch.allclose(expected, layer.digital(x), atol=1e-3)
    for product in (
        lambda w: torch.nn.functional.linear(x, w, layer.bias),
        lambda w: x @ w.t() + layer.bias,
        lambda w: (w @ x.t()).t() + layer.bias,
        lambda w: torch.addmm(layer.bias, x, w.T),
    ):
        layer.reset_reads()
        assert torch.equal(product(layer.weight), expected)
    with pytest.raises(InputError, match="'matmul' would compute past them"):
        _ = inputs(5, 7) @ layer.weight


@pytest.mark.parametrize(
    "hardware",
    [
        dataclasses.replace(QUIET, tile=Tile(4, 3)),
        dataclasses.replace(QUIET, tile=Tile(4, 3), dac=None, adc=None),
        dataclasses.replace(QUIET, tile=Tile(4, 3), dac=Converter(range="static", full_scale=2.0)),
    ],
)
def test_read_out_is_what_forward_adds_up(hardware):
    layer = programmed(hardware)
    layer.column_gain.copy_(inputs(3, 7).abs())
    x = inputs(5, 10)
    columns = layer.read_out(x)
    assert columns.shape == (3, 5, 7)
    total = (columns.double() * (layer.scales * layer.column_gain).double().unsqueeze(1)).sum(0)
    size = (columns.double().abs() * (layer.scales * layer.column_gain).double().unsqueeze(1)).sum(0)
    expected = total + layer.digital.bias.double()
    # float32 throughout: 10 products summed in another order, and a handful of scalings
    assert ((layer(x).double() - expected).abs() <= 20 * 2**-24 * (size + 3 * expected.abs() + 1)).all()


# The digital layer for a while


def test_bypassed_layers_are_digital_and_count_nothing():
    model = nn.Sequential(programmed(Hardware()))
    x = inputs(5, 10)
    first = model(x)
    model[0].reset_reads()
    with Ledger() as ledger, bypassed(model):
        assert torch.equal(model(x), model[0].digital(x))
    assert ledger.totals() == {}
    assert torch.equal(model(x), first)  # no read was used up
    with pytest.raises(InputError, match="linear got"), bypassed(model):
        model(x[:, 1:])
    assert not torch.equal(model(x), model[0].digital(x))


def test_bypassed_nests():
    model = nn.Sequential(programmed(Hardware()))
    with bypassed(model):
        with bypassed(model):
            assert model[0].bypass
        assert model[0].bypass
    assert not model[0].bypass


def test_a_default_device_that_others_set_changes_nothing():
    hardware = Hardware(tile=Tile(16, 8), read_noise=CellNoise(0.5, form="cheap"))
    found = []
    for default in ("cpu", "meta"):
        injection.error_table.cache_clear()
        weight_errors.cache_clear()
        layer, x = linear_layer(40, 30, hardware, dtype=torch.float32), inputs(5, 40)
        with torch.device(default):
            layer.program(0)
            layer.age(3600.0)
            read, expected, errors = (
                layer.read_out(x),
                layer.expected_read_out(x),
                weight_errors(hardware, 60.0).squared,
            )
            found.append([layer(x), read, expected, errors, layer.train()(x)])
    assert all(torch.equal(*pair) for pair in zip(*found, strict=True))
