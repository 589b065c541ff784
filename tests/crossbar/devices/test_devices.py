"""Devices: one contract for all, PCM against its formulas and against aihwkit's own model."""

import importlib.util
import itertools
import json
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from scipy import stats

from crossbar import Hardware, InputError, presets
from crossbar.devices import PCM, AihwkitDevice, Device, Ideal, PowerLaw, window
from crossbar.devices.gain_cell import GainCell
from crossbar.devices.hermes import Hermes
from crossbar.devices.measured import Measured
from crossbar.devices.reram import CmoReRam, ReRam
from crossbar.nn.to_aihwkit import to_aihwkit
from crossbar.random.streams import normal
from crossbar.tiles import ageing
from tests.peers import needs_aihwkit

TIMES = {"0s": 0.0, "1s": 1.0, "1h": 3600.0, "1d": 86400.0, "30d": 30 * 86400.0, "1y": 365 * 86400.0}
LEVELS = (0.0, 0.25, 0.5, 0.75, 1.0)  # g = G / g_max
N = 20_000


@dataclass(frozen=True)
class Leaky:
    """A user's own device: a capacitor that loses its charge and hisses."""

    kind: ClassVar[str] = "leaky"
    g_max: float = 5.0
    tau: float = 3600.0

    def program(self, target, draw):
        return {
            "programmed": (target + 0.1 * draw("write")).clamp(min=0),
            "rate": (1 + 0.1 * draw("leak")).abs() / self.tau,
        }

    def drifted(self, state, seconds):
        return state["programmed"] * torch.exp(-state["rate"] * seconds)

    def fluctuation(self, state, drifted, seconds):
        return 0.02 * drifted


@dataclass(frozen=True)
class Hissing:
    """A user's own device that hands out the very tensors of its state."""

    kind: ClassVar[str] = "hissing"
    g_max: float = 25.0

    def program(self, target, draw):
        return {"programmed": target, "deviation": torch.full_like(target, 0.1)}

    def drifted(self, state, seconds):
        return state["programmed"]

    def fluctuation(self, state, drifted, seconds):
        return state["deviation"]


TABLE = Measured(
    target_us=(0.0, 5.0, 20.0),
    mean_us=(0.2, 5.0, 20.0),
    std_us=(0.1, 0.8, 0.5),
    drift_mean=(0.1, 0.05, 0.04),
    drift_std=(0.02, 0.01, 0.01),
)
SHIPPED = {
    "ideal": Ideal(),
    "ideal at 10": Ideal(g_max=10.0),
    "pcm": PCM(),
    "pcm at 10": PCM(g_max=10.0),
    "pcm, correlated": PCM(correlated=True),
    "power law": PowerLaw(programming_linear=1.0, exponent_spread=0.02, read_power=0.3),
    "hermes 1": Hermes(g_max=10.35, t_0=200.0, devices=1),
    "hermes 2": Hermes(),
    "hermes, correlated": Hermes(correlated=True),
    "reram": ReRam(),
    "reram at 25": ReRam(g_max=25.0),
    "cmo": CmoReRam(),
    "cmo at 2%": CmoReRam(acceptance=2.0, g_min=20.0, g_max=60.0),
    "gain cell": GainCell(),
    "gain cell, noisy": GainCell(levels=16, write_std=0.03),
    "measured": TABLE,
    "measured, no drift": Measured((0.0, 9.0), (0.0, 9.0), (0.1, 0.3)),
}
devices = pytest.mark.parametrize("device", [*SHIPPED.values(), Leaky(), Hissing()], ids=[*SHIPPED, "leaky", "hissing"])


def targets(device, dtype=torch.float32, n=2000):
    return torch.linspace(window(device)[0], device.g_max, n, dtype=dtype).expand(2, n).contiguous()


def seeded(shape, dtype=torch.float32, seed=0):
    return lambda purpose: normal(shape, (seed, purpose)).to(dtype)


# The contract


@devices
def test_is_a_device(device):
    assert isinstance(device, Device)
    assert Hardware(device=device).device is device


@devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_programming_keeps_shape_dtype_and_target(device, dtype):
    target = targets(device, dtype)
    before = target.clone()
    state = device.program(target, seeded(target.shape, dtype))
    assert torch.equal(target, before)
    for tensor in state.values():
        assert tensor.shape == target.shape
        assert tensor.dtype == dtype
        assert tensor.isfinite().all()


