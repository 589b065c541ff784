"""Patterns whose texts or numbers nobody can mean are refused, or do what they say in bounded time (issue 18)."""

import itertools
import random
import time

import pytest
import torch

from attention import BigBird, Dense, Hierarchical, RandomBlocks, Routing, gated_attention, parse
from crossbar import InputError
from tests.mutations import of_bytes

GOOD = (
    "causal(window(9) | sinks(4))",
    "(dilated(8, 2) | strided(4, local)) & dense",
    "heads(fixed(8, 2, 1), global(0, 5))",
    "bigbird(4, 2, 1) & neighborhood(5, 2)",
    "topk(3, straight) | blocktopk(4, 2) | routing(3, 4, 1) | random(2, 4, 7)",
)
NUMBERS = (0, 1, 2, 23, 24, 25, 65_536, 10**6, 2**31 - 1, 2**31, 10**12, 10**18)
PARAMETERS = {
    **dict.fromkeys(("window", "sinks", "global", "strided", "topk", "neighborhood"), 1),
    **dict.fromkeys(("dilated", "fixed", "random", "bigbird", "blocktopk", "routing", "hierarchical"), 2),
}


def attended(pattern, n=24):
    q = torch.randn(1, 2, n, 4, generator=torch.Generator().manual_seed(0))
    return gated_attention(q, q, q, pattern)


def test_damaged_texts_are_refused_or_are_patterns():
    parsed = 0
    for damaged in itertools.chain.from_iterable(of_bytes(text.encode(), 100) for text in GOOD):
        text = damaged.decode("utf-8", "replace")
        try:
            pattern = parse(text)
        except InputError:
            continue
        parsed += 1
        assert parse(str(pattern)) == pattern
    assert parsed >= 5


@pytest.mark.parametrize("family", PARAMETERS)
def test_any_numbers_are_refused_or_computed(family):
    """Of all sets of numbers as many as a second allows, in an order of their own."""
    choices = list(itertools.product(NUMBERS, repeat=PARAMETERS[family]))
    random.Random(0).shuffle(choices)
    for numbers in choices[:30]:
        text = f"{family}({', '.join(map(str, numbers))})"
        start = time.process_time()
        for pattern in (text, f"causal({text})"):
            try:
                output = attended(parse(pattern))
            except InputError:
                continue
            assert output.isfinite().all(), pattern
        assert time.process_time() - start < 5, text


@pytest.mark.parametrize(
    "pattern", [RandomBlocks(10**6, 1), RandomBlocks(2**31 - 1, 3), BigBird(2, 10**6), Hierarchical(2**20, 40)], ids=str
)
def test_more_than_there_is_attends_all(pattern):
    """More random blocks than there are, and a block that holds every token."""
    torch.testing.assert_close(attended(pattern), attended(Dense()))
    torch.testing.assert_close(attended(pattern.causal()), attended(Dense().causal()))


def test_clusters_that_take_every_token_attend_all():
    torch.testing.assert_close(attended(Routing(2, 10**9)), attended(Dense()))


def test_too_many_random_blocks_to_draw_are_refused():
    with pytest.raises(InputError, match="4,000 random blocks for each of 4,096 take too long to draw"):
        RandomBlocks(4000, 1).rows(4096)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("window(4) | " * 1000 + "dense", "has 12,005 characters: give at most 10,000"),
        ("(" * 4000, "more than 50 parentheses are open"),
        ("causal(" * 1000, "more than 50 parentheses are open"),
        ("&".join(["dense"] * 1600), None),
        ("routing(4097, 2)", "routing clusters = 4097 is not allowed: give a whole number from 1 to 4096"),
    ],
)
def test_long_and_deep_texts(text, words):
    start = time.process_time()
    if words is None:
        assert parse(text).at(8).rows(8).indptr[-1] == 64
    else:
        with pytest.raises(InputError, match=words):
            parse(text)
    assert time.process_time() - start < 5
