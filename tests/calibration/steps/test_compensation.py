"""DriftCompensation: gains that are measured through the converters."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from calibration import DriftCompensation
from calibration.steps.compensation import read_out_inputs
from crossbar import (
    AnalogLinear,
    Converter,
    Hardware,
    InputError,
    Ledger,
    Tile,
    age,
    analog_layers,
    convert,
    devices,
    presets,
    program,
    reset_reads,
)
from crossbar.tiles.tile_array import TileArray

TILE = Tile(16, 8)
UNEVEN = 1 + 0.3 * torch.linspace(-1, 1, 20)


@dataclass(frozen=True)
class Fading:
    """Every cell keeps its target and loses the same part of it: G(t) = G · (1 + t)^-0.1."""

    kind: ClassVar[str] = "fading"
    g_max: float = 10.0

    def program(self, target, draw):
        return {"written": target}

    def drifted(self, state, seconds):
        return state["written"] * (1 + seconds) ** -0.1

    def fluctuation(self, state, drifted, seconds):
        return None


@dataclass(frozen=True)
class Weak(Fading):
    """Cells that are written at 80% and then fade."""

    kind: ClassVar[str] = "weak"

    def program(self, target, draw):
        return {"written": 0.8 * target}


def linear(inputs=40, outputs=20):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(inputs, outputs).requires_grad_(False)


def chip(device, seconds=99.0, **options):
    hardware = Hardware(device=device, **{"tile": TILE, "dac": None, "adc": None, "output_noise": 0.0, **options})
    model = nn.Sequential(linear())
    convert(model, hardware)
    program(model, seed=0)
    age(model, seconds)
    return model


def uneven_chip():
    """A chip each bit line of which was written with an error of its own, the same for all its cells."""
    model = chip(Fading(), seconds=0.0)
    layer = analog_layers(model)["0"]
    layer.set_state({"written": layer.state()["written"] * UNEVEN}, seed=0, seconds=0.0)
    return model


def fitted(model, **options):
    return DriftCompensation(**options).fit(model, [])["0"]


@pytest.mark.parametrize("per", ["column", "tile"])
@pytest.mark.parametrize("dac", [None, Converter(range="per_token"), Converter(range="max")])
def test_uniform_drift_is_undone_exactly(per, dac):
    model = chip(Fading(), dac=dac)
    expected = 100.0**0.1
    gain = fitted(model, per=per)
    assert gain.shape == (3, 20)  # 40 inputs on tiles of 16 rows, 20 outputs
    torch.testing.assert_close(gain, torch.full((3, 20), expected), rtol=1e-5, atol=0)


def test_the_output_comes_back():
    model, x = chip(Fading()), torch.randn(7, 40, generator=torch.Generator().manual_seed(1))
    digital = analog_layers(model)["0"].digital
    step = DriftCompensation()
    assert (model(x) - digital(x)).abs().max() > 0.05
    step.apply(model, step.fit(model, []))
    torch.testing.assert_close(model(x), digital(x), rtol=1e-5, atol=1e-5)


def test_a_gain_for_each_column_or_one_for_each_tile():
    model = uneven_chip()
    torch.testing.assert_close(fitted(model, per="column"), (1 / UNEVEN).expand(3, 20), rtol=1e-5, atol=0)
    by_tile = fitted(model, per="tile")
    for tile, part in zip(by_tile.split(8, 1), UNEVEN.split(8), strict=True):
        assert torch.equal(tile, tile[:, :1].expand_as(tile))
        assert ((tile > 1 / part.max()) & (tile < 1 / part.min())).all()


def test_per_tile_is_least_squares_over_the_columns_of_the_tile():
    model = uneven_chip()
    layer, step = analog_layers(model)["0"], DriftCompensation(per="tile", reads=64)
    inputs = read_out_inputs(layer, 64, (0, "0", "drift compensation"))
    measured, reference = layer.read_out(inputs)[1, :, 8:16], layer.expected_read_out(inputs)[1, :, 8:16]
    expected = torch.linalg.lstsq(measured.reshape(-1, 1), reference.reshape(-1, 1)).solution
    torch.testing.assert_close(step.fit(model, [])["0"][1, 8], expected[0, 0], rtol=1e-4, atol=0)


def test_the_reference_is_the_target_or_what_was_programmed():
    model = chip(Weak())
    drift = torch.full((3, 20), 100.0**0.1)
    torch.testing.assert_close(fitted(model, reference="programmed"), drift, rtol=1e-5, atol=0)
    torch.testing.assert_close(fitted(model, reference="ideal"), drift / 0.8, rtol=1e-5, atol=0)
    assert analog_layers(model)["0"].seconds == 99.0


def test_a_column_without_weights_keeps_gain_1():
    model = nn.Sequential(linear())
    with torch.no_grad():
        model[0].weight[4] = 0.0
    convert(model, Hardware(device=Fading(), tile=TILE, dac=None, adc=None, output_noise=0.0))
    program(model)
    age(model, 99)
    assert (fitted(model)[:, 4] == 1).all()


def test_a_chip_that_did_not_change_keeps_gain_1():
    model = chip(devices.Ideal(), seconds=1e6)
    torch.testing.assert_close(fitted(model), torch.ones(3, 20), rtol=1e-6, atol=0)


def test_nobody_looks_at_the_cells(monkeypatch):
    model = chip(devices.PCM(), dac=Converter(range="per_token"), adc=Converter(), output_noise=0.04)

    def forbidden(*_, **__):
        raise AssertionError("a chip cannot be asked for its conductances")

    for name in ("effective_weight", "conductances", "state"):
        monkeypatch.setattr(AnalogLinear, name, forbidden)
        monkeypatch.setattr(TileArray, name, forbidden, raising=name != "effective_weight")
    gain = fitted(model)
    assert (gain > 1).float().mean() > 0.9  # it drifted, and that was measured


def test_the_converters_are_in_the_measurement():
    coarse = chip(Fading(), adc=Converter(bits=3, full_scale=2.0))
    exact = torch.full((3, 20), 100.0**0.1)
    assert (fitted(coarse) - exact).abs().max() > 0.01
    loud = chip(Fading(), output_noise=3.0)
    assert (fitted(loud) / exact).median() < 0.9  # noise in what is measured draws least squares towards 0


@pytest.mark.parametrize(("reference", "times"), [("ideal", 1), ("programmed", 2)])
def test_reads_are_booked(reference, times):
    model = chip(devices.PCM(), dac=Converter(bits=7, range="per_token"), adc=Converter(bits=9), output_noise=0.04)
    with Ledger() as ledger:
        fitted(model, reads=10, reference=reference)
    # 20 outputs on tiles of 8 columns: 3 tiles drive each word line; 40 inputs on tiles of 16 rows: 3 convert a column.
    counts = ledger.to_dict()["0"]
    assert counts["row_activations"] == times * 10 * 40 * 3
    assert counts["dac_conversions_7bit"] == times * 10 * 40 * 3
    assert counts["adc_conversions_9bit"] == times * 10 * 20 * 3
    assert counts["cell_macs"] == times * 10 * 40 * 20


def test_a_day_old_pcm_layer_gets_most_of_its_accuracy_back():
    model, x = nn.Sequential(linear(300, 100)), torch.randn(64, 300, generator=torch.Generator().manual_seed(1))
    expected = model(x)
    convert(model, presets.pcm())
    step, before, after = DriftCompensation(), [], []
    for seed in range(4):
        program(model, seed)
        age(model, "1d")
        gains = step.fit(model, [])
        age(model, "25h")
        before.append(float((model(x) - expected).norm()))
        step.apply(model, gains)
        reset_reads(model)
        after.append(float((model(x) - expected).norm()))
    assert all(a < b / 3 for a, b in zip(after, before, strict=True))


def test_more_reads_measure_better():
    """On a chip that only drifts, all error of a gain is read noise: its variance falls as 1 / reads."""
    exact = 100.0**0.1
    model = chip(Fading(), output_noise=0.3)

    def deviation(reads):
        gains = []
        for seed in range(20):
            reset_reads(model)
            gains.append(fitted(model, reads=reads, seed=seed) / exact)
        return float(torch.stack(gains).std(0).mean())

    ratio = deviation(16) / deviation(256)
    assert 3.2 < ratio < 4.8  # 4 expected; 60 columns x 20 seeds give a standard error of 3%


def test_test_inputs_fill_a_static_dac():
    model = chip(Fading(), dac=Converter(range="static", full_scale=10.0))
    inputs = read_out_inputs(analog_layers(model)["0"], 256, (0, "0", "drift compensation"))
    assert inputs.abs().max() > 9.9


# Prediction

YEAR = 365 * 86400.0


def test_gains_of_a_power_law_are_predicted_to_any_age():
    """One fit for all later ages: 1 + t in the place of t is 1e-5 off."""
    model = chip(Fading(), seconds=86400.0)
    step = DriftCompensation(predict=True)
    found = step.fit(model, [])
    assert float(found["0.exponent"]) == pytest.approx(0.1, rel=1e-3)
    for seconds in (86400.0, 30 * 86400.0, YEAR):
        age(model, seconds)
        step.apply(model, found)
        gain = analog_layers(model)["0"].column_gain
        torch.testing.assert_close(gain, torch.full((3, 20), (1 + seconds) ** 0.1), rtol=1e-4, atol=0)


def test_the_exponent_is_that_of_the_reference():
    """A line through logarithms of the layer's strength, fitted in float64."""
    model = chip(devices.PCM(), seconds=YEAR, dac=Converter(range="per_token"), adc=Converter(), output_noise=0.04)
    layer = analog_layers(model)["0"]
    found = DriftCompensation(predict=True, first_read=7200.0, second_read=3 * 86400.0, reads=64).fit(model, [])
    inputs = read_out_inputs(layer, 64, (0, "0", "drift compensation"))
    reference = layer.expected_read_out(inputs).double().numpy().ravel()
    times, logs = [7200.0, 3 * 86400.0], []
    for seconds in times:
        layer.age(seconds)
        measured = layer.read_out(inputs).double().numpy().ravel()
        logs.append(np.log(np.linalg.lstsq(reference[:, None], measured, rcond=None)[0][0]))
    slope, _ = np.polyfit(np.log(times), logs, 1)
    assert float(found["0.exponent"]) == pytest.approx(-slope, rel=1e-9)