@devices
def test_programming_depends_on_the_draws_alone(device):
    target = targets(device)
    one, two = (device.program(target, seeded(target.shape)) for _ in range(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@devices
def test_a_target_is_met_on_average(device):
    # 4 standard errors, with the deviations of the device itself. Clamping lifts the smallest targets and only the
    # ends of the scale are levels of every device, so the largest is compared.
    target = torch.full((4000,), device.g_max)
    error = device.drifted(device.program(target, seeded(target.shape)), 0.0) - target
    assert abs(error.mean()) <= 4 * error.std() / error.numel() ** 0.5


@devices
def test_conductance_stays_in_its_window_and_a_full_cell_does_not_grow(device):
    target = targets(device)
    key = (0, "contract")
    state = ageing.program(device, target, key)
    low, high = window(device)
    assert low >= 0
    means = []
    for seconds in TIMES.values():
        for noise in (False, True):
            read = ageing.conductances(device, state, seconds, key, noise)
            assert read.isfinite().all()
            assert (read >= low).all()
            assert (read <= high).all()
        means.append(float(device.drifted(state, seconds)[target > device.g_max / 2].mean()))
    # Relaxation without drift (ReRAM) moves the mean by its own standard error only.
    assert all(later <= earlier + 0.1 for earlier, later in itertools.pairwise(means))


@devices
def test_hardware_survives_plain_values(device):
    if device.kind in ("leaky", "hissing"):
        return  # a user's own kind is not known to YAML
    hardware = Hardware(device=device)
    assert Hardware.from_dict(json.loads(json.dumps(hardware.to_dict()))) == hardware
    assert hash(hardware) == hash(Hardware(device=device))


@devices
def test_threads_change_no_bit(device):
    target = torch.linspace(window(device)[0], device.g_max, 70_001)  # large and odd: threads get uneven shares
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            state = ageing.program(device, target, (0, "threads"))
            found.append(ageing.conductances(device, state, 7200.0, (0, "threads")))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@devices
def test_fluctuation_is_a_deviation(device):
    target = targets(device)
    state = device.program(target, seeded(target.shape))
    for seconds in TIMES.values():
        drifted = device.drifted(state, seconds)
        deviation = device.fluctuation(state, drifted, seconds)
        if deviation is not None:
            assert deviation.shape == target.shape
            assert (deviation >= 0).all()
            assert deviation.isfinite().all()


@devices
def test_reading_changes_nothing(device):
    target = targets(device)
    state = ageing.program(device, target, (0, "contract"))
    before = {name: tensor.clone() for name, tensor in state.items()}
    reads = [ageing.conductances(device, state, s, (0, "contract")) for s in (0.0, 3600.0, 0.0, 3600.0)]
    assert all(torch.equal(state[name], before[name]) for name in before)
    assert torch.equal(reads[0], reads[2])
    assert torch.equal(reads[1], reads[3])


def test_zero_seconds_is_as_programmed():
    for device in (Ideal(), PCM(), PowerLaw(), Hermes(), CmoReRam(), GainCell(), TABLE):
        target = targets(device)
        state = device.program(target, seeded(target.shape))
        assert torch.equal(device.drifted(state, 0.0), state["programmed"])


def test_ideal_keeps_its_target_for_ever():
    target = targets(Ideal())
    state = ageing.program(Ideal(), target, (0, "ideal"))
    assert torch.equal(ageing.conductances(Ideal(), state, TIMES["1y"], (0, "ideal")), target)


# PCM against its formulas (docs/physics.md, "PCM")


def by_hand(g, z, seconds, g_max=25.0, t_0=20.0, t_read=250e-9):
    """Programmed conductance, exponent, drifted conductance and deviation of one cell, in float64."""
    sigma = (0.26348 + 1.9650 * g - 1.1731 * g**2) * g_max / 25
    programmed = max(g * g_max + sigma * z, 0.0)
    log_g = math.log(max(g, 1e-7))
    mu = min(max(-0.0155 * log_g + 0.0244, 0.049), 0.1)
    spread = min(max(-0.0125 * log_g - 0.0059, 0.008), 0.045)
    exponent = abs(mu + spread * z)
    drifted = programmed * ((seconds + t_0) / t_0) ** -exponent
    q = 0.2 if programmed == 0 else min(0.0088 / (programmed / g_max) ** 0.65, 0.2)
    return programmed, exponent, drifted, drifted * q * math.sqrt(math.log((seconds + t_0 + t_read) / (2 * t_read)))


@pytest.mark.parametrize("z", [-3.0, -1.0, 0.0, 2.0])
@pytest.mark.parametrize("device", [PCM(), PCM(g_max=10.0, t_0=30.0, t_read=1e-6)], ids=repr)
@pytest.mark.parametrize("time", ["0s", "1h", "1y"])
def test_pcm_follows_its_formulas(z, device, time):
    levels = torch.tensor([0.0, 1e-9, 0.01, 0.06, 0.1, 0.25, 0.5, 1.0], dtype=torch.float64)
    state = device.program(levels * device.g_max, lambda _: torch.full_like(levels, z))
    drifted = device.drifted(state, TIMES[time])
    deviation = device.fluctuation(state, drifted, TIMES[time])
    parts = (device.g_max, device.t_0, device.t_read)
    expected = torch.tensor([by_hand(g, z, TIMES[time], *parts) for g in levels.tolist()], dtype=torch.float64)
    found = torch.stack((state["programmed"], state["exponent"], drifted, deviation), 1)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)  # a few float64 roundings


def test_pcm_effects_can_be_turned_off():
    target = targets(PCM())
    exact = PCM(prog_noise_scale=0.0).program(target, seeded(target.shape))
    assert torch.equal(exact["programmed"], target)
    still = PCM(drift_scale=0.0)
    state = still.program(target, seeded(target.shape))
    assert torch.equal(still.drifted(state, TIMES["1y"]), state["programmed"])
    quiet = PCM(read_noise_scale=0.0)
    assert quiet.fluctuation(state, target, 1.0) is None
    twice = PCM(read_noise_scale=2.0).fluctuation(state, target, 1.0)
    torch.testing.assert_close(twice, 2 * PCM().fluctuation(state, target, 1.0))


# Golden values, measured from aihwkit 1.1.0


@pytest.mark.parametrize(
    ("level", "golden", "rounding"),
    [(0.0, 0.154, 5e-4), (0.25, 0.68, 5e-3), (0.5, 0.953, 5e-4), (0.75, 1.08, 5e-3), (1.0, 1.06, 5e-3)],
)
def test_golden_programming_deviation(level, golden, rounding):
    state = ageing.program(PCM(), torch.full((4 * N,), 25 * level), (0, f"golden {level}"))
    error = (state["programmed"] - 25 * level).double()
    error -= error.mean()
    deviation = error.square().mean().sqrt()
    # standard error of a deviation from the sample's own fourth moment
    se = (((error**4).mean() - deviation**4) / error.numel()).sqrt() / (2 * deviation)
    assert abs(deviation - golden) < rounding + 4 * se


@pytest.mark.parametrize(
    ("time", "golden", "rounding"),
    [("1s", 0.998, 5e-4), ("1h", 0.776, 5e-4), ("1d", 0.665, 5e-4), ("30d", 0.564, 5e-4), ("1y", 0.50, 5e-3)],
)
def test_golden_drift_at_full_conductance(time, golden, rounding):
    key = (0, "golden drift")
    state = ageing.program(PCM(), torch.full((4 * N,), 25.0), key)
    ratio = ageing.conductances(PCM(), state, TIMES[time], key) / state["programmed"]
    assert abs(ratio.mean() - golden) < rounding + 4 * ratio.std() / ratio.numel() ** 0.5


# A published cross-check: CrossSim's own fit to Fig. 3b of Joshi et al. (2020), with an empty-cell deviation that it
# takes as 0.286 µS where aihwkit has 0.263


@pytest.mark.parametrize(("target", "crosssim", "ours"), [(12.5, 0.955, 0.953), (25.0, 1.065, 1.055)])
def test_programming_deviation_agrees_with_crosssim(target, crosssim, ours):
    fit = 0.28638599 + 0.07585724 * target - 0.00178767 * target**2  # µS
    assert fit == pytest.approx(crosssim, abs=6e-4)
    found = float(PCM().programming_deviation(torch.tensor(target / 25, dtype=torch.float64)))
    assert found == pytest.approx(ours, abs=5e-4)
    assert found == pytest.approx(fit, rel=0.01)  # two fits to the same points


# PCM against aihwkit, the whole life of a cell


@pytest.fixture(scope="module")
def aihwkit_lives():
    """Conductances of aihwkit's PCM by level and time, redrawn at each time as aihwkit does."""
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel

    model = PCMLikeNoiseModel(g_max=25.0)
    lives = {}
    with torch.random.fork_rng():
        torch.manual_seed(20)
        for level in LEVELS:
            target = torch.full((N,), 25 * level)
            programmed = model.apply_programming_noise_to_conductance(target)
            exponent = model.generate_drift_coefficients(target)
            lives[level, "programmed"], lives[level, "exponent"] = programmed, exponent
            for time in ("0s", "1h", "1d", "1y"):
                lives[level, time] = model.apply_drift_noise_to_conductance(programmed, exponent, TIMES[time])
    return lives


@pytest.fixture(scope="module")
def our_lives():
    lives = {}
    for level in LEVELS:
        key = (4, f"level {level}")
        state = ageing.program(PCM(), torch.full((N,), 25 * level), key)
        lives[level, "programmed"], lives[level, "exponent"] = state["programmed"], state["exponent"]
        for time in ("0s", "1h", "1d", "1y"):
            lives[level, time] = ageing.conductances(PCM(), state, TIMES[time], key)
    return lives


@needs_aihwkit
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("what", ["programmed", "exponent", "0s", "1h", "1d", "1y"])
def test_same_distribution_as_aihwkit(our_lives, aihwkit_lives, level, what):
    ours, theirs = our_lives[level, what].numpy(), aihwkit_lives[level, what].numpy()
    assert stats.ks_2samp(ours, theirs).pvalue > 0.01 / 30  # at fixed seeds: 1% for any of the 30 comparisons


# What a user gets wrong


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, "25", None, True])
@pytest.mark.parametrize(
    ("device", "field"), [(Ideal, "g_max"), (PCM, "g_max"), (PCM, "t_0"), (PCM, "t_read")], ids=lambda x: str(x)
)
def test_refuses_what_must_be_positive(device, field, value):
    with pytest.raises(InputError, match=rf"{field} = {value!r} is not allowed: give a finite number from"):
        device(**{field: value})


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("field", ["prog_noise_scale", "drift_scale", "read_noise_scale"])
def test_refuses_impossible_scales(field, value):
    with pytest.raises(InputError, match=rf"{field} = {value!r} is not allowed: give a finite number from 0 to"):
        PCM(**{field: value})


