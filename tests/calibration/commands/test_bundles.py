"""Bundles on the command line."""

import json

import pytest

from calibration import inspect_bundle, load_bundle, tasks
from tests.calibration.command import assert_one_sentence, run, timeless

HOUR, DAY = 3600.0, 86400.0


def test_calibrate_writes_a_bundle(capsys, monkeypatch, tmp_path, job, folder):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, err = run(capsys, "calibrate", *job, "--chips", "1", "--json", "--out", tmp_path / "bundle")
    assert (code, err) == (0, "")
    assert timeless(out) == json.loads((tmp_path / "bundle" / "report.json").read_text())
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    loaded = load_bundle(tmp_path / "bundle")
    found = tasks.get("wordsim", loaded.tokenizer).metrics(loaded.model)["spearman"]
    (expected,) = (m["value"] for m in json.loads(out)["measurements"] if (m["arm"], m["chip"]) == ("calibrated", 0))
    assert found == expected

    code, out, err = run(capsys, "inspect", tmp_path / "bundle")
    assert (code, err) == (0, "")
    told = ["letters (BertModel)", "wordsim", "6 layers on 6 tiles", "pcm, tiles of 256 x 256, DAC 8 bit, ADC 8 bit"]
    told += [
        "fast: DigitalLines, InputRanges, Rotation, WeightRanges, DriftCompensation, AdcRanges, AffineCorrection",
        "seed 0, calibrated at 1 h",
        "2 h since programming",
        "SHA-256 ver",
    ]
    for text in told:
        assert text in out

    code, out, err = run(capsys, "refit", tmp_path / "bundle", "--time", "30d", "--out", tmp_path / "newer")
    assert (code, out, err) == (0, "", "")
    code, out, err = run(capsys, "inspect", tmp_path / "newer", "--json")
    assert (code, err) == (0, "")
    values = json.loads(out)
    assert values == inspect_bundle(tmp_path / "newer")
    assert (values["seconds"], values["fitted"], values["refits"][0]["seconds"]) == (30 * DAY, HOUR, 30 * DAY)
    assert values["accuracy"]["calibrated"] == expected
    assert values["bytes"] == sum(entry["bytes"] for entry in values["files"].values())


def test_calibrate_still_writes_its_json_alone(capsys, tmp_path, job):
    path = tmp_path / "result.json"
    options = ["--recipe", "quick", "--chips", "1", "--staircase", "false", "--out", path]
    assert run(capsys, "calibrate", *job, *options)[0] == 0
    assert {row["arm"] for row in json.loads(path.read_text())["table"]} == {"digital", "analog", "calibrated"}
    assert [found.name for found in tmp_path.iterdir()] == ["result.json"]


def test_the_command_refuses_a_folder_that_exists_before_it_works(capsys, tmp_path, job, monkeypatch):
    import calibration

    monkeypatch.setattr(calibration.models, "load_model", lambda *_: pytest.fail("work began"))
    assert_one_sentence(*run(capsys, "calibrate", *job, "--out", tmp_path), "exists already")
    assert_one_sentence(*run(capsys, "calibrate", *job, "--out", tmp_path / "a" / "b"), "does not exist: make it first")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["inspect", "absent"], "bundle 'absent' is not a folder"),
        (["refit", "absent", "--time", "30d", "--out", "newer"], "bundle 'absent' is not a folder"),
        (["refit", "absent", "--time", "30d"], "out"),
        (["refit"], "bundle"),
    ],
)
def test_mistakes_with_bundles(capsys, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(*run(capsys, *arguments), told)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", [["--hardware", "hermes"], ["--model", "smollm2"], ["--exclude", "[a]"]])
def test_inspecting_a_bundle_takes_no_other_model(capsys, option):
    found = run(capsys, "inspect", "bundle", *option)
    assert_one_sentence(*found, f"a bundle has its own model and hardware: leave {option[0]} out, or the bundle")
