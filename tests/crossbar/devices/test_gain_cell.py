"""Gain cells: levels, leak, write error."""

import math

import pytest
import torch

from crossbar import InputError, presets
from crossbar.devices.gain_cell import GainCell
from crossbar.tiles import ageing

N = 20_000
KEY = (0, "gain cell")


def test_writes_only_its_levels():
    device = GainCell(g_max=7.0, levels=8)
    target = torch.tensor([0.0, 0.4, 0.6, 3.0, 6.4, 6.6, 7.0])
    state = ageing.program(device, target, KEY)
    assert state["programmed"].tolist() == [0.0, 0.0, 1.0, 3.0, 6.0, 7.0, 7.0]
    levels = ageing.program(GainCell(), torch.linspace(0, 25, N), KEY)["programmed"].unique()
    torch.testing.assert_close(levels, torch.arange(8) * 25 / 7)


@pytest.mark.parametrize(("seconds", "left"), [(0.0, 1.0), (5e-3, math.exp(-1)), (8e-7, math.exp(-1.6e-4)), (1.0, 0.0)])
def test_leaks_with_5_ms(seconds, left):
    device = GainCell()
    state = ageing.program(device, torch.full((4,), 25.0, dtype=torch.float64), KEY)
    read = ageing.conductances(device, state, seconds, KEY)
    torch.testing.assert_close(read, torch.full_like(read, 25 * left), rtol=1e-12, atol=1e-12)


def test_write_error_is_given_by_the_user():
    target = torch.full((N,), 25 * 4 / 7)
    exact = ageing.program(GainCell(), target, KEY)["programmed"]
    assert exact.unique().numel() == 1
    written = ageing.program(GainCell(write_std=0.03), target, KEY)["programmed"]
    assert float(written.std()) == pytest.approx(0.03 * 25, rel=4 / math.sqrt(2 * N))
    empty = ageing.program(GainCell(write_std=0.03), torch.zeros(N), KEY)["programmed"]
    assert (empty >= 0).all()


def test_preset_has_the_published_numbers():
    hardware = presets.get("gain_cell")
    assert hardware == presets.gain_cell()
    assert (hardware.device.tau, hardware.device.levels, hardware.device.write_std) == (5e-3, 8, 0.0)
    assert (hardware.dac.bits, hardware.adc.bits, hardware.output_noise) == (4, 5, 0.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tau": 0.0}, "tau = 0.0 is not allowed: give a finite number from"),
        ({"g_max": -1.0}, "g_max = -1.0 is not allowed"),
        ({"levels": 1}, "levels = 1 is not allowed: give a whole number from 2 to"),
        ({"levels": 8.0}, "levels = 8.0 is not allowed"),
        ({"write_std": -0.1}, "write_std = -0.1 is not allowed: give a finite number from 0 to"),
    ],
)
def test_refuses(fields, message):
    with pytest.raises(InputError, match=message):
        GainCell(**fields)
