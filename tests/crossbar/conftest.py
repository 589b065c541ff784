"""Layers, inputs and chips that many of these tests begin with: imported from here by name, as plain functions."""

import dataclasses

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from crossbar import AnalogLinear, Tile, age, convert, presets, program

QUIET = dataclasses.replace(presets.ideal(), tile=Tile(4, 3))


def inputs(*shape, seed=1, dtype=torch.float32):
    """Drawn in float32, whatever the dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def inputs64(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def digital(kind=nn.Linear, in_features=10, out_features=7, dtype=torch.float32, seed=0):
    """A digital layer, drawn in float32, whatever the dtype."""
    layer = nn.Linear(in_features, out_features) if kind is nn.Linear else Conv1D(out_features, in_features)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return layer.to(dtype)


def programmed(hardware, seed=0, **size):
    layer = AnalogLinear.from_digital(digital(**size), hardware)
    layer.program(seed)
    return layer


def linear_layer(
    in_features, out_features, hardware, weight=None, *, name="linear", bias=False, dtype=torch.float64, seed=0
):
    """An analog layer that was not programmed, of random weights or the given ones."""
    linear = nn.Linear(in_features, out_features, bias=bias, dtype=dtype)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=dtype))
        if weight is not None:
            linear.weight.copy_(torch.tensor(weight))
    return AnalogLinear.from_digital(linear, hardware, name)


def seeded(build):
    """A model whose weights depend on nothing but this call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build().eval()


def reasons(report):
    return {layer.name: layer.reason for layer in report.digital}


def chip(hardware, seed=0, shape=(70, 50)):
    """Two layers, converted and programmed."""
    model = nn.Sequential(nn.Linear(*shape), nn.Linear(shape[1], 9))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in model:
            layer.reset_parameters()
    convert(model, hardware)
    program(model, seed)
    return model


def reads(model, *times):
    """Conductances of all layers at each time."""
    found = {}
    for time in times:
        age(model, time)
        found[time] = [cells for layer in model for cells in layer.conductances()]
    return found


def same(a, b):
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(a, b, strict=True))
