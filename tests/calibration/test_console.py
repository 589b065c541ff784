"""Results as tables on a terminal."""

import io

import pytest
from rich.console import Console
from torch import nn

from calibration import Emulation, Measurement
from calibration.console import accuracy_table
from crossbar import convert, presets


def shown(primary, *values):
    measurements = [Measurement("digital", primary, values[0])]
    measurements += [Measurement("analog", primary, value, chip, 3600.0) for chip, value in enumerate(values[1:])]
    conversion = convert(nn.Sequential(nn.Linear(3, 2)), presets.ideal())
    setup = {"model": "m", "task": "t", "chips": len(values) - 1, "hardware": presets.ideal().to_dict()}
    terminal = Console(file=io.StringIO(), width=200)
    terminal.print(accuracy_table(Emulation(setup, primary, tuple(measurements), conversion, {})))
    return terminal.file.getvalue()


def test_an_accuracy_has_half_its_interval():
    text = shown("recall@1", 0.9, 0.4, 0.6)
    assert "0.900" in text
    assert "0.500 ± 1.271" in text  # half-width t(0.975, 1) / 10
    assert "mean ± half the 95% interval over 2 chips" in text
    assert "lower" not in text


def test_a_perplexity_has_a_geometric_mean_and_an_interval():
    text = shown("perplexity", 18.624, 30.0, 30.0 * 1.01)
    assert "18.62" in text
    assert "30.15 (28.30 to 32.12)" in text  # 30 sqrt(1.01) exp(± 12.706 ln(1.01) / 2)
    assert "perplexity: geometric mean (95% interval) over 2 chips" in " ".join(text.split())
    assert "±" not in text
    assert "lower perplexity is better" in " ".join(text.split())


@pytest.mark.parametrize(("primary", "expected"), [("recall@1", "0.500"), ("perplexity", "0.50")])
def test_a_single_chip_has_no_interval(primary, expected):
    (row,) = [line for line in shown(primary, 0.9, 0.5).splitlines() if "1 h" in line]
    assert [cell.strip() for cell in row.strip("│").split("│")][-1] == expected
