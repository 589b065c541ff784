"""A calibration that is stopped, in any way and at any moment, goes on from where it was, to the same bits."""

import json
import math
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from calibration import DriftCompensation, InputRanges, Recipe, WeightRanges, calibrate
from calibration.runs.journal import Journal, tidy
from crossbar import InputError
from tests.calibration.bundles.copies import names
from tests.calibration.command import SCRIPT, run
from tests.limits import files_of_at_most
from tests.mutations import of_bytes

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


def test_steps_before_programming_resume_too(net, task, tmp_path):
    """Stopped at each score of the staircase below, where cells are written for one step and then for the next."""
    recipe = Recipe("written", (InputRanges(), WeightRanges(), DriftCompensation()))
    options = {"times": ["1h"], "chips": 2, "recipe": recipe}
    uninterrupted = calibrate(net, task, **options)
    for at in range(1, 10):
        place = tmp_path / f"{at}"
        with pytest.raises(KeyboardInterrupt):
            calibrate(net, Stopping(task, at), **options, out=place)
        resumed = Stopping(task)
        assert calibrate(net, resumed, **options, out=place).to_dict()["table"] == uninterrupted.to_dict()["table"]
        assert resumed.scored == 10 - at


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


def damaged_journal(net, task, place):
    """What a stopped calibration left, and the names of its files."""
    with pytest.raises(KeyboardInterrupt):
        calibrate(net, Stopping(task, 9), **OPTIONS, out=place / "bundle")
    (folder,) = place.glob(".bundle.*.progress")
    return folder, sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["fit", "score"])
def test_results_that_are_not_what_was_written_are_computed_again(net, task, tmp_path, whole, kind):
    """A fit of zeros, another score: in files that can be read."""
    folder, names = damaged_journal(net, task, tmp_path)
    names = [name for name in names if name.startswith(kind)]
    for name in names:
        if kind == "fit":
            path = folder / name
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
            save_file({key: torch.zeros_like(tensor) for key, tensor in load_file(path).items()}, path, metadata)
        else:
            kept = json.loads((folder / name).read_text())
            kept["values"][1]["metrics"]["closeness"] += 0.1
            (folder / name).write_text(json.dumps(kept))
    told = []
    assert calibrate(net, Stopping(task), **OPTIONS, out=tmp_path / "bundle", notify=told.append) == whole[0]
    same_bundle(tmp_path / "bundle", whole[1])
    assert len(names) == {"fit": 3, "score": 9}[kind]
    assert told[0].startswith("goes on from the 12 results")
    assert len(told) == 1 + len(names)
    assert all("is damaged and is computed again" in line for line in told[1:])


def test_a_result_under_another_name_is_computed_again(net, task, tmp_path, whole):
    folder, names = damaged_journal(net, task, tmp_path)
    for kind in ("fit", "score"):
        first, second = [name for name in names if name.startswith(kind)][-2:]
        (folder / first).write_bytes((folder / second).read_bytes())
    told = []
    assert calibrate(net, Stopping(task), **OPTIONS, out=tmp_path / "bundle", notify=told.append) == whole[0]
    assert sum("is damaged" in line for line in told) == 2


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_any_damage_to_a_result_is_found(tmp_path, seed):
    tensors = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}
    fit = {"tensors": tensors, "counts": {"calibration": {"dac": 3}}, "seconds": 0.1}
    scored = {"metrics": {"perplexity": math.inf, "other": 0.1}, "counts": {}}
    journal = Journal(tmp_path / ".progress")
    journal.fit("fit 1", lambda: fit)
    journal.score("score 1", lambda: scored)
    for path in journal.folder.iterdir():
        (damaged,) = of_bytes(path.read_bytes(), 1, seed)
        path.write_bytes(damaged)
    again = journal.fit("fit 1", lambda: fit)
    assert torch.equal(again["tensors"]["a"], fit["tensors"]["a"])
    assert (again["counts"], again["seconds"]) == (fit["counts"], 0.1)
    assert journal.score("score 1", lambda: scored) == scored


