"""AffineCorrection and the lines under it, against numpy's least squares."""

import numpy as np
import pytest
import torch
from torch import nn

from calibration.steps.affine import AffineCorrection
from calibration.steps.least_squares import LeastSquares
from crossbar import Hardware, InputError, age, analog_layers, convert, devices, presets, program


def test_lines_are_least_squares():
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(200, 5, generator=draw) + 3
    b = a * torch.arange(1, 6) + torch.randn(200, 5, generator=draw) - 7
    lines = LeastSquares()
    for part in (slice(0, 50), slice(50, 51), slice(51, 200)):
        lines.add(a[part], b[part])
    gain, offset = lines.solve()
    through_zero, none = lines.solve(intercept=False)
    for column in range(5):
        x, y = a[:, column].double().numpy(), b[:, column].double().numpy()
        expected = np.linalg.lstsq(np.stack([x, np.ones_like(x)], 1), y, rcond=None)[0]
        np.testing.assert_allclose([gain[column], offset[column]], expected, rtol=1e-9)
        np.testing.assert_allclose(through_zero[column], np.linalg.lstsq(x[:, None], y, rcond=None)[0][0], rtol=1e-9)
    assert torch.equal(none, torch.zeros(5, dtype=torch.float64))


def test_a_column_of_one_value_keeps_its_gain():
    lines = LeastSquares()
    lines.add(torch.full((9, 2), 0.5), torch.tensor([0.75, 0.5]).expand(9, 2))
    gain, offset = lines.solve()
    assert gain.tolist() == [1, 1]
    assert offset.tolist() == [0.25, 0]


@pytest.mark.parametrize("bias", [True, False])
def test_known_errors_are_undone(bias):
    """Ideal cells of a layer whose digital weights then grow by known factors, and whose bias is shifted."""
    draw = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 5, bias=bias))
    convert(model, Hardware(devices.Ideal(), dac=None, adc=None, output_noise=0.0))
    program(model)
    factor, shift = torch.linspace(0.5, 2, 5), torch.linspace(-1, 1, 5)
    layer = analog_layers(model)["0"]
    with torch.no_grad():
        layer.digital.weight.mul_(factor.unsqueeze(1))
    batches = [{"input": torch.randn(40, 12, generator=draw)} for _ in range(3)]
    fitted = AffineCorrection().fit(model, batches)
    torch.testing.assert_close(fitted["0.output_gain"], factor, rtol=1e-4, atol=0)
    torch.testing.assert_close(fitted["0.output_offset"], torch.zeros(5), rtol=0, atol=1e-4)
    # An offset of the tiles, made by a correction that the step replaces but whose error it sees, is none of its own.
    layer.set_output_correction(None, shift)
    again = AffineCorrection().fit(model, batches)
    torch.testing.assert_close(again["0.output_offset"], torch.zeros(5), rtol=0, atol=1e-4)
    assert torch.equal(layer.output_offset, shift)


def test_it_looks_at_several_instants():
    """At one instant the fit knows that instant's 1/f noise; over several, less of it."""
    model = nn.Sequential(nn.Linear(200, 20))
    convert(model, presets.pcm())
    program(model)
    age(model, "1d")
    batch = {"input": torch.randn(500, 200, generator=torch.Generator().manual_seed(0))}
    seen = []
    analog_layers(model)["0"].register_forward_hook(lambda layer, *_: seen.append(layer.seconds))
    AffineCorrection(instants=3, spacing=100.0).fit(model, [batch] * 5)
    assert seen == [86400 - 100.0 * (k % 3) for k in range(5)]
    assert analog_layers(model)["0"].seconds == 86400


@pytest.mark.parametrize("options", [{"instants": 0}, {"instants": 1.5}, {"spacing": 0.0}, {"spacing": -1.0}])
def test_refusals(options):
    with pytest.raises(InputError, match=f"AffineCorrection {next(iter(options))} = .* is not allowed"):
        AffineCorrection(**options)
