"""What several tests of studies use."""

import importlib

import pytest

from tests.calibration.studies.inline import Inline

JOB = importlib.import_module("calibration.study")  # whose name in the package is the function


@pytest.fixture
def inline(monkeypatch):
    """Put the study's work into this process, with an event changed on its way."""

    def use(upset=lambda event: event):
        engines = []

        def make(name, workers, plan):
            engines.append(Inline(plan, upset))
            return engines[-1]

        monkeypatch.setattr(JOB, "make_engine", make)
        return engines

    return use
