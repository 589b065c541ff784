"""A calibration that is stopped, in any way and at any moment, goes on from where it was, to the same bits."""

import json
import random
import signal
import subprocess
import time

import pytest
import torch
from safetensors.torch import load_file

from calibration import DriftCompensation, InputRanges, Recipe, calibrate
from tests.calibration.bundles.copies import names
from tests.calibration.command import SCRIPT

PLAIN = Recipe("plain", (InputRanges(), DriftCompensation()))
OPTIONS = {"times": ["1h", "1d"], "chips": 2, "recipe": PLAIN}
SCORES, FITS = 2 + 4 + 4 * 2, 1 + 4


class Stopping:
    """A task that is interrupted at its n-th evaluation, and counts them."""

    name, primary = "stopping", "closeness"

    def __init__(self, task, at=None):
        self.task, self.at, self.scored, self.batches = task, at, 0, task.batches

    def metrics(self, model):
        if self.scored == self.at:
            raise KeyboardInterrupt
        self.scored += 1
        return self.task.metrics(model)


def same_bundle(first, second):
    assert names(first) == names(second)
    for name in set(names(first)) - {"manifest.json", "manifest.json.sha256"}:
        if name == "state.safetensors":  # whose metadata come in any order
            tensors = [load_file(path / name) for path in (first, second)]
            assert tensors[0].keys() == tensors[1].keys()
            assert all(torch.equal(tensors[0][key], tensors[1][key]) for key in tensors[0])
        else:
            assert (first / name).read_bytes() == (second / name).read_bytes(), name


@pytest.fixture
def whole(net, task, tmp_path):
    """The result of a run that nothing interrupted, and its bundle."""
    counted = Stopping(task)
    result = calibrate(net, counted, **OPTIONS, out=tmp_path / "whole")
    assert counted.scored == SCORES
    return result, tmp_path / "whole"


@pytest.mark.parametrize("at", range(SCORES))
def test_stopped_at_any_evaluation(net, task, tmp_path, whole, at):
    place = tmp_path / "place"
    place.mkdir()
    with pytest.raises(KeyboardInterrupt):
        calibrate(net, Stopping(task, at), **OPTIONS, out=place / "bundle")
    left = [path.name for path in place.iterdir()]
    assert len(left) == (at > 0)
    assert all(name.startswith(".bundle.") and name.endswith(".progress") for name in left)

    resumed, told = Stopping(task), []
    result = calibrate(net, resumed, **OPTIONS, out=place / "bundle", notify=told.append)
    assert resumed.scored == SCORES - at
    assert len(told) == (at > 0)
    assert result == whole[0]
    assert result.to_dict() == whole[0].to_dict()
    same_bundle(place / "bundle", whole[1])
    assert [path.name for path in place.iterdir()] == ["bundle"]


def test_stopped_again_and_again(net, task, tmp_path, whole):
    place = tmp_path / "place"
    place.mkdir()
    for _ in range(SCORES - 1):
        with pytest.raises(KeyboardInterrupt):
            calibrate(net, Stopping(task, 1), **OPTIONS, out=place / "bundle")
    assert calibrate(net, Stopping(task, 1), **OPTIONS, out=place / "bundle") == whole[0]
    same_bundle(place / "bundle", whole[1])


def test_stopped_while_fitting(net, task, tmp_path, whole, monkeypatch):
    real = DriftCompensation.fit
    calls = []

    def fit(self, model, batches):
        calls.append(self)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(self, model, batches)

    monkeypatch.setattr(DriftCompensation, "fit", fit)
    with pytest.raises(KeyboardInterrupt):
        calibrate(net, task, **OPTIONS, out=tmp_path / "bundle")
    calibrate(net, Stopping(task), **OPTIONS, out=tmp_path / "bundle")
    same_bundle(tmp_path / "bundle", whole[1])


