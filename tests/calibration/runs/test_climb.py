"""One protocol for all jobs: fitted, then scored later, on text that was not fitted; one memory for the weights."""

import pytest
import torch
from torch import nn

from calibration import DriftCompensation, Finetune, InputRanges, Recipe, WeightRanges, calibrate, emulate
from calibration.energy import energy
from calibration.runs.climb import Climb
from calibration.runs.experiment import Experiment
from calibration.runs.request import Request
from calibration.studies.worker import Setup
from crossbar import AnalogLinear, InputError, analog_layers
from crossbar import presets as hardware
from tests.calibration.energy.test_study import Words, language_model

PLAIN = Recipe("plain", (InputRanges(), DriftCompensation()))
HOUR = 3600.0


class Logged:
    """A task that writes down how old the chips are that it scores."""

    name, primary = "logged", "score"

    def __init__(self, task):
        self.task, self.ages, self.batches = task, [], task.batches

    def metrics(self, model):
        layers = [module for module in model.modules() if isinstance(module, AnalogLinear) and module.seed is not None]
        if layers and not layers[0].bypass:
            self.ages.append(layers[0].seconds)
        return {"score": next(iter(self.task.metrics(model).values()))}


@pytest.fixture
def fits(monkeypatch):
    """How old chips are when drift is compensated."""
    ages, real = [], DriftCompensation.fit

    def fit(self, model, batches):
        ages.append(next(iter(analog_layers(model).values())).seconds)
        return real(self, model, batches)

    monkeypatch.setattr(DriftCompensation, "fit", fit)
    return ages


def of_calibrate(net, task):
    calibrate(net, task, recipe=PLAIN, times=["1h"], wait="30min", chips=1, staircase=False)


def of_energy(net, task):
    energy(net, task, "pcm", ["dense"], recipe=PLAIN, age="1h", wait="30min")


def of_a_study(net, task):
    setup = {"model": {}, "task": {"name": "t"}, "pattern": None, "memory": None, "device": "cpu", "staircase": False}
    setup |= {"hardware": hardware.pcm().to_dict(), "recipe": PLAIN.to_dict(), "wait": 1800.0}
    Setup(setup, net, task).score(0, HOUR)


@pytest.mark.parametrize("job", [of_calibrate, of_energy, of_a_study])
def test_every_job_fits_before_it_scores_and_not_on_what_it_scores(job, fits):
    net, task = language_model(), Logged(Words())
    job(net, task)
    assert fits == [HOUR]
    assert task.ages[-1] == HOUR + 1800.0
    assert set(task.ages) == {HOUR + 1800.0}  # the chip without calibration too

    task.batches = lambda split: Words().batches("evaluation")
    with pytest.raises(InputError, match="is in its evaluation data too"):
        job(net, task)
    assert fits == [HOUR]


def test_a_climb_without_a_wait_is_refused(net, task):
    experiment = Experiment.prepare(Request.of(net, task))
    with pytest.raises(InputError, match="a wait of 0 s would score the very noise that was fitted"):
        Climb(experiment, PLAIN)


def test_energy_has_the_chip_that_calibrate_and_emulate_have():
    options = {"age": "1d", "wait": "2h", "seed": 4}
    (calibrated,) = energy(language_model(), Words(), "pcm", ["dense"], recipe="fast", **options).arms
    (bare,) = energy(language_model(), Words(), "pcm", ["dense"], recipe=None, **options).arms
    same = {"pattern": "dense", "times": ["1d"], "chips": 1, "seed": 4, "tied_heads": True}  # as `energy` has it
    result = calibrate(language_model(), Words(), "pcm", "fast", wait="2h", staircase=False, **same)
    assert [calibrated.analog] == result.values("calibrated")
    assert [calibrated.digital] == result.values("digital")
    assert [bare.analog] == emulate(language_model(), Words(), "pcm", **same).values("analog")


def test_the_weights_are_in_memory_once(folder, monkeypatch):
    """At every evaluation: whatever is scored has its matrices where the experiment's digital model has them."""
    places = []

    class Task:
        name, primary = "places", "score"

        def batches(self, split):
            start = {"calibration": 0, "evaluation": 20}[split]
            return [{"input_ids": torch.arange(start, start + 16).view(2, 8)}]

        def metrics(self, model):
            weights = [p for p in model.parameters() if p.dim() > 1 and type(p) is nn.Parameter]
            places.append({p.data_ptr() for p in weights})
            return {"score": float(model(**self.batches("evaluation")[0]).last_hidden_state.detach().sum())}

    recipe = Recipe("written", (InputRanges(), WeightRanges(), DriftCompensation()))
    result = calibrate(folder, Task(), recipe=recipe, pattern="window(4)", times=["1h"], chips=2)
    digital = {p.data_ptr() for p in result.deployment.experiment.digital.parameters() if p.dim() > 1}
    assert len(places) == 3 + 2 + 2 * 3
    assert all(found == digital for found in places)


def test_training_weights_leaves_the_digital_model_and_the_users(net, task):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    training = Finetune(train="weights", chip="any", steps=2, rate=1e-2)
    result = calibrate(net, task, recipe=Recipe("trained", (training,)), times=["1h"], chips=1)
    experiment = result.deployment.experiment
    for name, value in before.items():
        assert torch.equal(net.state_dict()[name], value)
        assert torch.equal(experiment.digital.state_dict()[name], value)
    assert not torch.equal(experiment.analog.first.digital.weight, net.first.weight)


def test_a_chip_at_hand_is_not_written_again(net, task, monkeypatch):
    written, climb = [], Climb(Experiment.prepare(Request.of(net, task)))
    from calibration.runs import climb as module

    real = module.program
    monkeypatch.setattr(module, "program", lambda model, chip: (written.append(chip), real(model, chip)))
    for chip, time in ((0, 1.0), (0, HOUR), (1, 1.0), (0, 1.0)):
        climb.score_programmed(chip, [time])
    assert written == [0, 1, 0]
    assert climb.measurements[0].value == climb.measurements[-2].value  # the same chip at the same age
