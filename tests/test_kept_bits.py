"""Chips, attention, memories and jobs compute what they computed when `kept_bits.json` was recorded."""

import pytest

from tests import kept_bits
from tests.peers import needs_aihwkit

RECORD = kept_bits.load()
OTHER = kept_bits.other_machine(RECORD)
each = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_aihwkit) if "aihwkit" in name else name for name in kept_bits.CASES]
)


def test_the_record_has_every_case():
    assert list(RECORD["cases"]) == list(kept_bits.CASES)
    assert set(kept_bits.THREADS) <= set(kept_bits.CASES)


@each
def test_counts_and_means_are_those_of_the_record(name):
    expected, found = RECORD["cases"][name], kept_bits.described_case(name)
    assert list(found) == list(expected)
    off = {key: kept_bits.difference(expected[key], found[key], kept_bits.tolerance(name, key)) for key in expected}
    assert {key: reason for key, reason in off.items() if reason} == {}


@pytest.mark.skipif(bool(OTHER), reason=f"last bits are not compared on another machine: {OTHER}")
@each
def test_every_bit_is_that_of_the_record(name):
    expected, found = RECORD["cases"][name], kept_bits.described_case(name)
    assert {key: value for key, value in found.items() if value != expected[key]} == {}


@pytest.mark.parametrize("name", kept_bits.THREADS)
def test_two_threads_give_the_same_bits(name):
    assert kept_bits.described_case(name, threads=2) == kept_bits.described_case(name)
