"""Rotations: inputs and weights are mixed in blocks of word lines, and products stay."""

from dataclasses import replace

import pytest
import torch
from scipy.linalg import hadamard
from torch import nn

from crossbar import AnalogLinear, Converter, InputError, Ledger, Tile, clip_weights, load_state, presets, save_state
from crossbar.nn.rotation import additions, rotate, rotate_back
from tests.crossbar.conftest import digital, inputs, programmed

LINES = torch.tensor([1, 4])


@pytest.mark.parametrize(("lines", "block"), [(64, 64), (10, 4), (10, 8), (3, 2)])
def test_blocks_are_hadamard_matrices_and_the_rest_stays(lines, block):
    matrix = rotate(torch.eye(lines, dtype=torch.float64), block)
    torch.testing.assert_close(matrix @ matrix.t(), torch.eye(lines, dtype=torch.float64), rtol=1e-12, atol=1e-12)
    whole = lines // block * block
    assert sorted(matrix.count_nonzero(0).tolist(), reverse=True) == [block] * whole + [1] * (lines - whole)
    for first in range(0, whole, block):
        part = matrix[:, first : first + block]
        own = part[part[:, 0] != 0].sign()  # signed rows of Sylvester's matrix, in its order
        expected = torch.from_numpy(hadamard(block)).double()
        assert sorted((own * own[:, :1]).tolist()) == sorted((expected * expected[:, :1]).tolist())
    x = inputs(5, lines)
    torch.testing.assert_close(rotate_back(rotate(x, block), block), x, rtol=1e-6, atol=1e-6)


def test_ideal_cells_give_the_digital_product():
    linear = digital()
    layer = AnalogLinear.from_digital(linear, replace(presets.ideal(), tile=Tile(3, 4)))
    layer.set_line_scale(inputs(10, seed=3).abs() + 0.1)
    layer.set_digital_lines(LINES)
    layer.set_rotation(4)
    x = inputs(5, 10)
    torch.testing.assert_close(layer(x), linear(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer(x.bfloat16()).float(), linear(x.bfloat16().float()), rtol=2e-2, atol=2e-2)
    torch.testing.assert_close(layer.effective_weight(), linear.weight.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(layer.unscaled_weight(layer.scaled_weight()), layer.on_tiles(layer.target_weight()))


def test_an_outlier_is_spread_over_its_block():
    # 4 bits have 7 levels: beside an input of 7, one of 0.4 is lost; mixed, it moves both lines by 0.28.
    linear = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[1.0, 1.0]]))
    layer = AnalogLinear.from_digital(linear, replace(presets.ideal(), dac=Converter(bits=4, range="per_token")))
    x = torch.tensor([[0.4, 7.0]], dtype=torch.float64)
    assert layer(x).item() == pytest.approx(7.0)
    layer.set_rotation(2)
    mixed = rotate(x, 2)
    step = mixed.abs().max() / 7
    expected = ((mixed / step).round() * step) @ rotate(linear.weight.detach(), 2).t()
    assert layer(x).item() == pytest.approx(expected.item())
    assert expected.item() == pytest.approx(7.4, abs=0.05)


def test_what_is_booked():
    """By hand: 2 vectors, 10 lines of which 2 are digital, 7 outputs, two blocks of 4 lines, two additions a line."""
    layer = programmed(replace(presets.pcm(), tile=Tile(16, 8)))
    layer.set_digital_lines(LINES)
    layer.set_rotation(4)
    layer.program(0)
    with Ledger() as ledger:
        layer(inputs(2, 10))
    found = ledger.totals()
    assert additions(10, 4) == 16
    assert found["dac_conversions"] == 2 * 10  # zeros of digital lines are mixed with others
    assert found["digital_macs"] == 2 * 2 * 7 + 2 * 16 + 2 * 7
    assert AnalogLinear.from_digital(digital(), presets.pcm()).rotation is None


def test_gradients_reach_inputs_and_weights():
    linear = digital()
    layer = AnalogLinear.from_digital(linear, presets.ideal())
    layer.set_rotation(8)
    layer.train()
    x = inputs(5, 10).requires_grad_()
    layer(x).square().sum().backward()
    found = x.grad.clone(), linear.weight.grad.clone()
    x.grad, linear.weight.grad = None, None
    linear(x).square().sum().backward()
    torch.testing.assert_close(found[0], x.grad, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[1], linear.weight.grad, rtol=1e-4, atol=1e-5)


def test_what_is_clipped_is_what_cells_hold():
    linear = digital()
    model = nn.Sequential(AnalogLinear.from_digital(linear, presets.ideal()))
    model[0].set_digital_lines(LINES)
    model[0].set_rotation(8)
    before, held = linear.weight.detach().clone(), model[0].scaled_weight()
    bound = 1.2 * float(held.square().mean().sqrt())
    clip_weights(model, 1.2)
    rest = [line for line in range(10) if line not in LINES]
    assert torch.equal(linear.weight[:, LINES], before[:, LINES])
    expected = rotate_back(held.clamp(-bound, bound), 8)[:, rest]
    torch.testing.assert_close(linear.weight[:, rest].detach(), expected, rtol=1e-5, atol=1e-6)


def test_a_new_rotation_needs_new_cells_and_none_takes_it_back():
    layer = programmed(presets.ideal())
    layer.input_range = torch.tensor(2.0)
    layer.set_rotation(8)
    assert layer.seed is None
    assert layer.input_range is None
    layer.set_rotation(None)
    assert torch.equal(layer.cells.digits, AnalogLinear.from_digital(layer.digital, presets.ideal()).cells.digits)


def test_saved_and_loaded_it_gives_the_same_bits(tmp_path):
    model, other = (nn.Sequential(AnalogLinear.from_digital(digital(), presets.pcm())) for _ in range(2))
    model[0].set_rotation(8)
    model[0].program(3)
    model[0].age(60.0)
    save_state(model, tmp_path / "state")
    load_state(other, tmp_path / "state")
    x = inputs(4, 10)
    assert torch.equal(other(x), model(x))
    assert int(other[0].rotation) == 8


@pytest.mark.parametrize("block", [0, 1, 3, 16, -2])
def test_bad_blocks_are_refused(block):
    layer = programmed(presets.ideal())
    with pytest.raises(InputError, match=f"got rotation = {block}: give a power of 2 from 2 to 10"):
        layer.set_rotation(block)
    assert layer.seed is not None
