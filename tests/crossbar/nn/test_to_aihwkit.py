"""Analog layers computed by aihwkit: the same numbers where both have the same parts, and words where they have not."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from crossbar import CellNoise, Converter, Hardware, Tile, age, analog_layers, convert, devices, presets, program
from crossbar.nn.to_aihwkit import AihwkitTiles, to_aihwkit
from tests.peers import needs_aihwkit

pytestmark = needs_aihwkit

QUIET = replace(presets.pcm(), output_noise=0.0)


def programmed(hardware, sizes=(300, 70, 40), bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(*sizes[:2], bias=bias), nn.GELU(), nn.Linear(*sizes[1:], bias=bias))
    convert(model, hardware)
    program(model, seed=1)
    age(model, "1d")
    return model.eval()


def inputs(n=64, size=300):
    return torch.randn(n, size, generator=torch.Generator().manual_seed(2))


def both(model, x=None):
    exported, missed = to_aihwkit(model)
    x = inputs() if x is None else x
    with torch.no_grad():
        return model(x), exported(x), missed


def both_floating(model, x=None):
    """As `both`, our layers in floating point: with gradients there are no cells in fixed point."""
    x = (inputs() if x is None else x).requires_grad_()
    _, theirs, missed = both(model, x)
    return model(x).detach(), theirs, missed


def calibrated(model):
    """One of everything that calibration can leave in the first layer."""
    layer, draw = model[0], torch.Generator().manual_seed(3)
    layer.set_line_scale(torch.rand(300, generator=draw) + 0.5)
    program(model, seed=1)
    age(model, "1d")
    layer.column_gain = 1 + 0.1 * torch.randn(layer.column_gain.shape, generator=draw)
    layer.input_range = torch.tensor(2.5)
    layer.adc_range = 4 + torch.rand(layer.column_gain.shape, generator=draw)
    layer.set_output_correction(1 + 0.1 * torch.randn(70, generator=draw), torch.randn(70, generator=draw))
    layer.set_adapter(0.02 * torch.randn(300, 3, generator=draw), torch.randn(3, 70, generator=draw))
    return model


EXACT = {
    "ideal": presets.ideal(),
    "no converters": replace(QUIET, dac=None, adc=None),
    "no ADC": replace(QUIET, adc=None),
    "no DAC": replace(QUIET, dac=None),
    "pcm": QUIET,
    "static": replace(QUIET, dac=Converter(bits=6, full_scale=2.0), adc=Converter(bits=5, full_scale=4.0)),
    "small tiles": replace(QUIET, tile=Tile(100, 32, scale="tile")),
    "slices": replace(QUIET, tile=Tile(128, 128, slices=2, slice_bits=3)),
    "pairs": replace(QUIET, tile=Tile(128, 128, pairs=2, encoding="balanced")),
}


@pytest.mark.parametrize("hardware", EXACT.values(), ids=EXACT)
def test_quiet_reads_are_the_same(hardware):
    own, theirs, missed = both(programmed(hardware))
    assert missed == ()
    # A number that lies on the border of two codes may be rounded to either. Of a column's sum that changes few outputs
    # by one step; of an input, where no ADC hides it, all outputs of that vector: of one at most, and no others.
    steps = (own - theirs).abs() / own.std()
    if hardware.dac and not hardware.adc:
        assert (steps > 1e-5).any(1).sum() <= 1
    else:
        assert (steps > 1e-5).double().mean() < (0.01 if hardware.adc or hardware.dac else 1e-9)
    assert steps.max() < 0.1


@pytest.mark.parametrize("layers", ["first", "both"])
def test_what_calibration_left_is_honoured(layers):
    model = calibrated(programmed(QUIET))
    part = model if layers == "both" else nn.Sequential(model[0])
    own, theirs, missed = both_floating(part)
    assert missed == ()
    assert (own - theirs).norm() < 1e-6 * own.norm()


def test_layers_without_a_bias():
    own, theirs, _ = both_floating(programmed(QUIET, bias=False))
    assert (own - theirs).norm() < 1e-6 * own.norm()


def test_padding_and_zeros():
    x = inputs().view(4, 16, 300)
    x[1, 3] = 0
    own, theirs, _ = both_floating(programmed(QUIET), x)
    assert own.shape == theirs.shape == (4, 16, 40)
    assert (own - theirs).norm() < 1e-6 * own.norm()


def test_output_noise_has_the_same_deviation():
    hardware = replace(presets.pcm(), adc=None, output_noise=0.05)
    model = nn.Sequential(programmed(hardware)[0])
    exported, missed = to_aihwkit(model)
    assert missed == ()
    x = inputs(1).expand(4000, -1)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(4)
        own, theirs = model(x).std(0), exported(x).std(0)
    # Each deviation is known to 1 / sqrt(2 · 4000) = 1.1%, their mean over 70 columns to 0.2%.
    assert float((theirs / own).mean()) == pytest.approx(1, abs=0.01)


def test_the_model_is_unchanged_and_the_copy_is_aihwkits():
    from aihwkit.nn import AnalogLinear

    model = programmed(QUIET, sizes=(600, 70, 40))
    exported, _ = to_aihwkit(model)
    assert len(analog_layers(model)) == 2
    assert isinstance(exported[0], AihwkitTiles)
    assert [type(tile) for tile in exported[0].tiles] == [AnalogLinear] * 3
    assert [tile.in_features for tile in exported[0].tiles] == [256, 256, 88]
    assert [type(module) for module in exported] == [AihwkitTiles, nn.GELU, AihwkitTiles]


@pytest.mark.parametrize(
    ("hardware", "told"),
    [
        (replace(QUIET, dac=Converter(coding="bit_serial", range="per_token")), "input coding bit_serial"),
        (replace(QUIET, dac=Converter(range="max")), "DAC range max"),
        (replace(QUIET, adc=Converter(bits=1)), "converters of 1 bit"),
        (replace(QUIET, adc=Converter(range="active_rows")), "ADC range active_rows"),
        (replace(QUIET, adc=Converter(offset_std=0.1)), "column offsets"),
        (replace(QUIET, read_noise=CellNoise(constant=0.1)), "white read noise"),
        (replace(QUIET, tile=Tile(encoding="offset")), "offset encoding"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_honoured_is_said(hardware, told):
    _, theirs, missed = both(programmed(hardware))
    assert theirs.isfinite().all()
    (phrase,) = missed
    assert phrase.startswith(told) or told in phrase


def test_noise_of_columns_with_ranges_of_their_own_is_said():
    model = calibrated(programmed(Hardware(device=devices.PCM())))
    assert to_aihwkit(model)[1] == ("output noise of columns with ADC ranges of their own (it grows with the range)",)
