"""How far back a causal pattern looks."""

import pytest

from attention.patterns.reach import causal_reach
from attention.patterns.text import parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("window(256) | sinks(4)", (256, 4)),
        ("dilated(64, 4) | window(8)", (64, 0)),
        ("dense", None),
        ("strided(8) | sinks(1)", None),
        ("(window(64) | sinks(4)) & window(32)", (32, 0)),
        ("(window(16) | sinks(4)) & window(32)", (16, 4)),
        ("strided(8) & window(32)", (32, 0)),
    ],
)
def test_what_a_pattern_needs(text, expected):
    assert causal_reach(parse(text)) == expected
