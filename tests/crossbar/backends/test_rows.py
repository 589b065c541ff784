"""Rows of any age as each backend reads them, against the equations of their devices in float64."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from crossbar.backends import dispatch
from crossbar.backends.protocol import AgedRows, RowNumbers
from crossbar.devices import PCM, Decaying, GainCell, Hermes, Ideal
from crossbar.errors import InputError
from crossbar.hardware import CellNoise, Hardware, Tile
from crossbar.native import gpu

B, H, ROWS = 2, 3, 12
SLOTS = torch.tensor([11, 0, 3, 7, 8])
AGES = torch.tensor([0.0, 1e-3, 20.0, 3600.0, 3e7], dtype=torch.float64)
NUMBERS = RowNumbers(("rows", 1.0), (0, 4), torch.tensor([1, 0, 0, 1, 0]), torch.tensor([5, 0, 3, 1, 2]), 6)
DEVICES = {"pcm": PCM(), "quiet": PCM(read_noise_scale=0.0), "hermes": Hermes(), "ideal": Ideal()}
DEVICES |= {"gain cell": GainCell(tau=1.0), "loud": PCM(read_noise_scale=20.0)}  # loud: factors below 0 are cut off


def programmed(device, pairs, size):
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(2 * pairs, B, H, ROWS, size, generator=generator) * device.g_max
    return device.program(target, lambda purpose: torch.randn(target.shape, generator=generator))


def reference(device, state, slot, age, z):
    """Conductances (µS) of one row's cells."""
    cells = {name: part[..., slot, :].double().numpy() for name, part in state.items()}
    if isinstance(device, GainCell):
        return cells["programmed"] * math.exp(-age / device.tau)
    if isinstance(device, Ideal):
        return cells["programmed"]
    drifted = cells["programmed"] * ((age + device.t_0) / device.t_0) ** -cells["exponent"]
    amplitude = device.read_amplitude(state["programmed"][..., slot, :].double() / device.g_max).numpy()
    band = math.sqrt(math.log((age + device.t_0 + device.t_read) / (2 * device.t_read)))
    return np.maximum(drifted * (1 + device.read_noise_scale * amplitude * band * z), 0.0)


def aged(device, state, pairs, noise):
    amplitude = device.amplitude(state)
    state = state if amplitude is None else {**state, "amplitude": amplitude}
    hardware = Hardware(device=device, tile=Tile(pairs=pairs), read_noise=noise)
    return AgedRows(state, SLOTS, AGES, NUMBERS, hardware)


@pytest.mark.parametrize("impl", ["cpu", "eager", "naive"])
@pytest.mark.parametrize("noise", [None, CellNoise(constant=0.2, relative=0.05)], ids=["quiet", "white noise"])
@pytest.mark.parametrize(("pairs", "size"), [(1, 16), (2, 7)])
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_rows_of_all_ages_read_as_their_devices_equations_say(device, pairs, size, noise, impl):
    assert isinstance(device, Decaying)
    state = programmed(device, pairs, size)
    digit = pairs * device.g_max
    digits, variance = dispatch.age_rows(aged(device, state, pairs, noise), impl)
    z = NUMBERS.drawn((2 * pairs, B, H, len(SLOTS), size), torch.device("cpu")).double().numpy()
    for place, (slot, age) in enumerate(zip(SLOTS.tolist(), AGES.tolist(), strict=True)):
        cells = reference(device, state, slot, age, z[:, :, :, place])
        expected = (cells[:pairs].sum(0) - cells[pairs:].sum(0)) / digit
        np.testing.assert_allclose(digits[:, :, place].numpy(), expected, rtol=0, atol=2e-5)
        if noise is not None:
            spread = (noise.constant**2 + (noise.relative * cells) ** 2).sum(0) / digit**2
            np.testing.assert_allclose(variance[:, :, place].numpy(), spread, rtol=1e-4)
    assert (variance is None) == (noise is None)


class Redrawn:
    """A device whose error is drawn anew at each time."""

    kind, g_max = "redrawn", 25.0

    def write(self, target, seed):
        return {"target": target}

    def read(self, state, seconds, seed, noise=True):
        return state["target"]


@pytest.mark.parametrize("impl", ["cpu", "triton", "eager", "naive"])
def test_rows_of_a_device_that_is_drawn_anew_are_refused(impl):
    state = {"target": torch.ones(2, B, H, ROWS, 4)}
    rows = AgedRows(state, SLOTS, AGES, NUMBERS, Hardware(device=Redrawn()))
    with pytest.raises(InputError, match=f"backend '{impl}' cannot compute this .+(redrawn|drawn anew)"):
        dispatch.age_rows(rows, impl)


@pytest.mark.skipif(not gpu.interpreted(), reason="kernels are compiled here")
@pytest.mark.parametrize("noise", [None, CellNoise(constant=0.2, relative=0.05)], ids=["quiet", "white noise"])
@pytest.mark.parametrize(("pairs", "size"), [(1, 16), (2, 7), (1, 130)])
@pytest.mark.parametrize("device", DEVICES.values(), ids=DEVICES)
def test_rows_on_a_gpu_are_the_cpus_bit_by_bit(device, pairs, size, noise):
    if size == 130 and (noise is None or device != PCM()):
        return  # a row of two blocks: once
    work = aged(device, programmed(device, pairs, size), pairs, noise)
    expected, found = dispatch.age_rows(work, "cpu"), dispatch.age_rows(work, "triton")
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.equal(one.view(torch.int32), other.view(torch.int32))


def test_any_number_of_threads_gives_the_same_bits():
    device, before, found = PCM(), torch.get_num_threads(), []
    state = programmed(device, 1, 16)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(dispatch.age_rows(aged(device, state, 1, None), "cpu")[0])
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_a_rows_numbers_depend_on_its_place_and_the_time_alone():
    place = torch.device("cpu")
    whole = NUMBERS.drawn((2, B, H, 5, 8), place)
    one = RowNumbers(NUMBERS.key, (4,), torch.tensor([0]), torch.tensor([1]), 6).drawn((2, B, H, 1, 8), place)
    assert torch.equal(one, whole[:, :, :, 3:4])
    later = dataclasses.replace(NUMBERS, key=("rows", 2.0)).drawn((2, B, H, 5, 8), place)
    assert abs(float(np.corrcoef(whole.flatten(), later.flatten())[0, 1])) < 4 / whole.numel() ** 0.5
