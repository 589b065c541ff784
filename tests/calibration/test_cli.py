"""The command: what it prints and what it writes."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import calibration
from crossbar import Hardware, InputError
from crossbar.storage.files import write_whole
from tests.calibration.command import SCRIPT, assert_one_sentence, run, timeless


def test_emulate_prints_tables(capsys, monkeypatch, job):
    monkeypatch.setenv("COLUMNS", "140")
    code, out, err = run(capsys, "emulate", *job, "--pattern", "window(2) | sinks(1)")
    assert (code, err) == (0, "")  # no progress bar where standard error is not a terminal
    for word in ("letters", "spearman", "digital", "analog", "1 h", "6 layers", "row activations", "gated / dense"):
        assert word in out


def test_emulate_prints_json_alone(capsys, job, folder):
    code, out, err = run(capsys, "emulate", *job, "--json", "--pattern", "window(2) | sinks(1)")
    assert (code, err) == (0, "")
    values = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    found = calibration.emulate(folder, "wordsim", pattern="window(2) | sinks(1)", times=["1h"], chips=2).to_dict()
    assert values == found


def test_calibrate_prints_json_alone(capsys, job, folder):
    options = ["--recipe", "quick", "--wait", "2h", "--staircase", "false"]
    code, out, err = run(capsys, "calibrate", *job, *options, "--json")
    assert (code, err) == (0, "")
    found = calibration.calibrate(folder, "wordsim", recipe="quick", times=["1h"], chips=2, wait="2h", staircase=False)
    assert timeless(out) == found.to_dict()


def test_the_script_prints_json_alone(folder):
    done = subprocess.run([SCRIPT, "inspect", "--model", folder, "--json"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["analog_layers"] == 6


@pytest.mark.parametrize("times", ["0s,1h", "['0s', '1h']", "[0s, 1h]", "0s,1h,3600s"])
def test_times_are_a_list_or_words_with_commas(capsys, job, times):
    expected = run(capsys, "emulate", *job, "--json", "--times", "[0s, 1h]")
    assert expected[0] == 0
    assert {row["seconds"] for row in json.loads(expected[1])["table"]} == {None, 0.0, 3600.0}
    assert run(capsys, "emulate", *job, "--json", "--times", times) == expected


def test_one_time_needs_no_list(capsys, job):
    assert run(capsys, "emulate", *job, "--json", "--times", "1h") == run(capsys, "emulate", *job, "--json")


def test_a_configuration_file_says_the_same(capsys, tmp_path, folder, job):
    path = tmp_path / "job.yaml"
    path.write_text(f"model: {folder}\ntask: wordsim\ntimes: [1h]\nchips: 2\njson: true\nhardware: ideal\n")
    from_file = run(capsys, "emulate", "--config", path)
    assert from_file[0] == 0
    assert from_file == run(capsys, "emulate", *job, "--json", "--hardware", "ideal")
    code, out, _ = run(capsys, "emulate", "--config", path, "--chips", "1")  # what is typed wins
    assert code == 0
    assert json.loads(out)["chips"] == 1


def test_a_hardware_file_says_the_same_as_its_preset(capsys, tmp_path, job):
    path = tmp_path / "chip.yaml"
    path.write_text("device: ideal\ndac: null\nadc: null\noutput_noise: 0.0\n")
    assert run(capsys, "emulate", *job, "--json", "--hardware", path) == run(
        capsys, "emulate", *job, "--json", "--hardware", "ideal"
    )


def test_files_are_written(capsys, tmp_path, job):
    out, plot, shares = (tmp_path / name for name in ("result.json", "picture.png", "shares.png"))
    pictures = ("--plot", plot, "--plot-shares", shares)
    code, printed, _ = run(capsys, "calibrate", *job, "--recipe", "quick", "--json", "--out", out, *pictures)
    assert code == 0
    assert json.loads(out.read_text()) == json.loads(printed)
    assert json.loads(printed)["minutes"].keys() == json.loads(printed)["costs"].keys()
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for path in (plot, shares))
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "picture.png", "shares.png"}


def test_a_run_that_fails_leaves_the_old_file(capsys, tmp_path, job, monkeypatch):
    path = tmp_path / "result.json"
    path.write_text("old")
    assert run(capsys, "emulate", *job, "--out", path, "--pattern", "nothing")[0] == 2
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("renamed"))

    def full(partial):
        partial.write_text("ne")
        raise OSError("no space left on device")

    with pytest.raises(InputError, match=r"result.json' cannot be written \(no space left on device\)"):
        write_whole(path, full)
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["result.json"]


def test_a_picture_that_fails_leaves_the_old_one(capsys, tmp_path, job, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def full(self, file, **_):
        Path(file).write_bytes(b"ne")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    code, out, err = run(capsys, "emulate", *job, "--plot", path)
    assert code == 2
    assert "spearman" in out  # what was computed is not lost
    assert (
        err == f"ohmformer: file {str(path)!r} cannot be written (no space left on device): make room and access "
        "there, or give another path\n"
    )
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["picture.png"]


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_picture_is_of_the_kind_its_name_says(capsys, tmp_path, job, kind):
    path = tmp_path / f"picture.{kind}"
    assert run(capsys, "emulate", *job, "--plot", path)[0] == 0
    start = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[kind]
    assert path.read_bytes().startswith(start)
    assert [found.name for found in tmp_path.iterdir()] == [path.name]


@pytest.fixture
def no_work(monkeypatch):
    """Fails a test whose command starts to work."""
    monkeypatch.setattr(calibration.models, "load_model", lambda *_: pytest.fail("work began"))


@pytest.mark.parametrize("option", ["--out", "--plot"])
def test_a_missing_folder_is_refused_before_work_starts(capsys, tmp_path, job, option, no_work):
    found = run(capsys, "emulate", *job, option, tmp_path / "absent" / "file.png")
    assert_one_sentence(*found, "does not exist: make it first")


@pytest.mark.parametrize(
    ("option", "name"), [("--plot", "picture.xyz"), ("--plot", ""), ("--out", "")], ids=["kind", "folder", "out folder"]
)
def test_a_file_that_cannot_be_written_is_refused_before_work_starts(capsys, tmp_path, job, option, name, no_work):
    assert_one_sentence(*run(capsys, "emulate", *job, option, tmp_path / name))


@pytest.mark.parametrize(
    ("command", "option"),
    [
        ("emulate", "--out"),
        ("emulate", "--plot"),
        ("calibrate", "--plot"),
        ("calibrate", "--out"),
        ("energy", "--out"),
        ("energy", "--plot"),
        ("energy", "--pareto"),
    ],
)
@pytest.mark.parametrize("kind", ["link to a device", "pipe", "beneath a file", "where nothing can be made"])
def test_no_file_and_no_folder_is_refused_before_work_starts(capsys, tmp_path, command, option, kind, no_work):
    name = "x.json" if option == "--out" else "x.png"
    path = tmp_path / name
    if kind == "link to a device":
        path.symlink_to("/dev/null")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "beneath a file":
        (tmp_path / "file").write_text("")
        path = tmp_path / "file" / name
    else:
        path = Path("/proc") / name
    said = {"beneath a file": "(Not a directory)", "where nothing can be made": "cannot be written ("}
    found = run(capsys, command, option, path)
    assert_one_sentence(*found, str(path), said.get(kind, "is a device or a pipe: give the path of a file"))


def test_names_that_look_like_markup(capsys, tmp_path, folder, job):
    """A folder's name stands in titles of tables and of the picture."""
    strange = tmp_path / "[bold] $x$ \x1b[31m"
    shutil.copytree(folder, strange)
    picture = tmp_path / "picture.png"
    code, out, err = run(capsys, "emulate", *job, "--model", strange, "--plot", picture)
    assert (code, err) == (0, "")
    assert r"[bold] $x$ \x1b[31m: wordsim" in out
    assert "\x1b" not in out
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_inspect(capsys, monkeypatch, folder):
    monkeypatch.setenv("COLUMNS", "240")
    code, out, err = run(capsys, "inspect", "--model", folder)
    assert (code, err) == (0, "")
    assert "encoder.layer.0.attention.self.query" in out
    assert "no matrix product" in out
    code, out, _ = run(capsys, "inspect", "--model", folder, "--json", "--include", "['*.query', '*.key']")
    values = json.loads(out)
    assert (code, values["analog_layers"], values["tiles"]) == (0, 2, 2)
    assert values["analog_parameters"] == 2 * 16 * 16


