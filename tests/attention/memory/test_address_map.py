"""Where tokens stand, and which of them a memory holds."""

from hypothesis import given, settings
from hypothesis import strategies as st

from attention.memory.address_map import AddressMap


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
