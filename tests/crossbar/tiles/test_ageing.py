"""The life of a chip: the same chip at the same time always reads the same conductances."""

import functools

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from crossbar import InputError, age, convert, load_state, presets, program, save_state
from crossbar.devices import PCM
from crossbar.tiles import ageing
from tests.crossbar import conftest
from tests.crossbar.conftest import reads, same

N = 20_000
KEY = (0, "layer")
HOUR, DAY = 3600.0, 86400.0

chip = functools.partial(conftest.chip, presets.pcm())


def cells(key=KEY):
    target = torch.linspace(12.5, 25.0, N)  # far from 0 µS, where clamping would hide the noise
    return ageing.program(PCM(), target, key)


def correlation(a, b):
    return float(np.corrcoef(a.numpy(), b.numpy())[0, 1])


def standardised(state, seconds, key=KEY):
    """The 1/f noise in units of its deviation."""
    drifted = PCM().drifted(state, seconds)
    read = ageing.conductances(PCM(), state, seconds, key)
    return (read - drifted) / PCM().fluctuation(state, drifted, seconds)


def test_order_of_reads_does_not_matter():
    model = chip()
    forwards = reads(model, "0s", "1h", "1d")
    backwards = reads(model, "1d", "1h", "0s")
    alone = reads(chip(), "1d")
    for time in forwards:
        assert same(forwards[time], backwards[time])
    assert same(forwards["1d"], alone["1d"])
    assert not same(forwards["1h"], forwards["1d"])


def test_programming_again_gives_the_same_chip():
    model = chip()
    first = reads(model, "1h")
    program(model, 1)
    assert not same(first["1h"], reads(model, "1h")["1h"])
    program(model, 0)
    assert same(first["1h"], reads(model, "1h")["1h"])


def test_programming_leaves_the_chip_at_zero_seconds():
    model = chip()
    now = [*model[0].conductances(), *model[1].conductances()]
    assert model[0].seconds == 0
    assert same(now, reads(model, "0s")["0s"])


def age_layer_by_layer(model, time):
    for layer in model:
        layer.age(time)


@pytest.mark.parametrize("move", [age, age_layer_by_layer])
@pytest.mark.parametrize("times", [(3600.0, 3600, np.float64(3600)), (0.0, -0.0, 0)], ids=["1h", "0s"])
def test_equal_times_give_equal_bits(move, times):
    model = chip()
    found = []
    for time in times:
        move(model, time)
        found.append([layer.cells.digits for layer in model])
    assert all(same(found[0], other) for other in found)


def test_ageing_is_for_all_layers_or_none():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    convert(model, presets.pcm(), include="0")
    program(model)
    convert(model, presets.pcm())
    with pytest.raises(InputError, match="1 was not programmed"):
        age(model, "1h")
    assert model[0].seconds == 0


def test_a_chip_programmed_in_inference_mode_can_be_trained():
    model = chip()
    with torch.inference_mode():
        program(model)
        age(model, "1h")
    x = torch.ones(2, 70, requires_grad=True)
    model(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_a_chip_loaded_in_inference_mode_can_be_trained(tmp_path):
    model = chip()
    save_state(model, tmp_path / "chip")
    with torch.inference_mode():
        load_state(model, tmp_path / "chip")
    model(torch.ones(2, 70, requires_grad=True)).sum().backward()


def test_threads_change_no_bit():
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            # 150,000 cells are enough for two threads, and not a whole number of vector registers for each
            found.append(reads(chip(shape=(300, 250)), "1h")["1h"])
    finally:
        torch.set_num_threads(threads)
    assert same(*found)


def test_reloading_changes_no_bit(tmp_path):
    model, other = chip(seed=7), chip(seed=8)
    first = reads(model, "1h", "1d")
    save_state(model, tmp_path / "chip")
    load_state(other, tmp_path / "chip")
    again = reads(other, "1d", "1h")
    assert all(same(first[time], again[time]) for time in first)


def test_fluctuation_is_standard_normal():
    assert stats.kstest(standardised(cells(), HOUR).numpy(), "norm").pvalue > 0.01


@pytest.mark.parametrize("other", [0.0, HOUR + 1, DAY])
def test_fluctuations_at_distinct_times_are_independent(other):
    state = cells()
    assert abs(correlation(standardised(state, HOUR), standardised(state, other))) < 4 / N**0.5


def test_effects_of_one_cell_are_independent():
    state = cells()
    target = torch.linspace(12.5, 25.0, N)
    sigma = 0.26348 + 1.9650 * (target / 25) - 1.1731 * (target / 25) ** 2
    written = (state["programmed"] - target) / sigma
    drift = (state["exponent"] - 0.049) / 0.008  # the mean and deviation of these targets
    effects = written, drift, standardised(state, HOUR)
    for i, a in enumerate(effects):
        for b in effects[:i]:
            assert abs(correlation(a, b)) < 4 / N**0.5


@pytest.mark.parametrize("key", [(1, "layer"), (0, "layer.1")])
def test_other_seeds_and_names_are_other_chips(key):
    one, two = cells(), cells(key)
    target = torch.linspace(12.5, 25.0, N)
    assert abs(correlation(one["programmed"] - target, two["programmed"] - target)) < 4 / N**0.5
    assert abs(correlation(one["exponent"], two["exponent"])) < 4 / N**0.5
    assert abs(correlation(standardised(one, HOUR), standardised(two, HOUR, key))) < 4 / N**0.5


def test_noise_can_be_left_out():
    state = cells()
    assert torch.equal(ageing.conductances(PCM(), state, DAY, KEY, noise=False), PCM().drifted(state, DAY))