def test_fit(capsys, tmp_path):
    lines = [f"{target},{seconds},{target + 0.4 * (-1) ** n},{target}-{n},0" for target in (8, 40) for n in range(20)
             for seconds in (1, 86400)]  # fmt: skip
    readings, out, plot = tmp_path / "r.csv", tmp_path / "device.yaml", tmp_path / "device.png"
    readings.write_text("\n".join(["target_us,seconds,conductance_us,device,read", *lines]))
    code, text, err = run(capsys, "fit", readings, "--law", "reram", "--out", out, "--plot", plot, "--json")
    assert (code, err) == (0, "")
    (parameter,) = json.loads(text)["parameters"]
    assert parameter["low"] <= parameter["value"] <= parameter["high"]
    assert Hardware.from_yaml(out).device.noise_scale == pytest.approx(parameter["value"], rel=1e-5)
    assert plot.read_bytes().startswith(b"\x89PNG")
    code, text, err = run(capsys, "fit", readings, "--law", "reram")
    assert (code, err) == (0, "")
    assert "80 of 80 readings of 40 devices" in text
    code, _, err = run(capsys, "fit", readings, "--law", "pcm", "--out", tmp_path / "device.txt")
    assert (code, "end its name in .yaml, .yml" in err) == (2, True)


def test_doctor(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, err = run(capsys, "doctor")
    assert (code, err) == (0, "")
    assert "aihwkit/torch pair" in out
    assert torch.__version__.partition("+")[0] in out
    code, out, _ = run(capsys, "doctor", "--json")
    checks = json.loads(out)
    assert code == 0
    assert {"name", "found", "remedy", "needed"} == set(checks[0])


def test_doctor_exits_1_for_what_has_to_be_repaired(capsys, monkeypatch):
    from importlib import metadata

    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "2.1.0" if name == "torch" else real(name))
    code, out, _ = run(capsys, "doctor", "--json")
    assert code == 1
    assert any("torch 2.1.0" in check["found"] and "pip install" in check["remedy"] for check in json.loads(out))


