"""What every calibration step does on layers that are not one product: a convolution and experts."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralExperts

from calibration import Finetune, WireAware, recipe
from calibration.steps.average_reads import AverageReads
from calibration.steps.batch_norms import BatchNormStatistics
from calibration.steps.drift_targets import DriftTargets
from calibration.steps.protection import TokenProtection
from calibration.steps.protocol import Stage, uncalibrate
from calibration.steps.screening_thresholds import ScreeningThresholds
from crossbar import (
    Ledger,
    Tile,
    Wire,
    age,
    analog_layers,
    convert,
    load_state,
    new_chip,
    presets,
    program,
    reset_reads,
    save_state,
)

KINDS = [kind for kind in recipe._STEPS.values() if kind not in (ScreeningThresholds, TokenProtection)]  # of attention
MATRICES = [
    "first.tiles.weight",
    *(f"experts.tiles.{name}_{e}" for e in (0, 1) for name in ("gate_up_proj", "down_proj")),
]


class Net(nn.Module):
    """A convolution over 6 tokens of 10 channels, a norm, and experts: of 2, one for the first tokens, one for all."""

    def __init__(self, batch_norm):
        super().__init__()
        self.first = nn.Conv1d(10, 12, 3, padding=1)
        self.norm = nn.BatchNorm1d(12) if batch_norm else nn.LayerNorm(12)
        self.experts = MixtralExperts(MixtralConfig(hidden_size=12, intermediate_size=8, num_local_experts=2))
        for parameter in self.experts.parameters():
            nn.init.normal_(parameter, std=0.4)

    def forward(self, x, attention_mask=None):
        y = self.first(x.transpose(1, 2))
        y = self.norm(y).transpose(1, 2) if isinstance(self.norm, nn.BatchNorm1d) else self.norm(y.transpose(1, 2))
        tokens = y.reshape(-1, 12)
        index = torch.stack([torch.zeros(len(tokens), dtype=torch.long), torch.arange(len(tokens)) % 2], 1)
        weights = torch.full((len(tokens), 2), 0.5)
        return self.experts(tokens, index, weights).view_as(y)


def drawn():
    draw = torch.Generator().manual_seed(1)
    size, mask = torch.logspace(-0.5, 0.5, 10), torch.ones(4, 6, dtype=torch.int64)
    return [{"x": torch.randn(4, 6, 10, generator=draw) * size, "attention_mask": mask} for _ in range(4)]


def chip(kind, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Net(kind is BatchNormStatistics).eval()
    wire = Wire(100.0, 100.0) if kind is WireAware else None
    hardware = presets.hermes() if kind is DriftTargets else presets.pcm()
    convert(model, replace(hardware, tile=Tile(16, 8), wire=wire))
    program(model, seed)
    if kind().stage is Stage.IN_USE:
        age(model, "1d")
    return model


def outputs(model):
    reset_reads(model)
    with torch.no_grad():
        return torch.cat([model(**batch) for batch in drawn()])


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_a_convolution_and_experts_are_calibrated(kind, tmp_path):
    """It is fitted on what reaches each matrix, kept with the chip, takes effect, and is taken away again."""
    model, other, step = chip(kind), chip(kind), kind(**({"steps": 2} if kind is Finetune else {}))
    assert sorted(analog_layers(model)) == sorted(MATRICES)
    before = outputs(model)
    with Ledger() as ledger:
        fitted = step.fit(model, drawn())
    assert fitted
    assert all(value.isfinite().all() for value in fitted.values() if value.is_floating_point())
    if kind not in (BatchNormStatistics, AverageReads):  # which fit no matrix, and some of them
        of_each = [any(name.startswith(matrix) for name in fitted) for matrix in MATRICES]
        assert all(of_each) or not any(of_each), sorted(fitted)
    assert (sum(ledger.totals().values()) == 0) == (step.stage is Stage.BEFORE_PROGRAMMING)
    assert torch.equal(outputs(model), before)
    repeated = step.fit(other, iter(drawn()))
    assert all(torch.equal(value, repeated[name]) for name, value in fitted.items())
    step.apply(model, fitted)
    if step.stage is Stage.BEFORE_PROGRAMMING:
        program(model, 0)
    found = outputs(model)
    assert found.isfinite().all()
    assert not torch.equal(found, before)
    loaded = copy.deepcopy(model)
    new_chip(loaded)
    save_state(model, tmp_path / "state")
    load_state(loaded, tmp_path / "state")
    assert torch.equal(outputs(loaded), found)
    if step.stage is Stage.IN_USE:
        uncalibrate(model)
        assert torch.equal(outputs(model), before)
