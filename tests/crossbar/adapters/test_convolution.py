"""Convolutions on tiles: equal to torch's for all of its options, and counted one vector a patch."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from crossbar import Converter, Hardware, InputError, Ledger, Tile, convert, presets, program
from crossbar.adapters import is_convertible
from crossbar.adapters.convolution import patches
from tests.crossbar.conftest import QUIET, inputs64, seeded


@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("padding", [0, 2, "same"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_padding_is_torchs(dims, padding, padding_mode):
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    conv = seeded(lambda: kind(3, 4, 3, padding=padding, padding_mode=padding_mode, dtype=torch.float64))
    model, x = nn.Sequential(copy.deepcopy(conv)), inputs64(2, 3, *(5, 4, 6)[:dims])
    convert(model, QUIET)
    torch.testing.assert_close(model(x), conv(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": (3, 1), "stride": (2, 1)},
        {"kernel_size": 2, "dilation": (1, 3), "padding": (0, 1)},
        {"kernel_size": 3, "groups": 3, "padding": 1, "stride": 2},
        {"kernel_size": (4, 5), "padding": "same", "dilation": 2},
        {"kernel_size": 1},
    ],
)
def test_stride_dilation_and_groups_are_torchs(options):
    conv = seeded(lambda: nn.Conv2d(6, 9, dtype=torch.float64, **options))
    model, x = nn.Sequential(copy.deepcopy(conv)), inputs64(2, 6, 9, 8)
    convert(model, QUIET)
    torch.testing.assert_close(model(x), conv(x), rtol=0, atol=1e-12)


def test_patches_are_those_of_unfold():
    conv = nn.Conv2d(3, 6, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1), groups=3)
    x = inputs64(2, 3, 7, 6)
    expected = F.unfold(x, (3, 2), dilation=(2, 1), padding=(1, 0), stride=(1, 2)).transpose(1, 2)
    assert torch.equal(patches(conv, x).flatten(1, 2), expected)


@pytest.mark.parametrize("channels", [2, 16])
def test_patches_without_groups_have_taps_first(channels):
    conv = nn.Conv2d(channels, 4, (3, 2), stride=(1, 2), padding=(1, 0), dilation=(2, 1))
    x = inputs64(2, channels, 7, 6)
    expected = F.unfold(x, (3, 2), dilation=(2, 1), padding=(1, 0), stride=(1, 2)).unflatten(1, (channels, 6))
    assert torch.equal(patches(conv, x).flatten(1, 2), expected.transpose(1, 2).flatten(1, 2).transpose(1, 2))


def test_a_patch_is_a_vector_in_the_ledger():
    """By hand: 2 images of 3x8x8, 3x3 taps at stride 2 with padding 1 are 16 patches each, of 27 inputs."""
    hardware = Hardware(tile=Tile(8, 4), dac=Converter(bits=8), adc=Converter(bits=8))
    model = nn.Sequential(nn.Conv2d(3, 5, 3, stride=2, padding=1))
    report = convert(model, hardware)
    assert report.tiles == 4 * 2  # 27 inputs on tiles of 8 rows, 5 outputs on tiles of 4 columns
    with Ledger() as ledger:
        model(torch.ones(2, 3, 8, 8))
    counts = ledger.totals()
    assert counts["row_activations"] == counts["dac_conversions"] == 32 * 27 * 2
    assert counts["adc_conversions"] == counts["digital_macs"] == 32 * 5 * 4
    assert counts["cell_macs"] == 32 * 27 * 5
    assert counts["tile_reads"] == 32 * 8
    assert counts["sram_bytes"] == 32 * (27 + 2 * 5)


def test_in_digital_a_convolution_counts_its_products():
    model = nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.Conv2d(6, 6, 2, groups=6))
    with Ledger(model) as ledger:
        model(torch.ones(2, 4, 6, 6))
    assert ledger.by_layer["0"][("digital_macs", None)] == 2 * 16 * 6 * (2 * 9)
    assert ledger.uncounted == {"1": "Conv2d"}  # no adapter takes a depthwise one, so nobody knows its products


def test_noise_of_a_chip_is_that_of_its_patches():
    """The same cells read with patches one by one give what the convolution gives: places do not mix."""
    conv = seeded(lambda: nn.Conv2d(3, 4, 3, padding=1))
    model, alone = nn.Sequential(copy.deepcopy(conv)), nn.Sequential(copy.deepcopy(conv))
    hardware = presets.pcm()
    x = inputs64(2, 3, 6, 6).float()
    for one in (model, alone):
        convert(one, hardware)
        program(one, 3)
    vectors = patches(conv, x)
    layer = alone[0].tiles["weight"]
    with torch.no_grad():
        assert torch.equal(layer(vectors).movedim(-1, 1), model(x))


def test_groups_of_many_channels_share_tiles_in_blocks():
    model = nn.Sequential(nn.Conv1d(64, 128, 3, groups=16)).double()
    digital, x = copy.deepcopy(model), inputs64(2, 64, 9)
    (report,) = convert(model, presets.ideal()).analog
    assert (report.in_features, report.out_features, report.blocks, report.weights) == (192, 128, 16, 128 * 12)
    assert report.utilisation == 128 * 12 / (256 * 256)
    torch.testing.assert_close(model(x), digital(x), rtol=0, atol=1e-12)


def test_more_groups_than_a_tile_holds_are_several_matrices():
    model = nn.Sequential(nn.Conv1d(12, 6, 50, groups=6, dtype=torch.float64))
    digital, x = copy.deepcopy(model), inputs64(2, 12, 53)
    report = convert(model, presets.ideal()).analog
    assert [(r.name, r.in_features, r.out_features, r.blocks) for r in report] == [
        (f"0.tiles.weight_{first}", 200, 2, 2) for first in (0, 2, 4)
    ]
    assert sum(r.parameters for r in report) == 6 * 2 * 50 + 6
    torch.testing.assert_close(model(x), digital(x), rtol=0, atol=1e-12)


def test_classes_that_convolve_otherwise_stay_digital():
    class Own(nn.Conv2d):
        def _conv_forward(self, x, weight, bias):
            return 2 * super()._conv_forward(x, weight, bias)

    assert not is_convertible(Own(2, 2, 1))
    assert not is_convertible(nn.ConvTranspose1d(2, 2, 1))
    weights = nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 2, 1))
    report = convert(nn.Sequential(weights, nn.Linear(2, 2)), QUIET)
    assert [layer.name for layer in report.analog] == ["1"]
    assert any("pruned or parametrised" in layer.reason for layer in report.digital)


def test_attributes_of_the_convolution_are_answered_and_its_weight_stands_in():
    model = nn.Sequential(nn.Conv2d(3, 4, 2, stride=2))
    convert(model, QUIET)
    assert (model[0].stride, model[0].out_channels, model[0].weight.dtype) == ((2, 2), 4, torch.float32)
    assert model[0].weight.shape == (4, 3, 2, 2)
    assert model[0].bias is model[0].digital.bias
    with pytest.raises(InputError, match=r"^'weight' is in cells, and 'conv2d' would compute past them"):
        F.conv2d(torch.ones(1, 3, 4, 4), model[0].weight)
    with pytest.raises(AttributeError, match="nothing"):
        _ = model[0].nothing
