"""Digital lines: word lines that leave the tiles for a digital product."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from crossbar import AnalogLinear, Converter, Hardware, InputError, Ledger, Tile, load_state, presets, save_state
from tests.crossbar.conftest import digital, inputs, programmed

LINES = torch.tensor([1, 4, 8])


def test_ideal_cells_give_the_digital_product():
    linear = digital()
    layer = AnalogLinear.from_digital(linear, replace(presets.ideal(), tile=Tile(3, 4)))
    layer.set_line_scale(inputs(10, seed=3).abs() + 0.1)
    layer.set_digital_lines(LINES)
    x = inputs(5, 10)
    torch.testing.assert_close(layer(x), linear(x), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.effective_weight(), linear.weight.detach(), rtol=1e-6, atol=1e-7)
    positive, negative = layer.target_conductances()
    assert (positive[0, 0, 1] == 0).all()
    assert (negative[0, 0, 1] == 0).all()  # line 1 lies in the first tile
    assert positive[0, 0, 0].any()


def test_an_outlier_no_longer_sets_the_dac_range():
    # 4 bits have 7 levels: beside an input of 70, one of 0.4 is lost; alone it sets the range, and nothing is rounded.
    linear = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[4.0, 1.0]]))
    hardware = replace(presets.ideal(), dac=Converter(bits=4, range="per_token"))
    layer = AnalogLinear.from_digital(linear, hardware)
    x = torch.tensor([[0.4, 70.0]], dtype=torch.float64)
    torch.testing.assert_close(layer(x).item(), 70.0)
    layer.set_digital_lines(torch.tensor([1]))
    torch.testing.assert_close(layer(x).item(), 71.6)


def test_gains_of_the_tiles_leave_them_alone():
    layer = programmed(replace(presets.ideal(), tile=Tile(16, 8)))
    layer.set_digital_lines(LINES)
    layer.set_output_correction(torch.full((layer.out_features,), 2.0), None)
    x = torch.zeros(1, 10)
    x[0, 4] = 3.0
    torch.testing.assert_close(layer(x)[0], 3 * layer.target_weight()[:, 4] + (0 if layer.bias is None else layer.bias))
    torch.testing.assert_close(layer.beside(x)[0], layer(x)[0])


def test_neither_cells_nor_read_outs_see_them():
    """A read-out that would drive these lines gives what it gives without."""
    layer = programmed(presets.pcm())
    layer.set_digital_lines(LINES)
    layer.program(1)
    layer.age(3600.0)
    x = inputs(4, 10)
    without = x.index_fill(1, LINES, 0.0)
    layer.input_range = x.abs().amax()
    assert torch.equal(layer.read_out(x), layer.read_out(without))
    assert torch.equal(layer.expected_read_out(x), layer.expected_read_out(without))
    torch.testing.assert_close(layer.on_tiles(x), without)


def test_what_is_booked():
    """By hand: 2 vectors, 10 lines of which 3 are digital, 7 outputs, one tile."""
    layer = programmed(replace(presets.pcm(), tile=Tile(16, 8)))
    with Ledger() as ledger:
        layer(inputs(2, 10))
    before = ledger.totals()
    layer.set_digital_lines(LINES)
    layer.program(0)
    with Ledger() as ledger:
        layer(inputs(2, 10))
    found = ledger.totals()
    for driven in ("row_activations", "dac_conversions", "cell_macs"):
        assert found[driven] * 10 == before[driven] * 7 > 0
    assert found["dac_conversions"] == 2 * 7
    assert found["adc_conversions"] == before["adc_conversions"] == 2 * 7
    assert found["digital_macs"] == before["digital_macs"] + 2 * 3 * 7


def test_gradients_reach_inputs_and_weights_of_both():
    linear = digital()
    layer = AnalogLinear.from_digital(linear, presets.ideal())
    layer.set_digital_lines(LINES)
    layer.train()
    x = inputs(5, 10).requires_grad_()
    layer(x).square().sum().backward()
    found = x.grad.clone(), linear.weight.grad.clone()
    x.grad, linear.weight.grad = None, None
    linear(x).square().sum().backward()
    torch.testing.assert_close(found[0], x.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], linear.weight.grad, rtol=1e-4, atol=1e-5)


def test_new_lines_need_new_cells_and_none_take_it_back():
    layer = programmed(Hardware())
    layer.input_range = torch.tensor(2.0)
    layer.set_digital_lines(LINES)
    assert layer.seed is None
    assert layer.input_range is None
    layer.set_digital_lines(None)
    assert torch.equal(layer.cells.digits, AnalogLinear.from_digital(layer.digital, Hardware()).cells.digits)


def test_saved_and_loaded_they_give_the_same_bits(tmp_path):
    model, other = (nn.Sequential(AnalogLinear.from_digital(digital(), presets.pcm())) for _ in range(2))
    model[0].set_digital_lines(LINES)
    model[0].program(3)
    model[0].age(60.0)
    save_state(model, tmp_path / "state")
    load_state(other, tmp_path / "state")
    x = inputs(4, 10)
    assert torch.equal(other(x), model(x))
    assert torch.equal(other[0].digital_lines, LINES)


@pytest.mark.parametrize(
    "lines", [torch.tensor([3, 1]), torch.tensor([2, 2]), torch.tensor([10]), torch.tensor([-1]), torch.tensor([1.0])]
)
def test_bad_lines_are_refused(lines):
    layer = programmed(Hardware())
    with pytest.raises(InputError, match="bad digital lines: give int64 numbers from 0 to 9"):
        layer.set_digital_lines(lines)
    assert layer.seed is not None
