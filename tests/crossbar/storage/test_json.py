"""Plain values from JSON: what Python's own reader takes beyond JSON, or dies of, is one sentence."""

import json
import resource

import pytest

from crossbar import InputError
from crossbar.storage.plain_values import load_json, read_json


def test_plain_values_come_back(tmp_path):
    values = {"a": [1, 2.5, None, True, "µS 😀 \u2028"], "b": {"c": -(10**30), "d": 1e-320, "e": 1e308}, "": []}
    for escaped in (True, False):
        (tmp_path / "a.json").write_text(json.dumps(values, ensure_ascii=escaped), "utf-8")
        assert read_json("test", tmp_path / "a.json") == values
    deep = json.dumps([])
    for _ in range(99):
        deep = f'{{"a": {deep}}}'
    assert load_json("it", deep.encode())["a"]["a"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{", "Expecting property name"),
        ("", "Expecting value"),
        ('{"a": 1, "a": 2}', "a key comes twice"),
        ('{"b": [{"a": 1, "a": 1}]}', "a key comes twice"),
        ("[NaN]", "NaN is not a number in JSON"),
        ("-Infinity", "-Infinity is not a number in JSON"),
        ("1e999", "1e999 is too large a number"),
        ("9" * 41, "a number has 41 digits"),
        ("[" + "9" * 5000 + "]", "a number has 5000 digits"),
        ("[" * 101 + "]" * 101, "nested deeper than 100"),
        ('{"a":' * 101 + "1" + "}" * 101, "nested deeper than 100"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ('{"\\uDC00": 1}', "surrogates not allowed"),
        ("\xff\xfe", "utf-8"),
    ],
)
def test_what_is_not_json_is_one_sentence(text, told):
    with pytest.raises(InputError, match="it is not JSON") as caught:
        load_json("it", text.encode("latin-1"), "make it again")
    assert told in str(caught.value)
    assert str(caught.value).endswith(": make it again")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("piece", [b"{},", b"[],", b"{},{},9999,", b"a,"])
def test_a_text_that_would_take_gigabytes_is_not_read(piece):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match="has more than 4000000 lists and objects or 16000000 values"):
        load_json("it", b"[" + piece * (50_000_000 // len(piece)) + b"0]")
    with pytest.raises(InputError, match="has 70000000 bytes, more than the 67108864 that are read"):
        load_json("it", b" " * 70_000_000)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000  # kB


def test_a_file_is_named(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(InputError, match=r"price file '.*a.json' is not JSON .*: give a JSON file"):
        read_json("price", tmp_path / "a.json")
    with pytest.raises(InputError, match=r"price file '.*b.json' does not exist: give the path of a JSON file"):
        read_json("price", tmp_path / "b.json")
    with (tmp_path / "c.json").open("wb") as file:
        file.truncate(10**12)
    with pytest.raises(InputError, match=r"has 1000000000000 bytes"):
        read_json("price", tmp_path / "c.json")
