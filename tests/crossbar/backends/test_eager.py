"""The hot path against the float64 oracle, and its gradients against expectations worked out by hand."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from crossbar import AnalogLinear, Converter, Hardware, Tile, devices, presets
from crossbar.backends import dispatch, eager, naive
from crossbar.backends.protocol import Read
from crossbar.random.streams import Stream
from crossbar.tiles.readout import Readout
from tests.crossbar.conftest import inputs64, linear_layer

QUIET = presets.ideal()
dacs = [
    None,
    Converter(bits=8, range="per_token"),
    Converter(bits=5, range="max"),
    Converter(bits=8, range="static", full_scale=2.0),
    Converter(bits=2, range="static", full_scale=0.7),
]


def full_scales(x, dac, input_range):
    """DAC range of each vector, ``[B, 1]``, by the words of docs/physics.md, "Converters"."""
    if dac is None:
        return np.ones((len(x), 1))
    if input_range is not None or dac.range == "static":
        return np.full((len(x), 1), dac.full_scale if input_range is None else input_range)
    return np.abs(x).max(1, keepdims=True) if dac.range == "per_token" else np.full((len(x), 1), np.abs(x).max())


def oracle(layer, x, noise, unit_roundoff):
    """The oracle's products and how far the fast path may be from them, both ``[B, O]``.

    The budget of a row tile: each of R products and their sum, two roundings of the cell values, and eight more for
    scaling, noise and digital scale, of one unit roundoff each, relative to the sum of magnitudes. Where that much
    takes a value across a rounding tie of the ADC, one ADC step. Adding up the row tiles costs one roundoff each. In
    fixed point each cell may be off by 1/65,276 of its column's largest one.
    """
    hw = layer.hardware
    plus, minus = (cells.double().numpy() for cells in layer.conductances())
    scales = layer.scales.double().numpy()
    input_range = None if layer.input_range is None else float(layer.input_range)
    expected = naive.multiply(x, plus, minus, scales, hw, input_range, noise)

    analog = dataclasses.replace(hw, adc=None)
    net = plus - minus
    allowed = np.zeros_like(expected)
    for j in range(len(scales)):
        only = np.zeros_like(scales)
        only[j] = 1
        value = naive.multiply(x, plus, minus, only, analog, input_range, noise) / full_scales(x, hw.dac, input_range)
        size = naive.multiply(np.abs(x), np.abs(net), np.zeros_like(net), only, analog, input_range)
        size = size / full_scales(x, hw.dac, input_range)
        if noise is not None:
            size = size + hw.output_noise * np.abs(noise[j])
        error = (hw.tile.rows + 10 + len(scales)) * unit_roundoff * size
        if dispatch.choose(Read(torch.as_tensor(x).to(layer.scales), layer.readout(), hw)).name == "cpu":
            largest = np.broadcast_to(np.nan_to_num(np.abs(net)).max(2, keepdims=True), net.shape)
            drives = naive.multiply(np.abs(x), largest, np.zeros_like(net), only, analog, input_range)
            error = error + 1.01 / 65_276 * drives / full_scales(x, hw.dac, input_range)
        if hw.adc is not None:
            step = hw.adc.full_scale / hw.adc.levels
            to_tie = np.abs(value / step - np.floor(value / step) - 0.5) * step
            error = error + unit_roundoff * 10 * hw.adc.full_scale + np.where(to_tie <= error, step, 0.0)
        allowed += error * scales[j] * full_scales(x, hw.dac, input_range)
    return expected, allowed


@given(
    batch=st.integers(1, 4),
    in_features=st.integers(1, 20),
    out_features=st.integers(1, 9),
    rows=st.integers(1, 8),
    cols=st.integers(1, 6),
    dac=st.sampled_from(dacs),
    adc_bits=st.sampled_from([None, 2, 6, 8, 12]),
    adc_full_scale=st.sampled_from([0.5, 3.0, 10.0]),
    noisy=st.booleans(),
    calibrated=st.booleans(),
    device=st.sampled_from([devices.Ideal(), devices.PCM()]),
    scale=st.sampled_from(["tile_column", "tile", "layer"]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=150, deadline=None)
def test_agrees_with_the_oracle(
    batch,
    in_features,
    out_features,
    rows,
    cols,
    dac,
    adc_bits,
    adc_full_scale,
    noisy,
    calibrated,
    device,
    scale,
    dtype,
    seed,
):
    hardware = Hardware(
        device=device,
        tile=Tile(rows, cols, scale),
        dac=dac,
        adc=None if adc_bits is None else Converter(bits=adc_bits, full_scale=adc_full_scale),
        output_noise=0.04 if noisy else 0.0,
    )
    layer = linear_layer(in_features, out_features, hardware, dtype=dtype, seed=seed)
    layer.program(3)
    layer.age(3600.0)
    if calibrated:
        layer.input_range = torch.tensor(1.3, dtype=dtype)
    x = inputs64(batch, in_features, seed=seed + 1).to(dtype)
    if dac is not None:  # an input at a tie of the DAC is anybody's: codes err by 2^-23 * 127 in float32
        codes = x.double().numpy() / full_scales(x.double().numpy(), dac, None if layer.input_range is None else 1.3)
        codes = codes * (2 ** (dac.bits - 1) - 1)
        assume((np.abs(codes - np.floor(codes) - 0.5) > 1e-4).all())
    noise = None
    if noisy:
        shape = (math.ceil(in_features / rows), batch, out_features)
        noise = Stream((3, "linear", "read", 3600.0, 0)).columns(*shape).double().numpy()

    found = layer(x).detach().double().numpy()
    expected, allowed = oracle(layer, x.double().numpy(), noise, torch.finfo(dtype).eps / 2)
    assert (np.abs(found - expected) <= allowed).all()


def test_exact_ties_go_to_even_as_the_oracle_does():
    # Whole numbers all the way: a weight of 1, inputs of 0.5 to 3.5 ADC steps, and codes that float64 holds exactly.
    adc = Converter(bits=3, full_scale=3.0)
    layer = linear_layer(1, 1, dataclasses.replace(QUIET, adc=adc))
    with torch.no_grad():
        layer.digital.weight.fill_(1.0)
    layer = AnalogLinear.from_digital(layer.digital, layer.hardware)
    x = torch.tensor([[-3.5], [-2.5], [-1.5], [-0.5], [0.5], [1.5], [2.5], [3.5]], dtype=torch.float64)
    even = [-3.0, -2.0, -2.0, 0.0, 0.0, 2.0, 2.0, 3.0]
    assert layer(x).flatten().tolist() == even
    plus, minus = (cells.numpy() for cells in layer.conductances())
    assert naive.multiply(x.numpy(), plus, minus, layer.scales.numpy(), layer.hardware).flatten().tolist() == even


@pytest.mark.parametrize("chunk", [1, 7, 200])
@pytest.mark.parametrize("tile", [Tile(8, 8), Tile(5, 7), Tile(64, 64)])
def test_chunks_change_nothing(monkeypatch, chunk, tile):
    # Exact in float32 in any order: weights of eighths times codes, and codes times scales of eighths times a step of
    # 127/8 / 127 = 1/8. A tie of the ADC would need a column sum of an odd number of 127/16: it has none.
    hardware = dataclasses.replace(
        QUIET, tile=tile, dac=Converter(range="static", full_scale=1.0), adc=Converter(full_scale=127 / 8)
    )
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-8, 9, (23, 12), generator=generator) / 8
    scales = torch.randint(1, 9, (math.ceil(23 / tile.rows), 12), generator=generator) / 8
    x = torch.rand(50, 23, generator=generator) * 2 - 1
    whole = eager.Eager().multiply(Read(x, Readout(weight.unsqueeze(0), scales), hardware))
    monkeypatch.setattr(eager, "_VECTORS", 1)
    monkeypatch.setattr(eager, "_PARTIALS", chunk)
    assert torch.equal(eager.Eager().multiply(Read(x, Readout(weight.unsqueeze(0), scales), hardware)), whole)


def test_converters_by_hand():
    # DAC of 7 levels a side over ±1, ADC of 3 levels a side over ±1.5 unit outputs, weights ±1 and ½ of scale 2.
    hardware = dataclasses.replace(
        QUIET, dac=Converter(bits=4, full_scale=1.0), adc=Converter(bits=3, full_scale=1.5), tile=Tile(2, 2)
    )
    linear = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[2.0, -1.0, 0.5]]))
    layer = AnalogLinear.from_digital(linear, hardware)
    x = torch.tensor([[0.5, -0.3, 9.0]], dtype=torch.float64)
    # codes: 3.5 -> 4 (even), -2.1 -> -2, clipped at 7. First tile: (4 + 2/2) / 7 = 0.714 unit outputs, in steps of
    # 0.5: 1.43 -> 1, worth 0.5 * 2. Second tile: 7/7 = 1 -> 2 steps, worth 1 * 0.5.
    assert layer(x).tolist() == [[0.5 * 2 + 1 * 0.5]]
    assert layer.read_out(x).flatten().tolist() == [0.5, 1.0]


@pytest.mark.parametrize("scale", ["tile_column", "tile", "layer"])
@pytest.mark.parametrize("tile", [(7, 5), (1, 1), (16, 3)])
def test_tiles_do_not_matter_to_ideal_converters(tile, scale):
    whole = linear_layer(37, 11, QUIET)
    tiled = AnalogLinear.from_digital(whole.digital, dataclasses.replace(QUIET, tile=Tile(*tile, scale)))
    x = inputs64(6, 37)
    size = x.abs() @ whole.digital.weight.abs().t()
    # 37 products and additions, mapping and unmapping: 45 roundings of 2^-53
    assert ((whole(x) - tiled(x)).abs() <= 2 * 45 * 2**-53 * size).all()


@pytest.mark.parametrize("dac", [None, Converter(range="per_token")])
def test_output_noise_has_its_deviation(dac):
    hardware = dataclasses.replace(QUIET, dac=dac, tile=Tile(16, 16), output_noise=0.04)
    noisy = linear_layer(40, 10, hardware)
    quiet = AnalogLinear.from_digital(noisy.digital, dataclasses.replace(hardware, output_noise=0.0))
    x = inputs64(2000, 40)
    full_scale = 1.0 if dac is None else x.abs().amax(1, keepdim=True)
    # independent noise on each of 3 row tiles, worth each tile's scale
    deviation = 0.04 * noisy.scales.square().sum(0).sqrt() * full_scale
    z = ((noisy(x) - quiet(x)) / deviation).detach()
    n = z.numel()
    low, high = stats.chi2.ppf([0.005, 0.995], n) / n
    assert low < float(z.square().mean()) < high
    assert abs(z.mean()) < 4 / n**0.5
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    columns = np.corrcoef(z.numpy().T) - np.eye(10)
    assert np.abs(columns).max() < 5 / 2000**0.5  # 45 pairs, each of deviation 1/sqrt(2000)


def test_noise_is_converted_too():
    # Noise sits before the ADC: outputs are whole ADC steps, noise or not.
    hardware = dataclasses.replace(QUIET, adc=Converter(bits=6, full_scale=4.0), output_noise=0.3)
    layer = linear_layer(10, 4, hardware)
    steps = layer.read_out(inputs64(100, 10)) / (4.0 / 31)
    assert (steps - steps.round()).abs().max() < 1e-9
    assert steps.abs().max() <= 31 + 1e-9
    assert not torch.equal(layer.read_out(inputs64(100, 10)), layer.read_out(inputs64(100, 10), read=1))


def test_a_read_out_has_noise_of_its_own():
    layer, x = linear_layer(10, 4, dataclasses.replace(QUIET, output_noise=0.3)), inputs64(5, 10)
    first, second = layer(x), layer(x)
    layer.reset_reads()
    read = layer.read_out(x, read=2)
    assert torch.equal(layer(x), first)
    assert torch.equal(layer.read_out(x, read=2), read)  # whatever was read in between
    assert torch.equal(layer(x), second)
    assert not torch.equal(layer.read_out(x, read=3), read)


@pytest.mark.parametrize("range_", ["static", "per_token", "max"])
def test_a_calibrated_range_replaces_every_other(range_):
    layer = linear_layer(4, 3, dataclasses.replace(QUIET, dac=Converter(range=range_)))
    layer.input_range = torch.tensor(0.5, dtype=torch.float64)
    x = 3 * inputs64(2, 4)
    codes = (x / 0.5 * 127).round().clamp(-127, 127)
    expected = codes * (0.5 / 127) @ layer.digital.weight.t()
    torch.testing.assert_close(layer(x), expected, rtol=1e-13, atol=1e-14)


# Gradients: straight through up to half a step beyond the last level, nothing further out


def test_gradient_of_the_dac():
    hardware = dataclasses.replace(QUIET, dac=Converter(bits=4, full_scale=1.0))
    layer = linear_layer(3, 2, hardware)
    x = torch.tensor([[0.3, -0.99, 1.0], [1.2, -1.05, -7.0]], dtype=torch.float64, requires_grad=True)
    upstream = torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64)
    (layer(x) * upstream).sum().backward()
    inside = torch.tensor([[1.0, 1, 1], [0, 1, 0]], dtype=torch.float64)
    expected = upstream @ layer.digital.weight.detach() * inside
    torch.testing.assert_close(x.grad, expected, rtol=1e-14, atol=1e-15)  # a few float64 roundings


def test_gradient_of_the_adc():
    # Two row tiles of one row, a step of 0.5: outputs beyond 1.75 pass no gradient.
    hardware = dataclasses.replace(QUIET, adc=Converter(bits=3, full_scale=1.5), tile=Tile(1, 4))
    linear = nn.Linear(2, 2, bias=True, dtype=torch.float64)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[2.0, -3.0], [5.0, 7.0]]))
    layer = AnalogLinear.from_digital(linear, hardware)
    x = torch.tensor([[0.7, 1.4], [-1.6, 0.2], [-1.8, 1.7], [0.1, 4.0]], dtype=torch.float64, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.tolist() == [[7.0, 4.0], [7.0, 4.0], [0.0, 4.0], [7.0, 0.0]]
    assert linear.bias.grad.tolist() == [4.0, 4.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("range_", ["per_token", "max"])
def test_gradient_of_the_largest_input_is_not_lost(range_, dtype):
    # Full scale divided by itself times the levels may round to just above the last level.
    layer = linear_layer(1, 1, dataclasses.replace(QUIET, dac=Converter(range=range_)), dtype=dtype)
    x = torch.rand(200, 1, generator=torch.Generator().manual_seed(0), dtype=dtype).add(0.1).requires_grad_()
    if range_ == "per_token":
        layer(x).sum().backward()
    else:
        for vector in x:
            layer(vector.unsqueeze(0)).sum().backward()
    assert (x.grad != 0).all()


@pytest.mark.parametrize("chunk", [2**20, 1])
def test_gradient_with_noise_and_in_chunks(monkeypatch, chunk):
    monkeypatch.setattr(eager, "_VECTORS", 1)
    monkeypatch.setattr(eager, "_PARTIALS", chunk)
    hardware = dataclasses.replace(QUIET, tile=Tile(3, 3), adc=Converter(bits=8, full_scale=100.0), output_noise=0.1)
    layer = linear_layer(7, 5, hardware)
    x = inputs64(4, 7).requires_grad_()
    upstream = inputs64(4, 5, seed=2)
    (layer(x) * upstream).sum().backward()
    # nothing is near the range, so the product's own gradient: 5 products, mapping and unmapping in float64
    torch.testing.assert_close(x.grad, upstream @ layer.digital.weight.detach(), rtol=1e-13, atol=1e-14)


def test_gradient_does_not_change_the_value():
    hardware = Hardware(tile=Tile(4, 4))
    layer = linear_layer(10, 6, hardware)
    layer.program(0)
    x = inputs64(5, 10)
    with torch.no_grad():
        plain = layer(x)
    layer.reset_reads()
    assert torch.equal(layer(x.clone().requires_grad_()), plain)


# Odd inputs

parts = pytest.mark.parametrize("adc", [None, Converter()], ids=["no adc", "adc"])
all_dacs = pytest.mark.parametrize("dac", dacs[:4], ids=["no dac", "per token", "max", "static"])


@parts
@all_dacs
@pytest.mark.parametrize("noise", [0.0, 0.04])
def test_nan_stays_nan_and_taints_no_other_vector(dac, adc, noise):
    hardware = dataclasses.replace(QUIET, dac=dac, adc=adc, output_noise=noise, tile=Tile(4, 4))
    layer = linear_layer(10, 6, hardware, bias=True)
    x = inputs64(3, 10)
    x[1, 7] = math.nan
    lost = layer(x).isnan()
    assert lost[1].all()
    if dac is None or dac.range != "max":  # one range for the batch is lost with it
        assert not lost[0].any()
        assert not lost[2].any()


@parts
@all_dacs
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_inputs_give_the_bias(dac, adc, dtype):
    hardware = dataclasses.replace(QUIET, device=devices.PCM(), dac=dac, adc=adc, tile=Tile(4, 4))
    layer = linear_layer(10, 6, hardware, bias=True, dtype=dtype)
    layer.program(0)
    assert torch.equal(layer(torch.zeros(3, 10, dtype=dtype)), layer.digital.bias.expand(3, 6))


@pytest.mark.parametrize("range_", ["per_token", "max"])
def test_a_zero_vector_among_others(range_):
    layer = linear_layer(10, 6, dataclasses.replace(QUIET, dac=Converter(range=range_)))
    x = inputs64(3, 10)
    x[1] = 0
    y = layer(x)
    assert torch.equal(y[1], torch.zeros(6, dtype=torch.float64))
    assert y[0].abs().min() > 0


def test_inputs_are_not_changed():
    for dac in dacs:
        layer = linear_layer(10, 6, Hardware(dac=dac))
        x = inputs64(3, 10)
        before = x.clone()
        with torch.no_grad():
            layer(x)
            layer.read_out(x)
        assert torch.equal(x, before)
