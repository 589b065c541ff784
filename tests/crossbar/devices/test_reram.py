"""ReRAM against aihwkit's two models at the times they define, and what is put right."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from crossbar import InputError, presets
from crossbar.devices.reram import CmoReRam, ReRam
from crossbar.tiles import ageing
from tests.peers import needs_aihwkit

N = 20_000
HOUR, DAY, YEAR = 3600.0, 86400.0, 365 * 86400.0
of_aihwkit_itself = pytest.mark.filterwarnings("ignore:__array_wrap__ must accept context:DeprecationWarning")
LEVELS = [0.0, 0.25, 0.5, 0.75, 1.0]
WAN = [  # of Wan 2022, as aihwkit has it: time, σ in µS as a polynomial ascending in g
    (1.0, [0.348, 16.030, -43.853, 45.393, -16.815]),
    (DAY, [0.701, 22.086, -50.773, 47.095, -16.458]),
    (2 * DAY, [0.782, 20.274, -43.507, 37.062, -11.934]),
]


def cells(device, target, key):
    return ageing.program(device, torch.full((N,), target), key)


def correlation(a, b):
    return float(np.corrcoef(a.numpy(), b.numpy())[0, 1])


# Wan 2022


@needs_aihwkit
@pytest.mark.parametrize("level", LEVELS)
def test_wan_has_the_distribution_of_aihwkit_at_its_own_40_us(level):
    from aihwkit.inference.noise.reram import ReRamWan2022NoiseModel

    device, key = ReRam(), (1, f"level {level}")
    model = ReRamWan2022NoiseModel(g_max=40.0)
    target = torch.full((N,), 40 * level)
    state = ageing.program(device, target, key)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        pairs = [(device.drifted(state, 0.0), model.apply_programming_noise_to_conductance(target))]
        for time, _ in WAN:
            theirs = model.apply_drift_noise_to_conductance(target, target, time)
            pairs.append((ageing.conductances(device, state, time, key), theirs))
    # 20 comparisons at fixed seeds: below 1e-3 none is expected by chance.
    assert min(stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue for ours, theirs in pairs) > 1e-3


@pytest.mark.parametrize(("time", "fit"), WAN)
@pytest.mark.parametrize("g_max", [40.0, 25.0])
def test_wan_deviations_are_those_of_the_fit(time, fit, g_max):
    g = torch.linspace(0, 1, 11, dtype=torch.float64)
    expected = g_max / 40 * sum(coefficient * g**power for power, coefficient in enumerate(fit))
    torch.testing.assert_close(ReRam(g_max=g_max).deviation(g, time), expected, rtol=1e-12, atol=1e-12)


@needs_aihwkit
def test_wan_scales_with_g_max_where_aihwkit_does_not():
    from aihwkit.inference.noise.reram import ReRamWan2022NoiseModel

    half = torch.full((N,), 12.5)
    error = ReRam(g_max=25.0).drifted(cells(ReRam(g_max=25.0), 12.5, (2, "25")), 0.0) - half
    with torch.random.fork_rng():
        torch.manual_seed(2)
        theirs = ReRamWan2022NoiseModel(g_max=25.0).apply_programming_noise_to_conductance(half) - half
    # Relative to g_max the cell of the measurement (40 µS) has 2.0227 / 40 = 0.0506; se of a deviation is 1 / √(2N).
    assert float(error.std()) / 25 == pytest.approx(0.0506, rel=4 / math.sqrt(2 * N))
    assert float(theirs.std()) / 25 == pytest.approx(0.0809, rel=4 / math.sqrt(2 * N))


def test_wan_interpolates_in_log_time_and_holds_outside():
    g, device = torch.linspace(0, 1, 5, dtype=torch.float64), ReRam()
    middle = device.deviation(g, math.sqrt(DAY))  # half way from 1 s to 1 d
    torch.testing.assert_close(middle, (device.deviation(g, 1.0) + device.deviation(g, DAY)) / 2)
    assert torch.equal(device.deviation(g, 0.0), device.deviation(g, 1.0))
    assert torch.equal(device.deviation(g, YEAR), device.deviation(g, 2 * DAY))
    state = cells(device, 20.0, (3, "held"))
    assert torch.equal(device.drifted(state, 0.0), device.drifted(state, 1.0))
    assert torch.equal(device.drifted(state, YEAR), device.drifted(state, 2 * DAY))


def test_wan_cells_keep_their_first_error_and_relax_smoothly():
    device = ReRam()
    state = cells(device, 20.0, (4, "path"))
    first, hour, later, day = (device.drifted(state, t) - 20 for t in (1.0, HOUR, 1.1 * HOUR, DAY))
    g = torch.tensor(0.5, dtype=torch.float64)
    kept = float(device.deviation(g, 1.0) / device.deviation(g, DAY))
    # The covariance of 1 s and 1 d is the variance at 1 s. Standard error of a correlation: (1 - ρ²) / √N.
    assert abs(correlation(first, day) - kept) < 4 * (1 - kept**2) / math.sqrt(N)
    assert abs(correlation(first, day - first)) < 4 / math.sqrt(N)
    assert correlation(hour, later) > 0.9999


def test_wan_without_noise_is_exact():
    device = ReRam(noise_scale=0.0)
    assert torch.equal(device.drifted(cells(device, 20.0, (5, "quiet")), DAY), torch.full((N,), 20.0))


# CMO


@needs_aihwkit
@of_aihwkit_itself
@pytest.mark.parametrize("acceptance", [0.2, 2])
@pytest.mark.parametrize("level", LEVELS)
def test_cmo_has_the_distribution_of_aihwkit(level, acceptance):
    from aihwkit.inference.noise.reram import ReRamCMONoiseModel

    device, key = CmoReRam(acceptance=acceptance), (6, f"{acceptance} {level}")
    model = ReRamCMONoiseModel(g_max=88.2, g_min=9.0, acceptance_range=acceptance)
    target = torch.full((N,), 9.0 + 79.2 * level)
    state = ageing.program(device, target, key)
    with torch.random.fork_rng():
        torch.manual_seed(6)
        programmed = model.apply_programming_noise_to_conductance(target)
        pairs = [(state["programmed"], programmed)]
        for time in (1.0, HOUR, DAY, YEAR):
            theirs = model.apply_drift_noise_to_conductance(programmed, target, time)
            pairs.append((ageing.conductances(device, state, time, key), theirs))
    # 50 comparisons at fixed seeds: below 1e-3 none is expected by chance.
    assert min(stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue for ours, theirs in pairs) > 1e-3


@needs_aihwkit
@of_aihwkit_itself
def test_cmo_stays_in_its_window_at_0_s_where_aihwkit_leaves_it():
    from aihwkit.inference.noise.reram import ReRamCMONoiseModel

    device, key = CmoReRam(acceptance=2.0), (7, "window")
    state = cells(device, 88.2, key)
    assert ageing.conductances(device, state, 0.0, key).max() <= device.g_max
    model = ReRamCMONoiseModel(g_max=88.2, g_min=9.0, acceptance_range=2)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        theirs = model.apply_programming_noise_to_conductance(torch.full((N,), 88.2))
    assert model.apply_drift_noise_to_conductance(theirs, theirs, 0.0).max() > 90
    assert model.apply_drift_noise_to_conductance(theirs, theirs, 1.0).max() <= 88.21


def test_cmo_writes_lower_targets_at_the_edge_of_its_window():
    device = CmoReRam(prog_noise_scale=0.0)
    assert torch.equal(device.drifted(cells(device, 0.0, (8, "low")), 0.0), torch.full((N,), 9.0))


@needs_aihwkit
def test_cmo_defaults_to_the_narrow_band_as_aihwkit_does_in_silence():
    from aihwkit.inference.noise.reram import ReRamCMONoiseModel

    model = ReRamCMONoiseModel()
    assert model.acceptance_range == 0.2  # its own default of 2e-2 is not among its bands
    state = cells(CmoReRam(), 50.0, (9, "band"))
    deviation = 0.00081107 + 0.00106879 * 50
    assert float(state["programmed"].std()) == pytest.approx(deviation, rel=4 / math.sqrt(2 * N))


def test_cmo_shift_spread_and_path():
    device = CmoReRam()
    state = cells(device, 50.0, (10, "path"))
    day, later = (device.drifted(state, t) - state["programmed"] for t in (DAY, DAY + HOUR))
    spread = 0.41183342 + 0.04201137 * math.log(DAY)
    assert float(day.mean()) == pytest.approx(-0.08900206 * math.log(DAY), abs=4 * spread / math.sqrt(N))
    assert float(day.std()) == pytest.approx(spread, rel=4 / math.sqrt(2 * N))
    assert correlation(day, later) > 0.9999
    assert torch.equal(device.drifted(state, 0.5), device.drifted(state, 1.0))


def test_cmo_effects_can_be_turned_off():
    state = cells(CmoReRam(), 50.0, (11, "off"))
    assert torch.equal(CmoReRam(drift_scale=0.0).drifted(state, DAY), state["programmed"])
    quiet = CmoReRam(read_noise_scale=0.0)
    assert quiet.fluctuation(state, state["programmed"], DAY) is None
    assert CmoReRam().fluctuation(state, state["programmed"], 0.0) is None


# Names and refusals


def test_presets():
    assert presets.get("reram").device == presets.reram("wan2022").device == ReRam()
    assert presets.get("reram_cmo").device == presets.reram("cmo").device == CmoReRam()
    with pytest.raises(InputError, match="ReRAM model 'taox' is unknown: choose one of wan2022, cmo"):
        presets.reram("taox")


@pytest.mark.parametrize(
    ("device", "fields", "message"),
    [
        (ReRam, {"g_max": 0.0}, "g_max = 0.0 is not allowed: give a finite number from 0.001 to 100000"),
        (ReRam, {"noise_scale": -1.0}, "noise_scale = -1.0 is not allowed: give a finite number from 0 to"),
        (CmoReRam, {"acceptance": 2e-2}, "acceptance = 0.02 is not allowed: choose 0.2 or 2"),
        (CmoReRam, {"g_max": 100.0}, "g_max = 100.0 are not allowed: cells were measured from 9.0 to 88.2 µS"),
        (CmoReRam, {"g_min": 0.0}, "g_min = 0.0 is not allowed: give a finite number above 0"),
        (CmoReRam, {"g_min": 50.0, "g_max": 50.0}, "give a window within"),
        (CmoReRam, {"drift_scale": math.nan}, "drift_scale = nan is not allowed"),
    ],
)
def test_refuses_what_was_not_measured(device, fields, message):
    with pytest.raises(InputError, match=message):
        device(**fields)
