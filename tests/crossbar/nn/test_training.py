"""Gradients through tiles against a plain float64 transcription, learned ranges and clipped weights."""

import copy
import dataclasses
import functools

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from crossbar import (
    AnalogLinear,
    Converter,
    Hardware,
    InputError,
    Tile,
    analog_layers,
    clip_weights,
    convert,
    devices,
    learn_ranges,
    load_state,
    presets,
    program,
    restore,
    save_state,
)
from crossbar.devices.reram import CmoReRam
from crossbar.random.streams import Stream
from crossbar.tiles import injection
from tests.crossbar import conftest

STATIC = Converter(range="static", full_scale=1.5)
I, O, B = 11, 5, 6  # noqa: E741 - as in every docstring

digital = functools.partial(conftest.digital, in_features=I, out_features=O, dtype=torch.float64)
inputs = functools.partial(conftest.inputs, dtype=torch.float64)


def model_of(hardware, dtype=torch.float32):
    model = nn.Sequential(digital(dtype=dtype), nn.ReLU(), nn.Linear(O, 3, bias=False, dtype=dtype))
    with torch.no_grad():
        model[2].weight.copy_(inputs(3, O, seed=2))
    convert(model, hardware)
    return model


# A transcription that knows nothing of the fast path but where its noise comes from


def rounded(v, levels):
    """Nearest whole number, clipped; gradient 1 up to half a step beyond the last level and 0 further out."""
    passed = torch.where(v.abs() <= levels + 0.5, v, v.detach())
    return passed + (v.round().clamp(-levels, levels) - v).detach()


