"""What is said about options that cannot be (issue 18): plain words, and nothing of the parser's own types."""

from importlib import metadata

import pytest

from tests.calibration.command import assert_one_sentence, run


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["emulate", "--chips", "many"], "--chips = many is not allowed: give a whole number ("),
        (["emulate", "--pairs", "2.5"], "--pairs = 2.5 is not allowed: give a whole number ("),
        (["emulate", "--windows", "[1]"], "--windows = [1] is not allowed: give a whole number ("),
        (["emulate", "--token-seconds", "soon"], "--token-seconds = soon is not allowed: give a number ("),
        (["calibrate", "--population", "all"], "--population = all is not allowed: give a whole number ("),
        (["calibrate", "--staircase", "2"], "--staircase = 2 is not allowed: give true or false ("),
        (["study", "s.yaml", "--workers", "all"], "--workers = all is not allowed: give a whole number ("),
        (["emulate", "--speed", "9"], "option --speed is unknown: did you mean --seed? ("),
        (["emulate", "--xyz", "9"], "option --xyz is unknown ("),
        (["emulate", "--chip", "1"], "option --chip is unknown: did you mean --chips? ("),
        (["energy", "--chip", "1"], "option --chip is unknown ("),
        (["emulate", "--mod", "minilm"], "option --mod is unknown: did you mean --model? ("),
        (["doctor", "--jso"], "option --jso is unknown: did you mean --json? ("),
        (["emulate", "minilm"], "'minilm' is not expected: leave it out, or give it to an option ("),
        (["refit", "x"], "--time, --out must be given ("),
        (["report"], "store must be given ("),
        (["emulate", "--chips", "\x1b[2J"], r"--chips = \x1b[2J is not allowed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_plain_words(capsys, arguments, words):
    code, out, err = run(capsys, *arguments)
    assert_one_sentence(code, out, err, words, "ohmformer --help says what is allowed")
    assert not any(word in err for word in ("Union", "class", "Subtypes", "NoneType", "Parser key", "\x1b"))


@pytest.mark.parametrize("option", ["model", "hardware", "task", "chips", "times"])
def test_a_configuration_without_a_value(capsys, tmp_path, option):
    path = tmp_path / "job.yaml"
    path.write_text(f"{option}: null\n")
    found = run(capsys, "emulate", "--config", path, "--out", "absent/result.json")
    assert_one_sentence(*found, f"{option} = null is not allowed: give a value, or leave it out")


def test_the_version(capsys):
    assert run(capsys, "--version") == (0, f"ohmformer {metadata.version('ohmformer')}\n", "")


def test_one_layer_pattern_needs_no_list(capsys, folder):
    same = [
        run(capsys, "inspect", "--model", folder, "--json", "--include", text) for text in ("*.query", "['*.query']")
    ]
    assert same[0][0] == 0
    assert same[0] == same[1]
