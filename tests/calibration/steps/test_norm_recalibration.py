"""NormRecalibration, and which modules are norms."""

import numpy as np
import pytest
import torch
from torch import nn

from calibration.steps.norm_recalibration import NormRecalibration
from calibration.steps.norms import norms, restore_norms
from crossbar import Hardware, InputError, convert, devices, presets, program


class Plus1Norm(nn.Module):
    """As Gemma's: the output is not a multiple of its parameter."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(6))

    def forward(self, x):
        return x * (1 + self.weight)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm, self.rms, self.other = nn.Linear(8, 6), nn.LayerNorm(6), nn.RMSNorm(6), Plus1Norm()

    def forward(self, x):
        h = self.linear(x)
        return self.norm(h), self.rms(h)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net().eval()
        nn.init.normal_(model.norm.weight)
        nn.init.normal_(model.norm.bias)
    return model


@pytest.fixture
def batches():
    draw = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(30, 8, generator=draw)} for _ in range(3)]


def test_norms_are_those_that_multiply(model):
    assert list(norms(model)) == ["norm", "rms"]


def test_the_line_to_the_digital_outputs_against_numpy(model, batches):
    expected = [model(**batch) for batch in batches]
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    convert(model, Hardware(devices.Ideal(), dac=None, adc=None, output_noise=0.0))
    program(model)
    layer = model.linear
    layer.set_output_correction(torch.linspace(0.5, 1.5, 6), torch.linspace(-1, 1, 6))  # an error, no noise
    found = [model(**batch) for batch in batches]
    fitted = NormRecalibration().fit(model, batches)
    assert set(fitted) == {"norm.weight", "norm.bias", "rms.weight"}
    for which, name in enumerate(("norm", "rms")):
        x, y = (torch.cat([pair[which] for pair in of]).detach().double().numpy() for of in (found, expected))
        for feature in range(6):
            columns = [x[:, feature], np.ones(len(x))] if name == "norm" else [x[:, feature]]
            line = np.linalg.lstsq(np.stack(columns, 1), y[:, feature], rcond=None)[0]
            weight, bias = before[f"{name}.weight"][feature], before.get(f"{name}.bias", torch.zeros(6))[feature]
            np.testing.assert_allclose(fitted[f"{name}.weight"][feature], line[0] * weight, rtol=1e-3, atol=1e-4)
            if name == "norm":
                np.testing.assert_allclose(fitted["norm.bias"][feature], line[0] * bias + line[1], rtol=1e-3, atol=1e-4)


def test_half_strength_is_half_the_way(model, batches):
    convert(model, presets.pcm())
    program(model)
    before = model.norm.weight.detach().clone()
    full, half = (NormRecalibration(strength=strength).fit(model, batches)["norm.weight"] for strength in (1.0, 0.5))
    torch.testing.assert_close(half, (before + full) / 2)


def test_norms_are_restored(model, batches):
    before = {name: value.detach().clone() for name, value in norms(model)["norm"].named_parameters()}
    convert(model, presets.pcm())
    program(model)
    step = NormRecalibration()
    first = step.fit(model, batches)
    step.apply(model, first)
    again = step.fit(model, batches)  # fitted to the norms of the digital model, not on top of the first
    assert all(torch.equal(first[name], again[name]) for name in first)
    restore_norms(model)
    assert all(torch.equal(value, before[name]) for name, value in model.norm.named_parameters())


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"instants": 0}, {"spacing": 0.0}])
def test_refusals(options):
    with pytest.raises(InputError, match=f"NormRecalibration {next(iter(options))} = .* is not allowed"):
        NormRecalibration(**options)
