"""Weight ranges: what a cell at g_max stands for, by hand; corrections of what is mapped; errors that cells keep."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from crossbar import AnalogLinear, Converter, Hardware, InputError, Tile, load_state, presets, program, save_state
from crossbar.tiles.weight_errors import weight_errors
from tests.crossbar.conftest import digital, inputs, programmed


def test_larger_weights_are_clipped_and_others_use_the_whole_window():
    linear = nn.Linear(3, 2, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[4.0, 1.0, -0.5], [0.25, -2.0, 1.0]]))
    layer = AnalogLinear.from_digital(linear, presets.ideal())
    layer.set_weight_range(torch.tensor([[2.0, 1.0]], dtype=torch.float64))
    expected = torch.tensor([[2.0, 1.0, -0.5], [0.25, -1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(layer.effective_weight(), expected)
    positive, negative = layer.target_conductances()
    g_max = layer.hardware.device.g_max
    shares = torch.tensor([[1.0, 0.5, 0.0], [0.25, 0.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(positive[0, 0, :3, :2].t(), shares * g_max)
    torch.testing.assert_close(negative[0, 0, :3, :2].t()[0], torch.tensor([0.0, 0.0, 0.25]).double() * g_max)
    layer.program(3)
    torch.testing.assert_close(layer.effective_weight(), expected)  # programming keeps the range
    torch.testing.assert_close(layer.target_weight(), linear.weight.detach())


def test_a_range_is_in_units_of_the_mapped_weights_and_leaves_with_the_line_scale():
    layer = AnalogLinear.from_digital(digital(), dataclasses.replace(presets.ideal(), tile=Tile(3, 4)))
    scale = inputs(10, seed=3).abs() + 0.5
    layer.set_line_scale(scale)
    layer.set_weight_range(0.5 * layer.scales)
    mapped = layer.target_weight() * scale
    bound = layer.weight_range.repeat_interleave(3, 0)[:10].t()
    torch.testing.assert_close(layer.effective_weight(), mapped.clamp(-bound, bound) / scale)
    layer.set_line_scale(scale)
    assert layer.weight_range is None
    torch.testing.assert_close(layer.effective_weight(), layer.target_weight())


def test_a_new_range_needs_new_cells_and_leaves_the_inputs_range():
    layer = programmed(Hardware())
    layer.input_range = torch.tensor(2.0)
    layer.column_gain.fill_(2.0)
    layer.set_weight_range(0.5 * layer.scales)
    assert (layer.seed, layer.state()) == (None, {})
    assert layer.input_range == 2.0
    assert (layer.column_gain == 1).all()


def test_a_saved_chip_is_programmed_again_with_its_range(tmp_path):
    def chip():
        return nn.Sequential(AnalogLinear.from_digital(digital(), Hardware()))

    first, second = chip(), chip()
    first[0].set_weight_range(0.5 * first[0].scales)
    first[0].set_weight_correction(0.01 * inputs(7, 10, seed=4))
    program(first, 1)
    save_state(first, tmp_path / "chip.safetensors")
    load_state(second, tmp_path / "chip.safetensors")
    program(second, 1)
    assert torch.equal(second[0].weight_range, first[0].weight_range)
    assert torch.equal(second[0].weight_correction, first[0].weight_correction)
    assert torch.equal(second[0].effective_weight(), first[0].effective_weight())


@pytest.mark.parametrize("bad", [torch.ones(9), torch.zeros(1, 7), -torch.ones(1, 7), torch.full((1, 7), math.nan)])
def test_bad_ranges_are_refused(bad):
    layer = programmed(Hardware())
    with pytest.raises(InputError, match=r"bad weight range: give \[1, 7\] finite numbers above 0"):
        layer.set_weight_range(bad)
    assert layer.weight_range is None


def test_a_correction_is_added_to_what_is_mapped_and_the_digital_layer_stays():
    layer = AnalogLinear.from_digital(digital(), dataclasses.replace(presets.ideal(), tile=Tile(3, 4)))
    weight, scale = layer.target_weight().clone(), inputs(10, seed=3).abs() + 0.5
    layer.set_line_scale(scale)
    layer.set_weight_range(0.5 * layer.scales)
    correction = 0.1 * inputs(7, 10, seed=4)
    layer.set_weight_correction(correction)
    bound = layer.weight_range.repeat_interleave(3, 0)[:10].t()
    expected = (weight * scale + correction).clamp(-bound, bound) / scale
    torch.testing.assert_close(layer.effective_weight(), expected)
    layer.program(3)
    torch.testing.assert_close(layer.effective_weight(), expected)
    x = inputs(5, 10, seed=6)
    torch.testing.assert_close(layer(x), x @ expected.t() + layer.digital.bias)
    layer.train()
    torch.testing.assert_close(layer(x), x @ expected.t() + layer.digital.bias)
    assert torch.equal(layer.target_weight(), weight)


@pytest.mark.parametrize("change", ["set_line_scale", "set_weight_range", "set_weight_correction"])
def test_a_correction_leaves_with_what_it_was_found_for(change):
    layer = programmed(Hardware())
    layer.set_weight_correction(torch.ones(7, 10))
    layer.program(3)
    getattr(layer, change)(None)
    assert layer.weight_correction is None
    assert (layer.seed, layer.state()) == (None, {})
    torch.testing.assert_close(layer.effective_weight(), layer.target_weight())


@pytest.mark.parametrize("bad", [torch.ones(10), torch.ones(10, 7), torch.full((7, 10), math.inf)])
def test_bad_corrections_are_refused(bad):
    layer = programmed(Hardware())
    with pytest.raises(InputError, match=r"bad weight correction: give \[7, 10\] finite numbers"):
        layer.set_weight_correction(bad)
    assert layer.weight_correction is None


def test_ideal_cells_keep_every_weight():
    errors = weight_errors(presets.ideal(), 86400.0)
    assert errors.gain == pytest.approx(1.0, abs=1e-6)
    assert errors.squared.max() < 1e-12


def test_errors_of_pcm_are_those_of_its_equations():
    # By hand at g = 0.5 for G+ and 0 for G-: programming, spread of the exponent and 1/f noise, each behind its gain.
    hardware, seconds = dataclasses.replace(presets.pcm(), dac=Converter(), adc=Converter()), 86400.0
    errors = weight_errors(hardware, seconds)
    device, g = hardware.device, 0.5
    log = math.log((seconds + device.t_0) / device.t_0)
    spread = max(-0.0125 * math.log(g) - 0.0059, 0.008)
    decay = math.exp(-0.049 * log)
    band = math.sqrt(math.log((seconds + device.t_0 + device.t_read) / (2 * device.t_read)))
    read = 0.0088 / g**0.65 * band
    write = (0.26348 + 1.965 * g - 1.1731 * g**2) / 25.0
    variance = (decay * g) ** 2 * ((spread * log) ** 2 + read**2) + (decay * write) ** 2
    assert errors.gain == pytest.approx(1 / decay, rel=0.02)
    assert float(errors.squared[32]) == pytest.approx(errors.gain**2 * variance, rel=0.15)
    assert (errors.squared[::8].diff() > 0).all()  # larger weights have larger errors in absolute terms


def test_errors_grow_with_age_and_faults_are_left_out():
    hardware = presets.pcm()
    day, year = (weight_errors(hardware, seconds) for seconds in (86400.0, 365 * 86400.0))
    assert (year.squared[1:] > day.squared[1:]).all()
    assert year.gain > day.gain > 1
