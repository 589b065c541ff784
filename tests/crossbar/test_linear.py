"""The analog layer: what it computes, shows and counts."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from crossbar import AnalogLinear, Converter, Hardware, InputError, Ledger, Tile, bypassed, devices, presets

QUIET = Hardware(output_noise=0.0)


def digital(kind, in_features=10, out_features=7, dtype=torch.float32, seed=0):
    layer = nn.Linear(in_features, out_features) if kind is nn.Linear else Conv1D(out_features, in_features)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.to(dtype)


def inputs(*shape, dtype=torch.float32, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def programmed(hardware, seed=0, **size):
    layer = AnalogLinear.from_digital(digital(nn.Linear, **size), hardware)
    layer.program(seed)
    return layer


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
    linear = digital(nn.Linear, dtype=weights)
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
    layer = AnalogLinear.from_digital(digital(nn.Linear), Hardware())
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
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    x = inputs(5, 10).to(dtype)
    expected = layer(x.float()).to(dtype)
    nn.Sequential(layer).to(dtype)
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())
    assert {buffer.dtype for buffer in layer.buffers()} == {torch.float32}
    assert layer.digital.weight.dtype == dtype
    y = layer(x)
    assert y.dtype == dtype
    assert torch.equal(y, expected)
    layer.age(3600.0)
    assert torch.equal(layer.cell_weight, before["cell_weight"])


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
        AnalogLinear.from_digital(digital(nn.Linear), Hardware()).age(1.0)


def test_weight_is_no_attribute():
    layer = AnalogLinear.from_digital(digital(nn.Linear), Hardware())
    with pytest.raises(AttributeError, match=r"exclude the layer from conversion, or ask for effective_weight\(\)"):
        _ = layer.weight
    with pytest.raises(AttributeError, match="no attribute 'weights'"):
        _ = layer.weights


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


# Line scales: inputs are divided by them before the DAC, weights multiplied before they are mapped


def test_line_scales_cancel_in_ideal_hardware():
    linear = digital(nn.Linear)
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
    assert torch.equal(layer.cell_weight, AnalogLinear.from_digital(layer.digital, Hardware()).cell_weight)


@pytest.mark.parametrize(
    "scale", [torch.ones(9), torch.ones(10, 1), torch.zeros(10), -torch.ones(10), torch.full((10,), math.nan)]
)
def test_bad_line_scales_are_refused(scale):
    layer = programmed(Hardware())
    before = layer.cell_weight.clone()
    with pytest.raises(InputError, match=r"linear got a bad line scale: give 10 finite numbers above 0"):
        layer.set_line_scale(scale)
    assert layer.line_scale is None
    assert layer.seed == 0
    assert torch.equal(layer.cell_weight, before)


def test_a_line_scale_that_overflows_leaves_the_layer():
    layer = programmed(Hardware())
    before = layer.cell_weight.clone()
    with pytest.raises(InputError, match="NaN or infinite"):
        layer.set_line_scale(torch.full((10,), 3e38))
    assert layer.line_scale is None
    assert layer.seed == 0
    assert torch.equal(layer.cell_weight, before)


@pytest.mark.parametrize(
    ("read", "scalings"), [(AnalogLinear.forward, 10), (AnalogLinear.read_out, 0)], ids=["forward", "read_out"]
)
def test_line_scaling_is_counted_where_it_is_done(read, scalings):
    layer = AnalogLinear.from_digital(digital(nn.Linear), Hardware(tile=Tile(4, 3)), "one")
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


# Reads


def test_consecutive_reads_differ_and_repeat_after_a_reset():
    layer = programmed(Hardware())
    x = inputs(5, 10)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    layer.reset_reads()
    assert torch.equal(layer(x), first)
    assert torch.equal(layer(x), second)
    layer.program(0)
    assert torch.equal(layer(x), first)


def test_programming_again_forgets_gains_and_keeps_ranges():
    layer = programmed(Hardware())
    layer.input_range = torch.tensor(2.0)
    layer.column_gain.fill_(2.0)
    layer.program(1)
    assert (layer.column_gain == 1).all()
    assert layer.input_range == 2.0


def test_reads_differ_by_chip_name_and_time():
    hardware = dataclasses.replace(presets.ideal(), output_noise=0.1)
    x = inputs(5, 10)

    def read(seed=0, name="a", seconds=0.0):
        layer = AnalogLinear.from_digital(digital(nn.Linear), hardware, name)
        layer.program(seed)
        layer.age(seconds)
        return layer(x)

    base = read()
    assert torch.equal(base, read())
    for other in (read(seed=1), read(name="b"), read(seconds=1.0)):
        assert not torch.equal(base, other)


def test_quiet_hardware_repeats_itself():
    layer = programmed(QUIET)
    x = inputs(5, 10)
    assert torch.equal(layer(x), layer(x))


def test_copies_live_their_own_lives():
    layer = programmed(Hardware())
    x = inputs(5, 10)
    twin = copy.deepcopy(layer)
    first = layer(x)
    assert torch.equal(twin(x), first)
    before = layer.cell_weight.clone()
    twin.age(1e6)
    twin.column_gain.fill_(2.0)
    with torch.no_grad():
        twin.digital.bias.zero_()
    assert torch.equal(layer.cell_weight, before)
    assert layer.seconds == 0
    layer.reset_reads()
    assert torch.equal(layer(x), first)
    assert not torch.equal(twin.cell_weight, before)


def test_programmed_state_stays_out_of_the_state_dict():
    layer = programmed(Hardware())
    assert set(layer.state_dict()) == {"digital.weight", "digital.bias"}


def test_repr_tells_shape_and_age():
    layer = AnalogLinear.from_digital(digital(nn.Linear), Hardware())
    assert "10, 7, not programmed" in repr(layer)
    layer.program(4)
    layer.age(3600.0)
    assert "10, 7, chip 4 at 3600 s" in repr(layer)


# Counts


@pytest.mark.parametrize("read", [AnalogLinear.forward, AnalogLinear.read_out])
def test_counts_worked_out_by_hand(read):
    # 10 inputs on tiles of 4 rows: 3 row tiles. 7 outputs on tiles of 2 columns: 4 column tiles.
    layer = AnalogLinear.from_digital(digital(nn.Linear), Hardware(tile=Tile(4, 2), dac=Converter(bits=6)), "one")
    with Ledger() as ledger:
        read(layer, inputs(6, 10))
    assert ledger.to_dict() == {
        "one": {
            "row_activations": 6 * 10 * 4,  # an input drives its word line in every column tile
            "dac_conversions_6bit": 6 * 10 * 4,
            "adc_conversions_8bit": 6 * 7 * 3,  # an output is converted in every row tile
            "cell_macs": 6 * 10 * 7,
            "digital_macs": 6 * 7 * 3,
        }
    }


def test_counts_grow_with_vectors_of_any_shape():
    layer = AnalogLinear.from_digital(digital(nn.Linear), presets.ideal(), "one")
    with Ledger() as ledger:
        layer(inputs(2, 3, 10))
        layer(inputs(10))
    assert ledger.to_dict()["one"] == {
        "row_activations": 70,
        "dac_conversions": 70,
        "adc_conversions": 49,
        "cell_macs": 490,
        "digital_macs": 49,
    }


@pytest.mark.parametrize(
    "dac", [None, *(Converter(range=range_) for range_ in ("static", "per_token", "max"))], ids=str
)
def test_empty_batches_pass(dac):
    layer = AnalogLinear.from_digital(digital(nn.Linear), Hardware(dac=dac))
    assert layer(torch.zeros(0, 3, 10)).shape == (0, 3, 7)


@pytest.mark.parametrize(
    "dac",
    [
        None,
        Converter(range="static"),
        Converter(range="per_token"),
        Converter(range="max"),
    ],
    ids=str,
)
def test_empty_batches_are_read_out(dac):
    layer = AnalogLinear.from_digital(digital(nn.Linear), Hardware(dac=dac, tile=Tile(4, 3)))
    assert layer.read_out(torch.zeros(0, 10)).shape == (3, 0, 7)