def test_a_year_old_pcm_layer_is_nearly_as_good_as_with_a_read_out():
    """Of the squared error that compensation by a read-out at 1 y takes away, at least 95%."""
    model, x = nn.Sequential(linear(300, 100)), torch.randn(64, 300, generator=torch.Generator().manual_seed(1))
    expected = model(x)
    convert(model, presets.pcm())
    left = {"none": 0.0, "measured": 0.0, "predicted": 0.0}
    for seed in range(3):
        for arm, step in (
            ("none", None),
            ("measured", DriftCompensation()),
            ("predicted", DriftCompensation(predict=True)),
        ):
            program(model, seed)
            age(model, YEAR)
            if step is not None:
                step.apply(model, step.fit(model, []))
            age(model, YEAR + 3600)
            reset_reads(model)
            left[arm] += float((model(x) - expected).square().sum())
    assert left["none"] - left["predicted"] > 0.95 * (left["none"] - left["measured"])


def test_only_the_two_read_outs_are_booked():
    model = chip(devices.PCM(), seconds=YEAR, adc=Converter(), output_noise=0.04)
    with Ledger() as ledger:
        fitted(model, reads=10, predict=True)
    assert ledger.totals()["adc_conversions"] == 2 * 10 * 20 * 3
    assert analog_layers(model)["0"].seconds == YEAR