def test_results_are_on_the_disk_before_they_count(tmp_path, monkeypatch):
    """The file is synchronised before it takes its name, and the folder afterwards."""
    done, real = [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.readlink(f"/proc/self/fd/{file}")) or real(file))
    journal = Journal(tmp_path / ".progress")
    journal.fit("fit 1", lambda: {"tensors": {"a": torch.ones(2)}, "counts": {}, "seconds": 1.0})
    journal.score("score 1", lambda: {"metrics": {}, "counts": {}})
    assert [Path(path).name.split(".")[1] for path in done] == ["fit-1", "progress", "score-1", "progress"]


def test_two_runs_do_not_make_one_bundle(net, task, tmp_path):
    """Through another path too, and with other options; the first is not disturbed."""
    (tmp_path / "place").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "place")
    refused = []

    class Twice(Stopping):
        def metrics(self, model):
            for place, chips in (("place", 1), ("link", 2)):
                with pytest.raises(InputError) as caught:
                    calibrate(net, task, times=["1d"], chips=chips, out=tmp_path / place / "bundle")
                refused.append(str(caught.value))
            return super().metrics(model)

    result = calibrate(net, Twice(task), times=["1d"], chips=1, staircase=False, out=tmp_path / "place" / "bundle")
    assert all("is being made by another run: wait until that ends, or give another path" in told for told in refused)
    assert len(refused) == 2 * 3
    assert result.measurements == calibrate(net, task, times=["1d"], chips=1, staircase=False).measurements
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["bundle"]


def test_a_run_that_is_killed_at_its_very_end_leaves_nothing_for_good(net, task, tmp_path, monkeypatch):
    """After the bundle has its name: what is left goes with the next call, which refuses to write over the bundle."""

    def stop(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "remove", stop)
        with pytest.raises(KeyboardInterrupt):
            calibrate(net, task, **OPTIONS, out=tmp_path / "bundle")
    assert len(list(tmp_path.glob(".bundle.*.progress"))) == 1
    (tmp_path / ".bundle.lock").touch()  # a kill leaves it too
    (tmp_path / ".bundle.0123.progress").mkdir()  # of a run that was killed while it removed its own
    other = tmp_path / ".bundle.4567.progress"  # of one with other options, which may still be wanted
    other.mkdir()
    (other / "score-digital.json").write_text("{}")
    with pytest.raises(InputError, match="exists already and would be overwritten"):
        calibrate(net, task, **OPTIONS, out=tmp_path / "bundle")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bundle.4567.progress", "bundle"]


@pytest.mark.parametrize(("size", "kept"), [(100, 0), (100_000, SCORES + FITS)])
def test_a_full_disk_is_a_sentence_and_the_call_goes_on_from_there(net, task, tmp_path, whole, size, kept):
    """While a result is written, and while the bundle is."""
    place = tmp_path / "place"
    place.mkdir()
    with files_of_at_most(size), pytest.raises(InputError) as caught:
        calibrate(net, Stopping(task), **OPTIONS, out=place / "bundle")
    assert "(File too large): make room and access there" in str(caught.value)
    assert "\n" not in str(caught.value)
    (left,) = place.iterdir()
    assert len([path for path in left.iterdir() if path.suffix in (".json", ".safetensors")]) == kept
    assert not list(left.glob("*.partial"))
    assert calibrate(net, Stopping(task), **OPTIONS, out=place / "bundle") == whole[0]
    same_bundle(place / "bundle", whole[1])
    assert [path.name for path in place.iterdir()] == ["bundle"]


