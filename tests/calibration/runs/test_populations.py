"""Calibration for chips that nobody measures, fitted on others of their kind."""

import copy
import statistics
from dataclasses import dataclass
from typing import ClassVar

import pytest

from calibration import DriftCompensation, Recipe, ReprogramWorst, Stage, calibrate, load_bundle
from crossbar import InputError, analog_layers

DRIFT = Recipe("drift", (DriftCompensation(),))


@dataclass(frozen=True)
class Spy:
    """Writes down the chip and the age on which it is fitted."""

    log: list
    stage: ClassVar[Stage] = Stage.IN_USE

    def fit(self, model, batches):
        layer = next(iter(analog_layers(model).values()))
        self.log.append((layer.seed, layer.seconds))
        return {}

    def apply(self, model, fitted):
        pass

    def combine(self, fits):
        return {}


def test_it_is_fitted_on_other_chips_than_are_scored(net, task):
    log = []
    result = calibrate(net, task, recipe=Recipe("spy", (Spy(log),)), times=["1h", "1d"], chips=2, population=3)
    seeds = [1_000_000, 1_000_001, 1_000_002]
    assert log == [(seed, seconds) for seconds in (3600.0, 86400.0) for seed in seeds]
    assert {m.chip for m in result.measurements} == {None, 0, 1}
    assert result.setup["fitted_on"] == "a population of 3 other chips"


def test_a_populations_calibration_is_better_than_none(net, task):
    options = {"recipe": DRIFT, "times": ["1d"], "chips": 6}
    own, shared = (calibrate(net, task, population=size, **options) for size in (None, 4))
    assert own.setup["fitted_on"] == "each chip itself"
    assert own.values("analog") == shared.values("analog")
    assert statistics.mean(shared.values("calibrated")) > statistics.mean(own.values("analog"))
    assert shared.values("calibrated") != own.values("calibrated")


def test_every_chip_gets_the_same(net, task, tmp_path):
    result = calibrate(net, task, recipe=DRIFT, times=["1d"], chips=2, population=2)
    gains = []
    for chip in (0, 1):
        result.save(tmp_path / str(chip), chip=chip)
        model = load_bundle(tmp_path / str(chip), model=copy.deepcopy(net)).model
        gains.append(analog_layers(model)["first"].column_gain)
        assert task.metrics(model) == {
            m.metric: m.value for m in result.measurements if (m.arm, m.chip) == ("calibrated", chip)
        }
    assert (gains[0] == gains[1]).all()


@pytest.mark.parametrize(
    ("recipe", "options", "told"),
    [
        (DRIFT, {"population": 0}, "population = 0 is not allowed"),
        (DRIFT, {"population": 2, "chips": 2, "seed": 1_000_001}, "would be fitted on and scored"),
        (Recipe("r", (ReprogramWorst(),)), {"population": 2}, "ReprogramWorst belongs to one chip: leave it out"),
    ],
)
def test_refusals(net, task, recipe, options, told):
    with pytest.raises(InputError, match=told):
        calibrate(net, task, recipe=recipe, times=["1d"], **options)
