"""aihwkit's noise models, and users' own, behind the device protocol: one contract, and their own statistics."""

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from crossbar import Hardware, InputError, convert, load_state, program, save_state
from crossbar.devices import Device, RedrawDevice
from crossbar.devices.aihwkit import AihwkitDevice
from crossbar.tiles import ageing
from tests.crossbar import conftest
from tests.crossbar.conftest import reads, same
from tests.peers import module_needs_aihwkit

module_needs_aihwkit()
from aihwkit.inference.converter.conductance import SinglePairConductanceConverter
from aihwkit.inference.noise.base import BaseNoiseModel
from aihwkit.inference.noise.custom import StateIndependentNoiseModel
from aihwkit.inference.noise.hermes import HermesNoiseModel
from aihwkit.inference.noise.pcm import CustomDriftPCMLikeNoiseModel, PCMLikeNoiseModel
from aihwkit.inference.noise.reram import ReRamCMONoiseModel, ReRamWan2022NoiseModel

pytestmark = [
    # in aihwkit, with torch 2.10 and numpy 2
    pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing"),
    pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context"),
]

HOUR, DAY = 3600.0, 86400.0
DRIFT = {"g_lst": [0.0, 5.0, 25.0], "nu_mean_lst": [0.1, 0.07, 0.05], "nu_std_lst": [0.04, 0.02, 0.01]}


class Cooling(BaseNoiseModel):
    """A user's own: the two abstract methods alone, with numpy's and Python's global generators, undefined at 0 s."""

    def apply_programming_noise_to_conductance(self, g_target):
        noise = np.random.standard_normal(tuple(g_target.shape)) + random.gauss(0.0, 0.1)  # noqa: NPY002 - as users do
        return g_target + torch.from_numpy(0.1 * noise).to(g_target)

    def apply_drift_noise_to_conductance(self, g_prog, drift_noise_param, t_inference):
        assert drift_noise_param is None
        return (g_prog - 0.01 * np.log(t_inference) + 0.1 * torch.randn_like(g_prog)) * (1 / t_inference) ** 0.001


class Counting(PCMLikeNoiseModel):
    """A user's own that overwrites what it is given, keeps count of its calls, and has one exponent for all."""

    calls = 0

    def generate_drift_coefficients(self, g_target):
        self.calls += 1
        return torch.tensor(0.05)

    def apply_drift_noise_to_conductance(self, g_prog, drift_noise_param, t_inference):
        self.calls += 1
        g_prog.mul_(1.0 + 0.01 * self.calls)
        drift_noise_param.mul_(self.calls)
        return super().apply_drift_noise_to_conductance(g_prog, drift_noise_param, t_inference)


MODELS = {
    "pcm": (PCMLikeNoiseModel(g_max=20.0), [0.0, HOUR, DAY]),
    "custom drift": (CustomDriftPCMLikeNoiseModel(DRIFT), [0.0, HOUR, DAY]),
    "hermes": (HermesNoiseModel(num_devices=1), [0.0, HOUR, DAY]),
    "state independent": (StateIndependentNoiseModel(), [0.0, HOUR, DAY]),
    "wan 2022": (ReRamWan2022NoiseModel(), [0.0, 1.0, DAY]),
    "cmo": (ReRamCMONoiseModel(), [0.0, HOUR, DAY]),
    "lifted": (StateIndependentNoiseModel(SinglePairConductanceConverter(g_max=25.0, g_min=5.0)), [0.0, HOUR, DAY]),
    "a user's": (Cooling(), [0.0, HOUR, DAY]),
    "another user's": (Counting(), [0.0, HOUR, DAY]),
}
every_model = pytest.mark.parametrize(("model", "times"), MODELS.values(), ids=list(MODELS))


def chip(model, seed=3):
    return conftest.chip(Hardware(device=AihwkitDevice(model)), seed)


# The contract


@every_model
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_writing_and_reading_keep_shape_dtype_and_what_is_given(model, times, dtype):
    device = AihwkitDevice(model)
    assert isinstance(device, RedrawDevice)
    assert not isinstance(device, Device)
    target = torch.linspace(device.g_min, device.g_max, 500, dtype=dtype).expand(2, 500)
    before = target.clone()
    state = device.write(target, 1)
    kept = {name: tensor.clone() for name, tensor in state.items()}
    for time in times:
        read = device.read(state, time, 2)
        assert read.shape == target.shape
        assert read.dtype == dtype
        assert read.isfinite().all()
        assert (read >= 0).all()
    assert torch.equal(target, before)
    for name, tensor in state.items():
        assert tensor.shape == target.shape
        assert tensor.dtype == dtype
        assert torch.equal(tensor, kept[name])


