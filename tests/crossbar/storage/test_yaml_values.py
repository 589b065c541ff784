"""The bounded YAML reader: what it takes, and what it refuses in one sentence and at once (issue 18)."""

import json
import math
import time

import pytest
import yaml

from crossbar import InputError
from crossbar.storage.plain_values import load_yaml, read_yaml
from tests.mutations import of_bytes

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{last}'] * 10)}]\n" for last, name in zip("abcdefghi", "bcdefghij", strict=True)
)
"""Ten to the tenth texts in half a kilobyte."""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("a:\nb: ~\nc: ''\nd: null", {"a": None, "b": None, "c": "", "d": None}),
        ("[true, no, On, 'yes', y]", [True, False, True, "yes", "y"]),
        ("[1, -2, +3, 0x10, 0o17, 0b11, 1_000]", [1, -2, 3, 16, 15, 3, 1000]),
        ("[1.5, 1e-3, 250e-9, -.5, 1., 1_0.5, 0.0, 2E3]", [1.5, 1e-3, 250e-9, -0.5, 1.0, 10.5, 0.0, 2000.0]),
        ("[.inf, -.inf, 1e999]", [math.inf, -math.inf, math.inf]),
        ("[0x_, 1:30, 2020-01-01, 010, _, =, 1h, .]", ["0x_", "1:30", "2020-01-01", "010", "_", "=", "1h", "."]),
        ("a: &x {b: 1}\nc: *x\nd: [*x, *x]", {"a": {"b": 1}, "c": {"b": 1}, "d": [{"b": 1}, {"b": 1}]}),
        ("a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  b: 3", {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}}),
        ("a: {<<: [{b: 1}, {b: 2, c: 3}]}", {"a": {"b": 1, "c": 3}}),
        ("'1': a\n'<<': b", {"1": "a", "<<": "b"}),
        ('{"a": [1, 2.0, null, true, "\\u00b5"]}', {"a": [1, 2.0, None, True, "µ"]}),
        ("a: |\n  two\n  lines\n", {"a": "two\nlines\n"}),
    ],
)
def test_plain_values_are_read(text, value):
    assert load_yaml("it", text) == value


def test_what_an_alias_names_is_not_shared():
    first, second = load_yaml("it", "[&x {b: [1]}, *x]")
    second["b"].append(2)
    assert first == {"b": [1]}


def test_json_is_read_as_json():
    value = {"a": [1, -2.5, 1e-30, None, True, "x\n\t\"'"], "b": {"c": {}, "d": []}}
    assert load_yaml("it", json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: b: c", "it is not YAML: mapping values are not allowed in this context in line 1"),
        ("a: [1,\nb: 2", "it is not YAML: "),
        ("a: \x00", "it is not YAML: "),
        ("\udcff", "it is not YAML: "),
        ("a: 1\nb: 2\na: 3", "it has 'a' again in line 3"),
        ("a: 1\n<<: {b: 1}\n<<: {c: 1}", "it has '<<' again in line 3"),
        ("a: 1\n{0}: 2", "it is not YAML"),
        ("{0}", "'0' in line 1 is no name"),
        ("{.nan: 1}", "'.nan' in line 1 is no name"),
        ("? [a]\n: 1", "a key that is no name"),
        ("&a [*a]", r"alias \*a in line 1 stands in what it names"),
        ("[*a]", r"alias \*a in line 1 names nothing"),
        ("<<: 3", "'<<' in line 1 stands for 3, no mapping"),
        (
            "a: !!python/object/apply:os.getcwd []",
            "line 1 has the tag 'tag:yaml.org,2002:python/object/",
        ),
        ("a: !!int x", "has the tag 'tag:yaml.org,2002:int'"),
        ("--- a\n--- b", "several documents"),
        (f"a:\n  {'9' * 5000}", "more than 40 digits in line 2"),
        ("[" * 500 + "]" * 500, "more than 32 lists and mappings in each other in line 1"),
        ("- " * 500 + "a", "more than 32 lists and mappings"),
        ("&a [x]\n" * 1, None),
        ("[" + "x, " * 20_001 + "]", "more than 20,000 values"),
        ("x" * (1 << 20) + "x", "has 1,048,577 characters: give at most 1,048,576"),
        (BOMB, "more than 20,000 values, aliases written out"),
        ("- &a [x]\n" + "".join(f"- &b{i} [*{f'b{i - 1}' if i else 'a'}]\n" for i in range(40)), "more than 32 lists"),
    ],
)
def test_other_text_is_refused_at_once(text, words):
    start = time.process_time()
    if words is None:
        assert load_yaml("it", text) == ["x"]
    else:
        with pytest.raises(InputError, match=words):
            load_yaml("it", text)
    assert time.process_time() - start < 2


def test_a_file_that_cannot_be_read(tmp_path):
    for path, words in (
        (tmp_path / "absent.yaml", "thing file '.*absent.yaml' does not exist: give the path of a YAML file"),
        (tmp_path, "does not exist"),
        ("x" * 5000, "cannot be read: File name too long"),
        ("\0", "does not exist|cannot be read"),
    ):
        with pytest.raises(InputError, match=words):
            read_yaml("thing", path)
    path = tmp_path / "large.yaml"
    path.write_bytes(b"#" * ((1 << 20) + 1))
    with pytest.raises(InputError, match="is larger than 1,048,576 bytes"):
        read_yaml("thing", path)
    path.write_bytes(b"a: \xff")
    with pytest.raises(InputError, match="is not YAML: byte 4 is no UTF-8"):
        read_yaml("thing", path)
    path.write_bytes("\ufeffa: µ".encode())
    assert read_yaml("thing", path) == {"a": "µ"}
    path.write_bytes(b"# nothing\n")
    with pytest.raises(InputError, match=r"thing file '.*large\.yaml' is empty"):
        read_yaml("thing", path)


def test_damaged_text_is_read_as_by_yaml_or_refused():
    """Where YAML's own loader gives plain values, ours gives the same or refuses; it raises nothing else."""
    good = b"a: &x {b: [1, 2.5], c: 'text'}\nd: *x\ne:\n  - f: yes\n    g: ~\n  - |\n    lines\n"
    read = 0
    for damaged in of_bytes(good, 500):
        text = damaged.decode("utf-8", "replace")
        try:
            value = load_yaml("it", text)
        except InputError:
            continue
        read += 1
        try:
            theirs = yaml.load(text, Loader=yaml.CSafeLoader)
        except ValueError:
            continue  # theirs stumbles over texts that look like numbers
        assert repr(value) == repr(theirs) or re_read(value) == re_read(theirs)
    assert read > 50


def re_read(value):
    """Values whose texts are numbers where Python reads them so: YAML 1.2 has more ways to write one."""
    if isinstance(value, dict):
        return {str(key): re_read(part) for key, part in value.items()}
    if isinstance(value, list):
        return [re_read(part) for part in value]
    try:
        return str(float(value))
    except (TypeError, ValueError):
        return str(value)
