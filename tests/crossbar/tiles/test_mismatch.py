"""Converters that differ from each other: drawn once for a chip, the same in any order."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from crossbar import Converter, Hardware, Tile, age, convert, load_state, program, save_state
from crossbar.backends import dispatch
from crossbar.backends.protocol import Read
from crossbar.random.streams import normal
from tests.crossbar.conftest import QUIET, inputs64, linear_layer

WIDE = Converter(bits=16, range="static", full_scale=50.0)  # its steps are far below any mismatch here


def mismatched(**options):
    """Hardware whose only faults are the given deviations: dac_gain, dac_offset, adc_gain, adc_offset."""
    parts = {"dac": WIDE, "adc": WIDE}
    for name, std in options.items():
        part, field = name.split("_")
        parts[part] = dataclasses.replace(parts[part], **{f"{field}_std": std})
    return dataclasses.replace(QUIET, **parts)


def programmed(hardware, seed=0, size=(10, 7), **options):
    layer = linear_layer(*size, hardware, **options)
    layer.program(seed)
    return layer


each = pytest.mark.parametrize(
    "hardware",
    [mismatched(**{name: 0.1}) for name in ("dac_gain", "dac_offset", "adc_gain", "adc_offset")],
    ids=["dac gain", "dac offset", "adc gain", "adc offset"],
)


def test_column_errors_by_hand():
    layer = programmed(mismatched(adc_gain=0.1, adc_offset=0.05), 3)
    gain, offset = (normal((3, 7), (3, "linear", "mismatch", f"adc {what}")).double() for what in ("gain", "offset"))
    x = inputs64(5, 10)
    for t, r in enumerate((0, 4, 8)):
        ideal = x[:, r : r + 4] @ layer.digital.weight[:, r : r + 4].t() / layer.scales[t]
        # Offsets are relative to the tile and not to the input's full scale, which is 50
        expected = ideal * (1 + 0.1 * gain[t]) + 0.05 * 50.0 * offset[t]
        # half a step of the ADC, 50 / 32767 times a full scale of 50, and of the DAC on 4 lines with weights up to 1
        found = layer.read_out(x)[t]
        assert (found - expected).abs().max() < 3 * 50.0 / 32767 + 0.5 * 50.0 * 50 / 32767


def test_line_errors_by_hand():
    layer = programmed(mismatched(dac_gain=0.1, dac_offset=0.05), 3)
    # A line has a driver in each column tile: 7 outputs on 3 columns
    gain, offset = (
        normal((1, 10, 3), (3, "linear", "mismatch", f"dac {what}"))[0].double() for what in ("gain", "offset")
    )
    x = inputs64(5, 10)
    for o in range(7):
        driven = x * (1 + 0.1 * gain[:, o // 3]) + 0.05 * 50.0 * offset[:, o // 3]
        for t, r in enumerate((0, 4, 8)):
            expected = driven[:, r : r + 4] @ layer.digital.weight[o, r : r + 4] / layer.scales[t, o]
            found = layer.read_out(x)[t, :, o]
            assert (found - expected).abs().max() < 3 * 50.0 / 32767 + 0.5 * 50.0 * 50 / 32767


@each
def test_mismatch_repeats_for_a_chip_in_any_order(hardware):
    layer, x = programmed(hardware), inputs64(5, 10)
    first = layer(x)
    assert torch.equal(layer(x), first)
    layer.age(3600.0)
    assert torch.equal(layer(x), first)  # converters do not age
    layer.program(1)
    other = layer(x)
    assert not torch.equal(other, first)
    layer.program(0)
    assert torch.equal(layer(x), first)
    assert not torch.equal(programmed(hardware, name="other")(x), first)


@each
def test_mismatch_is_gone_without_a_chip(hardware):
    exact = linear_layer(10, 7, mismatched())
    layer, x = linear_layer(10, 7, hardware), inputs64(5, 10)
    assert torch.equal(layer(x), exact(x))
    layer.program(0)
    assert not torch.equal(layer(x), exact(x))
    layer.set_state({}, None, 0.0)
    assert torch.equal(layer(x), exact(x))
    layer.program(0)
    assert torch.equal(layer.expected_read_out(x), linear_layer(10, 7, mismatched()).expected_read_out(x))


@each
def test_mismatch_returns_with_a_saved_chip(hardware, tmp_path):
    one, two = (nn.Sequential(linear_layer(10, 7, hardware)) for _ in range(2))
    one[0].program(4)
    save_state(one, tmp_path / "chip")
    load_state(two, tmp_path / "chip")
    assert torch.equal(one(inputs64(5, 10)), two(inputs64(5, 10)))


@each
def test_a_chip_of_any_number_of_threads_is_the_same(hardware):
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(programmed(hardware, size=(300, 70)).readout())
    finally:
        torch.set_num_threads(threads)
    one, two = found
    assert torch.equal(one.weight, two.weight)
    assert (one.offset is None and two.offset is None) or torch.equal(one.offset, two.offset)


def test_no_deviation_is_no_mismatch():
    layer = programmed(mismatched())
    assert layer.readout().offset is None
    assert torch.equal(layer.cells.digits, linear_layer(10, 7, mismatched()).cells.digits)


def test_errors_have_their_deviation_and_are_independent():
    layer = programmed(mismatched(adc_gain=0.1, adc_offset=0.05), size=(256, 512))
    ideal = linear_layer(256, 512, mismatched())
    gain = ((layer.cells.digits / ideal.cells.digits)[0] - 1) / 0.1
    gain = gain.unflatten(0, (64, 4)).nanmean(1).flatten().numpy()  # one a column of each of 64 row tiles
    offset = (layer.readout().offset / 0.05).flatten().numpy()
    n = len(offset)
    for z in (gain, offset):
        assert stats.kstest(z, "norm").pvalue > 0.01
    assert abs(np.corrcoef(gain, offset)[0, 1]) < 5 / n**0.5


def test_dac_offsets_pass_through_a_columns_gain():
    both = programmed(mismatched(dac_offset=0.05, adc_gain=0.1))
    offset = programmed(mismatched(dac_offset=0.05)).readout().offset
    gain = 1 + 0.1 * normal((3, 7), (0, "linear", "mismatch", "adc gain")).double()
    torch.testing.assert_close(both.readout().offset, offset * gain, rtol=1e-12, atol=0)  # float64


def test_a_missing_converter_has_no_mismatch():
    layer = programmed(QUIET)
    assert layer.readout().offset is None
    only = programmed(dataclasses.replace(mismatched(dac_gain=0.1), adc=None))
    assert (only.cells.digits != layer.cells.digits).any()


@pytest.mark.parametrize("part", ["dac", "adc"])
def test_effective_weight_shows_gains(part):
    hardware = dataclasses.replace(mismatched(**{f"{part}_gain": 0.1}), tile=Tile(4, 3, encoding="offset", slices=2))
    layer = programmed(hardware)
    exact = dataclasses.replace(hardware, dac=None, adc=None)
    identity = dispatch.multiply(Read(torch.eye(10, dtype=torch.float64), layer.readout(), exact)).t()
    torch.testing.assert_close(layer.effective_weight(), identity, rtol=1e-12, atol=1e-12)


def test_offsets_add_up_as_the_bits_of_a_serial_input_do():
    # An offset is there in every read, and the bits are worth (1 + 2 + ... + 64) / 127 = 1 together
    hardware = mismatched(adc_offset=0.05, dac_offset=0.05)
    serial = dataclasses.replace(hardware, adc=None, dac=dataclasses.replace(hardware.dac, coding="bit_serial", bits=8))
    pulse = dataclasses.replace(serial, dac=dataclasses.replace(serial.dac, coding="pwm"))
    x = inputs64(5, 10)
    torch.testing.assert_close(programmed(serial)(x), programmed(pulse)(x), rtol=1e-12, atol=1e-12)


def test_a_whole_model_takes_mismatch():
    model = nn.Sequential(nn.Linear(10, 7), nn.Linear(7, 4))
    convert(model, dataclasses.replace(Hardware(), dac=Converter(range="per_token", gain_std=0.02, offset_std=0.01)))
    program(model, 2)
    x = inputs64(3, 10).float()
    first = model(x)
    age(model, "1d")
    age(model, "0s")
    for layer in model:
        layer.reset_reads()
    assert torch.equal(model(x), first)
