"""Results as runs of trackers: what is kept, what is refused, and what MLflow and W&B read back."""

import importlib.util
import json
import re
from types import SimpleNamespace

import pandas as pd
import pytest
from torch import nn

from calibration import Emulation, Measurement
from calibration.results.results import Row
from calibration.results.trackers import Run, Score, Tracker, flat, scores_of
from calibration.studies.export import runs
from crossbar import InputError, convert, presets


@pytest.fixture(scope="module")
def result():
    """Two chips at 1 h, beside a digital model."""
    measurements = [Measurement("digital", "recall@1", 0.9)]
    measurements += [Measurement("analog", "recall@1", value, chip, 3600.0) for chip, value in enumerate((0.4, 0.6))]
    conversion = convert(nn.Sequential(nn.Linear(3, 2)), presets.ideal())
    setup = {"model": "m", "task": "t", "chips": 2, "hardware": presets.ideal().to_dict(), "times": [3600.0]}
    return Emulation(setup, "recall@1", tuple(measurements), conversion, {})


def test_scores_have_names_that_trackers_take_and_times_as_steps(result):
    found = {score.name: (score.seconds, score.value) for score in scores_of(result.rows())}
    assert found.keys() == {"digital/recall_1", "analog/recall_1", "analog/recall_1 low", "analog/recall_1 high"}
    assert found["digital/recall_1"] == (0, 0.9)
    assert found["analog/recall_1"] == (3600, pytest.approx(0.5))
    assert found["analog/recall_1 high"][1] == pytest.approx(0.5 + 12.706 * 0.1, rel=1e-4)


def test_what_is_not_finite_is_left_out():
    row = Row("analog", 1.0, "accuracy", 0.5, float("nan"), float("nan"), 2, None)
    assert scores_of([row]) == [Score("analog/accuracy", 1.0, 0.5)]


def test_hardware_is_named_field_by_field(result):
    found = flat(result.setup)
    assert found["hardware.tile.rows"] == 256
    assert found["times"] == "[3600.0]"
    assert all(value is None or isinstance(value, str | int | float) for value in found.values())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tensorboard", "report_to 'tensorboard' is no tracker: give mlflow or wandb, with a folder as in mlflow:runs"),
        ("", "report_to '' is no tracker"),
    ],
)
def test_another_tracker_is_refused(text, said):
    with pytest.raises(InputError, match=re.escape(said)):
        Tracker.of(text)


def test_a_tracker_that_is_missing_and_a_file_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=re.escape("pip install 'ohmformer[wandb]'")):
        Tracker.of("wandb")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file: name a folder"):
        Tracker.of(f"mlflow:{tmp_path}/file")
    assert Tracker.of("mlflow").folder.name == "mlruns"


def test_a_study_has_a_run_for_each_combination():
    table = pd.DataFrame(
        {
            "pattern": ["dense", "dense", "window(8)"],
            "hardware.adc.bits": [8, 8, 6],
            "steps": [(), (), ()],
            "time": [3600.0, 86400.0, 3600.0],
            "arm": ["analog"] * 3,
            "metric": ["recall@1"] * 3,
            "mean": [0.5, 0.4, 0.3],
            "low": [0.4, 0.3, 0.2],
            "high": [0.6, 0.5, 0.4],
            "n": [2, 2, 2],
            "digital": [0.9, 0.9, 0.8],
        }
    )
    study = SimpleNamespace(title="S", varying=["pattern", "hardware.adc.bits"], table=table.copy)
    first, second = runs(study)
    assert (first.name, second.name) == ("S, dense, 8", "S, window(8), 6")
    assert first.parameters == {"study": "S", "pattern": "dense", "hardware.adc.bits": "8"}
    assert Score("analog/recall_1", 86400.0, 0.4) in first.scores
    assert Score("digital/recall_1", 0.0, 0.8) in second.scores
    assert len(second.result["table"]) == 2


@pytest.mark.filterwarnings("default")  # MLflow's own
def test_mlflow_reads_a_run_back(result, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="the extra mlflow")
    result.report_to(f"mlflow:{tmp_path / 'runs'}")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = mlflow.MlflowClient(tracking_uri=(tmp_path / "runs").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("ohmformer").experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["hardware.tile.rows"] == "256"
    assert run.data.metrics["analog/recall_1"] == pytest.approx(0.5)
    (point,) = client.get_metric_history(run.info.run_id, "analog/recall_1")
    assert point.step == 3600
    (kept,) = (tmp_path / "runs").rglob("result.json")
    assert json.loads(kept.read_text()) == json.loads(json.dumps(result.to_dict()))


@pytest.mark.filterwarnings("default")  # W&B's own
def test_wandb_keeps_runs_offline(result, tmp_path):
    wandb = pytest.importorskip("wandb", reason="the extra wandb")
    Tracker("wandb", tmp_path).keep([Run("a", flat(result.setup), scores_of(result.rows()), result.to_dict())] * 2)
    wandb.teardown()  # its writer, which otherwise ends with the process
    folders = list((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    for folder in folders:
        (log,) = folder.glob("*.wandb")
        assert b"analog/recall_1" in log.read_bytes()
        assert json.loads((folder / "files" / "result.json").read_text())["task"] == "t"
