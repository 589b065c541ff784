"""What the eager backend does on a GPU, on tensors that have a device and a shape and no numbers.

They find tensors of two devices in one operation, and every time that the host would wait for a number.
"""

import contextlib
import dataclasses

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

import crossbar
from crossbar import AnalogLinear, CellNoise, Converter, Faults, Hardware, Tile, presets, using_backend
from crossbar.random import binomial

pytestmark = pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="a torch that is built for CPUs alone")
TILE = Tile(rows=32, cols=16)
HARDWARE = {
    "pcm": presets.pcm(),
    "reram": presets.reram(),
    "gain cells": presets.gain_cell(),
    "ideal": presets.ideal(),
    "correlated": dataclasses.replace(presets.pcm(), device=crossbar.devices.PCM(correlated=True)),
    "faults and spares": Hardware(faults=Faults(stuck_min=0.02, broken_rows=0.01, spare_cols=2)),
    "rate": Hardware(dac=Converter(bits=5, coding="rate", range="static")),
    "bit serial, cell noise": Hardware(dac=Converter(bits=4, coding="bit_serial"), read_noise=CellNoise(0.5, 0.02)),
    "mismatch": Hardware(adc=Converter(full_scale=10.0, gain_std=0.02, offset_std=0.1)),
}


class Linear(nn.Linear):
    """Draws no weights, which a torch that is built for CPUs cannot do elsewhere."""

    def reset_parameters(self):
        for parameter in self.parameters():
            nn.init.ones_(parameter)


class Imagined(FakeTensorMode):
    """Tensors without numbers; whoever asks for one is answered 1, and counted."""

    waits = 0

    def dispatch(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            self.waits += 1
            return torch.ones((), dtype=args[0].dtype).numpy().item()
        assert func is not torch.ops.aten.nonzero.default
        return super().dispatch(func, types, args, kwargs)


@contextlib.contextmanager
def imagined():
    mode = Imagined(allow_non_fake_inputs=True)
    try:
        with mode, using_backend("eager"):
            yield mode
    finally:
        binomial.table.cache_clear()  # it has tables without numbers now


def layer_on(place, name):
    layer = AnalogLinear.from_digital(Linear(70, 33, device=place), dataclasses.replace(HARDWARE[name], tile=TILE))
    if name == "rate":
        layer.input_range = torch.ones((), device=place)
    return layer


@pytest.mark.parametrize("name", HARDWARE)
def test_a_chip_is_read_on_its_device_and_nobody_waits(name):
    with imagined() as mode, torch.no_grad():
        layer, x = layer_on("cuda", name), torch.zeros(5, 70, device="cuda")
        layer.program(3)
        layer.age(3600.0)
        before = mode.waits
        found = layer(x)
        assert found.shape == (5, 33)
        assert found.device == layer.read_out(x).device == x.device
        assert mode.waits == before > 0  # whether weights and cells are numbers is asked before they are read


@pytest.mark.parametrize("name", HARDWARE)
def test_training_computes_on_its_device(name):
    layer_on("cpu", name).train()(torch.ones(2, 70))  # makes the table of errors, on the CPU
    with imagined() as mode:
        layer, x = layer_on("cuda", name).train(), torch.zeros(5, 70, device="cuda", requires_grad=True)
        before = mode.waits
        found = layer(x)  # its backward pass needs a driver
        assert found.device == x.device
        assert found.requires_grad
        assert mode.waits == before + 1  # whether the weights of this step are numbers
