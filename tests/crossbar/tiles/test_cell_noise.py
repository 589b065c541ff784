"""White noise of the cells at every read: its size, its two forms, and that no draw is used twice."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from crossbar import AnalogLinear, CellNoise, Converter, Faults, InputError, Tile, devices, presets
from crossbar.backends import eager, naive
from crossbar.tiles.faults import Fault
from crossbar.tiles.readout import read_variance
from tests.crossbar.conftest import QUIET, inputs64, linear_layer

NOISES = [CellNoise(0.8), CellNoise(relative=0.05), CellNoise(0.5, 0.03)]
every_noise = pytest.mark.parametrize("noise", NOISES, ids=["constant", "relative", "both"])


def column_deviation(layer, x):
    """``sqrt(Σ_i x_i² σ²(G_io))`` of the columns of each row tile in unit outputs, ``[T_in, B, O]``."""
    noise, rows = layer.hardware.read_noise, layer.hardware.tile.rows
    g_max = layer.hardware.device.g_max
    variance = torch.zeros(layer.in_features, layer.out_features, dtype=torch.float64)
    for cells in layer.cells.conductances():
        variance += (noise.constant**2 + (noise.relative * cells) ** 2) / g_max**2 / layer.hardware.tile.pairs**2
    tiles = range(0, layer.in_features, rows)
    return torch.stack([(x[:, r : r + rows] ** 2 @ variance[r : r + rows]).sqrt() for r in tiles])


def variance_ratio(z):
    """Mean square of numbers that should be standard normal, and where it lies with a chance of 99.8%."""
    low, high = stats.chi2.ppf([0.001, 0.999], z.numel()) / z.numel()
    return low, float(z.square().mean()), high


def open_cell(layer):
    codes = torch.zeros(layer.cells.cells_a_weight, layer.in_features, layer.out_features, dtype=torch.uint8)
    codes[0, 1, 1] = Fault.OPEN
    return codes


@every_noise
@pytest.mark.parametrize("output_noise", [0.0, 0.04])
@pytest.mark.parametrize("options", [{}, {"encoding": "balanced"}, {"pairs": 3}, {"encoding": "offset"}], ids=str)
def test_columns_deviate_as_the_formula_says(noise, output_noise, options):
    hardware = dataclasses.replace(QUIET, read_noise=noise, output_noise=output_noise, tile=Tile(4, 3, **options))
    layer = linear_layer(10, 7, hardware)
    quiet = AnalogLinear.from_digital(layer.digital, dataclasses.replace(hardware, read_noise=None, output_noise=0.0))
    x = inputs64(20, 10)
    deviation = (column_deviation(layer, x).square() + output_noise**2).sqrt()
    z = torch.stack([(layer.read_out(x, read) - quiet.read_out(x)) / deviation for read in range(100)])
    low, found, high = variance_ratio(z)
    assert low < found < high
    assert abs(z.mean()) < 4 / z.numel() ** 0.5
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.01
    # each vector and column has its own deviation: 100 reads each, far from the 4.4 of the largest quantile
    by_column = z.square().mean(0)
    assert by_column.min() > stats.chi2.ppf(1e-6, 100) / 100
    assert by_column.max() < stats.chi2.ppf(1 - 1e-6, 100) / 100


@every_noise
def test_the_oracles_cells_add_up_to_the_same_deviation(noise):
    layer = linear_layer(6, 2, dataclasses.replace(QUIET, read_noise=noise, tile=Tile(6, 2)))
    plus, minus = (cells.numpy() for cells in layer.conductances())
    x = inputs64(1, 6).repeat(2000, 1)
    generator = np.random.default_rng(0)
    numbers = {side: generator.standard_normal((1, 1, 1, 2000, 6, 2)) for side in ("plus", "minus")}
    scales = np.ones((1, 2))
    args = (x.numpy(), plus, minus, scales, layer.hardware)
    noisy = naive.multiply(*args, draws=naive.Draws(**numbers))
    # The deviation of 2000 numbers has a relative standard error of 1/sqrt(4000)
    found = noisy.std(0, mean=naive.multiply(*args).mean(0, keepdims=True))
    np.testing.assert_allclose(found, column_deviation(layer, x[:1])[0, 0].numpy(), rtol=4 / 4000**0.5)


@pytest.mark.parametrize("options", [{}, {"slices": 2, "encoding": "balanced"}, {"encoding": "offset"}], ids=str)
def test_cheap_is_exact_for_a_constant(options):
    def layer(form):
        hardware = dataclasses.replace(QUIET, read_noise=CellNoise(0.8, form=form), output_noise=0.04)
        hardware = dataclasses.replace(hardware, adc=Converter(bits=10), tile=Tile(4, 3, **options))
        return linear_layer(10, 7, hardware)

    exact, cheap = layer("exact"), layer("cheap")
    exact.set_faults(open_cell(exact))  # an open cell makes no noise, so its column takes the exact form
    assert exact.readout().variance.dim() == 3
    exact.set_faults(None)
    assert exact.readout().variance.dim() == cheap.readout().variance.dim() == 2
    x = inputs64(50, 10)
    for _ in range(3):
        torch.testing.assert_close(exact(x), cheap(x), rtol=1e-12, atol=1e-12)  # float64; no column is at a tie


def test_cheap_takes_the_mean_of_a_column():
    hardware = dataclasses.replace(QUIET, read_noise=CellNoise(0.5, 0.1, form="cheap"))
    layer = linear_layer(10, 7, hardware)
    cells = layer.cells.conductances()
    each = (0.5**2 * 2 + 0.1**2 * cells.square().sum(0)) / 25.0**2
    expected = torch.stack([each[r : r + 4].mean(0) for r in (0, 4, 8)])  # two lines in the last tile
    torch.testing.assert_close(layer.readout().variance, expected, rtol=1e-12, atol=0)
    # With inputs of one size, that is no approximation.
    exact = AnalogLinear.from_digital(
        layer.digital, dataclasses.replace(hardware, read_noise=CellNoise(0.5, 0.1, form="exact"))
    )
    x = inputs64(5, 10).sign() * 0.7
    torch.testing.assert_close(layer(x), exact(x), rtol=1e-12, atol=1e-12)


def test_noise_is_that_of_the_pairs_mean():
    one, four = (
        read_variance(
            torch.full((2 * pairs, 3, 2), 10.0), CellNoise(0.5), dataclasses.replace(QUIET, tile=Tile(pairs=pairs))
        )
        for pairs in (1, 4)
    )
    torch.testing.assert_close(four, one / 4)
    torch.testing.assert_close(one[0, 0].item(), 2 * 0.5**2 / 25.0**2)


def test_idle_lines_make_no_noise():
    layer = linear_layer(10, 7, dataclasses.replace(QUIET, read_noise=CellNoise(5.0, 0.1)))
    x = inputs64(50, 10)
    x[:, 4:] = 0
    columns = layer.read_out(x)
    assert not columns[1:].any()
    assert not torch.equal(columns[0], layer.read_out(x, read=1)[0])
    assert not layer(torch.zeros(5, 10, dtype=torch.float64)).any()


def correlations(z):
    """Correlations that are 0 in fresh noise ``[reads, T, B, O]``, in units of their standard errors.

    Recycled numbers would correlate reads, tiles, vectors or columns, or the stream with itself.
    """
    z = z - z.mean(0)
    z /= z.std()
    found = []
    for axis in range(4):
        for lag in range(1, min(8, z.shape[axis])):
            early, late = z.take(range(z.shape[axis] - lag), axis), z.take(range(lag, z.shape[axis]), axis)
            mean = -1 / (len(z) - 1) if axis == 0 else 0.0  # of numbers about their own mean
            found.append(((early * late).mean() - mean) * early.size**0.5)
    flat, read = z.flatten(), z[0].size
    power = np.abs(np.fft.rfft(flat, 2 * flat.size)) ** 2
    lags = np.arange(1, 16 * read)
    stream = np.fft.irfft(power)[lags] / (flat.size - lags) ** 0.5
    return np.abs(found).max(), np.abs(stream[lags % read != 0]).max()


@pytest.mark.parametrize(
    "sigma", [CellNoise(0.8), CellNoise(0.8, form="cheap"), None], ids=["exact", "cheap", "output"]
)
def test_no_read_repeats_another(sigma):
    hardware = dataclasses.replace(QUIET, read_noise=sigma, output_noise=0.04, tile=Tile(4, 16))
    layer = linear_layer(8, 16, hardware)
    x = torch.ones(32, 8, dtype=torch.float64)
    nearby, stream = correlations(torch.stack([layer.read_out(x, read) for read in range(64)]).numpy())
    assert nearby < 4.5  # 29 of them: a chance of 2e-4
    assert stream < 6  # 16,000 of them: 3e-5


@pytest.mark.parametrize("period", [1000, 1024, 4096, 5000])
def test_recycled_noise_would_be_caught(period):
    block = np.random.default_rng(0).standard_normal(period)
    nearby, stream = correlations(np.resize(block, (64, 2, 32, 16)))
    assert max(nearby, stream) > 20


def test_successive_calls_are_independent():
    layer = linear_layer(8, 16, dataclasses.replace(QUIET, read_noise=CellNoise(0.8)))
    x = inputs64(256, 8)
    reads = torch.stack([layer(x) for _ in range(8)])
    reads = (reads - reads.mean(0)).flatten(1).detach().numpy()
    found = np.corrcoef(reads)
    off = found[~np.eye(8, dtype=bool)]
    # 8 numbers about their own mean are correlated by -1/7
    assert np.abs(off + 1 / 7).max() < 5 / reads.shape[1] ** 0.5


def test_reads_repeat_after_a_reset_and_differ_by_time():
    layer, x = linear_layer(10, 7, dataclasses.replace(QUIET, read_noise=CellNoise(0.8))), inputs64(5, 10)
    layer.program(0)
    first, second = layer(x), layer(x)
    assert not torch.equal(first, second)
    layer.reset_reads()
    assert torch.equal(layer(x), first)
    layer.reset_reads()
    layer.age(1.0)
    assert not torch.equal(layer(x), first)


def test_noise_follows_the_cells_as_they_drift():
    layer = linear_layer(10, 7, dataclasses.replace(QUIET, device=devices.PCM(), read_noise=CellNoise(relative=0.05)))
    layer.program(0)
    young = layer.readout().variance.clone()
    layer.age(86400.0 * 365)
    assert layer.readout().variance.mean() < 0.6 * young.mean()
    torch.testing.assert_close(
        layer.readout().variance[0],
        layer.cells.conductances().square().sum(0) * 0.05**2 / 25**2,
        rtol=1e-12,
        atol=0,
    )


def test_noise_is_converted_too():
    hardware = dataclasses.replace(QUIET, adc=Converter(bits=6, full_scale=4.0), read_noise=CellNoise(2.0))
    steps = linear_layer(10, 4, hardware).read_out(inputs64(100, 10)) / (4.0 / 31)
    assert (steps - steps.round()).abs().max() < 1e-9
    assert steps.abs().max() <= 31 + 1e-9


@pytest.mark.parametrize("form", ["exact", "cheap"])
def test_chunks_have_the_same_deviation(monkeypatch, form):
    monkeypatch.setattr(eager, "_VECTORS", 1)
    monkeypatch.setattr(eager, "_PARTIALS", 200)
    layer = linear_layer(10, 7, dataclasses.replace(QUIET, read_noise=CellNoise(0.8, form=form)))
    x = inputs64(5000, 10)
    quiet = x @ layer.digital.weight.t()
    deviation = (column_deviation(layer, x) * layer.scales.unsqueeze(1)).square().sum(0).sqrt()
    low, found, high = variance_ratio(((layer(x) - quiet) / deviation).detach())
    assert low < found < high


def test_gradients_pass_by_the_noise():
    layer = linear_layer(10, 7, dataclasses.replace(QUIET, read_noise=CellNoise(0.8, 0.05)))
    x, upstream = inputs64(5, 10).requires_grad_(), inputs64(5, 7, seed=2)
    (layer(x) * upstream).sum().backward()
    torch.testing.assert_close(x.grad, upstream @ layer.digital.weight.detach(), rtol=1e-13, atol=1e-14)  # float64


@pytest.mark.parametrize("noise", [None, CellNoise(), CellNoise(form="cheap")], ids=str)
def test_no_deviation_is_no_noise(noise):
    layer = linear_layer(10, 7, dataclasses.replace(QUIET, read_noise=noise))
    assert layer.readout().variance is None
    assert torch.equal(layer(inputs64(5, 10)), layer(inputs64(5, 10)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"constant": -1.0}, r"read_noise field constant = -1\.0 is not allowed: give a finite number from 0 to"),
        ({"relative": float("nan")}, r"read_noise field relative = nan is not allowed"),
        ({"form": "fast"}, r"read_noise field form = 'fast' is not allowed: choose one of exact, cheap"),
    ],
)
def test_refuses_impossible_noise(options, message):
    with pytest.raises(InputError, match=message):
        CellNoise(**options)


def test_broken_columns_make_no_noise_of_their_own():
    hardware = dataclasses.replace(
        presets.ideal(),
        read_noise=CellNoise(constant=1.0),
        faults=Faults(broken_cols=1.0),
    )
    layer = linear_layer(10, 7, hardware, dtype=torch.float32)
    layer.program(0)
    with torch.no_grad():
        assert not layer(torch.ones(3, 10)).any()
