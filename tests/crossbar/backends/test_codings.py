"""How inputs are coded and columns converted: bit-serial and rate inputs, single bits, ranges that follow the input."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from crossbar import AnalogLinear, CellNoise, Converter, Ledger, Tile
from crossbar.backends import eager
from crossbar.backends.converters import bit_planes
from tests.crossbar.conftest import QUIET, inputs64, linear_layer

SERIAL = Converter(coding="bit_serial", range="static", full_scale=2.0)
RATE = Converter(coding="rate", range="static", full_scale=2.0)


def vector(*values):
    return torch.tensor([values], dtype=torch.float64)


# Bit-serial


@given(bits=st.integers(2, 16), codes=st.lists(st.integers(-32767, 32767), min_size=1, max_size=5))
def test_bit_planes_add_up_to_the_code(bits, codes):
    dac = Converter(bits=bits, coding="bit_serial")
    codes = torch.tensor([codes], dtype=torch.float32).clamp_(-dac.levels, dac.levels)
    planes = bit_planes(codes, dac)
    assert len(planes) == bits - 1
    assert all(set(plane.flatten().tolist()) <= {-1.0, 0.0, 1.0} for plane in planes)
    assert torch.equal(sum(plane * 2**place for place, plane in enumerate(planes)), codes)


@pytest.mark.parametrize("bits", [2, 3, 8, 12])
@pytest.mark.parametrize("options", [{}, {"encoding": "offset"}, {"slices": 2, "pairs": 2}], ids=str)
def test_bit_serial_is_pwm_where_nothing_is_converted(bits, options):
    dac = Converter(bits=bits, range="per_token", coding="bit_serial")
    serial = linear_layer(10, 7, dataclasses.replace(QUIET, dac=dac, tile=Tile(4, 3, **options)))
    pulse = AnalogLinear.from_digital(
        serial.digital, dataclasses.replace(serial.hardware, dac=dataclasses.replace(dac, coding="pwm"))
    )
    x = inputs64(5, 10)
    assert torch.equal(serial(x), pulse(x))  # one product of the digital side
    torch.testing.assert_close(serial.read_out(x), pulse.read_out(x), rtol=1e-13, atol=1e-13)  # float64 sums


def test_bit_serial_by_hand():
    # Weights 1 and ½, codes 5 = 101b and -3 = -011b of 7: columns of 1 - ½, -½ and 1 unit outputs, read in steps of ½
    # up to 1½, then worth 1, 2 and 4 sevenths.
    dac = Converter(bits=4, range="static", full_scale=7.0, coding="bit_serial")
    layer = linear_layer(2, 1, dataclasses.replace(QUIET, dac=dac, adc=Converter(bits=3, full_scale=1.5)), [[1.0, 0.5]])
    assert layer(vector(5.0, -3.0)).item() == pytest.approx(0.5 * 1 - 0.5 * 2 + 1 * 4, rel=1e-15)
    # A step of 1: the halves are ties, which go to 0.
    coarse = dataclasses.replace(layer.hardware, adc=Converter(bits=2, full_scale=1.0))
    coarse_layer = AnalogLinear.from_digital(layer.digital, coarse)
    assert coarse_layer(vector(5.0, -3.0)).item() == pytest.approx(4.0, rel=1e-15)


def test_each_bit_is_clipped_on_its_own():
    # Two full lines make 2 unit outputs, past a range of 1: the pulse as a whole is clipped to half its value, and so
    # is each bit. One full and one empty line are clipped in none.
    dac = Converter(bits=3, range="static", full_scale=3.0, coding="bit_serial")
    layer = linear_layer(2, 1, dataclasses.replace(QUIET, dac=dac, adc=Converter(full_scale=1.0)), [[1.0, 1.0]])
    assert layer(vector(3.0, 3.0)).item() == pytest.approx(3.0)
    assert layer(vector(2.0, 1.0)).item() == pytest.approx(3.0)  # as a pulse it would be clipped nowhere: 1 unit
    pwm = AnalogLinear.from_digital(
        layer.digital, dataclasses.replace(layer.hardware, dac=dataclasses.replace(dac, coding="pwm"))
    )
    assert pwm(vector(3.0, 2.0)).item() == pytest.approx(3.0)  # 5 / 3 of a unit
    assert layer(vector(3.0, 2.0)).item() == pytest.approx(1 + 2)  # bits 1, 0 and 1, 1


def test_every_bit_has_read_noise_of_its_own():
    # Output noise of each bit is worth as much as the bit: in all sqrt(1 + 4 + 16) / 7.
    dac = Converter(bits=4, range="static", full_scale=1.0, coding="bit_serial")
    layer = linear_layer(4, 3, dataclasses.replace(QUIET, dac=dac, output_noise=0.1))
    zeros = torch.zeros(10_000, 4, dtype=torch.float64)
    found = torch.stack([layer(zeros) / layer.scales[0] for _ in range(5)]).detach()
    n, deviation = found.numel(), 0.1 * math.sqrt(21) / 7
    low, high = stats.chi2.ppf([0.005, 0.995], n) / n
    assert low < float(found.square().mean()) / deviation**2 < high
    assert stats.kstest((found / deviation).flatten().numpy(), "norm").pvalue > 0.01


def test_bit_serial_gradients_are_those_of_the_pulse():
    def gradients(coding):
        dac = Converter(bits=8, range="static", full_scale=2.0, coding=coding)
        layer = linear_layer(10, 7, dataclasses.replace(QUIET, dac=dac, adc=Converter(bits=12, full_scale=50.0)))
        layer.train()
        x = inputs64(5, 10).requires_grad_()
        layer(x).square().sum().backward()
        return x.grad, layer.digital.weight.grad

    for serial, pulse in zip(gradients("bit_serial"), gradients("pwm"), strict=True):
        # Outputs differ by the ADC's steps of 50 / 2047 in each row tile and bit, their squares' gradients as much
        assert (serial - pulse).norm() < 0.02 * pulse.norm()


def test_bit_serial_gradients_do_not_change_the_value():
    layer = linear_layer(10, 7, dataclasses.replace(QUIET, dac=SERIAL, adc=Converter(bits=6)))
    x = inputs64(5, 10)
    with torch.no_grad():
        plain = layer(x)
    assert torch.equal(layer(x.clone().requires_grad_()), plain)


def test_bit_serial_counts_by_hand():
    dac = Converter(bits=6, range="static", coding="bit_serial")
    layer = linear_layer(10, 7, dataclasses.replace(QUIET, dac=dac, adc=Converter(bits=8)))
    with Ledger() as ledger:
        layer(inputs64(6, 10))
    assert ledger.to_dict() == {
        "linear": {
            "row_activations": 6 * 10 * 3 * 5,  # 5 magnitude bits
            "dac_conversions_6bit": 6 * 10 * 3,
            "adc_conversions_8bit": 6 * 7 * 3 * 5,
            "cell_macs": 6 * 70 * 5,
            "tile_reads": 6 * 3 * 3 * 5,
            "digital_macs": 6 * 7 * 3 * 5,
            "sram_bytes": 6 * (10 + 2 * 7),
        }
    }


# Rate


def test_rate_pulses_have_the_mean_and_variance_of_the_binomial():
    # One line and a weight of 1: the column holds the share of 15 slots that had a pulse.
    dac = Converter(bits=5, range="static", full_scale=1.0, coding="rate")
    layer = linear_layer(1, 1, dataclasses.replace(QUIET, dac=dac), [[1.0]])
    n = 4000
    for code in (-15, -7, 0, 3, 12):
        p = abs(code) / 15
        pulses = layer(torch.full((n, 1), code / 15, dtype=torch.float64)).detach().numpy() * 15
        assert np.abs(pulses - pulses.round()).max() < 1e-12
        assert (np.sign(pulses) * np.sign(code) >= 0).all()
        variance = 15 * p * (1 - p)
        assert abs(pulses.mean() - code) <= 4 * math.sqrt(variance / n)
        # The variance of a sample variance: (excess kurtosis + 2) / n
        kurtosis = (1 - 6 * p * (1 - p)) / variance if variance else 0.0
        assert abs(pulses.var() - variance) <= 4 * variance * math.sqrt((2 + kurtosis) / n)


def test_rate_pulses_of_lines_are_independent_and_reach_every_column():
    dac = Converter(bits=5, range="static", full_scale=1.0, coding="rate")
    layer = linear_layer(3, 2, dataclasses.replace(QUIET, dac=dac), [[1.0, 0, 0], [1.0, 1.0, 0]])
    n = 4000
    found = layer(torch.full((n, 3), 0.5, dtype=torch.float64)).detach().numpy()
    first, second = found[:, 0], found[:, 1] - found[:, 0]
    assert abs(np.corrcoef(first, second)[0, 1]) < 4 / n**0.5
    p = 8 / 15  # 7.5 is a tie: 8
    assert first.var() == pytest.approx(p * (1 - p) / 15, rel=4 * (2 / n) ** 0.5)


def test_rate_reads_repeat_and_differ_as_noise_does():
    layer, x = linear_layer(10, 7, dataclasses.replace(QUIET, dac=RATE)), inputs64(5, 10)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    layer.reset_reads()
    assert torch.equal(layer(x), first)
    assert not torch.equal(layer.read_out(x), layer.read_out(x, read=1))


def test_rate_without_chance_is_pwm():
    # Codes of 0 and full scale have no variance.
    layer = linear_layer(10, 7, dataclasses.replace(QUIET, dac=RATE, adc=Converter(full_scale=3.1415)))
    pwm = AnalogLinear.from_digital(
        layer.digital, dataclasses.replace(layer.hardware, dac=dataclasses.replace(RATE, coding="pwm"))
    )
    x = inputs64(5, 10).sign() * 2.0
    x[:, ::3] = 0
    assert torch.equal(layer(x), pwm(x))


def test_expected_read_out_has_no_chance():
    layer = linear_layer(10, 7, dataclasses.replace(QUIET, dac=RATE, read_noise=CellNoise(1.0), output_noise=0.1))
    x = inputs64(5, 10)
    assert torch.equal(layer.expected_read_out(x), layer.expected_read_out(x))


def test_offset_rate_takes_off_the_pulses_that_came():
    # Half the sum of the inputs is counted in digital from the same pulses: weights of 0 give 0, not their noise.
    dac = Converter(bits=5, range="static", full_scale=1.0, coding="rate")
    hardware = dataclasses.replace(QUIET, dac=dac, tile=Tile(encoding="offset"))
    layer = linear_layer(4, 1, hardware, [[0.0, 0.0, 0.0, 0.0]])
    assert layer(torch.full((50, 4), 0.4, dtype=torch.float64)).abs().max() < 1e-14


def test_rate_counts_by_hand():
    dac = Converter(bits=5, range="static", coding="rate")
    layer = linear_layer(10, 7, dataclasses.replace(QUIET, dac=dac, adc=Converter(bits=8)))
    with Ledger() as ledger:
        layer(inputs64(6, 10))
    assert ledger.to_dict() == {
        "linear": {
            "row_activations": 6 * 10 * 3 * 15,  # a slot each, at most
            "dac_conversions_5bit": 6 * 10 * 3,
            "adc_conversions_8bit": 6 * 7 * 3,
            "cell_macs": 6 * 70 * 15,
            "tile_reads": 6 * 3 * 3,
            "sram_bytes": 6 * (10 + 2 * 7),
            "digital_macs": 6 * 7 * 3,
        }
    }


# One bit


def test_one_bit_tells_only_the_sign():
    hardware = dataclasses.replace(QUIET, dac=Converter(bits=1, range="per_token"))
    layer = linear_layer(3, 1, hardware, [[1.0, 0.5, -0.25]])
    # The largest is 4: each line carries ±4, and 0 counts as positive.
    assert layer(vector(-4.0, 1.0, 0.0)).item() == -4 + 2 - 1
    adc = dataclasses.replace(QUIET, adc=Converter(bits=1, full_scale=0.75))
    layer = linear_layer(3, 2, adc, [[1.0, 0.5, -0.25], [-1.0, 0.0, 0.0]])
    assert layer(vector(0.01, 0.0, 0.0)).tolist() == [[0.75, -0.75]]
    assert layer(vector(9.0, 9.0, 0.0)).tolist() == [[0.75, -0.75]]
    assert layer(vector(0.0, 0.0, 0.0)).tolist() == [[0.75, 0.75]]


def test_one_bit_passes_gradients_inside_its_range():
    layer = linear_layer(3, 1, dataclasses.replace(QUIET, dac=Converter(bits=1, full_scale=1.0)), [[1.0, 0.5, -0.25]])
    x = vector(0.3, -1.4, 1.6).requires_grad_()
    layer(x).sum().backward()
    assert x.grad.tolist() == [[1.0, 0.5, 0.0]]  # up to half a step beyond, as with more bits


@pytest.mark.parametrize("adc", [None, Converter(), Converter(bits=1), Converter(range="active_rows")], ids=str)
@pytest.mark.parametrize("dac", [SERIAL, RATE, Converter(bits=1)], ids=["serial", "rate", "one bit"])
@pytest.mark.parametrize("noise", [None, CellNoise(1.0)], ids=str)
def test_nan_stays_nan_and_taints_no_other_vector(dac, adc, noise):
    layer = linear_layer(10, 6, dataclasses.replace(QUIET, dac=dac, adc=adc, read_noise=noise))
    x = inputs64(3, 10)
    x[1, 7] = math.nan
    lost = layer(x).isnan()
    assert lost[1].all()
    assert not lost[0].any()
    assert not lost[2].any()


@pytest.mark.parametrize("dac", [SERIAL, RATE, Converter(bits=1)], ids=["serial", "rate", "one bit"])
@pytest.mark.parametrize("adc", [None, Converter(range="active_rows")], ids=str)
def test_empty_batches_pass(dac, adc):
    layer = linear_layer(10, 6, dataclasses.replace(QUIET, dac=dac, adc=adc, read_noise=CellNoise(1.0)))
    assert layer(torch.zeros(0, 3, 10, dtype=torch.float64)).shape == (0, 3, 6)
    assert layer.read_out(torch.zeros(0, 10, dtype=torch.float64)).shape == (3, 0, 6)


@pytest.mark.parametrize("dac", [SERIAL, RATE, Converter(bits=1)], ids=["serial", "rate", "one bit"])
def test_inputs_are_not_changed(dac):
    layer = linear_layer(10, 6, dataclasses.replace(QUIET, dac=dac, adc=Converter(range="active_rows")))
    x = inputs64(3, 10)
    before = x.clone()
    with torch.no_grad():
        layer(x)
        layer.read_out(x)
    assert torch.equal(x, before)


# ADC ranges


def test_active_rows_by_hand():
    # Full scale 4 on tiles of 4 lines: 4 sqrt(active / 4), in 3 steps a side. Last tile of 2 lines: 4 sqrt(active / 2).
    adc = Converter(bits=3, range="active_rows", full_scale=4.0)
    layer = linear_layer(6, 1, dataclasses.replace(QUIET, adc=adc), [[1.0, 1, 1, 1, 0.5, 1]])
    one = layer.read_out(vector(1.0, 0, 0, 0, 0, 0)).flatten().tolist()  # range 2: 1 of 2/3 steps: 1.5 -> 2 -> 4/3
    assert one == pytest.approx([4 / 3, 0.0])
    four = layer.read_out(vector(0.25, 0.25, 0.25, 0.25, 0, 0)).flatten().tolist()  # range 4: 1 of 4/3: 0.75 -> 1
    assert four == pytest.approx([4 / 3, 0.0])
    edge = layer.read_out(vector(0, 0, 0, 0, 4.0, 0)).flatten().tolist()  # range 4 / sqrt 2, in thirds: 2.12 -> 2
    assert edge == pytest.approx([0.0, 2 * 4 / 3 / math.sqrt(2)])
    clipped = layer.read_out(vector(9.0, 0, 0, 0, 9.0, 9.0)).flatten().tolist()
    assert clipped == pytest.approx([2.0, 4.0])


def test_active_rows_follow_each_vector():
    adc = Converter(bits=8, range="active_rows", full_scale=10.0)
    layer = linear_layer(16, 7, dataclasses.replace(QUIET, adc=adc, tile=Tile(16, 16)))
    x = inputs64(6, 16)
    for b in range(6):
        x[b, 2 * b + 1 :] = 0  # 1, 3, 5 … open lines
    columns = layer.read_out(x)[0]
    for b in range(6):
        step = 10.0 * math.sqrt((2 * b + 1) / 16) / 127
        codes = columns[b] / step
        assert (codes - codes.round()).abs().max() < 1e-9
        assert ((x[b] @ layer.digital.weight.t() / layer.scales[0] - columns[b]).abs() <= step / 2 * (1 + 1e-9)).all()


def test_active_rows_see_the_gating_of_bits():
    # Codes 1 and 2 of 3: each bit opens one line of the two, whose range is 1 / sqrt 2.
    dac = Converter(bits=3, range="static", full_scale=3.0, coding="bit_serial")
    adc = Converter(bits=2, range="active_rows", full_scale=1.0)
    layer = linear_layer(2, 1, dataclasses.replace(QUIET, dac=dac, adc=adc, tile=Tile(2, 2)), [[1.0, 1.0]])
    assert layer(vector(1.0, 2.0)).item() == pytest.approx(3 / math.sqrt(2))


def test_active_rows_lose_less_to_rounding_when_rows_are_gated():
    def error(range_):
        hardware = dataclasses.replace(QUIET, adc=Converter(bits=8, range=range_), tile=Tile(64, 16))
        layer = linear_layer(64, 16, hardware)
        x = inputs64(100, 64) / 4
        x[:, 4:] = 0  # 4 of 64 lines: a quarter of the range
        return (layer(x) - x @ layer.digital.weight.t()).detach().norm()

    assert float(error("static") / error("active_rows")) == pytest.approx(4.0, rel=0.1)  # as the steps, if none clips


@settings(max_examples=50, deadline=None)
@given(per_column=st.booleans(), gradient=st.booleans(), range_=st.sampled_from(["static", "active_rows"]))
def test_a_calibrated_adc_range_replaces_full_scale(per_column, gradient, range_):
    layer = linear_layer(10, 7, dataclasses.replace(QUIET, adc=Converter(bits=6, range=range_, full_scale=99.0)))
    limit = torch.linspace(0.4, 3.0, 21, dtype=torch.float64).view(3, 7) if per_column else torch.tensor(1.7).double()
    layer.adc_range = limit
    x = inputs64(5, 10).requires_grad_(gradient)  # no line is idle
    exact = torch.stack([x[:, r : r + 4] @ layer.digital.weight[:, r : r + 4].t() for r in (0, 4, 8)])
    steps = (limit / 31).unsqueeze(1) if per_column else limit / 31
    expected = (exact / layer.scales.unsqueeze(1) / steps).round().clamp(-31, 31) * steps
    torch.testing.assert_close(layer.read_out(x), expected, rtol=1e-12, atol=1e-13)  # float64; no ties


@pytest.mark.parametrize("dac", [SERIAL, RATE, Converter(range="per_token")], ids=["serial", "rate", "pwm"])
def test_chunks_change_nothing_but_draws(monkeypatch, dac):
    adc = Converter(bits=6, range="active_rows", full_scale=3.1415)
    hardware = dataclasses.replace(QUIET, dac=dac, adc=adc, tile=Tile(4, 3, slices=2, encoding="offset"))
    layer, x = linear_layer(10, 7, hardware), inputs64(40, 10)
    whole = layer(x)
    layer.reset_reads()
    monkeypatch.setattr(eager, "_VECTORS", 1)
    monkeypatch.setattr(eager, "_PARTIALS", 1)
    torch.testing.assert_close(layer(x), whole, rtol=1e-12, atol=1e-12)  # pulses are drawn before; float64
