"""Digital corrections beside the tiles: a gain and an offset for each output, and a low-rank adapter."""

import pytest
import torch
from torch import nn

from crossbar import (
    AnalogLinear,
    InputError,
    Ledger,
    age,
    convert,
    load_state,
    new_chip,
    presets,
    program,
    reset_gains,
    reset_reads,
    save_state,
)
from crossbar.nn.linear import CORRECTIONS

I, O, R = 12, 7, 3  # noqa: E741 - the letters of the docs


def numbers(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chip(hardware=None):
    digital = nn.Linear(I, O)
    with torch.no_grad():
        digital.weight.copy_(numbers(O, I, seed=1))
        digital.bias.copy_(numbers(O, seed=2))
    model = nn.Sequential(digital)
    convert(model, hardware or presets.pcm())
    program(model, seed=4)
    age(model, "1d")
    return model, model[0]


def correct(layer):
    layer.set_output_correction(1 + numbers(O, seed=3) / 4, numbers(O, seed=4))
    layer.set_adapter(numbers(I, R, seed=5), numbers(R, O, seed=6))


def call(model, x):
    reset_reads(model)
    with torch.no_grad():
        return model(x)


def test_the_formula():
    model, layer = chip()
    x = numbers(2, 5, I, seed=7)
    plain = call(model, x).double()
    correct(layer)
    bias = layer.digital.bias.detach().double()
    tiles = (plain - bias) * layer.output_gain.double() + layer.output_offset.double()
    expected = tiles + bias + x.double() @ layer.adapter_down.double() @ layer.adapter_up.double()
    torch.testing.assert_close(call(model, x).double(), expected, rtol=0, atol=3e-6)


def test_the_adapter_takes_inputs_before_line_scales():
    model, layer = chip(presets.ideal())
    layer.set_line_scale(torch.linspace(0.5, 2.0, I))
    layer.set_adapter(numbers(I, R, seed=5), numbers(R, O, seed=6))
    x = numbers(5, I, seed=7)
    expected = layer.digital(x) + x @ layer.adapter_down @ layer.adapter_up
    torch.testing.assert_close(call(model, x), expected.detach(), rtol=0, atol=1e-5)


def test_the_effective_weight_has_both():
    model, layer = chip(presets.ideal())
    correct(layer)
    weight = layer.digital.weight * layer.output_gain.unsqueeze(1) + (layer.adapter_down @ layer.adapter_up).t()
    torch.testing.assert_close(layer.effective_weight(), weight.detach(), rtol=0, atol=1e-5)
    offset = layer.output_offset + layer.digital.bias
    x = numbers(5, I, seed=7)
    torch.testing.assert_close(call(model, x), x @ layer.effective_weight().t() + offset.detach(), rtol=0, atol=1e-5)


def test_what_they_cost():
    model, layer = chip()
    x = numbers(5, I)

    def macs():
        with Ledger() as ledger:
            call(model, x)
        return ledger.totals()["digital_macs"]

    plain = macs()
    layer.set_output_correction(torch.ones(O), None)
    assert macs() - plain == 5 * O
    layer.set_output_correction(torch.ones(O), torch.zeros(O))
    assert macs() - plain == 5 * O  # a multiply and an add are one
    layer.set_output_correction(None, None)
    layer.set_adapter(numbers(I, R), numbers(R, O))
    assert macs() - plain == 5 * R * (I + O)


def test_a_bypassed_layer_has_none():
    model, layer = chip()
    correct(layer)
    layer.bypass = True
    x = numbers(5, I)
    assert torch.equal(call(model, x), layer.digital(x))


@pytest.mark.parametrize(
    "forget",
    [reset_gains, new_chip, lambda m: program(m, seed=4), lambda m: m[0].set_line_scale(torch.full((I,), 2.0))],
    ids=["reset_gains", "new_chip", "program", "set_line_scale"],
)
@pytest.mark.parametrize("trained", [False, True])
def test_forgotten_with_what_they_were_fitted_to(forget, trained):
    model, layer = chip()
    correct(layer)
    if trained:
        layer.set_adapter(nn.Parameter(layer.adapter_down), nn.Parameter(layer.adapter_up))
    forget(model)
    assert all(getattr(layer, name) is None for name in CORRECTIONS)
    correct(layer)  # and can be set anew
    assert torch.equal(layer.adapter_up, numbers(R, O, seed=6))


def test_ageing_keeps_them():
    model, layer = chip()
    correct(layer)
    age(model, "1y")
    assert torch.equal(layer.output_offset, numbers(O, seed=4))


def test_an_adapter_can_be_trained_through_the_tiles():
    model, layer = chip()
    down, up = nn.Parameter(numbers(I, R, seed=5)), nn.Parameter(torch.zeros(R, O))
    layer.set_adapter(down, up)
    assert {"0.adapter_down", "0.adapter_up"} <= dict(model.named_parameters()).keys()
    x = numbers(20, I, seed=7)
    model(x).sum().backward()
    torch.testing.assert_close(up.grad, (x @ down).sum(0).unsqueeze(1).expand(R, O).detach(), rtol=1e-5, atol=1e-4)
    assert down.grad is not None


def test_they_move_with_the_model_and_keep_their_precision():
    model, layer = chip()
    correct(layer)
    before = layer.adapter_down.clone()
    model.half()
    assert layer.adapter_down.dtype == torch.float32
    assert torch.equal(layer.adapter_down, before)
    assert not any(name.rpartition(".")[2] in CORRECTIONS for name in model.state_dict())


@pytest.mark.parametrize("trained", [False, True])
def test_saved_and_loaded(tmp_path, trained):
    model, layer = chip()
    correct(layer)
    if trained:
        layer.set_adapter(nn.Parameter(layer.adapter_down), nn.Parameter(layer.adapter_up))
    x = numbers(5, I)
    expected = call(model, x)
    save_state(model, tmp_path / "state")
    other, twin = chip()
    twin.set_adapter(nn.Parameter(numbers(I, 1)), nn.Parameter(numbers(1, O)))
    load_state(other, tmp_path / "state")
    assert torch.equal(call(other, x), expected)
    assert not isinstance(twin.adapter_up, nn.Parameter)
    plain, _ = chip()
    save_state(plain, tmp_path / "plain")
    load_state(other, tmp_path / "plain")
    assert all(getattr(twin, name) is None for name in CORRECTIONS)


def test_a_file_with_a_bad_adapter_is_refused(tmp_path):
    model, layer = chip()
    correct(layer)
    layer.adapter_up = None
    save_state(model, tmp_path / "half")
    layer.adapter_up = numbers(R + 1, O)
    save_state(model, tmp_path / "ranks")
    other, twin = chip()
    with pytest.raises(InputError, match="has half an adapter of 0: write it again"):
        load_state(other, tmp_path / "half")
    with pytest.raises(InputError, match=r"has adapter_up \[4, 7\] in 0, the model \[3, 7\]"):
        load_state(other, tmp_path / "ranks")
    assert twin.adapter_down is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda layer: layer.set_adapter(numbers(I, R), None), "got half an adapter"),
        (lambda layer: layer.set_adapter(numbers(O, R), numbers(R, O)), r"bad adapter down: give \[12, 3\] finite"),
        (lambda layer: layer.set_adapter(numbers(I, R), numbers(R + 1, O)), r"bad adapter up: give \[3, 7\] finite"),
        (lambda layer: layer.set_adapter(numbers(I, R) / 0, numbers(R, O)), "bad adapter down"),
        (lambda layer: layer.set_output_correction(numbers(I), None), r"bad output correction: give \[7\] finite"),
        (lambda layer: layer.set_output_correction(None, numbers(O) * torch.nan), "bad output correction"),
    ],
)
def test_refusals(call, message):
    layer = AnalogLinear.from_digital(nn.Linear(I, O), presets.pcm())
    with pytest.raises(InputError, match=message):
        call(layer)
    assert all(getattr(layer, name) is None for name in CORRECTIONS)
