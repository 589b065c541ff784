import dataclasses

import pytest
import torch
from scipy.stats import ks_2samp

from attention.kernel.token_rows import error_statistics, require_supported, write
from crossbar import presets
from crossbar.errors import InputError
from crossbar.hardware import CellNoise, Converter, Faults, Tile, WriteVerify
from crossbar.tiles import ageing
from crossbar.tiles.mapping import cell_weights, target_conductances

PCM = presets.pcm()


def keys(n=64, dtype=torch.float32):
    return torch.randn(2, 3, n, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def test_ideal_rows_hold_what_was_written():
    x = keys()
    x[0, 0, 5] = 0.0
    rows = write(x, presets.ideal(), (0, "keys"))
    assert rows.variance is None
    assert (rows.digits.abs().amax(-1)[x.abs().amax(-1) > 0] == 1).all()
    torch.testing.assert_close(rows.digits * rows.scale, x, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["pcm", "hermes", "reram", "reram_cmo", "gain_cell"])
@pytest.mark.parametrize("level", [-1.0, 0.0, 0.5])
def test_written_numbers_are_distributed_as_cells_of_the_device(name, level):
    hardware, n, seconds = presets.get(name), 8192, 0.0
    x = torch.full((1, 1, n, 5), level)
    x[..., 0] = 1.0  # the abs-max of every row
    digits = write(x, hardware, (7, "keys"), seconds).digits[..., 1:].flatten()
    device, low = hardware.device, getattr(hardware.device, "g_min", 0.0)
    width = device.g_max - low
    target = torch.tensor([max(level, 0.0), max(-level, 0.0)]).mul(width).add(low)[:, None, None].expand(2, 4 * n, 1)
    cells = ageing.conductances(device, ageing.program(device, target.clone(), (1, "oracle")), seconds, (1,))
    expected = cell_weights(cells, Tile(), width).flatten()
    deviation = float(expected.std())
    assert abs(float(digits.mean() - expected.mean())) <= 5 * deviation / (4 * n) ** 0.5 + 1e-6
    # The relative standard error of the draws is 0.4%.
    assert float(digits.std()) == pytest.approx(deviation, rel=0.03, abs=1e-6)
    if deviation > 1e-6 and name != "gain_cell":
        # 1.95 is Kolmogorov's bound at 1 in 1,000, 1/256 that of 256 quantiles.
        distance = ks_2samp(digits.numpy(), (expected - level + level).numpy()).statistic
        assert distance < 1.95 * (2 / (4 * n)) ** 0.5 + 1 / 256


@pytest.mark.parametrize(("encoding", "pairs"), [("differential", 1), ("differential", 2), ("balanced", 1)])
def test_statistics_are_those_of_a_large_sample(encoding, pairs):
    device, n = presets.pcm().device, 2**16
    tile = Tile(1, 1, encoding=encoding, pairs=pairs)
    statistics = error_statistics(device, encoding, pairs, None, 86400.0)
    for row in (0, 128, 200):
        level = row / 128 - 1
        target = target_conductances(torch.full((n, 1), level), torch.ones(1, n), tile, device.g_max)
        key = (1, "oracle", row)
        cells = ageing.conductances(device, ageing.program(device, target, key), 86400.0, key)
        real, found = cell_weights(cells, tile, device.g_max).flatten().double() - level, statistics.quantiles[row]
        spread = real.std()
        assert float((found.double().mean() - real.mean()).abs() / spread) < 4 * n**-0.5 + 0.001
        assert float(found.double().std(correction=0) / spread) == pytest.approx(1.0, abs=0.025)
        # The more cells make up a number, the less even their draws are together.
        assert ks_2samp(found.numpy(), real.numpy()).statistic < 1.95 * n**-0.5 + 1 / 200
        assert float(statistics.power[row]) == pytest.approx(float(cells.double().square().sum(0).mean()), rel=0.04)
        # Numbers whose cells all end at 0 µS read as 0.
        assert float((found == -level).double().mean()) == pytest.approx(
            float((real == -level).double().mean()), abs=2 / 256
        )


def test_pairs_rounds_and_age():
    def deviation(hardware, seconds=0.0):
        statistics = error_statistics(
            hardware.device, hardware.tile.encoding, hardware.tile.pairs, hardware.verify, seconds
        )
        return float(statistics.quantiles[192].std()), float(statistics.quantiles[192].mean())  # of a number of 0.5

    one, mean = deviation(PCM)
    four = deviation(dataclasses.replace(PCM, tile=Tile(pairs=4)))[0]
    assert four == pytest.approx(one / 2, rel=0.06)
    verified = deviation(dataclasses.replace(PCM, verify=WriteVerify(rounds=20)))[0]
    assert verified < 0.7 * one
    aged = deviation(PCM, 86400.0)[1]
    assert abs(mean) < 0.01
    # G / G_0 at half of g_max after a day, from the exponents' own mean: (1 + 86400 / 20)^-ν, spread aside.
    assert aged / 0.5 == pytest.approx((1 + 86400 / 20) ** -0.05 - 1, abs=0.04)


def test_rows_do_not_depend_on_what_follows_or_on_threads():
    x = keys()
    whole = write(x, PCM, (3, "layer", "keys"))
    assert torch.equal(write(x[:, :, :20], PCM, (3, "layer", "keys")).digits, whole.digits[:, :, :20])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(write(x, PCM, (3, "layer", "keys")).digits, whole.digits)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(write(x, PCM, (3, "layer", "keys")).digits, whole.digits)
    for other in ((4, "layer", "keys"), (3, "other", "keys"), (3, "layer", "values")):
        assert not torch.equal(write(x, PCM, other).digits, whole.digits)
    errors = (whole.digits - x / whole.scale).flatten(2)
    apart = torch.corrcoef(errors.flatten(0, 1))
    assert (apart - torch.eye(6)).abs().max() < 5 / errors.shape[2] ** 0.5


def test_gradients_go_straight_through_the_cells():
    x = keys(dtype=torch.float64).requires_grad_()
    rows = write(x, PCM, (0, "keys"))
    (rows.digits * rows.scale).sum().backward()
    torch.testing.assert_close(x.grad, torch.ones_like(x))


def test_white_noise_of_a_number_is_that_of_its_cells():
    device = dataclasses.replace(PCM.device, prog_noise_scale=0.0, read_noise_scale=0.0)
    hardware = dataclasses.replace(PCM, device=device, read_noise=CellNoise(constant=0.5, relative=0.1))
    x = torch.tensor([1.0, -0.5, 0.0, 0.25])[None, None, None]
    conductance = torch.tensor([25.0, 12.5, 0.0, 6.25])
    expected = (2 * 0.5**2 + (0.1 * conductance) ** 2) / 25**2
    torch.testing.assert_close(write(x, hardware, (0,)).variance[0, 0, 0], expected)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tile": Tile(encoding="offset")}, "tile.encoding"),
        ({"tile": Tile(slices=2)}, "tile.slices"),
        ({"faults": Faults(stuck_min=0.1)}, "faults"),
        ({"dac": Converter(coding="bit_serial")}, "dac.coding"),
        ({"dac": Converter(range="max")}, "dac.range"),
        ({"adc": Converter(gain_std=0.1)}, "adc.gain_std"),
        ({"dac": Converter(offset_std=0.1)}, "dac.offset_std"),
        ({"adc": Converter(bits=1)}, "adc.bits"),
    ],
)
def test_hardware_that_rows_do_not_have_is_refused(change, named):
    with pytest.raises(InputError, match=f"hardware field {named} = .+ is not supported for keys and values: give "):
        require_supported(dataclasses.replace(PCM, **change))
