"""Every way of mapping, driving and converting against the float64 oracle, all of them mixed."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from crossbar import CellNoise, Converter, Faults, Hardware, Tile, devices
from crossbar.backends import naive
from crossbar.backends.naive import Draws
from crossbar.devices import window
from crossbar.devices.reram import CmoReRam
from crossbar.random.streams import Stream, normal
from tests.crossbar.conftest import linear_layer

# Full scales are no fractions of whole numbers, so that no column sum of whole codes and weights is at a tie.
tiles = st.builds(
    Tile,
    rows=st.integers(1, 6),
    cols=st.integers(1, 4),
    scale=st.sampled_from(["tile_column", "tile", "layer"]),
    encoding=st.sampled_from(["differential", "balanced", "offset"]),
    pairs=st.integers(1, 3),
    slices=st.integers(1, 3),
    slice_bits=st.integers(1, 5),
)
dacs = st.one_of(
    st.none(),
    st.builds(
        Converter,
        bits=st.integers(2, 9),
        range=st.sampled_from(["static", "per_token", "max"]),
        full_scale=st.just(1.3371),
        coding=st.sampled_from(["pwm", "bit_serial", "rate"]),
        gain_std=st.sampled_from([0.0, 0.05]),
        offset_std=st.sampled_from([0.0, 0.05]),
    ),
    st.just(Converter(bits=1, range="per_token")),
)
adcs = st.one_of(
    st.none(),
    st.builds(
        Converter,
        bits=st.integers(1, 10),
        range=st.sampled_from(["static", "active_rows"]),
        full_scale=st.sampled_from([0.7123, 3.1415]),
        gain_std=st.sampled_from([0.0, 0.05]),
        offset_std=st.sampled_from([0.0, 0.05]),
    ),
)
every_device = st.sampled_from([devices.Ideal(), devices.PCM(), CmoReRam()])


def mismatch(layer):
    """Errors of the converters of chip 3, under the names that `crossbar.tiles.readout` draws them by."""
    hardware, tile = layer.hardware, layer.hardware.tile
    t_out = math.ceil(layer.out_features / tile.cols)
    lines, columns = (tile.slices, layer.in_features, t_out), tuple(layer.column_gain.shape)
    found = {}
    for part, side, shape in ((hardware.dac, "row", lines), (hardware.adc, "col", columns)):
        for what in ("gain", "offset"):
            std = getattr(part, f"{what}_std", 0.0)
            if std:
                key = (3, "linear", "mismatch", f"{'dac' if side == 'row' else 'adc'} {what}")
                found[f"{side}_{what}"] = normal(shape, key).double().numpy() * std
    return found


def gated(batch, in_features, seed):
    """Inputs, a third of which are 0."""
    x = np.random.default_rng(seed).normal(size=(batch, in_features))
    return np.where(np.random.default_rng(seed + 1).random(x.shape) < 1 / 3, 0.0, x)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 13), st.integers(1, 6)),
    tile=tiles,
    dac=dacs,
    adc=adcs,
    device=every_device,
    output_noise=st.sampled_from([0.0, 0.04]),
    faulty=st.booleans(),
    calibrated=st.sampled_from(["no", "dac", "one adc", "all adcs"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=200, deadline=None)
def test_agrees_with_the_oracle(shape, tile, dac, adc, device, output_noise, faulty, calibrated, seed):
    batch, in_features, out_features = shape
    faults = Faults(0.05, 0.05, 0.02, 0.05, 0.05, spare_cols=1, seed=seed) if faulty else None
    hardware = Hardware(device=device, tile=tile, dac=dac, adc=adc, output_noise=output_noise, faults=faults)
    layer = linear_layer(in_features, out_features, hardware, seed=seed)
    layer.program(3)
    layer.age(3600.0)
    ranges = {}
    if calibrated == "dac":
        layer.input_range = torch.tensor(1.1717, dtype=torch.float64)
        ranges["input_range"] = 1.1717
    elif calibrated != "no":
        generator = np.random.default_rng(seed)
        each = generator.uniform(0.5, 4.0, layer.column_gain.shape)
        chosen = generator.uniform(0.5, 4.0) if calibrated == "one adc" else each
        layer.adc_range = torch.tensor(chosen, dtype=torch.float64)
        ranges["adc_range"] = chosen
    x = gated(batch, in_features, seed)

    key = (3, "linear", "read", 3600.0, 0)
    stream, serial = Stream(key), dac is not None and dac.coding == "bit_serial"
    drawn = mismatch(layer)
    if dac is not None and dac.coding == "rate":
        codes = layer_codes(x, dac, ranges.get("input_range"))
        drawn["pulses"] = (
            np.sign(codes) * Stream((*key, "pulses")).binomial(torch.as_tensor(np.abs(codes)), dac.levels).numpy()
        )
    if output_noise:
        each = (len(layer.column_gain), batch, out_features)
        reads = range(dac.bits - 1 if serial else 1)
        drawn["output"] = np.stack([stream.columns(*each, first=p * batch).double().numpy() for p in reads])

    plus, minus = (cells.numpy() for cells in layer.conductances())
    expected = naive.multiply(
        x, plus, minus, layer.scales.numpy(), hardware, g_min=window(device)[0], draws=Draws(**drawn), **ranges
    )
    found = layer(torch.as_tensor(x)).detach().numpy()
    # Some 13 x 3 x 9 float64 additions of terms that are at most some 50 times the largest result, shorts included
    assert np.abs(found - expected).max() <= 1e-10 * max(1.0, np.abs(expected).max())


def layer_codes(x, dac, input_range):
    size = np.abs(x)
    full = {"static": dac.full_scale, "max": size.max(), "per_token": size.max(1, keepdims=True)}[dac.range]
    full = np.where(full == 0, 1.0, full) if input_range is None else input_range
    return np.round(x / full * dac.levels).clip(-dac.levels, dac.levels)


@pytest.mark.parametrize("coding", ["pwm", "bit_serial"])
@pytest.mark.parametrize("encoding", ["differential", "balanced", "offset"])
@pytest.mark.parametrize("noise", [CellNoise(0.8), CellNoise(relative=0.05), CellNoise(0.5, 0.03)], ids=str)
def test_cell_noise_agrees_with_the_oracle(coding, encoding, noise):
    # The fast path draws one number a column. Shared out over its cells in the direction of their deviations, the same
    # number must come out of an oracle that knows nothing but cells.
    tile = Tile(4, 3, encoding=encoding, pairs=2, slices=2, slice_bits=3)
    hardware = Hardware(
        tile=tile,
        dac=Converter(bits=4, range="static", full_scale=1.3371, coding=coding),
        adc=Converter(full_scale=3.1415),
        output_noise=0.04,
        read_noise=noise,
    )
    batch, in_features, out_features = 2, 6, 4
    layer = linear_layer(in_features, out_features, hardware)
    layer.program(3)
    plus, minus = (cells.numpy() for cells in layer.conductances())
    x = gated(batch, in_features, 5)
    codes = layer_codes(x, hardware.dac, None)
    reads = (
        [codes / 7] if coding == "pwm" else [np.sign(codes) * (np.abs(codes).astype(int) >> p & 1) for p in range(3)]
    )
    stream = Stream((3, "linear", "read", 0.0, 0))
    drawn = np.stack(
        [stream.columns(4, batch, out_features, first=p * batch).double().numpy() for p in range(len(reads))]
    )

    output, sides = np.zeros_like(drawn), {"plus": plus, "minus": minus}
    numbers = {side: np.zeros((2, 2, len(reads), batch, in_features, out_features)) for side in sides}
    for p, b, s, j, o in itertools.product(range(len(reads)), range(batch), range(2), range(2), range(out_features)):
        lines = range(4 * j, min(4 * j + 4, in_features))
        parts = {}
        for side, pair, line in itertools.product(sides, range(2), lines):
            g = sides[side][pair, s, o // 3, j, line - 4 * j, o % 3]
            if not math.isnan(g):  # the offset encoding has no G⁻
                sigma = math.hypot(noise.constant, noise.relative * g) / 2 / 25.0  # mean of two pairs, unit outputs
                parts[side, pair, line] = reads[p][b, line] * sigma * (1 if side == "plus" else -1)
        whole = math.sqrt(0.04**2 + sum(part**2 for part in parts.values()))
        share = drawn[p, 2 * s + j, b, o] / whole
        output[p, 2 * s + j, b, o] = 0.04 * share
        for (side, pair, line), part in parts.items():
            numbers[side][pair, s, p, b, line, o] = part * share

    expected = naive.multiply(x, plus, minus, layer.scales.numpy(), hardware, draws=Draws(output=output, **numbers))
    found = layer(torch.as_tensor(x)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-11)  # float64, terms of order 1
    quiet = naive.multiply(x, plus, minus, layer.scales.numpy(), hardware)
    assert np.abs(quiet - expected).max() > 0.01
