"""Reads of an analog layer: when they repeat, when they differ, and what they count."""

import copy
import dataclasses

import pytest
import torch

from crossbar import AnalogLinear, Converter, Hardware, Ledger, Tile, presets
from tests.crossbar.conftest import digital, inputs, programmed

QUIET = Hardware(output_noise=0.0)


def test_consecutive_reads_differ_and_repeat_after_a_reset():
    layer = programmed(Hardware())
    x = inputs(5, 10)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    layer.reset_reads()
    assert torch.equal(layer(x), first)
    assert torch.equal(layer(x), second)
    layer.program(0)
    assert torch.equal(layer(x), first)


def test_programming_again_forgets_gains_and_keeps_ranges():
    layer = programmed(Hardware())
    layer.input_range = torch.tensor(2.0)
    layer.column_gain.fill_(2.0)
    layer.program(1)
    assert (layer.column_gain == 1).all()
    assert layer.input_range == 2.0


def test_reads_differ_by_chip_name_and_time():
    hardware = dataclasses.replace(presets.ideal(), output_noise=0.1)
    x = inputs(5, 10)

    def read(seed=0, name="a", seconds=0.0):
        layer = AnalogLinear.from_digital(digital(), hardware, name)
        layer.program(seed)
        layer.age(seconds)
        return layer(x)

    base = read()
    assert torch.equal(base, read())
    for other in (read(seed=1), read(name="b"), read(seconds=1.0)):
        assert not torch.equal(base, other)


def test_quiet_hardware_repeats_itself():
    layer = programmed(QUIET)
    x = inputs(5, 10)
    assert torch.equal(layer(x), layer(x))


def test_copies_live_their_own_lives():
    layer = programmed(Hardware())
    x = inputs(5, 10)
    twin = copy.deepcopy(layer)
    first = layer(x)
    assert torch.equal(twin(x), first)
    before = layer.cells.digits.clone()
    twin.age(1e6)
    twin.column_gain.fill_(2.0)
    with torch.no_grad():
        twin.digital.bias.zero_()
    assert torch.equal(layer.cells.digits, before)
    assert layer.seconds == 0
    layer.reset_reads()
    assert torch.equal(layer(x), first)
    assert not torch.equal(twin.cells.digits, before)


def test_programmed_state_stays_out_of_the_state_dict():
    layer = programmed(Hardware())
    assert set(layer.state_dict()) == {"digital.weight", "digital.bias"}


def test_repr_tells_shape_and_age():
    layer = AnalogLinear.from_digital(digital(), Hardware())
    assert "10, 7, not programmed" in repr(layer)
    layer.program(4)
    layer.age(3600.0)
    assert "10, 7, chip 4 at 3600 s" in repr(layer)


# Counts


@pytest.mark.parametrize("read", [AnalogLinear.forward, AnalogLinear.read_out])
def test_counts_worked_out_by_hand(read):
    # 10 inputs on tiles of 4 rows: 3 row tiles. 7 outputs on tiles of 2 columns: 4 column tiles.
    layer = AnalogLinear.from_digital(digital(), Hardware(tile=Tile(4, 2), dac=Converter(bits=6)), "one")
    with Ledger() as ledger:
        read(layer, inputs(6, 10))
    assert ledger.to_dict() == {
        "one": {
            "row_activations": 6 * 10 * 4,  # an input drives its word line in every column tile
            "dac_conversions_6bit": 6 * 10 * 4,
            "adc_conversions_8bit": 6 * 7 * 3,  # an output is converted in every row tile
            "cell_macs": 6 * 10 * 7,
            "tile_reads": 6 * 4 * 3,
            "sram_bytes": 6 * (10 + 2 * 7),  # inputs of 6 bits take a byte, sums two
            "digital_macs": 6 * 7 * 3,
        }
    }


def test_counts_grow_with_vectors_of_any_shape():
    layer = AnalogLinear.from_digital(digital(), presets.ideal(), "one")
    with Ledger() as ledger:
        layer(inputs(2, 3, 10))
        layer(inputs(10))
    assert ledger.to_dict()["one"] == {
        "row_activations": 70,
        "dac_conversions": 70,
        "adc_conversions": 49,
        "cell_macs": 490,
        "tile_reads": 7,
        "sram_bytes": 7 * (2 * 10 + 2 * 7),
        "digital_macs": 49,
    }


@pytest.mark.parametrize(
    "dac", [None, *(Converter(range=range_) for range_ in ("static", "per_token", "max"))], ids=str
)
def test_empty_batches_pass(dac):
    layer = AnalogLinear.from_digital(digital(), Hardware(dac=dac))
    assert layer(torch.zeros(0, 3, 10)).shape == (0, 3, 7)


@pytest.mark.parametrize(
    "dac",
    [
        None,
        Converter(range="static"),
        Converter(range="per_token"),
        Converter(range="max"),
    ],
    ids=str,
)
def test_empty_batches_are_read_out(dac):
    layer = AnalogLinear.from_digital(digital(), Hardware(dac=dac, tile=Tile(4, 3)))
    assert layer.read_out(torch.zeros(0, 10)).shape == (3, 0, 7)