@every_model
def test_order_of_reads_does_not_matter(model, times):
    network = chip(model)
    forwards, backwards = reads(network, *times), reads(network, *times[::-1])
    alone = reads(chip(model), *times[-1:])
    for time in times:
        assert same(forwards[time], backwards[time])
    assert same(forwards[times[-1]], alone[times[-1]])
    assert not same(forwards[times[0]], forwards[times[1]])
    assert not same(forwards[times[1]], forwards[times[2]])


@every_model
def test_reloading_changes_no_bit(model, times, tmp_path):
    network, other = chip(model, seed=7), chip(model, seed=8)
    first = reads(network, *times)
    assert not same(first[times[1]], reads(other, *times[1:2])[times[1]])
    save_state(network, tmp_path / "chip")
    load_state(other, tmp_path / "chip")
    assert other[0].seconds == times[-1]
    again = reads(other, *times[::-1])
    assert all(same(first[time], again[time]) for time in times)


@every_model
def test_threads_change_no_bit(model, times):
    threads, found = torch.get_num_threads(), []
    device = AihwkitDevice(model)
    # enough cells for two threads, and not a whole number of vector registers for each
    target = torch.linspace(device.g_min, device.g_max, 150_011)
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            state = device.write(target, 1)
            found.append([*state.values(), *(device.read(state, time, 2) for time in times)])
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert same(*found)


@every_model
def test_global_generators_neither_matter_nor_move(model, times):
    device, target, found = AihwkitDevice(model), torch.full((50,), 10.0), []
    for seed in (0, 1):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002 - what is tested
            random.seed(seed)
            before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002 - the point
            state = device.write(target, 5)
            found.append([state["programmed"], device.read(state, times[1], 6)])
            after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002 - the point
        assert torch.equal(before[0], after[0])
        assert np.array_equal(before[1], after[1])
        assert before[2] == after[2]
    assert same(*found)


def test_generators_and_threads_are_put_back_after_an_error():
    class Failing(Cooling):
        def apply_programming_noise_to_conductance(self, g_target):
            torch.randn(3)
            raise RuntimeError("a defect of the user's model")

    before, threads = torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(RuntimeError, match="a defect of the user's model"):
        AihwkitDevice(Failing()).write(torch.ones(3), 0)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


@every_model
def test_a_weight_is_met_on_average(model, times):
    device = AihwkitDevice(model)
    target = torch.full((20_000,), device.g_max * 0.75)
    programmed = device.write(target, 1)["programmed"]
    error = (programmed - target).double()
    # 4 standard errors; Cooling shifts a whole layer by 0.1 µS · N(0, 0.1)
    assert abs(error.mean()) < 4 * float(error.std()) / 20_000**0.5 + (0.04 if isinstance(model, Cooling) else 0)


def test_zero_seconds_is_as_programmed_where_a_model_defines_nothing_there():
    for model in (ReRamWan2022NoiseModel(), Cooling()):
        device = AihwkitDevice(model)
        state = device.write(torch.full((100,), 10.0), 1)
        assert torch.equal(device.read(state, 0.0, 2), state["programmed"])


def test_effects_are_drawn_independently():
    device = AihwkitDevice(PCMLikeNoiseModel())
    target = torch.full((20_000,), 20.0)
    state = ageing.program(device, target, (0, "layer"))
    key = (0, "layer")
    hour, day = (ageing.conductances(device, state, t, key) for t in (HOUR, DAY))
    quiet_hour, quiet_day = (ageing.conductances(device, state, t, key, noise=False) for t in (HOUR, DAY))
    effects = [state["programmed"], state["coefficients"], hour / quiet_hour, day / quiet_day]
    correlations = np.corrcoef(torch.stack(effects).double().numpy())
    assert abs(correlations - np.eye(4)).max() < 4 / 20_000**0.5


# Redraw devices that have nothing to do with aihwkit


@dataclass(frozen=True)
class Jumping:
    """A user's own: each time finds the cells elsewhere."""

    kind: ClassVar[str] = "jumping"
    g_max: float = 5.0

    def write(self, target, seed):
        return {"target": target.clone()}

    def read(self, state, seconds, seed, noise=True):
        if not noise:
            raise InputError("a jumping cell is all noise")
        return state["target"] + torch.rand(state["target"].shape, generator=torch.Generator().manual_seed(seed))


def test_a_users_own_redraw_device():
    hardware = Hardware(device=Jumping())
    assert hardware.to_dict()["device"] == {"kind": "jumping", "g_max": 5.0}
    network = nn.Sequential(nn.Linear(70, 50))
    convert(network, hardware)
    program(network, 3)
    forwards, backwards = reads(network, 0.0, HOUR), reads(network, HOUR, 0.0)
    assert all(same(forwards[time], backwards[time]) for time in forwards)
    assert not same(forwards[0.0], forwards[HOUR])
    with pytest.raises(InputError, match="a jumping cell is all noise"):
        network[0].conductances(noise=False)


