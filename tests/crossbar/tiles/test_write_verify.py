"""Programming in rounds: nearer to the targets, for pulses that are counted."""

import dataclasses
import functools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crossbar import (
    Faults,
    Hardware,
    InputError,
    Ledger,
    Tile,
    WriteVerify,
    convert,
    devices,
    load_state,
    presets,
    program,
    save_state,
)
from crossbar.devices.aihwkit import AihwkitDevice
from crossbar.devices.reram import CmoReRam, ReRam
from crossbar.tiles import ageing
from crossbar.tiles.programming import write
from tests.crossbar import conftest
from tests.peers import needs_aihwkit

KEY = (3, "layer")
linear_layer = functools.partial(conftest.linear_layer, dtype=torch.float32)
DEVICES = [
    devices.PCM(),
    presets.hermes().device,
    ReRam(),
    CmoReRam(acceptance=2.0),
]
decomposed = pytest.mark.parametrize("device", DEVICES, ids=lambda device: type(device).__name__)
every_device = pytest.mark.parametrize(
    "device",
    [*DEVICES, pytest.param(None, id="AihwkitDevice", marks=needs_aihwkit)],
    indirect=True,
    ids=lambda device: type(device).__name__,
)


@pytest.fixture
def device(request):
    if request.param is not None:
        return request.param
    from aihwkit.inference import PCMLikeNoiseModel

    return AihwkitDevice(PCMLikeNoiseModel())


