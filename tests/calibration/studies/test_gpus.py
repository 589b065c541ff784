"""Workers of the engine ``local`` on GPUs: one each, and a sentence at the start where there are too few."""

import io
import subprocess

import pytest
import torch

from calibration import study
from calibration.studies import local
from calibration.studies.local import LocalEngine, visible_gpus
from calibration.study import plan_study
from crossbar import InputError
from tests.calibration.studies import tiny


def with_gpus(monkeypatch, count):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.fixture
def started(monkeypatch):
    """What each worker would have been started with."""
    environments = []

    class Process:
        pid = 1

        def __init__(self, command, env, **rest):
            environments.append(env)

        def kill(self): ...

        def wait(self):
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(local.tempfile, "TemporaryFile", io.BytesIO)
    return environments


@pytest.mark.parametrize(("named", "expected"), [(None, ["0", "1"]), ("3,GPU-5", ["3", "GPU-5"])])
def test_each_worker_sees_one_gpu_and_its_successor_the_same(monkeypatch, started, named, expected):
    with_gpus(monkeypatch, 2)
    if named is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    engine = LocalEngine({}, 2, visible_gpus())
    for one in engine._running:
        one.pipe.close()
    engine._start(1)  # in the place of one that was lost
    assert [env["CUDA_VISIBLE_DEVICES"] for env in started] == [*expected, expected[1]]


def test_workers_on_cpus_are_told_nothing_of_gpus(monkeypatch, started):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    LocalEngine({}, 1)
    assert started[0]["CUDA_VISIBLE_DEVICES"] == "7"


@pytest.mark.parametrize(
    ("count", "workers", "message"),
    [
        (0, None, "device 'cuda' is not there: run the study on 'cpu', or where torch finds a GPU"),
        (
            1,
            2,
            "workers = 2 is not allowed on 'cuda': torch finds 1 GPU, and each worker has one of its own: .* most 1",
        ),
    ],
)
def test_too_few_gpus_are_a_sentence_before_anything_is_written(folder, tmp_path, monkeypatch, count, workers, message):
    with_gpus(monkeypatch, count)
    with pytest.raises(InputError, match=message):
        study(tiny.config(folder, grid={"seed": [0], "device": ["cpu", "cuda"]}), store=tmp_path / "s", workers=workers)
    assert list(tmp_path.iterdir()) == []


def test_a_study_has_as_many_workers_as_there_are_gpus(folder, tmp_path, monkeypatch):
    from calibration.studies.engine import default_workers, workers_for

    with_gpus(monkeypatch, 3)
    config = tiny.config(folder, grid={"seed": [0], "device": ["cuda"]})
    plan, _, _ = plan_study(config, tmp_path / "s")
    assert workers_for("local", None, plan) == 3
    assert workers_for("local", 2, plan) == 2
    assert workers_for("ray", 7, plan) == 7
    plan, _, _ = plan_study(tiny.config(folder, grid={"seed": [0]}), tmp_path / "s")
    assert workers_for("local", None, plan) == default_workers()
