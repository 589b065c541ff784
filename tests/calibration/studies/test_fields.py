"""A job's fields: patterns with placeholders, which are plain substitution, and the chips that it stands on."""

import pytest

from attention import parse
from calibration.placement.layout import Target
from calibration.studies.fields import DEFAULTS, put, resolve
from crossbar import InputError


def pattern(value):
    return resolve({**DEFAULTS, "pattern": value}).pattern


def test_placeholders_are_filled_in():
    assert pattern({"text": "window({size}) | sinks({first})", "size": 9, "first": 4}) == parse("window(9) | sinks(4)")
    assert pattern({"text": "strided({l}, {part})", "l": 4, "part": "local"}) == parse("strided(4, local)")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("{0}", "'{' has no meaning here"),
        ("window({})", "'{' has no meaning here"),
        ("window({", "'{' has no meaning here"),
        ("window(4)}", "'}' has no meaning here"),
        ({"text": "window({0})", "0": 4}, "differ in '0'"),
        ({"text": "window({w:>999999999})", "w": 4}, "differ in 'w'"),
        ({"text": "window({w.__class__})", "w": 4}, "differ in 'w'"),
        ({"text": "window({w!r})", "w": 4}, "differ in 'w'"),
        ({"text": "window({w})", "w": [4]}, r"pattern.w = \[4\] is not allowed: give a whole number or a text"),
        ({"text": "window({w})", "w": True}, "pattern.w = True is not allowed"),
        ({"text": "window({w})", "w": 10**400}, "has more than 18 digits"),
        ({"text": "window({w})", "w": "4" * 20_000}, "has 20,008 characters"),
        ({"text": "{a}", "a": "{a}"}, "'{' has no meaning here"),
    ],
)
def test_anything_else_is_one_sentence(value, words):
    with pytest.raises(InputError, match=words):
        pattern(value)


def test_a_job_is_placed_on_chips_when_asked_for():
    values = {**DEFAULTS, "chip": "isaac"}
    put(values, "chip.placer", "balanced")
    found = resolve(values).target
    assert (found.chip.name, found.placer, found.machine) == ("isaac", "balanced", None)
    assert Target.from_dict(found.to_dict()) == found
    assert resolve(DEFAULTS).target is None


@pytest.mark.parametrize(
    ("chip", "words"),
    [
        ("gold", "chip 'gold' does not exist"),
        ({"name": "mesh", "placer": "random"}, "placer 'random' is unknown"),
        ({"name": "mesh", "machine": "loihi3"}, "machine 'loihi3' is unknown"),
        ({"name": "mesh", "batch": 2}, "chip has no field 'batch': allowed are name, placer, machine"),
    ],
)
def test_a_chip_that_does_not_exist_is_refused(chip, words):
    with pytest.raises(InputError, match=words):
        resolve({**DEFAULTS, "chip": chip})
