"""What every calibration step keeps to. (`TokenProtection`, which has nothing to fit, has its own in
`test_memory_jobs.py`.)"""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import LlamaConfig, LlamaModel

from attention import attach
from calibration import DriftCompensation, DriftTargets, Finetune, ScreeningThresholds, WireAware, recipe
from calibration.models.sharing import shared_copy
from calibration.steps.batch_norms import BatchNormStatistics
from calibration.steps.protection import TokenProtection
from calibration.steps.protocol import PopulationStep, Stage, uncalibrate
from crossbar import Ledger, Tile, Wire, age, convert, load_state, new_chip, presets, program, reset_reads, save_state

DAY = 86400.0


@dataclass(frozen=True)
class PredictedDrift(DriftCompensation):
    """The same step with other defaults."""

    predict: bool = True


KINDS = [*(kind for kind in recipe._STEPS.values() if kind is not TokenProtection), PredictedDrift]
IN_USE = [kind for kind in KINDS if kind().stage is Stage.IN_USE]
each = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
each_for_all = pytest.mark.parametrize(
    "kind", [kind for kind in IN_USE if isinstance(kind(), PopulationStep)], ids=lambda kind: kind.__name__
)
each_in_use = pytest.mark.parametrize("kind", IN_USE, ids=lambda kind: kind.__name__)


class Net(nn.Module):
    """Two layers with a norm between them; some inputs are ten times as large as others."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(40, 30), nn.LayerNorm(30), nn.Linear(30, 12)

    def forward(self, x, attention_mask=None):
        return self.second(torch.relu(self.norm(self.first(x))))


class BatchNet(Net):
    """The same with a batch norm, whose statistics are those of the digital model."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(30, momentum=None)
        for batch in drawn_batches():
            self(**batch)

    def forward(self, x, attention_mask=None):
        return self.second(torch.relu(self.norm(self.first(x).transpose(1, 2)).transpose(1, 2)))


class AttendingNet(Net):
    """The same with an attention whose rows spike, which opens nothing but the query's own row at first."""

    def __init__(self):
        super().__init__()
        sizes = {"hidden_size": 30, "num_hidden_layers": 1, "num_attention_heads": 3, "num_key_value_heads": 1}
        self.decoder = LlamaModel(LlamaConfig(vocab_size=4, intermediate_size=8, **sizes))
        attach(self.decoder, "spiking(1000) | window(1)")

    def forward(self, x, attention_mask=None):
        states = self.decoder(inputs_embeds=self.first(x), attention_mask=attention_mask).last_hidden_state
        return self.second(self.norm(states))


