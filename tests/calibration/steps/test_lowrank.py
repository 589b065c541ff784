"""LowRankAdapter: closed form against a float64 singular value decomposition, and what noise leaves of it."""

import pytest
import torch
from torch import nn

from calibration.steps.lowrank import LowRankAdapter, _shrinkage
from crossbar import Hardware, InputError, analog_layers, convert, devices, program

QUIET = Hardware(devices.Ideal(), dac=None, adc=None, output_noise=0.0)


def chip(inputs, outputs, error, hardware=QUIET):
    """A layer whose digital weights differ from its ideal cells by ``error`` ``[O, I]``."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(inputs, outputs))
    convert(model, hardware)
    program(model)
    with torch.no_grad():
        analog_layers(model)["0"].digital.weight.add_(error)
    return model


def batches(inputs, count=6, size=50, seed=0):
    """Inputs with a spectrum."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(inputs, inputs, generator=draw) * torch.logspace(0, -1, inputs)
    return [{"input": torch.randn(size, inputs, generator=draw) @ mix.t()} for _ in range(count)]


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 10), (10, 24)])
def test_an_error_of_its_rank_is_undone(inputs, outputs):
    draw = torch.Generator().manual_seed(1)
    error = torch.randn(outputs, 2, generator=draw) @ torch.randn(2, inputs, generator=draw) / 10
    model = chip(inputs, outputs, error)
    fitted = LowRankAdapter(rank=2, ridge=1e-9).fit(model, batches(inputs))
    product = fitted["0.adapter_down"] @ fitted["0.adapter_up"]
    torch.testing.assert_close(product, error.t(), rtol=0, atol=1e-3 * float(error.abs().max()))


@pytest.mark.parametrize(("inputs", "outputs"), [(24, 10), (10, 24)])
def test_the_best_adapter_of_a_rank_on_these_inputs(inputs, outputs):
    """``min |√w (X A B - X E)|`` over rank 3, by an explicit singular value decomposition of ``√w X E`` in float64."""
    error = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)) / 10
    model, data = chip(inputs, outputs, error), batches(inputs)
    x = torch.cat([batch["input"] for batch in data]).double()
    weight = []
    for batch in data:  # a token counts by the mean output of its batch and by its own
        size = analog_layers(model)["0"].digital(batch["input"]).double().square().mean(1, keepdim=True)
        weight.append((1 / size.mean() + 1 / size).sqrt())
    x = x * torch.cat(weight)
    u, s, vh = torch.linalg.svd(x @ error.double().t(), full_matrices=False)
    expected = u[:, :3] * s[:3] @ vh[:3]
    fitted = LowRankAdapter(rank=3, ridge=1e-9).fit(model, data)
    found = x @ (fitted["0.adapter_down"] @ fitted["0.adapter_up"]).double()
    assert (found - expected).norm() < 2e-3 * expected.norm()


def test_noise_alone_gets_no_adapter():
    model = chip(30, 20, torch.zeros(20, 30), Hardware(devices.Ideal(), dac=None, adc=None, output_noise=0.1))
    assert LowRankAdapter(rank=8).fit(model, batches(30)) == {}


def test_little_data_make_no_wrong_correction():
    """Fewer tokens than inputs, where plain least squares would fit the noise of every read."""
    hardware = Hardware(devices.Ideal(), dac=None, adc=None, output_noise=0.1)
    draw = torch.Generator().manual_seed(1)
    error = torch.randn(40, 1, generator=draw) @ torch.randn(1, 64, generator=draw) / 3
    model, fresh = chip(64, 40, error, hardware), batches(64, seed=9)
    digital = analog_layers(model)["0"].digital

    def left():
        with torch.no_grad():
            return sum(float((model(**batch) - digital(batch["input"])).square().sum()) for batch in fresh)

    plain = left()
    step = LowRankAdapter(rank=16)
    fitted = step.fit(model, batches(64, count=1))
    assert 1 <= fitted["0.adapter_down"].shape[1] < 16
    step.apply(model, fitted)
    assert left() < plain


def test_shrinkage_of_singular_values():
    """Of a matrix of rank 2 in noise: nearer to the truth than the plain cut is, and nothing left of noise."""
    draw = torch.Generator().manual_seed(3)
    lines, outputs, noise = 60, 40, 0.01
    truth = torch.zeros(lines, outputs, dtype=torch.float64)
    truth[0, 0], truth[1, 1] = 4.0, 2.2
    u, s, vh = torch.linalg.svd(truth + noise**0.5 * torch.randn(lines, outputs, generator=draw, dtype=torch.float64))
    kept = _shrinkage(s.square(), lines, outputs, torch.tensor(noise, dtype=torch.float64))
    assert (kept > 0).sum() == 2
    shrunk, cut = (u[:, :2] * values[:2] @ vh[:2] for values in (s * kept, s))
    assert (shrunk - truth).norm() < 0.95 * (cut - truth).norm()
    silent = _shrinkage(s.square(), lines, outputs, torch.tensor(0.0, dtype=torch.float64))
    torch.testing.assert_close(silent, torch.ones_like(s))


def test_combining_adapters_is_their_mean():
    step, draw = LowRankAdapter(rank=4), torch.Generator().manual_seed(2)
    pairs = [(torch.randn(9, 2, generator=draw), torch.randn(2, 7, generator=draw)) for _ in range(2)]
    fits = [{"0.adapter_down": down, "0.adapter_up": up} for down, up in pairs]
    found = step.combine([*fits, {}])  # the third chip has nothing to correct
    expected = sum(down @ up for down, up in pairs) / 3
    torch.testing.assert_close(found["0.adapter_down"] @ found["0.adapter_up"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"rank": 0}, {"rank": 1.5}, {"ridge": 0.0}, {"instants": 0}, {"spacing": 0.0}])
def test_refusals(options):
    with pytest.raises(InputError, match=f"LowRankAdapter {next(iter(options))} = .* is not allowed"):
        LowRankAdapter(**options)
