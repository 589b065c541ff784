"""AdcRanges: measured, column by column, through the converters."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from calibration.steps.adc_ranges import AdcRanges
from crossbar import Converter, Hardware, InputError, analog_layers, convert, devices, program

FULL = 10.0


def chip(weight, output_noise=0.0, bits=8):
    """Ideal cells with an ADC of full scale 10 unit outputs."""
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    with torch.no_grad():
        model[0].weight.copy_(weight)
    convert(
        model,
        Hardware(devices.Ideal(), dac=None, adc=Converter(bits, "static", full_scale=FULL), output_noise=output_noise),
    )
    program(model)
    return model


def uneven(seed=0):
    """Columns whose sums differ much: a few large cells, or all of them."""
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(seed))
    weight[:3, 4:] *= 0.01
    return weight


def batches():
    draw = torch.Generator().manual_seed(1)
    return [{"input": torch.randn(64, 64, generator=draw).clamp(-1, 1) / 8} for _ in range(4)]


def test_it_says_how_many_batches_it_takes():
    model, step, calls = chip(uneven()), AdcRanges(vectors=150), []
    model.register_forward_hook(lambda *_: calls.append(1))
    step.fit(model, batches())
    assert len(calls) == step.batches_of(64) == 3
    assert step.batches_of(100) == 3  # every other of 100 vectors


def test_largest_is_the_smallest_range_that_holds_every_sum():
    model = chip(uneven())
    layer = analog_layers(model)["0"]
    fitted = AdcRanges("largest", vectors=10**6).fit(model, batches())
    sums = layer.expected_read_out(torch.cat([batch["input"] for batch in batches()])).abs().amax(1)
    ranges = FULL * 2 ** -(torch.arange(13) / 2)
    for column in range(6):
        least = min(r for r in ranges if r > sums[0, column])
        assert fitted["0"][0, column] == pytest.approx(float(least))


def test_the_mse_choice_is_the_largest_of_the_best_ranges_of_each_column():
    """Against brute force: every range tried for a whole layer and 256 vectors that tell 18% apart."""
    model = chip(uneven(), bits=4)
    layer = analog_layers(model)["0"]
    fitted = AdcRanges(vectors=10**6).fit(model, batches())["0"][0]
    x = torch.cat([batch["input"] for batch in batches()])
    errors = []
    ranges = FULL * 2 ** -(torch.arange(13) / 2)
    for adc_range in ranges:
        layer.set_adc_range(adc_range)
        with torch.no_grad():
            y, target = layer(x).double(), layer.digital(x).double()
        gain = (y * target).sum(0) / y.square().sum(0).clamp(min=1e-30)
        errors.append((gain * y - target).square().sum(0))
    errors = torch.stack(errors)
    best = torch.stack(
        [ranges[(column < (1 + (8 / 256) ** 0.5) * column.min()).nonzero()[0, 0]] for column in errors.t()]
    )
    torch.testing.assert_close(fitted, best)
    assert len(set(fitted.tolist())) > 1


def test_ranges_that_are_as_good_as_each_other_stay_wide():
    """Output noise of 0.2 unit outputs hides the rounding of 8 bits over the full scale, and not that of 3 bits."""
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    data = [{"input": 8 * batch["input"]} for batch in batches()]
    for bits, stays_wide in ((8, True), (3, False)):
        fitted = AdcRanges().fit(chip(weight, output_noise=0.2, bits=bits), data)["0"]
        assert bool((fitted == FULL).all()) == stays_wide


def relative_errors(model, data):
    """By layer and range: the sum over columns of squared errors behind the best gain, as parts of the columns' own."""
    x, found = torch.cat([batch["input"] for batch in data]), {}
    ranges = FULL * 2 ** -(torch.arange(13) / 2)
    for name, layer in analog_layers(model).items():
        found[name] = []
        for adc_range in ranges:
            layer.set_adc_range(adc_range)
            with torch.no_grad():
                y, target = layer(x).double(), layer.digital(x).double()
            gain = (y * target).sum(0) / y.square().sum(0).clamp(min=1e-30)
            found[name].append(((gain * y - target).square().sum(0) / target.square().sum(0)).sum())
        layer.set_adc_range(None)
        found[name] = torch.stack(found[name])
    return ranges, found


def two_layers():
    """That read the same inputs, and deliver sums of different sizes."""
    model = chip(uneven(), bits=4)
    other = chip(3e-2 * uneven(1).sign() * torch.linspace(0.02, 1, 64), bits=4)
    model.append(other[0])
    model.forward = lambda input: (model[0](input), model[1](input))[1]
    return model


def test_one_range_for_a_layer_or_the_model_has_the_least_sum_of_relative_errors():
    model = two_layers()
    ranges, errors = relative_errors(model, batches())
    by_layer = AdcRanges(shared="layer", vectors=10**6).fit(model, batches())
    assert by_layer == {name: ranges[cost.argmin()] for name, cost in errors.items()}
    assert by_layer["0"] != by_layer["1"]
    whole = AdcRanges(shared="model", vectors=10**6).fit(model, batches())
    assert whole["0"] == whole["1"] == ranges[sum(errors.values()).argmin()]
    AdcRanges(shared="model").apply(model, whole)
    assert analog_layers(model)["1"].adc_range.shape == ()


def test_one_range_that_holds_every_sum_is_the_largest_of_the_columns():
    model = two_layers()
    alone = AdcRanges("largest").fit(model, batches())
    assert AdcRanges("largest", shared="layer").fit(model, batches()) == {k: v.max() for k, v in alone.items()}
    largest = max(float(v.max()) for v in alone.values())
    assert [float(v) for v in AdcRanges("largest", shared="model").fit(model, batches()).values()] == [largest] * 2


def test_converters_of_different_full_scales_share_no_range():
    model = two_layers()
    layer = analog_layers(model)["1"]
    layer.cells.hardware = replace(layer.hardware, adc=replace(layer.hardware.adc, full_scale=3.0))
    with pytest.raises(InputError, match=r"full scales of .*3\.0.*: give shared: layer"):
        AdcRanges(shared="model").fit(model, batches())


def test_converters_then_cost_less():
    model = chip(uneven())
    x = torch.cat([batch["input"] for batch in batches()])
    layer, step = analog_layers(model)["0"], AdcRanges()

    def error():
        with torch.no_grad():
            return float((layer(x) - layer.digital(x)).norm())

    before = error()
    step.apply(model, step.fit(model, batches()))
    assert error() < before / 3


def test_it_runs_no_more_data_than_it_reads():
    seen = []
    analog = chip(uneven())
    analog[0].register_forward_hook(lambda *_: seen.append(1))
    AdcRanges(vectors=100).fit(analog, batches())  # 64 of the first batch and 36 of the second
    assert len(seen) == 2


def test_layers_without_adcs_are_left_out():
    model = nn.Sequential(nn.Linear(8, 4))
    convert(model, Hardware(devices.Ideal(), dac=None, adc=None))
    program(model)
    assert AdcRanges().fit(model, [{"input": torch.ones(3, 8)}]) == {}


@pytest.mark.parametrize("options", [{"method": "fair"}, {"vectors": 0}, {"shared": "tile"}])
def test_refusals(options):
    with pytest.raises(InputError, match=f"AdcRanges {next(iter(options))}"):
        AdcRanges(**options)
