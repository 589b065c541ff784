"""The jobs with keys and values in analog memory."""

import copy
import json

import pytest

import calibration
from attention import Memory, Protected, attach
from attention.hf.attach import memory_of
from calibration import Recipe, TokenProtection, tasks
from crossbar import presets
from crossbar.errors import InputError
from tests.calibration.command import assert_one_sentence, run


@pytest.fixture
def language(llama_folder):
    model = calibration.load_model(llama_folder)
    return model, tasks.get("perplexity", model.tokenizer, windows=2, window_length=32)


def test_exact_memory_and_tiles_score_as_the_digital_model(language):
    result = calibration.emulate(*language, "ideal", memory="ideal", times=["0s"], chips=1)
    (digital,), (analog,) = result.values("digital"), result.values("analog")
    assert analog == pytest.approx(digital, rel=1e-4)
    rows = 2 * 2 * 2 * 32 * 2  # layers, K/V heads, K and V, tokens, windows
    assert result.counts["attention"]["row_writes"] == rows
    assert result.counts["attention"]["row_activations"] == 2 * 4 * 2 * (32 * 33 // 2)
    assert result.setup["memory"]["capacity"] is None
    assert language[0].model.config._attn_implementation != "ohmformer"  # the model itself is as it was


def test_chips_and_repeated_evaluations_have_errors_of_their_own_and_the_same_again(language):
    def found():
        result = calibration.emulate(*language, "ideal", memory=Memory(presets.pcm()), times=["0s", "1d"], chips=2)
        return {(m.chip, m.seconds): m.value for m in result.measurements if m.arm == "analog"}

    first = found()
    assert first == found()
    assert first[0, 0.0] == first[0, 86400.0] != first[1, 0.0]  # rows are written and read within an evaluation


def test_protection_is_a_step_of_a_recipe(language):
    recipe = Recipe("kept", (TokenProtection(sinks=2, recent=8),))
    result = calibration.calibrate(*language, "ideal", recipe, memory="pcm", times=["0s"], chips=6)
    digital, analog, kept = (result.values(arm) for arm in ("digital", "analog", "calibrated"))
    before, after = (sum((score - digital[0]) ** 2 for score in scores) for scores in (analog, kept))
    assert after < before / 2  # a fifth for 12 chips; seeds are fixed
    assert result.setup["recipe"]["steps"] == [
        {"step": "TokenProtection", "sinks": 2, "recent": 8, "by": "digital", "copies": 2}
    ]


def test_protection_is_set_and_needs_a_memory(tiny_llama):
    step = TokenProtection(1, 3, by="pairs", copies=4)
    with pytest.raises(InputError, match="needs keys and values in analog memory"):
        step.fit(tiny_llama, [])
    model = copy.deepcopy(tiny_llama)
    attach(model, "dense", presets.pcm())
    step.apply(model, step.fit(model, []))
    assert memory_of(model).protected == Protected(1, 3, "pairs", 4)
    with pytest.raises(InputError, match="protected recent = 0"):
        TokenProtection(recent=0)


def test_the_command_takes_a_memory(capsys, monkeypatch, llama_folder):
    monkeypatch.setenv("COLUMNS", "160")
    options = ["--task", "perplexity", "--windows", "2", "--window-length", "32", "--times", "[0s]", "--chips", "1"]
    options = ["--model", llama_folder, *options, "--memory", "gain_cell", "--token-seconds", "1e-3"]
    code, out, err = run(capsys, "emulate", *options)
    assert (code, err) == (0, "")
    text = " ".join(out.split())
    for words in ("keys and values are in analog memory", "row writes", "expired row reads"):
        assert words in text
    code, out, _ = run(capsys, "emulate", *options, "--memory-capacity", "16", "--json")
    found = json.loads(out)
    assert code == 0
    assert (found["memory"]["capacity"], found["memory"]["token_seconds"]) == (16, 1e-3)
    assert found["counts"]["attention"]["lost_pairs"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "paper"], ["hardware 'paper' is unknown"]),
        (["--memory", "pcm", "--memory-capacity", "0"], ["memory capacity = 0 is not allowed"]),
        (["--memory", "pcm", "--token-seconds", "-1"], ["memory token_seconds = -1.0 is not allowed"]),
    ],
)
def test_a_bad_memory_is_one_sentence(capsys, arguments, words):
    assert_one_sentence(*run(capsys, "emulate", *arguments), *words)


def test_a_bundle_with_memory_is_refused_before_anything_runs(net, tmp_path):
    def refuse(*_):
        raise AssertionError("scored")

    with pytest.raises(InputError, match="a bundle holds no analog memory for keys and values"):
        calibration.calibrate(net, "wordsim", memory="pcm", out=tmp_path / "bundle", progress=refuse)
    assert list(tmp_path.iterdir()) == []