def targets(device, *shape, seed=0):
    low = devices.window(device)[0]
    return low + (device.g_max - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def distance(device, state, target):
    """Distance from the target as a part of g_max, as a read without error or 1/f noise finds it."""
    return (ageing.conductances(device, state, 0.0, KEY, noise=False) - target).abs() / device.g_max


@every_device
def test_one_round_is_plain_programming(device):
    target = targets(device, 40, 30)
    state, pulses = write(device, target, KEY, WriteVerify(rounds=1))
    plain = ageing.program(device, target, KEY)
    assert state.keys() == plain.keys()
    assert all(torch.equal(state[name], plain[name]) for name in plain)
    assert pulses == target.numel()


@every_device
def test_cells_that_were_near_at_once_keep_their_first_write(device):
    target = targets(device, 40, 30)
    plain = ageing.program(device, target, KEY)
    state, _ = write(device, target, KEY, WriteVerify(tolerance=0.01))
    same = torch.stack([state[name] == plain[name] for name in plain]).all(0)
    if not isinstance(device, AihwkitDevice):  # whose verifying read has noise of its own
        near = distance(device, plain, target) <= 0.01
        assert same[near].all()
    assert 0 < same.sum() < target.numel()


@decomposed
def test_every_cell_is_within_the_tolerance_in_the_end(device):
    target = targets(device, 60, 50)
    tolerance = 0.25 * float(distance(device, ageing.program(device, target, KEY), target).mean())
    state, pulses = write(device, target, KEY, WriteVerify(tolerance=tolerance, rounds=500))
    assert distance(device, state, target).max() <= tolerance * (1 + 1e-5)  # float32
    assert pulses > 2 * target.numel()


@decomposed
def test_each_round_leaves_no_cell_further_away(device):
    target = targets(device, 60, 50)
    before = distance(device, ageing.program(device, target, KEY), target)
    for rounds in (2, 3, 6, 12):
        state, _ = write(device, target, KEY, WriteVerify(tolerance=1e-6, rounds=rounds))
        after = distance(device, state, target)
        assert (after <= before).all()  # the same rounds and more
        before = after


def test_more_rounds_and_less_tolerance_take_more_pulses():
    device = devices.PCM()
    target = targets(device, 60, 50)

    def pulses(**options):
        return write(device, target, KEY, WriteVerify(**options))[1]

    by_rounds = [pulses(tolerance=0.005, rounds=rounds) for rounds in (1, 2, 3, 10)]
    by_tolerance = [pulses(tolerance=tolerance) for tolerance in (1.0, 0.05, 0.02, 0.005)]
    for counts in (by_rounds, by_tolerance):
        assert counts == sorted(counts)
        assert len(set(counts)) == 4
        assert counts[0] == target.numel()
        assert counts[-1] <= 10 * target.numel()


def test_pulses_are_the_cells_that_were_far_in_each_round():
    device, tolerance = devices.PCM(), 0.02
    target = targets(device, 60, 50)
    expected = 0
    for rounds in range(1, 6):
        state, pulses = write(device, target, KEY, WriteVerify(tolerance=tolerance, rounds=rounds))
        assert pulses == target.numel() + expected
        # those that this round leaves are written in the next
        expected += int((distance(device, state, target) * device.g_max > tolerance * device.g_max).sum())


def test_pulses_of_a_known_chance():
    # One target far from the clamp: the chance p to be near is that of a normal error, and a cell takes 1/p writes.
    device = devices.PCM()
    target, tolerance = torch.full((100, 100), 12.5), 0.02
    sigma = float(device.programming_deviation(torch.tensor(0.5)))
    p = math.erf(tolerance * 25.0 / sigma / math.sqrt(2))
    _, pulses = write(device, target, KEY, WriteVerify(tolerance=tolerance, rounds=1000))
    n = target.numel()
    assert pulses / n == pytest.approx(1 / p, abs=4 * math.sqrt((1 - p) / p**2 / n))  # a geometric distribution


def test_a_noisy_verifying_read_leaves_its_own_error():
    device = devices.PCM()
    target = torch.full((100, 100), 12.5)
    exact, noisy = (
        distance(device, write(device, target, KEY, WriteVerify(tolerance=0.002, rounds=50, read_std=std))[0], target)
        for std in (0.0, 0.02)
    )
    # Cells that look right are off by the error of the read: their distribution is that of the read times that of the
    # write, normal ones of 0.02 and 0.038 of g_max, so 1 / sqrt(1 / 0.02² + 1 / 0.038²). n = 10,000: 1% a deviation.
    sigma = float(device.programming_deviation(torch.tensor(0.5))) / 25.0
    assert float(noisy.square().mean().sqrt()) == pytest.approx((1 / 0.02**2 + 1 / sigma**2) ** -0.5, rel=0.04)
    assert exact.square().mean().sqrt() < 0.003


@given(order=st.permutations([0, 1, 2]), global_seed=st.integers(0, 9))
@settings(max_examples=10, deadline=None)
def test_the_same_bits_in_any_order(order, global_seed):
    verify, device = WriteVerify(tolerance=0.01, read_std=0.005), devices.PCM()
    target = targets(device, 20, 10)
    expected = [write(device, target, (seed, "layer"), verify) for seed in range(3)]
    with torch.random.fork_rng():
        torch.manual_seed(global_seed)
        for seed in order:
            state, pulses = write(device, target, (seed, "layer"), verify)
            assert pulses == expected[seed][1]
            assert all(torch.equal(state[name], cells) for name, cells in expected[seed][0].items())


@every_device
def test_threads_change_no_bit(device):
    target, verify, threads = targets(device, 200, 150), WriteVerify(tolerance=0.01), torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(write(device, target, KEY, verify))
    finally:
        torch.set_num_threads(threads)
    assert found[0][1] == found[1][1]
    assert all(torch.equal(cells, found[1][0][name]) for name, cells in found[0][0].items())


def test_targets_are_not_changed():
    for device in (devices.Ideal(), devices.PCM()):
        target = targets(device, 20, 10)
        before = target.clone()
        write(device, target, KEY, WriteVerify(tolerance=1e-4))
        assert torch.equal(target, before)


def test_ideal_devices_take_one_round():
    target = targets(devices.Ideal(), 20, 10)
    assert write(devices.Ideal(), target, KEY, WriteVerify(tolerance=1e-9))[1] == 200


# In a layer


def test_a_layer_takes_rounds_and_books_them():
    hardware = dataclasses.replace(presets.pcm(), verify=WriteVerify(tolerance=0.01, rounds=20), tile=Tile(4, 3))
    layer = linear_layer(10, 7, hardware)
    with Ledger() as ledger:
        layer.program(3)
    _, pulses = write(hardware.device, layer.cells.targets(), (3, "linear"), hardware.verify)
    assert ledger.to_dict() == {"linear": {"row_writes": 10 * 3, "write_pulses": pulses}}
    assert 140 < pulses < 20 * 140
    plain = linear_layer(10, 7, presets.pcm())
    plain.program(3)
    target = layer.cells.targets()
    verified_error, error = ((found.state()["programmed"] - target).abs().mean() for found in (layer, plain))
    assert verified_error < error / 3  # tolerance of 0.25 µS where the mean error is some 0.7 µS


def test_plain_programming_books_no_pulses():
    layer = linear_layer(10, 7, presets.pcm())
    with Ledger() as ledger:
        layer.program(3)
    assert set(ledger.totals()) == {"row_writes"}


def test_a_verified_chip_repeats_and_reloads(tmp_path):
    hardware = dataclasses.replace(presets.pcm(), verify=WriteVerify(tolerance=0.01, read_std=0.01))
    one, two = (nn.Sequential(linear_layer(10, 7, hardware)) for _ in range(2))
    x = torch.randn(3, 10, generator=torch.Generator().manual_seed(1))
    program(one, 3)
    save_state(one, tmp_path / "chip")
    first = one(x)
    load_state(two, tmp_path / "chip")
    assert torch.equal(two(x), first)
    program(two, 4)
    program(two, 3)
    assert torch.equal(two(x), first)


def test_every_cell_of_pairs_and_slices_is_verified():
    hardware = dataclasses.replace(presets.pcm(), verify=WriteVerify(tolerance=0.01, rounds=200))
    layer = linear_layer(10, 7, dataclasses.replace(hardware, tile=Tile(pairs=2, slices=2)))
    layer.program(0)
    assert (layer.state()["programmed"] - layer.cells.targets()).abs().max() <= 0.01 * 25 * (1 + 1e-5)


def test_stuck_cells_are_stuck_all_the_same():
    hardware = dataclasses.replace(presets.pcm(), verify=WriteVerify(), faults=Faults(stuck_max=0.3))
    layer = linear_layer(40, 30, hardware)
    layer.program(0)
    assert (layer.cells.conductances()[layer.fault_map == 2] == 25.0).all()


def test_a_model_verifies_each_layer():
    model = nn.Sequential(nn.Linear(10, 7), nn.Linear(7, 4))
    convert(model, Hardware(verify=WriteVerify()))
    with Ledger() as ledger:
        program(model)
    assert all(
        counts["write_pulses"] >= cells for counts, cells in zip(ledger.to_dict().values(), (140, 56), strict=True)
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tolerance": 0.0}, r"verify field tolerance = 0\.0 is not allowed: give a finite number from"),
        ({"tolerance": math.inf}, r"verify field tolerance = inf is not allowed"),
        ({"rounds": 0}, r"verify field rounds = 0 is not allowed: give a whole number from 1 to"),
        ({"rounds": 2.0}, r"verify field rounds = 2\.0 is not allowed"),
        ({"read_std": -0.1}, r"verify field read_std = -0\.1 is not allowed: give a finite number from 0 to"),
    ],
)
def test_refuses_impossible_rounds(options, message):
    with pytest.raises(InputError, match=message):
        WriteVerify(**options)
