"""Times as people write them."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crossbar import InputError, format_seconds, to_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("20s", 20.0),
        ("20", 20.0),
        ("0s", 0.0),
        ("5min", 300.0),
        ("1h", 3600.0),
        ("1.5h", 5400.0),
        ("1d", 86400.0),
        ("30d", 2592000.0),
        ("1y", 31536000.0),
        ("1e3s", 1000.0),
        ("2.5e-7 s", 2.5e-7),
        (" 1 h ", 3600.0),
        (20, 20.0),
        (0.5, 0.5),
        (0, 0.0),
    ],
)
def test_times_in_seconds(text, seconds):
    found = to_seconds(text)
    assert found == seconds
    assert type(found) is float


@pytest.mark.parametrize(
    "text", ["", "h", "1 week", "1hour", "1h30min", "-1h", "one", "1H", "nan", "inf", "1,5h", "0x10"]
)
def test_refuses_what_is_not_a_time(text):
    message = f"time {text!r} is not understood: write a number and one of s, min, h, d, y, such as '1h'"
    with pytest.raises(InputError, match=re.escape(message)):
        to_seconds(text)


@pytest.mark.parametrize("time", [None, [1.0], b"1h"])
def test_refuses_other_types(time):
    message = f"time {time!r} is not understood: give a number of seconds or a text such as '1h'"
    with pytest.raises(InputError, match=re.escape(message)):
        to_seconds(time)


@pytest.mark.parametrize("time", [-1, -1e-9, math.inf, -math.inf, math.nan, "1e400s"])
def test_refuses_impossible_times(time):
    message = f"time {time!r} is not usable: give a time from 0 s to 1e+12 s since programming"
    with pytest.raises(InputError, match=re.escape(message)):
        to_seconds(time)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (2.5e-7, "2.5e-07 s"),
        (0.5, "0.5 s"),
        (60, "1 min"),
        (90, "90 s"),
        (3600, "1 h"),
        (90000, "25 h"),
        (2592000, "30 d"),
        (31536000, "1 y"),
        (86400.25, "86400.25 s"),
    ],
)
def test_text_for_times(seconds, text):
    assert format_seconds(seconds) == text


@given(st.integers(0, 10**9) | st.floats(0, 1e12))
def test_times_survive_being_written(seconds):
    assert to_seconds(format_seconds(seconds)) == seconds
