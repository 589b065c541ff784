"""Weights to target conductances and tiles."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from crossbar import AnalogLinear, InputError, Tile, presets
from crossbar.tiles.mapping import column_scales, target_conductances, tile_grid, to_tiles

layers = given(
    out_features=st.integers(1, 17),
    in_features=st.integers(1, 23),
    tile=st.builds(
        Tile, rows=st.integers(1, 9), cols=st.integers(1, 9), scale=st.sampled_from(["tile_column", "tile", "layer"])
    ),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    magnitude=st.sampled_from([1e-6, 1.0, 1e6]),
    zeros=st.sampled_from([0.0, 0.5, 1.0]),
    seed=st.integers(0, 2**32 - 1),
)


def draw_weight(out_features, in_features, dtype, magnitude, zeros, seed):
    """``[O, I]`` with this share of output columns zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(out_features, in_features, dtype=dtype, generator=generator) * magnitude
    weight[torch.rand(out_features, generator=generator) < zeros] = 0
    return weight


@layers
@settings(max_examples=150, deadline=None)
def test_targets_reproduce_the_weight(out_features, in_features, tile, dtype, magnitude, zeros, seed):
    weight = draw_weight(out_features, in_features, dtype, magnitude, zeros, seed)
    scales = column_scales(weight, tile)
    cells = target_conductances(weight, scales, tile, 25.0)
    plus, minus = cells.double()
    assert plus.shape == (in_features, out_features)
    assert (cells >= 0).all()
    assert (cells <= 25.0).all()
    assert not (plus * minus).any()  # one cell of a pair is always empty
    for i in range(in_features):
        back = (plus[i] - minus[i]) * scales[i // tile.rows].double() / 25.0
        # three roundings, 1 / s, times g_max, times w, of eps / 2 each; three of float64 to come back
        eps = torch.finfo(dtype).eps + torch.finfo(torch.float64).eps
        tolerance = 1.5 * eps * (1 + eps) * weight[:, i].double().abs()
        assert ((back - weight[:, i].double()).abs() <= tolerance).all()


@layers
@settings(max_examples=100, deadline=None)
def test_scales_are_the_largest_weight_of_their_group(out_features, in_features, tile, dtype, magnitude, zeros, seed):
    weight = draw_weight(out_features, in_features, dtype, magnitude, zeros, seed)
    scales = column_scales(weight, tile).numpy()
    t_out, t_in = tile_grid(in_features, out_features, tile)
    assert scales.shape == (t_in, out_features)
    size = np.abs(weight.numpy())
    for j in range(t_in):
        rows = slice(j * tile.rows, (j + 1) * tile.rows)
        for o in range(out_features):
            first = o // tile.cols * tile.cols
            group = {
                "tile_column": size[o, rows],
                "tile": size[first : first + tile.cols, rows],
                "layer": size,
            }[tile.scale]
            assert scales[j, o] == (group.max() if group.max() > 0 else 1)
    assert t_out == math.ceil(out_features / tile.cols)


@layers
@settings(max_examples=100, deadline=None)
def test_tiles_hold_each_cell_once_and_nan_elsewhere(out_features, in_features, tile, dtype, magnitude, zeros, seed):
    cells = draw_weight(in_features, out_features, dtype, magnitude, zeros, seed)
    tiles = to_tiles(cells, tile).numpy()
    t_out, t_in = tile_grid(in_features, out_features, tile)
    assert tiles.shape == (t_out, t_in, tile.rows, tile.cols)
    # [T_out, T_in, R, C] laid out on the floor: word lines down, bit lines across
    floor = tiles.transpose(1, 2, 0, 3).reshape(t_in * tile.rows, t_out * tile.cols)
    assert np.array_equal(floor[:in_features, :out_features], cells.numpy())
    assert np.isnan(floor[in_features:]).all()
    assert np.isnan(floor[:, out_features:]).all()


@pytest.mark.parametrize(
    ("size", "tile", "grid"),
    [((256, 256), 256, (1, 1)), ((257, 256), 256, (1, 2)), ((768, 3072), 256, (12, 3)), ((1, 1), 256, (1, 1))],
)
def test_grid(size, tile, grid):
    assert tile_grid(*size, Tile(tile, tile)) == grid


def test_targets_by_hand():
    weight = torch.tensor([[0.5, -0.125], [0.0, -0.25]])
    plus, minus = target_conductances(weight, column_scales(weight, Tile()), Tile(), 25.0)
    assert plus.tolist() == [[25.0, 0.0], [0.0, 0.0]]
    assert minus.tolist() == [[0.0, 0.0], [6.25, 25.0]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_broken_weights_are_refused_by_the_layers_name(bad):
    linear = nn.Linear(5, 4)
    with torch.no_grad():
        linear.weight[1, 2] = bad
    with pytest.raises(InputError, match=r"encoder\.3 has 1 weights that are NaN or infinite out of 20"):
        AnalogLinear.from_digital(linear, presets.pcm(), "encoder.3")


@pytest.mark.parametrize("tiny", [1e-45, 1e-40, 5e-38, 1e-31])
def test_tiny_weights_give_zero_and_not_nan(tiny):
    linear = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[tiny, 0.0]]))
    y = AnalogLinear.from_digital(linear, presets.ideal())(torch.ones(1, 2))
    assert y.abs().item() <= 2 * tiny


def test_zero_columns_give_zero_and_not_nan():
    linear = nn.Linear(5, 4, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.zero_()
    layer = AnalogLinear.from_digital(linear, presets.ideal())
    x = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(layer(x), linear.bias.expand(3, 4))
