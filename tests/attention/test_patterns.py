import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_mask

from attention import Dense, GlobalTokens, LocalWindow, Pattern, Sinks, parse
from attention.patterns import Intersection, Union
from crossbar.errors import InputError

FAMILIES = {
    "dense": (Dense(), lambda i, j: True, lambda i, j: True),
    "window-even": (LocalWindow(6), lambda i, j: abs(i - j) <= 3, lambda i, j: i - 6 < j),
    "window-odd": (LocalWindow(9), lambda i, j: abs(i - j) <= 4, lambda i, j: i - 9 < j),
    "window-one": (LocalWindow(1), lambda i, j: i == j, lambda i, j: i == j),
    "sinks": (Sinks(4), lambda i, j: j < 4, lambda i, j: j < 4),
    "no sinks": (Sinks(0), lambda i, j: False, lambda i, j: False),
    "global": (GlobalTokens((7, 0, 3)), lambda i, j: {i, j} & {0, 3, 7}, lambda i, j: {i, j} & {0, 3, 7}),
    "union": (
        LocalWindow(5) | Sinks(2) | GlobalTokens((4,)),
        lambda i, j: abs(i - j) <= 2 or j < 2 or 4 in (i, j),
        lambda i, j: i - 5 < j or j < 2 or 4 in (i, j),
    ),
    "intersection": (
        (LocalWindow(9) | GlobalTokens((0, 2))) & (Sinks(6) | LocalWindow(4)),
        lambda i, j: (abs(i - j) <= 4 or {i, j} & {0, 2}) and (j < 6 or abs(i - j) <= 2),
        lambda i, j: (i - 9 < j or {i, j} & {0, 2}) and (j < 6 or i - 4 < j),
    ),
}
CASES = [
    pytest.param(pattern.causal() if causal else pattern, definition, id=f"{name}{' causal' * causal}")
    for name, (pattern, both_ways, past) in FAMILIES.items()
    for causal, definition in (
        (False, both_ways),
        (True, lambda i, j, past=past: j <= i and past(i, j)),
    )
]
every_pattern = pytest.mark.parametrize(("pattern", "definition"), CASES)


@every_pattern
@given(n=st.integers(0, 40))
def test_to_dense_is_the_definition(pattern, definition, n):
    expected = [[bool(definition(i, j)) for j in range(n)] for i in range(n)]
    assert pattern.to_dense(n).tolist() == expected


@every_pattern
@given(n_queries=st.integers(0, 20), n_keys=st.integers(0, 30), offset=st.integers(0, 30))
def test_rows_are_the_definition_at_every_offset(pattern, definition, n_queries, n_keys, offset):
    indptr, indices = pattern.rows(n_queries, n_keys, offset)
    assert indptr.dtype == indices.dtype == torch.int64
    rows = [indices[a:b].tolist() for a, b in itertools.pairwise(indptr)]
    expected = [[j for j in range(n_keys) if definition(offset + i, j)] for i in range(n_queries)]
    assert rows == expected


@every_pattern
def test_rows_default_to_the_keys_so_far(pattern, definition):
    for given_, default in zip(pattern.rows(5, 12, 7), pattern.rows(5, offset=7), strict=True):
        assert torch.equal(given_, default)


@every_pattern
def test_mask_mod_agrees_with_rows(pattern, definition):
    position = torch.arange(37)
    zero = torch.zeros((), dtype=torch.int64)
    direct = pattern.mask_mod(zero, zero, position[:, None], position[None, :])
    assert direct.dtype == torch.bool
    assert torch.equal(direct, pattern.to_dense(37))


@every_pattern
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mask_mod_is_traced_by_flex_attention(pattern, definition):
    assert torch.equal(create_mask(pattern.mask_mod, 1, 1, 20, 20, device="cpu")[0, 0], pattern.to_dense(20))


@every_pattern
def test_causal_never_attends_the_future_and_is_idempotent(pattern, definition):
    causal = pattern.causal()
    assert causal.is_causal
    assert causal.causal() == causal
    assert not causal.to_dense(33).triu(1).any()