@pytest.mark.parametrize("t_read", [20.0, 50.0])
def test_refuses_reads_as_long_as_the_first_wait(t_read):
    with pytest.raises(InputError, match=rf"field t_read = {t_read} is not allowed: give less than t_0 = 20\.0"):
        PCM(t_read=t_read)


# Without aihwkit


@pytest.mark.parametrize(
    "use",
    [lambda: AihwkitDevice(None), lambda: presets.from_rpu_config(None), lambda: to_aihwkit(torch.nn.Linear(2, 2))],
    ids=["device", "configuration", "export"],
)
def test_what_needs_aihwkit_says_how_to_get_it(use, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "aihwkit" else find(name, *rest)
    )
    with pytest.raises(InputError, match=r"aihwkit is not installed, .*: pip install 'ohmformer\[aihwkit\]'"):
        use()


def test_a_power_law_has_the_coefficients_that_it_is_given():
    """Programming, drift and 1/f noise of 40,000 cells at 0.4 g_max, at two ages, by their moments."""
    fields = {"programming_constant": 0.5, "programming_linear": 2.0, "programming_quadratic": -1.0}
    drift = {"exponent_mean": 0.06, "exponent_spread": 0.01}
    device = PowerLaw(g_max=20.0, t_0=10.0, read_noise=0.002, read_power=0.5, **fields, **drift)
    target = torch.full((40_000,), 8.0, dtype=torch.float64)
    state = ageing.program(device, target, (0, "moments"))
    error = state["programmed"] - target
    sigma = 0.5 + 2.0 * 0.4 - 1.0 * 0.4**2
    assert float(error.std()) == pytest.approx(sigma, rel=0.015)  # a standard error is 0.35%
    assert float(state["exponent"].mean()) == pytest.approx(0.06, abs=4 * 0.01 / 200)
    assert float(state["exponent"].std()) == pytest.approx(0.01, rel=0.015)
    for seconds in (10.0, 86400.0):
        quiet, read = (ageing.conductances(device, state, seconds, (0, "moments"), noise) for noise in (False, True))
        decades = math.log1p(seconds / 10.0)
        torch.testing.assert_close(quiet, state["programmed"] * (-state["exponent"] * decades).exp())
        band = math.sqrt(math.log((seconds + 10.0 + device.t_read) / (2 * device.t_read)))
        amplitude = 0.002 * (state["programmed"] / 20.0) ** -0.5 * band
        assert float(((read / quiet - 1) / amplitude).std()) == pytest.approx(1.0, rel=0.015)


@pytest.mark.parametrize(
    "field", ["exponent_mean", "exponent_spread", "read_noise", "read_power", "programming_linear"]
)
@pytest.mark.parametrize("value", [1e6, math.nan, "0.1", None, True])
def test_a_power_law_refuses_impossible_coefficients(field, value):
    with pytest.raises(InputError, match=f"device field {field} = .* is not allowed"):
        PowerLaw(**{field: value})
