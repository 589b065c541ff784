"""BatchNormStatistics, against means and variances written out."""

import numpy as np
import pytest
import torch
from torch import nn

from calibration.steps.batch_norms import BatchNormStatistics
from calibration.steps.norms import batch_norms, digital_norms, restore_norms
from calibration.steps.observe import digital
from crossbar import Hardware, convert, devices, presets, program


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.second, self.last = nn.Conv2d(4, 5, 3, bias=False), nn.BatchNorm2d(5, affine=False)

    def forward(self, x):
        return self.last(self.second(torch.relu(self.norm(self.first(x)))))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net().eval()
        for norm in batch_norms(model).values():
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return model


@pytest.fixture
def batches():
    draw = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(6, 3, 9, 9, generator=draw)} for _ in range(3)]


def test_statistics_are_those_of_the_chip_in_each_batch(model, batches):
    convert(model, Hardware(devices.Ideal(), dac=None, adc=None, output_noise=0.0))
    program(model)
    model.first.tiles["weight"].set_output_correction(torch.linspace(0.5, 1.5, 4), torch.linspace(-1, 1, 4))
    fitted = BatchNormStatistics().fit(model, batches)
    with torch.no_grad():
        seen = [model.first(batch["x"]) for batch in batches]
        after = []
        for x in seen:
            centred = (x - x.mean((0, 2, 3), keepdim=True)) / (
                x.var((0, 2, 3), keepdim=True, correction=0) + 1e-5
            ).sqrt()
            after.append(
                model.second(torch.relu(centred * model.norm.weight.view(-1, 1, 1) + model.norm.bias.view(-1, 1, 1)))
            )
    for name, maps in (("norm", seen), ("last", after)):
        values = [x.movedim(1, 0).flatten(1).double().numpy() for x in maps]
        np.testing.assert_allclose(
            fitted[f"{name}.running_mean"], np.mean([v.mean(1) for v in values], 0), rtol=1e-4, atol=1e-5
        )
        np.testing.assert_allclose(
            fitted[f"{name}.running_var"], np.mean([v.var(1, ddof=1) for v in values], 0), rtol=1e-4
        )


def test_the_digital_model_keeps_its_own(model, batches):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    expected = model(**batches[0])
    convert(model, presets.pcm())
    program(model)
    step = BatchNormStatistics()
    fitted = step.fit(model, batches)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before if "running" in name)
    step.apply(model, fitted)
    step.apply(model, fitted)
    assert not torch.equal(model.norm.running_mean, before["norm.running_mean"])
    with digital(model), torch.no_grad():
        assert torch.equal(model(**batches[0]), expected)
    with digital_norms(model):
        assert torch.equal(model.norm.running_var, before["norm.running_var"])
    torch.testing.assert_close(model.norm.running_var, fitted["norm.running_var"], rtol=0, atol=0)
    restore_norms(model)
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before if "running" in name)
    assert not [name for name, _ in model.named_buffers() if "digital_" in name]


def test_a_model_without_batch_norms_has_nothing_to_fit(batches):
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    convert(model, presets.pcm())
    assert BatchNormStatistics().fit(model, []) == {}
