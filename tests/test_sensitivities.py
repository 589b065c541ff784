"""The benchmark of single non-idealities: each comes alone, errors are relative, amounts lie between points."""

import importlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from crossbar import convert, presets, program
from tests.kept_bits import Agreement, Net

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("sensitivities")


def test_more_of_an_effect_makes_products_more_wrong(script):
    model = Net().eval()
    task = Agreement(model)
    digital = task.metrics(model)[task.primary]
    for name, effect in script.EFFECTS.items():
        least, most = (
            script.measured(model, task, effect, amount, 1, digital)
            for amount in (effect.amounts[0], effect.amounts[-1])
        )
        assert least.error < most.error, name
    exact = script.measured(model, task, script.Effect("", "", (), lambda amount: presets.ideal()), 0, 2, digital)
    assert exact.error < 1e-6
    assert exact.losses == pytest.approx([0, 0], abs=1e-6)


def test_effects_come_alone(script):
    hardware = [effect.hardware(effect.amounts[-1]) for effect in script.EFFECTS.values()]
    assert len({str(each) for each in hardware}) == len(hardware) - 1  # drift with and without compensation
    for each in hardware:
        parts = [each.dac, each.adc, each.read_noise, each.faults, each.wire, each.cell, each.output_noise or None]
        changed = sum(part is not None for part in parts) + (each.device != presets.ideal().device)
        assert changed == (2 if each.cell is not None else 1)  # a curve shows under pulses of several heights alone


def test_the_error_is_relative_and_leaves_the_bias_out(script):
    model = nn.Sequential(nn.Linear(8, 4)).eval().requires_grad_(False)
    model[0].bias.fill_(100.0)
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    products = x @ model[0].weight.T
    convert(model, replace(presets.ideal(), adc=script.Converter(bits=4, full_scale=4.0)))
    program(model, 0)
    with script.watched(model) as squares:
        rounded = model(x) - 100.0
    ((wrong, right),) = squares.values()
    assert right == pytest.approx(float(products.square().sum()), rel=1e-5)
    assert wrong == pytest.approx(float((rounded - products).square().sum()), rel=1e-3)
    model(x)
    assert squares["0"] == (wrong, right)  # nobody watches any more


def test_between_points(script):
    points = [
        script.Point(1.0, [0.0, 0.02], 0.1),
        script.Point(4.0, [0.1, 0.08], 0.4),
        script.Point(8.0, [0.1, 0.3], 0.5),
    ]
    assert script.amount_at(points, 0.05) == pytest.approx(2.0)
    assert script.amount_at(points, 0.05, linear=True) == pytest.approx(2.5)
    assert script.amount_at(points, 0.25) is None
    assert script.loss_at(points, 0.2) == pytest.approx([0.05, 0.05])
    assert script.loss_at(points, 0.1 * math.sqrt(2)) == pytest.approx([0.025, 0.035])
    assert script.loss_at(points, 0.05) is None