@every_pattern
def test_text_round_trip(pattern, definition):
    assert parse(str(pattern)) == pattern
    assert hash(parse(str(pattern))) == hash(pattern)
    assert pattern.length_invariant


SHIFTS = {"dense": True, "window-even": True, "window-odd": True, "window-one": True}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("causal", [False, True])
def test_shift_invariance_is_declared(name, causal):
    pattern = FAMILIES[name][0].causal() if causal else FAMILIES[name][0]
    assert pattern.shift_invariant == SHIFTS.get(name, False)
    if name != "no sinks":  # nothing attended, wherever it stands
        assert stays_when_moved(pattern) == pattern.shift_invariant


def stays_when_moved(pattern, n=24):
    """Whether each pair is attended exactly if the pair k places later is."""
    dense = pattern.to_dense(n)
    return all(torch.equal(dense[k:, k:], dense[: n - k, : n - k]) for k in range(1, n))


def test_memory_follows_the_attended_pairs():
    n = 300_000  # n² would be 90 GB
    csr = (LocalWindow(9) | Sinks(4) | GlobalTokens((5,))).causal().rows(n)
    assert len(csr.indices) < 15 * n


def test_causal_is_passed_down_to_every_part():
    assert (LocalWindow(9) | Sinks(4)).causal() == LocalWindow(9).causal() | Sinks(4).causal()
    assert str((LocalWindow(9) | Sinks(4)).causal()) == "causal(window(9) | sinks(4))"
    assert str(LocalWindow(9).causal() | Sinks(4)) == "causal(window(9)) | sinks(4)"


def test_compositions_are_flat_and_global_tokens_sorted():
    a, b, c = Dense(), Sinks(1), LocalWindow(3)
    assert (a | (b | c)) == ((a | b) | c) == Union((a, b, c))
    assert (a & (b & c)) == ((a & b) & c) == Intersection((a, b, c))
    assert GlobalTokens([5, 0, 5]) == GlobalTokens((0, 5))


leaves = st.one_of(
    st.just(Dense()),
    st.builds(LocalWindow, st.integers(1, 12)),
    st.builds(Sinks, st.integers(0, 5)),
    st.builds(GlobalTokens, st.lists(st.integers(0, 12), min_size=1, max_size=3).map(tuple)),
)
compositions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(Pattern.__or__, inner, inner),
        st.builds(Pattern.__and__, inner, inner),
        st.builds(lambda pattern: pattern.causal(), inner),
    ),
    max_leaves=6,
)


@given(pattern=compositions)
def test_any_composition_round_trips_and_its_two_forms_agree(pattern):
    assert parse(str(pattern)) == pattern
    position = torch.arange(15)
    allowed = pattern.allowed(*torch.broadcast_tensors(position[:, None], position[None, :]))
    assert torch.equal(allowed, pattern.to_dense(15))


def families(pattern):
    return [leaf for part in pattern.parts for leaf in families(part)] if hasattr(pattern, "parts") else [pattern]


@given(pattern=compositions)
def test_a_composition_moves_if_all_its_parts_do(pattern):
    assert pattern.shift_invariant == all(isinstance(leaf, Dense | LocalWindow) for leaf in families(pattern))
    if pattern.shift_invariant:
        assert stays_when_moved(pattern)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: LocalWindow(0), "window 0"),
        (lambda: LocalWindow(-3), "window -3"),
        (lambda: LocalWindow(2.0), "window 2.0"),
        (lambda: LocalWindow(True), "window True"),
        (lambda: LocalWindow(2**31), "window 2147483648"),
        (lambda: Sinks(-1), "n -1"),
        (lambda: GlobalTokens(()), r"\(\)"),
        (lambda: GlobalTokens(3), "3"),
        (lambda: GlobalTokens((0, -1)), "token -1"),
        (lambda: Dense().rows(-1), "n_queries -1"),
        (lambda: Dense().rows(3, offset=-1), "offset -1"),
    ],
)
def test_bad_parameters_are_named(make, named):
    with pytest.raises(InputError, match=f"{named}.*: give"):
        make()


def test_only_patterns_compose():
    with pytest.raises(TypeError):
        Dense() | "window(4)"