def digits_of(part, tile):
    """Digits, most significant first, of a part 0 … 1 of the window."""
    if tile.slices == 1:
        return [part]
    base = 2**tile.slice_bits
    whole = (part * (base**tile.slices - 1)).round()
    return [(whole // base**place) % base / (base - 1) for place in reversed(range(tile.slices))]


def transcription(x, weight, bias, hardware, line_scale, input_range, adc_range):
    """What a layer called "linear" must compute at its first step, unprogrammed: ``[B, O]``, in float64."""
    tile, dac, adc, device = hardware.tile, hardware.dac, hardware.adc, hardware.device
    g_min = device.g_min if isinstance(device, CmoReRam) else 0.0
    window = device.g_max - g_min
    if line_scale is not None:
        x, weight = x / line_scale, weight * line_scale
    row_tiles = [slice(start, min(start + tile.rows, I)) for start in range(0, I, tile.rows)]
    scales = [weight[:, rows].detach().abs().amax(1) for rows in row_tiles]
    relative = torch.cat([weight[:, rows] / s.unsqueeze(1) for rows, s in zip(row_tiles, scales, strict=True)], 1).t()
    half = relative.detach() / 2
    signs = {
        "differential": [(2 * half).clamp(min=0), (-2 * half).clamp(min=0)],
        "balanced": [0.5 + half, 0.5 - half],
        "offset": [0.5 + half],
    }[tile.encoding]
    targets = torch.stack([torch.stack(digits_of(part, tile)) for part in signs for _ in range(tile.pairs)])
    shape = (len(signs), tile.pairs, tile.slices, I, O)
    targets = (targets * window + g_min).reshape(-1, I, O)
    cells = injection.written(targets, hardware, 0.0, Stream((0, "linear", "training", 0.0, 0))).view(shape).mean(1)
    net = (cells[0] - cells[1] if len(signs) == 2 else cells[0]) / window  # [S, I, O]
    straight = relative if len(signs) == 2 else relative / 2

    full = 1.0
    codes, unit = x, 1.0
    if dac is not None:
        full = x.detach().abs().amax(1, keepdim=True) if dac.range == "per_token" else x.new_tensor(dac.full_scale)
        full = full if input_range is None else input_range
        codes, unit = rounded(x / full * dac.levels, dac.levels), 1 / dac.levels
    z = Stream((0, "linear", "read", 0.0, 0)).columns(tile.slices * len(row_tiles), B, O).double()
    base, y = 2**tile.slice_bits, 0.0
    for place in range(tile.slices):
        worth = base ** (tile.slices - 1 - place) * (base - 1) / (base**tile.slices - 1) * (2 / len(signs))
        worth = worth if tile.slices > 1 else 2 / len(signs)
        for j, rows in enumerate(row_tiles):
            seen = net[place, rows].detach() + straight[rows] - straight[rows].detach()
            column = codes[:, rows] * unit @ seen + hardware.output_noise * z[place * len(row_tiles) + j]
            if adc is not None:
                span = adc.full_scale if adc_range is None else adc_range
                column = rounded(column / span * adc.levels, adc.levels) * span / adc.levels
            y = y + column * worth * scales[j] * full
    if len(signs) == 1:
        for j, rows in enumerate(row_tiles):
            foot = scales[j] * (1 + 2 * g_min / window)
            y = y - codes[:, rows].sum(1, keepdim=True) * unit * full * foot
    return y + bias


hard = {
    "ideal converters": Hardware(dac=None, adc=None, tile=Tile(4, 3)),
    "per token": Hardware(tile=Tile(4, 3), adc=Converter(full_scale=1.2)),
    "static": Hardware(tile=Tile(4, 3), dac=STATIC, adc=Converter(bits=5, full_scale=1.0)),
    "one tile": Hardware(dac=STATIC),
    "balanced": Hardware(tile=Tile(4, 3, encoding="balanced"), dac=STATIC, adc=Converter(full_scale=1.5)),
    "offset": Hardware(tile=Tile(4, 3, encoding="offset"), dac=STATIC, adc=Converter(full_scale=1.5)),
    "slices": Hardware(tile=Tile(4, 3, slices=2), dac=STATIC, adc=Converter(full_scale=1.2)),
    "balanced slices": Hardware(tile=Tile(4, 3, encoding="balanced", slices=2, slice_bits=3), dac=STATIC),
    "offset slices": Hardware(tile=Tile(4, 3, encoding="offset", slices=2), adc=Converter(full_scale=2.0)),
    "pairs": Hardware(tile=Tile(4, 3, pairs=2), dac=STATIC, adc=Converter(full_scale=1.2)),
    "a window": Hardware(device=CmoReRam(), tile=Tile(4, 3, encoding="offset"), dac=STATIC),
}


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
@pytest.mark.parametrize("scaled", [False, True], ids=["", "line scales"])
@pytest.mark.parametrize("learned", [False, True], ids=["", "learned"])
@pytest.mark.parametrize("hardware", hard.values(), ids=hard)
def test_a_step_and_its_gradients_agree_with_the_transcription(hardware, learned, scaled, kind):
    layer = AnalogLinear.from_digital(digital(kind), hardware)
    scale = inputs(I, seed=3).abs() + 0.5 if scaled else None
    layer.set_line_scale(scale)
    ranges = layer.learn_ranges() if learned else []
    layer.train()
    x, upstream = inputs(B, I).requires_grad_(), inputs(B, O, seed=4)
    found = layer(x)
    wanted = [x, *layer.digital.parameters(), *ranges]
    grads = torch.autograd.grad((found * upstream).sum(), wanted)

    weight = layer.digital.weight if kind is nn.Linear else layer.digital.weight.t()
    input_range, adc_range = layer.input_range, layer.adc_range
    expected = transcription(x, weight, layer.digital.bias, hardware, scale, input_range, adc_range)
    # float64, some 30 roundings; a code that falls the other way at a tie would be off by 1e-2
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    for grad, by_hand in zip(grads, torch.autograd.grad((expected * upstream).sum(), wanted), strict=True):
        torch.testing.assert_close(grad, by_hand, rtol=1e-10, atol=1e-11)
    if learned:
        assert all(float(grad) != 0 for grad in grads[3:])


@pytest.mark.parametrize("encoding", ["differential", "balanced", "offset"])
@pytest.mark.parametrize("device", [devices.Ideal(), devices.PCM()], ids=["ideal", "pcm"])
def test_gradients_are_derivatives_where_converters_are_off(device, encoding):
    # Of the weights only without noise: the gradient leaves out that a column's largest weight scales its noise.
    ideal = isinstance(device, devices.Ideal)
    noise = 0.0 if ideal else 0.04
    hardware = Hardware(device=device, tile=Tile(4, 3, encoding=encoding), dac=None, adc=None, output_noise=noise)
    layer = AnalogLinear.from_digital(digital(), hardware).train()
    x, weight, bias = inputs(B, I).requires_grad_(), layer.digital.weight, layer.digital.bias
    weight.requires_grad_(ideal)

    def step(*_):
        layer.reset_reads()
        return layer(x)

    assert torch.autograd.gradcheck(step, (x, weight, bias))


def test_gradients_vanish_outside_the_dac_range():
    layer = AnalogLinear.from_digital(digital(), Hardware(dac=STATIC, adc=None)).train()
    x = torch.full((2, I), 1.0, dtype=torch.float64)
    x[0, :3] = torch.tensor([1.6, -1.6, 9.0], dtype=torch.float64)
    x.requires_grad_()
    layer(x).sum().backward()
    assert (x.grad[0, :3] == 0).all()
    assert (x.grad[0, 3:] != 0).all()
    assert (x.grad[1] != 0).all()
    # a clipped input still drives its word line, at full scale
    expected = torch.tensor([1.5, -1.5, 1.5], dtype=torch.float64) + (1.0 / 1.5 * 127 + 0.5) // 1 / 127 * 1.5
    torch.testing.assert_close(layer.digital.weight.grad[:, :3], expected.expand(O, 3))


def test_gradients_vanish_outside_the_adc_range():
    hardware = Hardware(dac=None, adc=Converter(full_scale=1e-6), output_noise=0.0)
    layer = AnalogLinear.from_digital(digital(), hardware).train()
    x = inputs(B, I).requires_grad_()
    layer(x).sum().backward()
    assert (x.grad == 0).all()
    assert (layer.digital.weight.grad == 0).all()
    assert (layer.digital.bias.grad == B).all()


def test_frozen_weights_get_no_gradient_and_inputs_do():
    layer = AnalogLinear.from_digital(digital(), Hardware()).train()
    layer.digital.weight.requires_grad_(False)
    x = inputs(B, I).requires_grad_()
    layer(x).sum().backward()
    assert layer.digital.weight.grad is None
    assert (x.grad != 0).any()


# Learned ranges


def test_the_gradient_of_a_range_by_hand():
    # Learned step size quantisation: (round(v) - v) / L inside, ±1 outside; a weight of 1 passes it on as it is.
    linear = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    nn.init.ones_(linear.weight)
    dac = Converter(bits=4, range="static", full_scale=2.0)
    layer = AnalogLinear.from_digital(linear, dataclasses.replace(presets.ideal(), dac=dac)).train()
    (input_range,) = layer.learn_ranges()
    for x, expected in ((0.3, (1 - 1.05) / 7), (1.0, (4 - 3.5) / 7), (5.0, 1.0), (-5.0, -1.0)):
        input_range.grad = None
        layer(torch.tensor([[x]], dtype=torch.float64)).backward()
        assert input_range.grad.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("wrong", [10.0, 0.5])
def test_steps_improve_a_wrong_range(wrong):
    dac = Converter(bits=4, range="static", full_scale=wrong)
    adc = Converter(bits=6, full_scale=wrong)
    model = nn.Sequential(digital(dtype=torch.float32))
    convert(model, dataclasses.replace(presets.ideal(), dac=dac, adc=adc))
    layer, x = model[0], inputs(64, I, dtype=torch.float32)
    expected = layer.digital(x).detach()
    model.train()
    learned = learn_ranges(model)
    optimizer = torch.optim.Adam(learned, lr=0.1)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (model(x) - expected).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
    assert all((parameter.item() - wrong) * (wrong - 3) < 0 for parameter in learned)


def test_a_range_that_each_input_finds_is_refused_with_a_way_out():
    model = model_of(Hardware())
    with pytest.raises(InputError, match=r"0 has no static input range to learn: calibrate one .* DAC range 'static'"):
        learn_ranges(model)
    assert not any("range" in name for name, _ in model.named_parameters())
    for layer in analog_layers(model).values():
        layer.input_range = torch.tensor(1.25)
    assert [parameter.item() for parameter in learn_ranges(model)] == [1.25, 10.0, 1.25, 10.0]


def test_ranges_are_learned_once():
    model = model_of(Hardware(dac=STATIC))
    learned = learn_ranges(model)
    assert [parameter.item() for parameter in learned] == [1.5, 10.0, 1.5, 10.0]
    again = learn_ranges(model)  # an optimizer holds the first ones
    assert all(a is b for a, b in zip(learned, again, strict=True))
    assert {name for name, _ in model.named_parameters() if "range" in name} == {
        f"{layer}.{part}_range" for layer in "02" for part in ("input", "adc")
    }


def test_a_column_range_is_learned_column_by_column():
    layer = AnalogLinear.from_digital(digital(), Hardware(dac=STATIC, tile=Tile(4, 3))).train()
    layer.adc_range = inputs(3, O, seed=5).abs() + 0.2
    _, adc_range = layer.learn_ranges()
    layer(inputs(B, I)).sum().backward()
    assert adc_range.grad.shape == (3, O)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_learned_ranges_keep_the_precision_of_the_tiles(dtype, tmp_path):
    model = model_of(Hardware(dac=STATIC))
    learned = learn_ranges(model)
    program(model)
    model.to(dtype)
    assert all(parameter.dtype == torch.float32 for parameter in learned)
    assert list(analog_layers(model)["0"].parameters(recurse=False)) == learned[:2]
    save_state(model, tmp_path / "state")
    load_state(model, tmp_path / "state")


def test_learned_ranges_are_saved_and_loaded(tmp_path):
    model = model_of(Hardware(dac=STATIC))
    learned = learn_ranges(model)
    with torch.no_grad():
        for value, parameter in enumerate(learned, 1):
            parameter.fill_(value)
    program(model)
    save_state(model, tmp_path / "state")
    x = inputs(B, I, dtype=torch.float32)
    expected = model(x)
    for other in (model_of(Hardware(dac=STATIC)), copy.deepcopy(model)):
        load_state(other, tmp_path / "state")
        layers = analog_layers(other).values()
        assert [r.item() for layer in layers for r in (layer.input_range, layer.adc_range)] == [1, 2, 3, 4]
        assert not any("range" in name for name, _ in other.named_parameters())
        assert torch.equal(other(x), expected)
        assert len(learn_ranges(other)) == 4


def test_fixed_ranges_can_be_calibrated_again():
    layer = AnalogLinear.from_digital(digital(), Hardware(dac=STATIC))
    layer.learn_ranges()
    layer.fix_ranges()
    assert float(layer.input_range) == 1.5
    assert not layer.input_range.requires_grad
    assert set(layer.state_dict()) == {"digital.weight", "digital.bias"}
    layer.input_range, layer.adc_range = torch.tensor(2.0, dtype=torch.float64), None
    layer(inputs(B, I))
    layer.learn_ranges()
    layer.set_line_scale(torch.ones(I))  # a new mapping forgets ranges, learned or not
    assert layer.input_range is None
    assert not list(layer.parameters(recurse=False))


def test_restored_models_forget_their_ranges():
    model = model_of(Hardware(dac=STATIC))
    learn_ranges(model)
    restore(model)
    assert set(model.state_dict()) == {"0.weight", "0.bias", "2.weight"}


# Weights


@pytest.mark.parametrize("kind", [nn.Linear, Conv1D])
def test_weights_are_clipped_in_place(kind):
    linear, other = digital(kind), nn.Linear(3, 3)
    model = nn.Sequential(linear, other)
    convert(model, Hardware(), include="0")
    before, untouched, weight = linear.weight.detach().clone(), other.weight.detach().clone(), linear.weight
    bound = 1.5 * float(before.square().mean().sqrt())
    clip_weights(model, 1.5)
    assert model[0].digital.weight is weight
    torch.testing.assert_close(weight.detach(), before.clamp(-bound, bound), rtol=1e-6, atol=0)
    assert (weight.abs() < before.abs()).any()
    assert torch.equal(other.weight, untouched)


def test_what_is_clipped_is_what_cells_hold():
    """Weights times their lines' scales, by the deviation of those on tiles; digital lines keep theirs."""
    linear = digital(nn.Linear)
    model = nn.Sequential(linear)
    convert(model, Hardware())
    before, layer = linear.weight.detach().clone(), model[0]
    scale = torch.linspace(0.2, 3.0, layer.in_features, dtype=before.dtype)
    layer.set_digital_lines(torch.tensor([1, 3]))
    layer.set_line_scale(scale)
    tiles = [line for line in range(layer.in_features) if line not in (1, 3)]
    held = (before * scale)[:, tiles]
    bound = 1.5 * float(held.square().mean().sqrt())
    clip_weights(model, 1.5)
    expected = before.clone()
    expected[:, tiles] = held.clamp(-bound, bound) / scale[tiles]
    torch.testing.assert_close(linear.weight.detach(), expected, rtol=1e-6, atol=0)
    assert (expected != before).any()


def test_a_layer_of_one_weight_keeps_it():
    model = nn.Sequential(nn.Linear(1, 1))
    convert(model, Hardware())
    before = model[0].digital.weight.detach().clone()
    clip_weights(model)
    assert torch.equal(model[0].digital.weight, before)


@pytest.mark.parametrize("deviations", [0, -1.0, float("nan"), "2"])
def test_bad_clips_are_refused(deviations):
    with pytest.raises(InputError, match=r"clip_weights deviations = .* is not allowed: give a finite number above 0"):
        clip_weights(model_of(Hardware()), deviations)
    with pytest.raises(InputError, match="has no analog layers"):
        clip_weights(nn.Sequential(nn.Linear(2, 2)))


def test_trained_weights_are_what_is_programmed_next():
    layer = AnalogLinear.from_digital(digital(), presets.ideal()).train()
    with torch.no_grad():
        layer.digital.weight.mul_(3.0)
    layer.eval()  # cells that were never programmed hold their targets, as they are now
    torch.testing.assert_close(layer.effective_weight(), layer.digital.weight.detach())
    layer.program(0)
    with torch.no_grad():
        layer.digital.weight.mul_(3.0)
    layer.train().eval()  # a chip keeps what was written
    torch.testing.assert_close(layer.effective_weight() * 3, layer.digital.weight.detach())
    layer.program(0)
    torch.testing.assert_close(layer.effective_weight(), layer.digital.weight.detach())