JOB = ["--model", "--hardware", "--include", "--exclude", "--json", "--task", "--pairs", "--pattern", "--times"]
JOB += ["--windows", "--window-length", "--chips", "--device", "--out", "--plot", "--dry-run", "--config"]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ([], ["emulate", "calibrate", "study", "report", "inspect", "refit", "export", "fit", "doctor"]),
        (["emulate"], JOB),
        (
            ["calibrate"],
            [*JOB, "--recipe", "--plot-shares", "--wait", "--staircase", "--training-pairs", "--training-windows"],
        ),
        (["inspect"], ["bundle", "--model", "--hardware", "--include", "--exclude", "--json", "--config"]),
        (["refit"], ["bundle", "--time", "--out", "--device", "--config"]),
        (["study"], ["study", "--store", "--engine", "--workers", "--dry-run", "--retry", "--config"]),
        (["report"], ["store", "--out", "--figures", "--config"]),
        (["export"], ["source", "--out", "--weights", "--config"]),
        (["doctor"], ["--json"]),
    ],
    ids=lambda value: value[0] if value and not value[0].startswith("-") else "",
)
def test_help_names_every_option(capsys, command, options):
    code, out, err = run(capsys, *command, "--help")
    assert (code, err) == (0, "")
    for option in options:
        assert option in out


def test_help_says_what_this_is(capsys):
    code, out, err = run(capsys, "--help")
    assert (code, err) == (0, "")
    assert "analog in-memory hardware" in out
