"""Digital lines: which word lines leave the tiles, and what that gains."""

import pytest
import torch
from torch import nn

from calibration import DigitalLines, InputRanges
from crossbar import InputError, convert, presets, program

OUTLIERS = [3, 7]


def layer():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(40, 24)).eval()


def batches(count=4):
    draw = torch.Generator().manual_seed(1)
    size = torch.ones(40)
    size[OUTLIERS] = 30.0
    return [{"input": torch.randn(8, 16, 40, generator=draw) * size} for _ in range(count)]


def chip(seed, *steps):
    model = layer()
    convert(model, presets.pcm())
    for step in steps:
        step.apply(model, step.fit(model, batches()))
    program(model, seed)
    return model


def error(model):
    inputs = torch.cat([batch["input"] for batch in batches(6)[4:]])
    with torch.no_grad():
        return float((model(inputs) - layer()(inputs)).square().mean())


def test_outliers_are_chosen_whatever_their_scale():
    model = layer()
    convert(model, presets.pcm())
    chosen = DigitalLines(0.05).fit(model, batches())
    assert chosen["0.digital_lines"].tolist() == OUTLIERS
    balanced = InputRanges()
    balanced.apply(model, balanced.fit(model, batches()))
    assert DigitalLines(0.05).fit(model, batches())["0.digital_lines"].tolist() == OUTLIERS


def test_a_large_weight_counts_as_a_large_input():
    model = layer()
    with torch.no_grad():
        model[0].weight[:, 11] *= 1000.0
    convert(model, presets.pcm())
    assert DigitalLines(0.001).fit(model, batches())["0.digital_lines"].tolist() == [11]  # at least one


def test_outputs_err_less_than_by_balancing_alone():
    """Of the mean square error of three chips, more than half goes."""
    without = sum(error(chip(seed, InputRanges())) for seed in range(3))
    with_lines = sum(error(chip(seed, DigitalLines(0.05), InputRanges())) for seed in range(3))
    assert with_lines < 0.5 * without


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, float("nan")])
def test_impossible_shares_are_refused(share):
    with pytest.raises(InputError, match="DigitalLines share"):
        DigitalLines(share)
