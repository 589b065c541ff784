"""Targets for drift: what cells come to is what was wanted, but for a gain."""

import pytest
import torch
from torch import nn

from calibration import DriftCompensation, DriftTargets, WeightRanges
from crossbar import InputError, age, analog_layers, convert, presets, program, reset_reads

YEAR = 31_536_000.0


def layer():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(200, 64, bias=False)).eval()
        nn.init.normal_(model[0].weight, std=0.1)
    return model


def batches(seed=0):
    return [{"input": torch.randn(256, 200, generator=torch.Generator().manual_seed(seed))}]


def error(hardware, seconds, *steps, seed=0):
    """Squared, of the outputs of a chip whose drift is compensated, as a part of the digital ones'."""
    model = layer()
    convert(model, hardware)
    for step in steps:
        step.apply(model, step.fit(model, batches()))
    program(model, seed)
    age(model, seconds)
    gains = DriftCompensation()
    gains.apply(model, gains.fit(model, batches()))
    reset_reads(model)
    x = batches(1)[0]["input"]
    with torch.no_grad():
        wanted = layer()(x)
        return float((model(x) - wanted).square().sum() / wanted.square().sum())


@pytest.mark.parametrize("before", [(), (WeightRanges(),)], ids=["", "WeightRanges"])
def test_cells_that_bend_weights_err_less(before):
    """Of three HERMES chips after a year: a third of the squared error goes and more."""
    bent, straight = (
        sum(error(presets.hermes(), YEAR, *before, *steps, seed=seed) for seed in range(3))
        for steps in ((), (DriftTargets(YEAR),))
    )
    assert straight < 2 / 3 * bent


def test_the_mean_of_many_cells_is_what_was_wanted():
    """Weights of a quarter, half and three quarters of the largest, 20,000 each, on one chip."""
    wanted = torch.tensor([0.25, 0.5, 0.75, 1.0]).repeat(20_000, 1)
    model = nn.Sequential(nn.Linear(4, 20_000, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(wanted)
    convert(model, presets.hermes())
    found = {}
    for steps in ((), (DriftTargets(YEAR),)):
        for step in steps:
            step.apply(model, step.fit(model, []))
        program(model, 0)
        age(model, YEAR)
        mean = model[0].effective_weight().mean(0)
        found[len(steps)] = mean / mean[-1]
    assert (found[0] - wanted[0])[:3].abs().min() > 0.1
    torch.testing.assert_close(found[1], wanted[0], atol=0.01, rtol=0)


@pytest.mark.parametrize("name", ["pcm", "reram", "ideal"])
def test_cells_that_keep_ratios_are_left_alone(name):
    model = layer()
    convert(model, getattr(presets, name)())
    assert DriftTargets(YEAR).fit(model, []) == {}


def test_refusals():
    with pytest.raises(InputError, match="DriftTargets seconds"):
        DriftTargets(-1.0)
    model = layer()
    convert(model, presets.hermes())
    (only,) = analog_layers(model).values()
    only.set_target_correction(torch.zeros(64, 200))
    with pytest.raises(InputError, match="targets that make up for wires: leave out DriftTargets or WireAware"):
        DriftTargets().fit(model, [])
