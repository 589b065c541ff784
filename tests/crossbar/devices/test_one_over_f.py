"""The correlated option: one 1/f path of each cell, read at any time and in any order."""

import math

import pytest
import torch
from scipy import stats
from scipy.special import exp1

from crossbar import InputError
from crossbar.devices import PCM
from crossbar.devices.hermes import Hermes
from crossbar.devices.one_over_f import correlated
from crossbar.tiles import ageing

N = 200_000
T_0, T_READ = 20.0, 250e-9
HOUR, DAY, YEAR = 3600.0, 86400.0, 365 * 86400.0
DISCRETE = 0.004  # of two processes a decade


def path(seconds, n=N, key=(0, "layer")):
    return correlated((n,), seconds, T_0, T_READ, key)


def band(seconds):
    return math.log((seconds + T_0 + T_READ) / (2 * T_READ))


def theory(one, other):
    """Correlation of a continuous band: ``∫ exp(-Δ/τ) dτ/τ`` over the time constants that both times have."""
    shortest, longest = T_READ / math.pi, (min(one, other) + T_0 + T_READ) / (2 * math.pi)
    apart = abs(one - other)
    return (exp1(apart / longest) - exp1(apart / shortest)) / math.sqrt(band(one) * band(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [(HOUR, DAY), (DAY, DAY + 1), (DAY, DAY + 60), (HOUR, 1.1 * HOUR), (0.0, 1.0), (YEAR, YEAR + HOUR), (YEAR, DAY)],
)
def test_correlation_is_that_of_a_1_over_f_band(one, other):
    product = (path(one) * path(other)).double()  # both have mean 0 and variance 1
    error = float(product.std()) / math.sqrt(N)
    assert abs(float(product.mean()) - theory(one, other)) < DISCRETE + 4 * error


def test_correlations_of_the_design():
    assert theory(DAY, DAY + 1) == pytest.approx(0.346, abs=5e-4)
    assert abs(float((path(HOUR) * path(DAY)).mean())) < 0.05
    assert float((path(DAY) * path(DAY + 1)).mean()) == pytest.approx(0.35, abs=0.02)


@pytest.mark.parametrize("seconds", [0.0, 0.1, 1.0, HOUR, DAY, 30 * DAY, YEAR, 30 * YEAR])
def test_standard_normal_at_each_time(seconds):
    z = path(seconds)
    assert float(z.double().square().mean()) == pytest.approx(1.0, abs=4 * math.sqrt(2 / N))
    assert stats.kstest(z.numpy(), "norm").pvalue > 0.01  # at a fixed seed


@pytest.mark.parametrize("device", [PCM, Hermes])
def test_noise_has_the_deviation_of_independent_noise(device):
    key, one, other = (1, "layer"), device(), device(correlated=True)
    state = ageing.program(one, torch.full((N,), 0.8 * one.g_max), key)
    again = ageing.program(other, torch.full((N,), 0.8 * one.g_max), key)
    assert all(torch.equal(state[name], again[name]) for name in state)
    for seconds in (0.0, HOUR, DAY):
        drifted = one.drifted(state, seconds)
        reads = [ageing.conductances(d, state, seconds, key) - drifted for d in (one, other)]
        deviations = [float(read.double().std()) for read in reads]
        assert deviations[1] == pytest.approx(deviations[0], rel=4 * math.sqrt(1 / N))  # two deviations, √2 of one's


def test_paths_are_continuous_where_the_band_grows():
    # A process joins the sum when (t + t_0 + t_read) / 2π reaches it: at 10 s here. Only what is faster than 10 ms, one
    # number for each time, may differ between two times as near as these.
    joins = 20 * math.pi - T_0
    square = (path(joins + 1e-6) - path(joins - 1e-6)).double().square()
    fast = math.log(1e-2 / (T_READ / math.pi)) / band(joins)
    assert float(square.mean()) == pytest.approx(2 * fast, abs=4 * float(square.std()) / math.sqrt(N))


def test_any_order_and_any_number_of_threads_give_the_same_bits():
    times = [0.0, DAY]
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        forwards = {t: path(t, 70_001) for t in times}
        torch.set_num_threads(2)
        backwards = {t: path(t, 70_001) for t in reversed(times)}
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(forwards[t], backwards[t]) for t in times)


@pytest.mark.parametrize("key", [(1, "layer"), (0, "other")])
def test_other_chips_have_other_paths(key):
    assert abs(float((path(HOUR) * path(HOUR, key=key)).mean())) < 4 / math.sqrt(N)


def test_refuses_what_is_not_yes_or_no():
    with pytest.raises(InputError, match="device field correlated = 1 is not allowed: give true or false"):
        PCM(correlated=1)
