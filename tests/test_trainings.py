"""The benchmarks that train: all arms run, and what is kept in a folder is not trained or scored again."""

import importlib
from argparse import Namespace
from pathlib import Path

import pytest

from calibration import Finetune
from calibration.runs.journal import Journal
from tests.kept_bits import Agreement, Net

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
OPTIONS = Namespace(chips=2, programming=4.0, clip=1.0)


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("foundation"), importlib.import_module("training_compensation")


def test_trainings_are_kept(scripts, tmp_path, monkeypatch):
    foundation, training = scripts
    model = Net().eval()
    finetune = Finetune("weights", "any", steps=3, rate=1e-3, checkpoint=False)
    subject = training.Subject(model, Agreement(model), finetune, 4)
    first = {arm: foundation.measured(subject, Journal(tmp_path), arm, OPTIONS) for arm in foundation.TRAININGS}
    assert len({tuple(found[arm, "one range"]) for arm, found in first.items()}) == len(foundation.TRAININGS)
    monkeypatch.setattr(Finetune, "fit_long", None)
    monkeypatch.setattr(Agreement, "metrics", None)
    again = {arm: foundation.measured(subject, Journal(tmp_path), arm, OPTIONS) for arm in foundation.TRAININGS}
    assert again == first
