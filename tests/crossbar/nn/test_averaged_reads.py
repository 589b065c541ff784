"""Outputs that are the mean of several reads: which noise falls, which stays, what is counted."""

import pytest
import torch
from torch import nn

from crossbar import AnalogLinear, Converter, Hardware, InputError, Ledger, Tile, age, devices, program, using_backend

INPUTS = torch.randn(400, 60, generator=torch.Generator().manual_seed(1))


def layer(reads=None, device=None, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        digital = nn.Linear(60, 32).requires_grad_(False)
    options = {"tile": Tile(32, 16), "adc": None, "dac": None, "output_noise": 0.1, **options}
    made = AnalogLinear.from_digital(digital, Hardware(device=device or devices.PCM(), **options))
    program(nn.Sequential(made), 0)
    age(nn.Sequential(made), 86400.0)
    made.averaged_reads = None if reads is None else torch.tensor(reads)
    return made


def noise(reads):
    """Deviation between two outputs of the same chip at one instant."""
    own = layer(reads)
    return float((own(INPUTS) - own(INPUTS)).std()) / 2**0.5


def test_amplifier_noise_falls_by_the_root():
    """12,800 numbers, whose deviation is known to 0.6%."""
    one = noise(None)
    for reads in (4, 9):
        assert noise(reads) * reads**0.5 == pytest.approx(one, rel=0.03)


def test_errors_of_cells_stay():
    """Programming, drift and 1/f noise: what is left without amplifier noise, by any number of reads."""
    quiet = layer(output_noise=0.0)
    error = quiet(INPUTS) - quiet.digital(INPUTS)
    averaged = layer(25)
    noisy = averaged(INPUTS) - averaged.digital(INPUTS)
    slope = float((noisy * error).sum() / error.square().sum())
    spread = 0.1 / 5 / float(error.std()) / error.numel() ** 0.5  # of the slope; a column's scale is below 1
    assert slope == pytest.approx(1.0, abs=5 * spread)
    assert float(noisy.square().mean()) > 0.98 * float(error.square().mean())


def test_it_is_the_mean_of_the_reads_that_would_follow():
    single, averaged = (layer(reads, adc=Converter(), dac=Converter(range="per_token")) for reads in (None, 3))
    expected = torch.stack([single(INPUTS) for _ in range(6)]).view(2, 3, 400, 32).mean(1)
    torch.testing.assert_close(torch.stack([averaged(INPUTS), averaged(INPUTS)]), expected, rtol=1e-5, atol=1e-6)
    assert averaged.reads == single.reads == 6


def test_one_read_has_the_bits_that_it_had():
    assert torch.equal(layer(1)(INPUTS), layer()(INPUTS))
    assert layer(1).averaged_reads is None


def test_the_oracle_agrees():
    averaged = layer(2, dac=Converter(range="per_token"))
    fast = averaged(INPUTS[:3])
    averaged.reset_reads()
    with using_backend("naive"):
        torch.testing.assert_close(averaged(INPUTS[:3]), fast, rtol=1e-4, atol=1e-5)


def test_each_read_is_booked():
    counts = []
    for reads in (None, 3):
        with Ledger() as ledger:
            layer(reads)(INPUTS)
        counts.append({name: count for name, count in ledger.totals().items() if name != "row_writes"})
    assert counts[1] == {name: 3 * count for name, count in counts[0].items()}


def test_programming_forgets_it():
    averaged = layer(3)
    program(nn.Sequential(averaged), 1)
    assert averaged.averaged_reads is None


@pytest.mark.parametrize("count", [0, 1001])
def test_impossible_counts_are_refused(count):
    with pytest.raises(InputError, match=f"averaged reads of linear = {count} is not allowed: give a whole number"):
        layer().averaged_reads = torch.tensor(count)