# The statistics: the adapter against aihwkit's own calls

N = 10_000
LIVES = {
    "custom drift": [0.0, HOUR, DAY, 365 * DAY],
    "state independent": [0.0, HOUR, DAY, 365 * DAY],
    "cmo": [1.0, HOUR, DAY, 30 * DAY],
    "wan 2022": [0.0, 1.0, DAY, 2 * DAY],
}


@pytest.mark.parametrize("level", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("name", LIVES)
def test_same_distribution_as_aihwkit(name, level):
    model = ReRamWan2022NoiseModel(g_max=40.0) if name == "wan 2022" else MODELS[name][0]
    device, key = AihwkitDevice(model), (5, f"{name} {level}")
    target = torch.full((N,), device.g_min + level * (device.g_max - device.g_min))
    state = ageing.program(device, target, key)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        programmed = model.apply_programming_noise_to_conductance(target)
        coefficients = model.generate_drift_coefficients(target)
        pairs = [(state["programmed"], programmed)]
        for time in LIVES[name]:
            ours = ageing.conductances(device, state, time, key)
            if name == "wan 2022" and time == 0:
                assert torch.equal(ours, state["programmed"])
                continue
            pairs.append((ours, model.apply_drift_noise_to_conductance(programmed, coefficients, time)))
    # 96 comparisons at fixed seeds: below 1e-3 none is expected by chance.
    assert min(stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue for ours, theirs in pairs) > 1e-3


def test_cells_of_a_window_hold_weights_in_proportion():
    network = chip(ReRamCMONoiseModel(prog_noise_scale=0.0))
    for cells in network[0].conductances():
        values = cells[cells.isfinite()]
        assert float(values.min()) == pytest.approx(9.0)
        assert float(values.max()) == pytest.approx(88.199997)
    weight = network[0].target_weight()
    torch.testing.assert_close(network[0].effective_weight(), weight, rtol=0, atol=1e-5 * float(weight.abs().max()))


# Without noise


@pytest.mark.parametrize("name", ["pcm", "custom drift", "hermes", "state independent", "cmo"])
def test_noise_can_be_left_out_where_it_has_a_scale(name):
    model, _ = MODELS[name]
    device = AihwkitDevice(model)
    state = device.write(torch.full((20_000,), device.g_max / 2), 1)
    quiet, noisy = (device.read(state, DAY, 2, noise) for noise in (False, True))
    assert not torch.equal(quiet, noisy)
    if name == "cmo":  # the relaxation is the same draw in both
        relaxed, read = (quiet - state["programmed"]).double(), (noisy - quiet).double()
        assert float(relaxed.std()) == pytest.approx(0.41183342 + 0.04201137 * np.log(DAY), rel=0.03)
        assert float(read.std()) == pytest.approx(0.0277316483 * np.log10(43.1) * np.sqrt(np.log(DAY / 2e-6)), rel=0.03)
    else:
        expected = state["programmed"] * (1 + DAY / model.t_0) ** -state["coefficients"]
        torch.testing.assert_close(quiet, expected)


@pytest.mark.parametrize("name", ["wan 2022", "a user's", "another user's"])
def test_refuses_to_leave_out_noise_that_cannot_be_told_apart(name):
    network = chip(MODELS[name][0])
    with pytest.raises(InputError, match=r"draws noise and drift together, so it cannot be read without noise: read"):
        network[0].conductances(noise=False)


# Which device it is


def test_devices_are_compared_by_class_and_parameters():
    assert AihwkitDevice(PCMLikeNoiseModel()) == AihwkitDevice(PCMLikeNoiseModel())
    assert hash(AihwkitDevice(Cooling())) == hash(AihwkitDevice(Cooling()))
    different = [*(model for model, _ in MODELS.values()), PCMLikeNoiseModel(), PCMLikeNoiseModel(t_0=21.0)]
    assert len({AihwkitDevice(model) for model in different}) == len(different)


@pytest.mark.parametrize("other", [PCMLikeNoiseModel(t_0=30.0), StateIndependentNoiseModel(), Counting()])
def test_state_of_another_model_is_refused(other, tmp_path):
    save_state(chip(PCMLikeNoiseModel()), tmp_path / "chip")
    with pytest.raises(InputError, match=r"needs other hardware in 0: .*noise\.pcm\.PCMLikeNoiseModel\(.*t_0=20\.0"):
        load_state(chip(other), tmp_path / "chip")