def test_nothing_is_kept_without_a_bundle(net, task, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calibrate(net, task, times=["1h"], chips=1)
    assert list(tmp_path.iterdir()) == []


# The command, in a process of its own


def results(place):
    """Names of the results that are kept."""
    return {path.name for path in place.glob(".bundle.*.progress/[!.]*")}


def stopped(command, place, kept, after, how):
    """Start the command and stop it ``after`` seconds from when ``kept`` results are on disk.

    None: from when the bundle is written.
    """
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None:
        written = any(place.glob(".bundle.*.partial/*")) or (place / "bundle").exists()
        if written if kept is None else len(results(place)) >= kept:
            time.sleep(after)
            process.send_signal(how)
            break
        time.sleep(0.005)
    _, err = process.communicate(timeout=60)
    return process.returncode, said(err)


def said(err):
    """The lines on standard error, but for those of progress, which come after half a minute."""
    return [line for line in err.splitlines() if not line.startswith("ohmformer: calibrate, after ")]


def test_a_process_that_is_stopped_at_random_moments(capsys, folder, tmp_path):
    place, draw = tmp_path / "place", random.Random(0)
    place.mkdir()
    recipe = tmp_path / "plain.yaml"
    recipe.write_text(json.dumps(PLAIN.to_dict()))  # JSON is YAML
    command = [SCRIPT, "calibrate", "--model", folder, "--task", "wordsim", "--times", "[1h]", "--chips", "2"]
    command += ["--recipe", recipe, "--out", place / "bundle"]
    code, err = stopped(command, place, 1, draw.uniform(0, 0.3), signal.SIGKILL)
    assert (code, err) == (-signal.SIGKILL, [])
    assert not (place / "bundle").exists()

    kept = len(results(place))  # a busy machine may have come further before it was stopped
    code, err = stopped(command, place, kept + 1, draw.uniform(0, 0.3), signal.SIGINT)
    first, last = err
    assert code == 130
    assert first.startswith("ohmformer: goes on from the ")
    assert last == "ohmformer: stopped; the same command goes on from here"
    assert not (place / "bundle").exists()

    code, _, err = run(capsys, *command[1:])  # here, from what the processes left
    assert code == 0
    (line,) = said(err)
    assert line.startswith("ohmformer: goes on from the ")
    assert [path.name for path in place.iterdir()] == ["bundle"]
    calibrate(folder, "wordsim", **{**OPTIONS, "times": ["1h"]}, out=tmp_path / "whole")
    same_bundle(place / "bundle", tmp_path / "whole")


@pytest.mark.slow
def test_twenty_kills(folder, tmp_path):
    """At random moments of the work, the writing of the bundle and the clearing up: nothing that was kept is lost."""
    place, draw = tmp_path / "place", random.Random(time.time_ns())
    place.mkdir()
    recipe = tmp_path / "plain.yaml"
    recipe.write_text(json.dumps(PLAIN.to_dict()))
    command = [SCRIPT, "calibrate", "--model", folder, "--task", "wordsim", "--times", "[1h, 1d]", "--chips", "2"]
    command += ["--recipe", recipe, "--out", place / "bundle"]
    calibrate(folder, "wordsim", **OPTIONS, out=tmp_path / "whole")
    kills = 0
    while kills < 20:
        before = results(place)
        wanted = len(before) + draw.randint(1, 6)
        late = wanted > SCORES + FITS
        after = draw.uniform(0, 3 if late else 0.5)
        code, _ = stopped(command, place, None if late else wanted, after, signal.SIGKILL)
        assert code in (0, -signal.SIGKILL)
        kills += code != 0
        if not (place / "bundle").exists():
            assert before <= results(place)
            continue
        same_bundle(place / "bundle", tmp_path / "whole")
        if code != 0:
            again = subprocess.run(command, capture_output=True, text=True)
            assert again.returncode == 2
            assert "exists already" in again.stderr
        assert [path.name for path in place.iterdir()] == ["bundle"]
        shutil.rmtree(place / "bundle")
    subprocess.run(command, capture_output=True, check=True)
    same_bundle(place / "bundle", tmp_path / "whole")
    assert [path.name for path in place.iterdir()] == ["bundle"]


def test_nobody_goes_on_from_a_folder_that_is_half_removed(tmp_path, monkeypatch):
    """As after a kill in the middle of removing it."""
    folder = tmp_path / ".bundle.0.progress"
    (folder / "part-0000").mkdir(parents=True)
    journal = Journal(folder)
    journal.score("score digital", lambda: {"metrics": {}, "counts": {}})
    with monkeypatch.context() as stopped:
        stopped.setattr("calibration.runs.journal.shutil.rmtree", lambda *_, **__: None)
        journal.remove()
    assert not folder.exists()
    assert len(list(tmp_path.iterdir())) == 1
    (tmp_path / "bundle").mkdir()
    tidy(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
