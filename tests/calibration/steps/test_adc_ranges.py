"""AdcRanges: measured, column by column, through the converters."""

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


def test_largest_is_the_smallest_range_that_holds_every_sum():
    model = chip(uneven())
    layer = analog_layers(model)["0"]
    fitted = AdcRanges("largest", vectors=10**6).fit(model, batches())
    sums = layer.expected_read_out(torch.cat([batch["input"] for batch in batches()])).abs().amax(1)
    ranges = FULL * 2 ** -(torch.arange(13) / 2)
    for column in range(6):
        least = min(r for r in ranges if r > sums[0, column])
        assert fitted["0"][0, column] == pytest.approx(float(least))


def test_the_mse_choice_is_the_best_range_of_each_column():
    """Against brute force: every range tried for a whole layer through `forward`, without a gain for the column."""
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
    best = ranges[torch.stack(errors).argmin(0)]
    torch.testing.assert_close(fitted, best)
    assert len(set(fitted.tolist())) > 1


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


@pytest.mark.parametrize("options", [{"method": "fair"}, {"vectors": 0}])
def test_refusals(options):
    with pytest.raises(InputError, match=f"AdcRanges {next(iter(options))}"):
        AdcRanges(**options)
