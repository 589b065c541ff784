"""Read-outs have the same bits with any number of threads, with converters that integers serve and with others."""

import dataclasses

import pytest
import torch

from crossbar import CellNoise, Converter, Hardware, Tile
from crossbar.tiles.weight_errors import weight_errors
from tests.crossbar.conftest import linear_layer

NOISY = Hardware(tile=Tile(256, 256), adc=Converter(full_scale=6.0), output_noise=0.04)
KINDS = {
    "integers": NOISY,
    "fine converters": dataclasses.replace(NOISY, dac=Converter(bits=12), adc=Converter(bits=16, full_scale=6.0)),
    "bit serial": dataclasses.replace(NOISY, dac=Converter(coding="bit_serial")),
    "cells' own noise": dataclasses.replace(NOISY, read_noise=CellNoise(0.5, 0.02)),
    "offset encoding": dataclasses.replace(NOISY, tile=Tile(256, 256, encoding="offset")),
}


def with_threads(compute):
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            yield compute()
    finally:
        torch.set_num_threads(threads)


def same_bits(compute, *arguments):
    first, *others = with_threads(lambda: compute(*arguments))
    return all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize("hardware", KINDS.values(), ids=KINDS)
def test_read_outs_do_not_depend_on_threads(hardware):
    layer = linear_layer(700, 500, hardware, dtype=torch.float32)
    layer.program(3)
    for count in (1, 7, 50):
        x = torch.rand(count, 700, generator=torch.Generator().manual_seed(count)) * 2 - 1
        assert same_bits(layer.read_out, x)
        assert same_bits(layer.expected_read_out, x)


@pytest.mark.parametrize("hardware", KINDS.values(), ids=KINDS)
def test_expected_read_out_is_what_the_targets_give(hardware):
    layer = linear_layer(300, 40, dataclasses.replace(hardware, adc=None), dtype=torch.float32)
    layer.input_range = torch.tensor(1.5)
    x = torch.rand(20, 300, generator=torch.Generator().manual_seed(0)) * 2 - 1
    levels = hardware.dac.levels
    driven = (x * (levels / layer.input_range)).round().double() / levels * 1.5
    digits = layer.target_weight().double().t() / layer.scales.double().repeat_interleave(256, 0)[:300]
    if hardware.tile.encoding == "offset":
        digits = (1 + digits) / 2
    expected = torch.stack([driven[:, :256] @ digits[:256], driven[:, 256:] @ digits[256:]])
    found = layer.expected_read_out(x)
    assert torch.allclose(found.double(), expected, atol=256 * 1.5 * 2**-24, rtol=2**-23)


def test_weight_errors_do_not_depend_on_threads():
    def gain():
        weight_errors.cache_clear()
        return torch.tensor(weight_errors(NOISY, 3600.0).gain, dtype=torch.float64)

    assert same_bits(gain)
