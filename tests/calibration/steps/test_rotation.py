"""The step Rotation: what it gains where few lines carry outliers, and what it refuses."""

import pytest
import torch
from torch import nn

from calibration import InputRanges, Rotation
from crossbar import InputError, analog_layers, convert, presets, program


def layer():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(96, 24)).eval()
        nn.init.normal_(model[0].weight, std=0.1)
        return model


def batches(first=1, count=4):
    """A token has two outliers, on lines of its own, which no scale of lines can know of."""
    draw = torch.Generator().manual_seed(first)
    inputs = torch.randn(count, 64, 96, generator=draw)
    inputs.scatter_(2, torch.randint(0, 96, (count, 64, 2), generator=draw), 20.0)
    return [{"input": some} for some in inputs]


def error(seed, *steps):
    model = layer()
    convert(model, presets.pcm())
    for step in steps:
        step.apply(model, step.fit(model, batches()))
    program(model, seed)
    x = torch.cat([batch["input"] for batch in batches(first=2)])
    with torch.no_grad():
        return float((model(x) - layer()(x)).square().mean())


def test_outputs_err_less_than_by_balancing_alone():
    """Of the mean square error of three chips, a quarter goes and more."""
    rotated = sum(error(seed, InputRanges(), Rotation(32)) for seed in range(3))
    assert rotated < 3 / 4 * sum(error(seed, InputRanges()) for seed in range(3))


@pytest.mark.parametrize(
    ("lines", "block"), [(1536, 512), (576, 64), (384, 128), (2, 2), (9, 8), (513, 512), (40, 8), (4096, 512)]
)
def test_blocks_leave_few_lines_out(lines, block):
    model = nn.Sequential(nn.Linear(lines, 1))
    convert(model, presets.ideal())
    assert int(Rotation().fit(model, [])["0.rotation"]) == block


def test_layers_with_fewer_lines_take_smaller_blocks():
    model = nn.Sequential(nn.Linear(40, 9), nn.Linear(9, 1), nn.Linear(1, 2))
    convert(model, presets.ideal())
    fitted = Rotation(16).fit(model, [])
    assert {name: int(block) for name, block in fitted.items()} == {"0.rotation": 8, "1.rotation": 8}
    Rotation(16).apply(model, fitted)
    assert [layer.rotation is None for layer in analog_layers(model).values()] == [False, False, True]
    Rotation(16).apply(model, {})
    assert all(layer.rotation is None for layer in analog_layers(model).values())


@pytest.mark.parametrize("block", [1, 48, 8192, 2.0])
def test_refusals(block):
    with pytest.raises(InputError, match="Rotation block"):
        Rotation(block)
