"""The noise of training: the device's own distribution, drawn anew at each step from a keyed stream."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import stats

from crossbar import Hardware, InputError, Tile, WriteVerify, devices, presets
from crossbar.devices import span, window
from crossbar.devices.hermes import Hermes
from crossbar.devices.reram import CmoReRam, ReRam
from crossbar.random.streams import Stream
from crossbar.tiles import ageing, injection
from crossbar.tiles.programming import write
from tests.crossbar.conftest import linear_layer
from tests.peers import needs_aihwkit

QUIET = Hardware(dac=None, adc=None, output_noise=0.0)
DAY = 86400.0

kinds = {
    "pcm": devices.PCM(),
    "hermes": Hermes(g_max=20.7, t_0=300.0),
    "reram": ReRam(),
    "reram_cmo": CmoReRam(),
}


def layer_of(hardware, in_features=64, out_features=48, **options):
    return linear_layer(in_features, out_features, hardware, bias=True, dtype=torch.float32, **options)


def seen(layer):
    """Weights ``[O, I]`` that a step in train mode computes with, where converters are ideal and reads quiet."""
    with torch.no_grad():
        return (layer(torch.eye(layer.in_features, dtype=layer.scales.dtype)) - layer.digital.bias).t()


def cells_at(device, level, n, seconds, verify=None):
    """Injected cells and cells that are really written and aged, at a part ``level`` of the window: target and both."""
    g_min, width = span(device)
    targets = torch.full((n,), g_min + level * width)
    hardware = dataclasses.replace(QUIET, device=device, verify=verify)
    injected = injection.written(targets.clone(), hardware, seconds, Stream(("test", level)))
    key = (1, "elsewhere")
    state = ageing.program(device, targets, key) if verify is None else write(device, targets, key, verify)[0]
    return targets[0], injected.double(), ageing.conductances(device, state, seconds, key).double()


# Distribution


@pytest.mark.parametrize("level", [0.0, 0.1003, 0.5, 1.0])
@pytest.mark.parametrize("seconds", [0.0, DAY])
@pytest.mark.parametrize("device", kinds.values(), ids=kinds)
def test_errors_have_the_distribution_of_cells_that_are_written_and_aged(device, seconds, level):
    n = 20_000
    _, injected, real = cells_at(device, level, n, seconds)
    spread = float(real.std())
    share = 2 / n  # both samples stand on n cells; the table adds next to nothing
    assert abs(float(injected.mean() - real.mean())) < 4 * spread * share**0.5
    excess = float(((real - real.mean()) / spread).pow(4).mean()) - 1
    assert abs(float(injected.std()) / spread - 1) < 4 * (excess / 4 * share) ** 0.5
    # 1.95 is Kolmogorov's bound at 1 in 1,000, 1/256 that of 256 quantiles.
    distance = stats.ks_2samp(injected.numpy(), real.numpy()).statistic
    assert distance < 1.95 * share**0.5 + 1 / 256
    low, high = window(device)
    assert float(injected.min()) >= low
    assert float(injected.max()) <= high


@pytest.mark.parametrize("device", kinds.values(), ids=kinds)
def test_a_row_of_the_table_has_mean_deviation_and_distribution_of_a_large_sample(device):
    n, (g_min, width) = 2**17, span(device)
    for seconds in (0.0, DAY):
        table = injection.error_table(device, None, seconds).double()
        for row in (0, 3, 200):
            target = torch.full((n,), float(torch.linspace(0.0, width, 257)[row]) + g_min)
            key = (1, "elsewhere", row)
            cells = ageing.conductances(device, ageing.program(device, target, key), seconds, key)
            real, found = (cells - target).double(), table[row]
            spread, middle = real.std(), real.mean()
            # Four standard errors of the sample, and what the table itself is off by.
            excess = float(((real - middle) / spread).pow(4).mean()) - 1
            assert float((found.mean() - middle).abs() / spread) < 4 * n**-0.5 + 0.0005
            assert abs(float(found.std(correction=0) / spread) - 1) < 4 * (excess / 4 / n) ** 0.5 + 0.004
            assert stats.ks_2samp(found.numpy(), real.numpy()).statistic < 1.95 * n**-0.5 + 1 / 256
            # Cells that end at the least conductance all end there.
            lowest = real.min()
            if float((real == lowest).double().mean()) > 1 / 256:
                atom = float((found == lowest).double().mean())
                assert atom == pytest.approx(float((real == lowest).double().mean()), abs=1 / 256 + 4 * 0.5 * n**-0.5)


@needs_aihwkit
def test_devices_that_draw_for_themselves_have_a_table_too():
    from aihwkit.inference import PCMLikeNoiseModel

    device = devices.AihwkitDevice(PCMLikeNoiseModel())
    table, real = (injection.error_table(kind, None, 3600.0).double() for kind in (device, devices.PCM()))
    rows, spread = slice(0, None, 16), real.std(1, keepdim=True)
    # 16,384 random cells a row, the largest of 17 rows.
    assert float(((table - real)[rows].mean(1) / spread[rows, 0]).abs().max()) < 4 / 128
    assert float((table.std(1) / spread[:, 0] - 1)[rows].abs().max()) < 0.05


def test_ideal_cells_hold_their_targets():
    _, injected, real = cells_at(devices.Ideal(), 0.3, 1000, DAY)
    assert torch.equal(injected, real)
    layer = layer_of(dataclasses.replace(QUIET, device=devices.Ideal())).train()
    torch.testing.assert_close(seen(layer), layer.digital.weight.detach(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("level", "golden"), [(0.0, 0.154), (0.25, 0.68), (0.5, 0.953), (0.75, 1.08), (1.0, 1.06)])
def test_the_deviation_follows_the_target(level, golden):
    # Golden programming errors of PCM (test_devices.py), given to two or three digits: a Gaussian of one width has none
    # of this. 4,096 cells give a deviation to 1.1% (2% of the half Gaussian at 0 µS).
    target, injected, _ = cells_at(devices.PCM(read_noise_scale=0.0), level, 20_000, 0.0)
    assert float((injected - target).std()) == pytest.approx(golden, rel=0.05)


def test_drift_moves_the_mean():
    # Measured from aihwkit 1.1.0: mean G / G₀ at g = 1 is 0.776 after 1 h and 0.50 after 1 y; spread 1.1 µS of 25 over
    # 4,096 cells.
    for seconds, golden in ((3600.0, 0.776), (365 * DAY, 0.50)):
        _, injected, _ = cells_at(devices.PCM(), 1.0, 20_000, seconds)
        assert float(injected.mean()) / 25 == pytest.approx(golden, abs=0.006)


def test_write_and_verify_narrows_the_errors_of_training_too():
    verify = WriteVerify(tolerance=0.01, rounds=6)
    target, injected, real = cells_at(devices.PCM(read_noise_scale=0.0), 0.5, 20_000, 0.0, verify)
    assert float((injected - target).abs().mean()) == pytest.approx(float((real - target).abs().mean()), rel=0.06)
    assert float((injected - target).std()) < 0.6 * 0.953


def test_targets_between_rows_of_the_table_keep_their_place():
    # The error is looked up at the nearest of 257 targets and added to the target itself.
    targets = torch.linspace(0.0, 25.0, 10_001)
    hardware = dataclasses.replace(QUIET, device=devices.Ideal())
    assert torch.equal(injection.written(targets.clone(), hardware, 0.0, Stream(("test",))), targets)


tiles = {
    "differential": Tile(32, 48),
    "balanced": Tile(32, 48, encoding="balanced"),
    "offset": Tile(32, 48, encoding="offset"),
    "pairs": Tile(32, 48, pairs=2),
    "slices": Tile(32, 48, slices=2),
    "offset slices": Tile(40, 48, encoding="offset", slices=2, slice_bits=3),
}


@pytest.mark.parametrize("tile", tiles.values(), ids=tiles)
@pytest.mark.parametrize("device", [devices.PCM(), CmoReRam()], ids=["pcm", "reram_cmo"])
def test_a_step_sees_weights_as_wrong_as_those_of_a_chip(tile, device):
    layer = layer_of(dataclasses.replace(QUIET, device=device, tile=tile))
    weight = layer.digital.weight.detach()
    layer.program(0)
    layer.age(DAY)
    chips = []
    for seed in range(1, 7):
        layer.program(seed)
        layer.age(DAY)
        chips.append(layer.effective_weight() - weight)
    layer.train()
    steps = [seen(layer) - weight for _ in range(6)]
    chip, step = torch.stack(chips), torch.stack(steps)
    # 18,432 errors a side, scaled column by column: deviations known to 1%, of a mixture with heavy tails to 2%
    assert float(step.square().mean().sqrt()) == pytest.approx(float(chip.square().mean().sqrt()), rel=0.06)
    # drift shrinks weights alike: the regression on the weight, of deviation σ / (|w| √n)
    slope = [float((errors * weight).sum() / (len(errors) * weight.square().sum())) for errors in (chip, step)]
    assert slope[1] == pytest.approx(slope[0], abs=5 * float(chip.std()) / 18_432**0.5 + 0.01)


def test_weights_of_another_size_are_as_wrong_as_their_cells():
    layer = layer_of(dataclasses.replace(QUIET, device=devices.PCM(read_noise_scale=0.0, drift_scale=0.0)), 256, 64)
    layer.train()
    weight = layer.digital.weight.detach()
    part = weight.abs() / weight.abs().amax(1, keepdim=True)
    error = (seen(layer) - weight) / weight.abs().amax(1, keepdim=True) * 25
    found = [float(error[(part > low) & (part <= low + 0.1)].std()) for low in (0.0, 0.4)]
    # the other cell of the pair, at 0 µS, adds its 0.154; σ_prog at g = 0.05 and 0.45, over a few thousand weights
    for value, g in zip(found, (0.05, 0.45), strict=True):
        golden = ((0.26348 + 1.9650 * g - 1.1731 * g * g) ** 2 + 0.154**2) ** 0.5
        assert value == pytest.approx(golden, rel=0.08)


# Streams


def test_no_number_is_used_twice():
    # Recycled noise would show as a peak of the autocorrelation at any lag; of 65,536 lags of n values, each of
    # deviation 1/√n, one is beyond 6 once in a million runs.
    device = devices.PCM()
    targets = torch.full((2, 256, 256), 12.5)
    hardware = dataclasses.replace(QUIET, device=device)
    error = injection.written(targets, hardware, 0.0, Stream(("test",))).double().flatten().numpy()
    error = (error - error.mean()) / error.std()
    n = error.size
    power = np.abs(np.fft.rfft(error, 2 * n)) ** 2
    correlation = np.fft.irfft(power)[1 : n // 2] / n
    assert np.abs(correlation).max() < 6 / n**0.5


def test_each_step_has_noise_of_its_own():
    layer = layer_of(QUIET).train()
    errors = torch.stack([seen(layer) for _ in range(5)]).flatten(1)
    errors = (errors - errors.mean(0)).double()
    correlation = torch.corrcoef(errors)[~torch.eye(5, dtype=torch.bool)]
    # subtracting the mean of 5 leaves -1/4 between independent steps, of deviation about 1/√3072
    assert float((correlation + 0.25).abs().max()) < 5 / 3072**0.5


def test_a_step_repeats_after_a_reset():
    layer = layer_of(presets.pcm()).train()
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    first, second = layer(x), layer(x)
    layer.reset_reads()
    assert torch.equal(layer(x), first)
    assert torch.equal(layer(x), second)
    assert not torch.equal(first, second)


def test_steps_differ_by_chip_name_and_time():
    def step(seed=0, name="a", seconds=0.0):
        layer = layer_of(QUIET, name=name)
        layer.program(seed)
        layer.age(seconds)
        return seen(layer.train())

    base = step()
    assert torch.equal(base, step())
    for other in (step(seed=1), step(name="b"), step(seconds=1.0)):
        assert not torch.equal(base, other)


def test_threads_and_global_numbers_change_nothing():
    layer, threads = layer_of(presets.pcm(), 300, 200).train(), torch.get_num_threads()
    x = torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    expected = layer(x)
    before = torch.get_rng_state()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            torch.manual_seed(count)
            layer.reset_reads()
            found = layer(x)
            # the product itself may add up in another order; what is injected may not
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            layer.reset_reads()
            assert torch.equal(layer(x), found)
        torch.manual_seed(7)
        state = torch.get_rng_state()
        layer(x)
        assert torch.equal(torch.get_rng_state(), state)
    finally:
        torch.set_num_threads(threads)
        torch.set_rng_state(before)


def test_injected_cells_are_the_same_bits_with_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(injection, "_GROUPS", 512)  # a table in a fraction of the time
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            injection.error_table.cache_clear()
            targets = torch.linspace(0.0, 25.0, 100_000)
            found.append(injection.written(targets, QUIET, DAY, Stream(("test",))))
    finally:
        torch.set_num_threads(threads)
        injection.error_table.cache_clear()
    assert torch.equal(*found)


def test_training_leaves_the_programmed_chip():
    layer = layer_of(presets.pcm())
    layer.program(3)
    layer.age(DAY)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer.train()
    for _ in range(2):
        layer(torch.ones(2, 64)).sum().backward()
    layer.eval()
    assert {name: buffer.tolist() for name, buffer in layer.named_buffers()} == {
        name: buffer.tolist() for name, buffer in before.items()
    }
    assert layer.seconds == DAY


def test_broken_weights_are_refused_at_the_step():
    layer = layer_of(presets.pcm()).train()
    with torch.no_grad():
        layer.digital.weight[3, 4] = torch.nan
    with pytest.raises(InputError, match="linear has 1 weights that are NaN or infinite out of 3072"):
        layer(torch.ones(2, 64))


def test_a_table_made_in_inference_mode_serves_training():
    injection.error_table.cache_clear()
    layer = layer_of(presets.pcm()).train()
    with torch.inference_mode():
        layer(torch.ones(2, 64))
    layer(torch.ones(2, 64)).sum().backward()
    assert layer.digital.weight.grad is not None


@pytest.mark.parametrize("spread", [0.0, 0.5, 3.0])
def test_the_spread_of_errors_is_scaled_about_their_mean(spread):
    hardware = dataclasses.replace(QUIET, device=devices.PCM())
    targets = torch.full((50_000,), 12.5)
    found, plain = (
        injection.written(targets.clone(), hardware, DAY, Stream(("test",)), part).double() for part in (spread, 1.0)
    )
    assert float(found.mean()) == pytest.approx(float(plain.mean()), rel=2e-3)
    assert float(found.std()) == pytest.approx(spread * float(plain.std()), rel=1e-3, abs=1e-6)


def test_training_without_spread_meets_the_mean_of_errors_alone():
    layer = layer_of(dataclasses.replace(QUIET, device=devices.PCM())).train()
    layer.cells.error_spread = 0.0
    assert torch.equal(seen(layer), seen(layer))
    layer.cells.error_spread = 1.0
    assert not torch.equal(seen(layer), seen(layer))
