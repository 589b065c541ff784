"""Gradients of learned ranges against differences: of clipping, which a converter is when its steps are fine.

Rounding has no derivative, so the straight-through gradient of a range cannot be held against differences itself. With
16 bits it must be that of clipping, whose own gradient `torch.autograd.gradcheck` holds against differences; noise is
the same in both. With few bits, the part that a code's rounding adds is in `test_training.py`.
"""

import pytest
import torch
from torch import nn

from crossbar import AnalogLinear, Converter, Hardware, Tile
from crossbar.devices import Ideal
from crossbar.random.streams import Stream

I, O, B = 12, 5, 40  # noqa: E741 - as in every docstring
FINE, NOISE = Converter(bits=16), 0.1


def numbers(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layer_of(rows, **converters):
    digital = nn.Linear(I, O, dtype=torch.float64)
    with torch.no_grad():
        digital.weight.copy_(numbers(O, I, seed=1))
        digital.bias.zero_()
    hardware = Hardware(Ideal(), tile=Tile(rows, 8), **{"dac": None, "adc": None, **converters}, output_noise=NOISE)
    return AnalogLinear.from_digital(digital, hardware)


def outputs(layer, drives, clip=lambda columns: columns):
    """What a layer computes from what drives its lines: columns ``[T, B, O]``, with the layer's own noise, summed."""
    rows, weight = layer.hardware.tile.rows, layer.digital.weight.detach().t()
    noise = NOISE * Stream((0, "linear", "read", 0.0, 0)).columns(len(layer.scales), B, O).double()
    tiles = zip(drives.split(rows, 1), weight.split(rows), layer.scales, strict=True)
    columns = torch.stack([part @ (cells / scale) for part, cells, scale in tiles]) + noise
    return (clip(columns) * layer.scales.unsqueeze(1)).sum(0)


def clipped(values, span):
    return torch.minimum(torch.maximum(values, -span), span)


def loss(y):
    return (y * torch.arange(y.numel()).view_as(y).cos()).sum()


def assert_straight_through(layer, learned, smooth):
    """The layer's gradient is that of the smooth loss, within rounding, and the latter's is that of its differences."""
    span = learned.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(smooth, span)
    (wanted,) = torch.autograd.grad(smooth(span), span)
    y = loss(layer(numbers(B, I, seed=2)))
    torch.testing.assert_close(y, smooth(span), rtol=1e-3, atol=0)
    (found,) = torch.autograd.grad(y, learned)
    assert wanted.abs().min() > 0.05
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("rows", [I, 5], ids=["one tile", "three tiles"])
@pytest.mark.parametrize("each_column", [False, True])
def test_an_adc_range_has_the_gradient_of_clipped_columns(rows, each_column):
    layer = layer_of(rows, adc=FINE)
    span = 1.0 + 0.2 * numbers(len(layer.scales), O, seed=3).tanh()
    layer.set_adc_range(span if each_column else span[0, 0])
    (learned,) = layer.learn_ranges()

    def smooth(span):
        spans = span.unsqueeze(1) if each_column else span
        return loss(outputs(layer, numbers(B, I, seed=2), lambda columns: clipped(columns, spans)))

    assert_straight_through(layer, learned, smooth)


@pytest.mark.parametrize("rows", [I, 5], ids=["one tile", "three tiles"])
def test_a_dac_range_has_the_gradient_of_clipped_inputs(rows):
    """What is clipped drives a line in parts of the range, and the noise of the columns comes in these."""
    layer = layer_of(rows, dac=FINE)
    layer.input_range = torch.tensor(1.1, dtype=torch.float64)
    (learned,) = layer.learn_ranges()

    def smooth(span):
        return loss(outputs(layer, clipped(numbers(B, I, seed=2), span) / span) * span)

    assert_straight_through(layer, learned, smooth)
