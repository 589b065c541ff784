"""InputRanges: word-line scales and static DAC ranges, on |x| of real tokens."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from calibration import InputRanges
from crossbar import Converter, InputError, analog_layers, convert, presets, program


class Pair(nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x, attention_mask=None):
        return self.second(self.first(x))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Pair(nn.Linear(12, 20), nn.Linear(20, 4)).eval()


@pytest.fixture
def batches():
    """Inputs whose extremes are negative and whose channels differ a hundredfold."""
    draw = torch.Generator().manual_seed(1)
    channel = torch.logspace(-1, 1, 12)
    return [{"x": (torch.randn(3, 5, 12, generator=draw) - 0.5) * channel} for _ in range(4)]


def joined(batches):
    return torch.cat([batch["x"].reshape(-1, 12) for batch in batches])


@pytest.mark.parametrize("exponent", [0.4, 0.5])
def test_balanced_sets_input_sizes_against_weights(model, batches, exponent):
    inputs = {"first": joined(batches), "second": model.first(joined(batches)).detach()}
    weights = {"first": model.first.weight.detach(), "second": model.second.weight.detach()}
    convert(model, presets.pcm())
    fitted = InputRanges(exponent=exponent).fit(model, batches)
    for name, x in inputs.items():
        size = (x.abs().amax(0) * x.square().mean(0).sqrt()).sqrt()
        ratio = fitted[name] / (size / weights[name].abs().amax(0)) ** exponent
        torch.testing.assert_close(ratio, ratio[:1].expand_as(ratio), rtol=1e-5, atol=0)
        assert fitted[name].log().mean().abs() < 1e-5  # the common factor: a geometric mean of 1


def test_balanced_leaves_the_function_of_ideal_hardware(model, batches):
    expected = model(batches[0]["x"])
    convert(model, presets.ideal())
    step = InputRanges()
    step.apply(model, step.fit(model, batches))
    program(model)
    found = model(batches[0]["x"])
    assert (found - expected).norm() / expected.norm() < 1e-6
    assert analog_layers(model)["first"].line_scale.max() > 2


def test_balanced_tames_outlier_channels(batches):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        linear = nn.Linear(12, 20)
    loud = [{"x": batch["x"] * torch.tensor([1.0] * 11 + [50.0])} for batch in batches]
    with torch.no_grad():
        linear.weight[:, 11] /= 50
    model, step = Pair(linear, nn.Identity()).requires_grad_(False), InputRanges()
    expected = model(loud[0]["x"])
    convert(model, replace(presets.pcm(), device=presets.ideal().device))
    errors = []
    for _ in range(2):
        errors.append(float((model(loud[0]["x"]) - expected).norm()))
        step.apply(model, step.fit(model, loud))
    assert errors[1] < errors[0] / 2


def test_abs_max_sees_negative_extremes(model, batches):
    x = joined(batches)
    assert x.abs().max() > x.max()
    hidden = model.first(x).abs().max()
    convert(model, presets.pcm())
    fitted = InputRanges("abs_max").fit(model, batches)
    assert fitted["first"] == x.abs().max()
    assert fitted["first"].shape == ()
    torch.testing.assert_close(fitted["second"], hidden.detach(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.999, 1.0])
def test_quantiles_are_of_the_absolute_value(model, batches, quantile):
    x = joined(batches).abs().flatten()
    convert(model, presets.pcm())
    fitted = InputRanges("quantile", quantile).fit(model, batches)["first"]
    ranked, step = x.sort().values, x.max() / 8192
    place = min(int(quantile * len(x)), len(x) - 1)
    assert ranked[max(place - 1, 0)] - step <= fitted <= ranked[place] + step


def test_the_range_is_what_the_dac_uses(model, batches):
    convert(model, replace(presets.ideal(), dac=Converter(bits=8, range="static")))
    layer = analog_layers(model)["first"]
    InputRanges("abs_max").apply(model, {"first": torch.tensor(2.0)})
    weight, bias = layer.target_weight(), layer.digital.bias
    x = torch.linspace(-4, 4, 12)[None]
    clipped = (x.clamp(-2, 2) / 2 * 127).round() * 2 / 127
    torch.testing.assert_close(layer(x), clipped @ weight.t() + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["balanced", "abs_max", "quantile"])
def test_padded_positions_do_not_count(model, batches, method):
    convert(model, presets.pcm())
    step = InputRanges(method, quantile=0.9)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 1]])
    for batch in batches:
        batch["attention_mask"] = mask
    expected = step.fit(model, batches)
    for batch in batches:
        batch["x"] = torch.where(mask.bool()[..., None], batch["x"], 1e4)
    found = step.fit(model, batches)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_silent_channel_and_an_empty_row_still_get_a_scale(model, batches):
    with torch.no_grad():
        model.first.weight[:, 3] = 0.0
    for batch in batches:
        batch["x"][..., 5] = 0.0
    convert(model, presets.pcm())
    step = InputRanges()
    fitted = step.fit(model, batches)
    step.apply(model, fitted)
    assert all((scale > 0).all() and scale.isfinite().all() for scale in fitted.values())


@pytest.mark.parametrize("method", ["balanced", "abs_max", "quantile"])
def test_silent_inputs_give_a_usable_range(model, method):
    convert(model, presets.pcm())
    zeros = [{"x": torch.zeros(1, 2, 12)}]
    step = InputRanges(method)
    step.apply(model, step.fit(model, zeros))
    assert model(zeros[0]["x"]).isfinite().all()


def test_a_layer_that_no_batch_reaches_is_left_out(model, batches):
    model.spare = nn.Linear(3, 3)
    convert(model, presets.pcm())
    assert InputRanges().fit(model, batches).keys() == {"first", "second"}


def test_static_ranges_after_balancing_are_in_units_of_the_dac(model, batches):
    convert(model, presets.pcm())
    balanced, static = InputRanges(), InputRanges("abs_max")
    balanced.apply(model, balanced.fit(model, batches))
    static.apply(model, static.fit(model, batches))
    layer = analog_layers(model)["first"]
    seen = (joined(batches) / layer.line_scale).abs().max()
    torch.testing.assert_close(layer.input_range, seen, rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "mse"}, "InputRanges method 'mse' is unknown: choose balanced, abs_max, quantile"),
        ({"method": "quantile", "quantile": 0.0}, "InputRanges quantile = 0.0 is not allowed"),
        ({"method": "quantile", "quantile": 1.01}, "InputRanges quantile = 1.01 is not allowed"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        InputRanges(**options)
