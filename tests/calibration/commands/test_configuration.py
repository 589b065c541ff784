"""Options as YAML, in files and on the command line, within bounds (issue 18)."""

import time

import pytest

from calibration.commands.options import make_parser
from tests.calibration.command import assert_one_sentence, run
from tests.crossbar.storage.test_yaml_values import BOMB
from tests.mutations import of_bytes

HOSTILE = {
    "digits": "9" * 5000,
    "hexadecimal": "0x_",
    "tag": "!!python/object/apply:os.getcwd []",
    "nested": "[" * 500 + "]" * 500,
    "deep blocks": "- " * 500 + "a",
    "recursive": "&a [*a]",
    "bomb": "{" + BOMB.replace("\n", ", ") + "}",
    "braces": "{0}",
    "not finite": "1e999",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("option", ["times", "chips", "pattern", "include", "token-seconds", "json", "hardware"])
def test_a_hostile_value_is_one_sentence(capsys, tmp_path, option, text):
    start = time.process_time()
    given = ["--json"] if option == "json" else [f"--{option}", text]
    rest = ["--out", "absent/result.json"]  # refused first, where the value itself is taken as a text
    assert_one_sentence(*run(capsys, "emulate", *given, *rest))
    path = tmp_path / "job.yaml"
    for written in (text, f"'{text}'"):
        path.write_text(f"out: absent/result.json\n{option.replace('-', '_')}: {written}\n")
        assert_one_sentence(*run(capsys, "emulate", "--config", path))
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("- chips\n", "has no options: give a mapping of their names to values"),
        ("chips: 1\nchips: 2\n", "has 'chips' again in line 2: give it once"),
        (f"chips: {'9' * 5000}\n", "has a number of more than 40 digits in line 1"),
        ("chips: 0x_\n", "chips"),
        ("times: !!python/name:os.getcwd\n", "line 1 has the tag"),
        (BOMB, "more than 20,000 values"),
        ("config: job.yaml\n", "job.yaml"),
        ("#" * (1 << 21), "is larger than 1,048,576 bytes"),
    ],
    ids=["empty", "list", "twice", "digits", "hexadecimal", "tag", "bomb", "itself", "large"],
)
def test_a_hostile_configuration_is_one_sentence(capsys, tmp_path, monkeypatch, text, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text(text)
    assert_one_sentence(*run(capsys, "emulate", "--config", "job.yaml"), words)


def test_damaged_configurations_are_one_sentence(capsys, tmp_path):
    path = tmp_path / "job.yaml"
    good = b"model: absent\ntask: wordsim\nhardware: pcm\npattern: window(64) | sinks(4)\ntimes: [0s, 1d]\nchips: 2\n"
    parser, refused = make_parser(), 0
    for damaged in of_bytes(good, 500):
        path.write_bytes(damaged)
        try:
            parser.parse_args(["emulate", "--config", str(path)])
        except SystemExit as stop:
            refused += 1
            assert_one_sentence(stop.code, *capsys.readouterr())
    assert 100 < refused < 500