def test_stopped_while_the_bundle_is_written(net, task, tmp_path, whole, monkeypatch):
    from calibration.bundles import writer

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer, "seal", stop)
        with pytest.raises(KeyboardInterrupt):
            calibrate(net, task, **OPTIONS, out=tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
    (left,) = tmp_path.glob(".bundle.*")
    assert left.name.endswith(".progress")
    assert len(list(left.iterdir())) == SCORES + FITS
    calibrate(net, task, **OPTIONS, out=tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "whole"]


@pytest.mark.parametrize(
    "change",
    [
        {"times": ["1h", "30d"]},
        {"chips": 3},
        {"wait": "2h"},
        {"staircase": False},
        {"hardware": "hermes"},
        {"exclude": ["second"]},
        {"recipe": Recipe("fast", (InputRanges(), DriftCompensation(reads=255)))},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_calibration_does_not_go_on_from_it(net, task, tmp_path, change):
    with pytest.raises(KeyboardInterrupt):
        calibrate(net, Stopping(task, 3), **OPTIONS, out=tmp_path / "bundle")
    told, other = [], {**OPTIONS, **change}
    found = calibrate(net, Stopping(task), **other, out=tmp_path / "bundle", notify=told.append)
    assert told == []
    assert found == calibrate(net, Stopping(task), **other)
    assert len(list(tmp_path.glob(".bundle.*.progress"))) == 1  # the first may still be wanted


def test_other_weights_do_not_go_on_from_it(net, task, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        calibrate(net, Stopping(task, 3), **OPTIONS, out=tmp_path / "bundle")
    told = []
    with torch.no_grad():
        net.second.bias[0] += 1e-6
    calibrate(net, Stopping(task), **OPTIONS, out=tmp_path / "bundle", notify=told.append)
    assert told == []


def test_other_data_do_not_go_on_from_them(net, task, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        calibrate(net, Stopping(task, 3), **OPTIONS, out=tmp_path / "bundle")
    told = []
    task.calibration[0]["x"][0, 0, 0] += 1e-6
    calibrate(net, Stopping(task), **OPTIONS, out=tmp_path / "bundle", notify=told.append)
    assert told == []


def test_results_that_a_power_failure_cut_are_computed_again(net, task, tmp_path, whole):
    with pytest.raises(KeyboardInterrupt):
        calibrate(net, Stopping(task, 9), **OPTIONS, out=tmp_path / "bundle")
    (folder,) = tmp_path.glob(".bundle.*.progress")
    for path in sorted(folder.iterdir())[::2]:
        path.write_bytes(b"")
    assert calibrate(net, Stopping(task), **OPTIONS, out=tmp_path / "bundle") == whole[0]
    same_bundle(tmp_path / "bundle", whole[1])


def test_nothing_is_kept_without_a_bundle(net, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calibrate(net, task, times=["1h"], chips=1)
    assert list(tmp_path.iterdir()) == []


# The command, in a process of its own


def stopped(command, place, kept, after, how):
    """Start the command and stop it ``after`` seconds from when ``kept`` results are on disk."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        if sum(1 for _ in place.glob(".bundle.*.progress/[!.]*")) >= kept:
            time.sleep(after)
            process.send_signal(how)
            break
        time.sleep(0.005)
    _, err = process.communicate(timeout=60)
    return process.returncode, err


def test_a_process_that_is_stopped_at_random_moments(folder, tmp_path):
    place, draw = tmp_path / "place", random.Random(0)
    place.mkdir()
    recipe = tmp_path / "plain.yaml"
    recipe.write_text(json.dumps(PLAIN.to_dict()))  # JSON is YAML
    command = [SCRIPT, "calibrate", "--model", folder, "--task", "wordsim", "--times", "[1h, 1d]", "--chips", "3"]
    command += ["--recipe", recipe, "--out", place / "bundle"]
    code, err = stopped(command, place, 1, draw.uniform(0, 0.3), signal.SIGKILL)
    assert (code, err) == (-signal.SIGKILL, "")
    assert not (place / "bundle").exists()

    code, err = stopped(command, place, 9, draw.uniform(0, 0.3), signal.SIGINT)
    first, last = err.splitlines()
    assert code == 130
    assert first.startswith("ohmformer: goes on from the ")
    assert last == "ohmformer: stopped; the same command goes on from here"
    assert not (place / "bundle").exists()

    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = done.stderr.splitlines()
    assert line.startswith("ohmformer: goes on from the ")
    assert [path.name for path in place.iterdir()] == ["bundle"]
    calibrate(folder, "wordsim", **{**OPTIONS, "chips": 3}, out=tmp_path / "whole")
    same_bundle(place / "bundle", tmp_path / "whole")
