import pytest
import torch
from scipy import stats

from crossbar import Hardware, InputError, presets, to_seconds
from crossbar.devices.hermes import Hermes
from crossbar.tiles import ageing
from tests.peers import needs_aihwkit

N = 20_000
LEVELS = [0.02, 0.12, 0.25, 0.5, 1.0]  # both sides of every branch of the fits
TIMES = ["0s", "1h", "1d", "1y"]


@needs_aihwkit
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence for multidimensional indexing")  # in aihwkit
@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("level", LEVELS)
def test_same_distribution_as_aihwkit(devices, level):
    from aihwkit.inference.noise.hermes import HermesNoiseModel

    device, model = presets.hermes(devices).device, HermesNoiseModel(num_devices=devices)
    assert (device.g_max, device.t_0, device.t_read) == (model.g_max, model.t_0, model.t_read)
    target = torch.full((N,), device.g_max * level)
    key = (7, f"{devices} devices at {level}")
    state = ageing.program(device, target, key)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        programmed = model.apply_programming_noise_to_conductance(target)
        exponent = model.generate_drift_coefficients(target)
        pairs = [(state["programmed"], programmed), (state["exponent"], exponent)]
        for time in TIMES:
            seconds = to_seconds(time)
            theirs = model.apply_drift_noise_to_conductance(programmed, exponent, seconds)
            pairs.append((ageing.conductances(device, state, seconds, key), theirs))
    # 60 comparisons at fixed seeds: below 1e-3 none is expected by chance.
    assert min(stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue for ours, theirs in pairs) > 1e-3


@pytest.mark.parametrize(("devices", "deviation"), [(1, 0.15781817), (2, 0.16603222)])
def test_programming_error_of_an_empty_cell(devices, deviation):
    device = presets.hermes(devices).device
    found = device.programming_deviation(torch.zeros(1, dtype=torch.float64))
    assert float(found) == pytest.approx(deviation, rel=1e-12)


def test_hardware_round_trip():
    hardware = presets.get("hermes")
    assert Hardware.from_dict(hardware.to_dict()) == hardware


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"devices": 3}, "devices = 3 .* choose 1 or 2"), ({"devices": 1, "g_max": 20.7}, "g_max = 20.7 .* 10.35 µS")],
)
def test_refuses_what_was_not_measured(fields, message):
    with pytest.raises(InputError, match=message):
        Hermes(**fields)