def network(kind=None):
    """One that the step has something to do in."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kinds = {BatchNormStatistics: BatchNet, ScreeningThresholds: AttendingNet}
        return kinds.get(kind, Net)().eval()


@pytest.fixture(scope="module")
def batches():
    return drawn_batches()


def drawn_batches():
    draw = torch.Generator().manual_seed(1)
    size = torch.logspace(-0.5, 0.5, 40)
    mask = torch.ones(8, 16, dtype=torch.int64)
    mask[0, 12:] = 0
    return [{"x": torch.randn(8, 16, 40, generator=draw) * size, "attention_mask": mask} for _ in range(8)]


def chip(kind=None, seed=0):
    """The network on a chip that is as old as the step needs."""
    model = network(kind)
    hardware = presets.hermes() if kind is DriftTargets else presets.pcm()
    wire = Wire(100.0, 100.0) if kind is WireAware else None
    convert(model, replace(hardware, tile=Tile(16, 8), wire=wire))
    program(model, seed)
    if kind is None or kind().stage is Stage.IN_USE:
        age(model, DAY)
    return model


def outputs(model, batches):
    """Of a chip, with the noise of its first reads."""
    reset_reads(model)
    return plain_outputs(model, batches)


def plain_outputs(model, batches):
    with torch.no_grad():
        return torch.cat([model(**batch) for batch in batches])


def everything(model):
    """All tensors of a model, those that are not saved with it too, and what else a layer knows."""
    found = {}
    for name, module in model.named_modules():
        for key, tensor in (*module._buffers.items(), *module._parameters.items()):
            if not key.startswith("_"):  # others are made of these
                found[name, key] = None if tensor is None else tensor.clone()
        for key in ("seed", "seconds", "reads", "training", "bypass", "_averaged"):
            found[name, key] = vars(module).get(key)
    return found


def hooks_of(model):
    """What is called beside each module."""
    return [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]


def same(first, second):
    assert first.keys() == second.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]) if isinstance(value, torch.Tensor) else value == second[key], key


@each
def test_fit_leaves_the_model_as_it_was(kind, batches):
    model = chip(kind)
    model(**batches[0])  # reads that a fit must not forget
    model.train()
    before, hooks = everything(model), hooks_of(model)
    kind().fit(model, batches)
    same(before, everything(model))
    assert hooks_of(model) == hooks
    assert not any(hooks) or kind is ScreeningThresholds  # whose model is attached, with hooks


@each
def test_nothing_is_written_into_weights_that_a_digital_twin_shares(kind, batches):
    """Training with three steps that would move weights far."""
    digital = network(kind)
    before = {name: value.clone() for name, value in digital.state_dict().items()}
    twin = shared_copy(digital)
    convert(twin, presets.pcm())
    program(twin, 0)
    if kind is PredictedDrift:
        age(twin, DAY)
    options = {"train": "weights", "chip": "any", "steps": 3, "rate": 0.1} if kind is Finetune else {}
    step = kind(**options)
    step.apply(twin, step.fit(twin, batches))
    if kind is Finetune:
        assert not torch.equal(twin.first.digital.weight, digital.first.weight)
    same(before, digital.state_dict())


@each
def test_a_fit_repeats_and_takes_batches_as_they_come(kind, batches):
    first = kind().fit(chip(kind), batches)
    assert first
    torch.rand(5)  # the global generator decides nothing
    same(first, kind().fit(chip(kind), iter(batches)))
    assert all(isinstance(value, torch.Tensor) and not value.requires_grad for value in first.values())
    assert all(value.isfinite().all() for value in first.values() if value.is_floating_point())


@each
def test_what_was_fitted_can_be_kept_in_a_file(kind, batches, tmp_path):
    model, other = chip(kind), chip(kind)
    fitted = kind().fit(model, batches)
    kind().apply(model, fitted)
    save_file({name: tensor.contiguous() for name, tensor in fitted.items()}, tmp_path / "fitted")
    kind().apply(other, load_file(tmp_path / "fitted"))
    same(everything(model), everything(other))


@each
def test_what_is_applied_takes_the_place_of_what_was(kind, batches):
    model, other = chip(kind), chip(kind)
    first, second = kind().fit(model, batches), kind().fit(chip(kind, seed=3), batches[:3])
    for values in (second, first, first):
        kind().apply(model, values)
        if kind().stage is not Stage.IN_USE:  # the next chip
            new_chip(model)
            program(model, 0)
    kind().apply(model, first)
    kind().apply(other, first)
    if kind().stage is Stage.BEFORE_PROGRAMMING:
        for each_model in (model, other):
            program(each_model, 0)
    torch.testing.assert_close(outputs(model, batches), outputs(other, batches), rtol=0, atol=0)


@each_in_use
def test_uncalibrate_takes_it_away(kind, batches):
    model = chip(kind)
    before = outputs(model, batches)
    kind().apply(model, kind().fit(model, batches))
    assert not torch.equal(outputs(model, batches), before)
    uncalibrate(model)
    assert torch.equal(outputs(model, batches), before)


@each_in_use
def test_an_hour_later_the_error_is_smaller(kind, batches):
    """On data that were not fitted, and beside a chip whose drift is compensated unless the step does it."""
    digital = network(kind)
    fresh, lost, left = batches[4:], 0.0, 0.0
    target = plain_outputs(digital, fresh)
    for seed in range(40 if kind.__name__ == "NormRecalibration" else 4):  # which gains 0.3%: 4 chips do not show it
        model = chip(kind, seed)
        if not issubclass(kind, DriftCompensation | BatchNormStatistics):
            drift = DriftCompensation()
            drift.apply(model, drift.fit(model, []))
        fitted = kind().fit(model, batches[:4])
        age(model, DAY + 3600)
        lost += float((outputs(model, fresh) - target).square().sum())
        kind().apply(model, fitted)
        left += float((outputs(model, fresh) - target).square().sum())
    assert left < lost


@each
def test_the_chips_state_has_it(kind, batches, tmp_path):
    """All but norms, which stay digital and are saved apart."""
    model = chip(kind)
    kind().apply(model, kind().fit(model, batches))
    if kind().stage is Stage.BEFORE_PROGRAMMING:
        program(model, 0)
    other = copy.deepcopy(model)
    new_chip(other)
    save_state(model, tmp_path / "state")
    load_state(other, tmp_path / "state")
    assert torch.equal(outputs(other, batches), outputs(model, batches))


@each_for_all
def test_a_population_of_equal_chips_is_one_chip(kind, batches):
    model = chip(kind)
    fitted = kind().fit(model, batches)
    kind().apply(model, fitted)
    expected = outputs(model, batches)
    kind().apply(model, kind().combine([fitted, fitted, fitted]))
    torch.testing.assert_close(outputs(model, batches), expected, rtol=0, atol=0.02)  # an ADC code may tip over
    assert (outputs(model, batches) - expected).abs().median() < 1e-5


@each
def test_what_it_reads_is_booked(kind, batches):
    model = chip(kind)
    with Ledger() as ledger:
        kind().fit(model, batches)
    reads = ledger.totals()
    assert (sum(reads.values()) == 0) == (kind().stage is Stage.BEFORE_PROGRAMMING)