def test_what_lies_ahead_cannot_be_read_out():
    with pytest.raises(InputError, match="from a read-out at 1 d, and the chip is 1 h old: give later times"):
        fitted(chip(Fading(), seconds=3600.0), predict=True)


def test_a_layer_that_delivers_nothing_is_left_alone():
    model = chip(Fading(), seconds=86400.0)
    with torch.no_grad():
        analog_layers(model)["0"].digital.weight.zero_()
    analog_layers(model)["0"].map_anew()
    program(model)
    age(model, YEAR)
    found = DriftCompensation(predict=True).fit(model, [])
    assert float(found["0.exponent"]) == 0
    assert (found["0"] == 1).all()


def test_programming_again_forgets_the_gains():
    model, step = chip(Fading()), DriftCompensation()
    step.apply(model, step.fit(model, []))
    program(model, seed=0)
    assert (analog_layers(model)["0"].column_gain == 1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per": "layer"}, "DriftCompensation per = 'layer' is not allowed: choose tile, column"),
        ({"reference": "digital"}, "DriftCompensation reference = 'digital' is not allowed"),
        ({"first_read": 1e5}, "first_read = 100000 s is not before second_read = 86400 s: give an earlier time"),
        ({"first_read": 0}, "DriftCompensation first_read = 0 is not allowed"),
        ({"predict": 1}, "DriftCompensation predict = 1 is not allowed: give true or false"),
        ({"reads": 0}, "DriftCompensation reads = 0 is not allowed: give a whole number from 1 to 100000"),
    ],
)
def test_refusals(options, message):
    with pytest.raises(InputError, match=message):
        DriftCompensation(**options)
