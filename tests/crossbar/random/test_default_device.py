"""Draws of a CPU model inside ``with torch.device(...)`` are those outside: no tensor takes the default device."""

import dataclasses

import pytest
import torch

import crossbar
from crossbar import CellNoise, Converter, Faults, Hardware, Tile, WriteVerify, devices, presets

TILE = Tile(rows=32, cols=16)
HARDWARE = {
    "pcm": presets.pcm(),
    "correlated": dataclasses.replace(presets.pcm(), device=devices.PCM(correlated=True)),
    "hermes": presets.hermes(),
    "reram": presets.reram(),
    "faults and spares": Hardware(faults=Faults(stuck_min=0.02, broken_rows=0.01, spare_cols=2)),
    "verified": Hardware(verify=WriteVerify()),
    "rate": Hardware(dac=Converter(bits=5, coding="rate", range="static")),
    "bit serial, cell noise": Hardware(dac=Converter(bits=4, coding="bit_serial"), read_noise=CellNoise(0.5, 0.02)),
    "mismatch": Hardware(adc=Converter(full_scale=10.0, gain_std=0.02, offset_std=0.1)),
}


def life(model, x):
    """What a chip reads at two ages, and what training draws."""
    crossbar.program(model, 3)
    crossbar.age(model, 3600.0)
    found = [*crossbar.analog_layers(model)["0"].conductances(), model(x), model(x)]
    model.train()
    loss = model(x).square().sum()
    loss.backward()
    found += [loss, crossbar.analog_layers(model)["0"].digital.weight.grad.clone()]
    model.eval()
    return [tensor.detach().nan_to_num(-1.0) for tensor in found]  # absent cells are NaN


@pytest.mark.parametrize("name", HARDWARE)
def test_a_chip_is_the_same_inside_another_default_device(name):
    def converted():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(70, 33)).eval()
        crossbar.convert(model, dataclasses.replace(HARDWARE[name], tile=TILE))
        return model

    x = torch.randn(5, 70, generator=torch.Generator().manual_seed(1))
    expected, model = life(converted(), x), converted()
    with torch.device("meta"):
        found = life(model, x)
    assert all(tensor.device.type == "cpu" for tensor in found)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
