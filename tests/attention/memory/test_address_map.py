"""Where tokens stand, and which of them a memory holds."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention.memory.address_map import AddressMap
from attention.patterns.reach import causal_reach
from attention.patterns.resident import Beyond, Resident
from attention.patterns.text import parse


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 12), st.sampled_from(["sequential", "striped"]))
def test_tokens_held_together_have_rows_of_their_own(capacity, rows, sinks, order):
    sinks = min(sinks, capacity - 1)
    addresses = AddressMap(capacity, rows, sinks, order)
    for last in (0, capacity - 1, capacity, 3 * capacity):
        resident = addresses.resident().rows(1, last + 1, last).indices
        assert len(resident) == min(last + 1, capacity)
        assert len(set(addresses.slot(resident).tolist())) == len(resident)
        placement = addresses.placement(resident)  # refuses two tokens on one line
        assert int(placement.tile.max()) < addresses.tiles
        assert int(placement.line.max()) < rows


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("family", [Beyond(3, 5), Beyond(0, 0), Beyond(9, 1), Resident(2, 7), Resident(0, 3)], ids=repr)
def test_spans_and_pairs_of_held_keys_agree(family, causal):
    pattern, n = family.causal() if causal else family, 20
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    assert torch.equal(pattern.to_dense(n), pattern.allowed(i, j))
    if isinstance(family, Beyond):
        near = (i - j).abs() < family.recent
        expected = (j >= family.sinks) & ~near
        assert torch.equal(pattern.to_dense(n), expected & (j <= i) if causal else expected)


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
