import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention import (
    BigBird,
    BlockSparse,
    Dense,
    Dilated,
    Documents,
    Fixed,
    GlobalTokens,
    LocalWindow,
    Neighborhood,
    Padding,
    Pattern,
    RandomBlocks,
    Sinks,
    Strided,
    parse,
)
from attention.patterns.base import Intersection, Union
from crossbar.errors import InputError


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
    st.builds(Strided, st.integers(1, 6), st.sampled_from(["both", "local", "stride"])),
    st.builds(Fixed, st.integers(3, 6), st.integers(1, 3)),
    st.builds(Dilated, st.integers(1, 12), st.integers(1, 4)),
    st.builds(BigBird, st.integers(1, 4), st.integers(0, 2)),
    st.builds(Neighborhood, st.sampled_from([1, 3, 5]), st.integers(1, 3)),
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
    allowed = pattern.at(15).allowed(*torch.broadcast_tensors(position[:, None], position[None, :]))
    assert torch.equal(allowed, pattern.to_dense(15))


def families(pattern):
    return [leaf for part in pattern.parts for leaf in families(part)] if hasattr(pattern, "parts") else [pattern]


@given(pattern=compositions)
def test_a_composition_is_what_all_its_parts_are(pattern):
    leaves = families(pattern)
    assert pattern.shift_invariant == all(leaf.shift_invariant for leaf in leaves)
    assert pattern.length_invariant == all(leaf.length_invariant for leaf in leaves)
    assert pattern.is_causal == all(leaf.is_causal for leaf in leaves)


def test_an_overlap_of_many_intervals_stays_small():
    spans = (Strided(2, part="stride") & Strided(3, part="stride") & Strided(5, part="stride")).spans(
        torch.arange(300), 300
    )
    assert spans.start.shape[1] < 2000  # every interval with every other would be 150 * 100 * 60


def test_what_a_pattern_keeps_of_a_tensor_is_its_own():
    layout, ids = torch.eye(3, dtype=torch.bool), torch.tensor([0, 0, 1])
    blocks, documents = BlockSparse(layout, 2), Documents(ids)
    layout.fill_(True)
    ids.fill_(0)
    assert int(blocks.to_dense(6).sum()) == 12
    assert int(documents.to_dense(3).sum()) == 5
    assert blocks == BlockSparse([[True, False, False], [False, True, False], [False, False, True]], 2)
    assert blocks != BlockSparse(layout, 2)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: LocalWindow(0), "window = 0"),
        (lambda: LocalWindow(-3), "window = -3"),
        (lambda: LocalWindow(2.0), "window = 2.0"),
        (lambda: LocalWindow(True), "window = True"),
        (lambda: LocalWindow(2**31), "window = 2147483648"),
        (lambda: Dilated(0, 1), "dilated window = 0"),
        (lambda: Dilated(4, 0), "dilated dilation = 0"),
        (lambda: Strided(0), "strided stride = 0"),
        (lambda: Strided(4, part="all"), "strided part = 'all'"),
        (lambda: Fixed(0, 1), "fixed stride = 0"),
        (lambda: Fixed(8, 0), "fixed c = 0"),
        (lambda: Fixed(8, 9), "fixed c = 9"),
        (lambda: Fixed(8, 3, 2), "fixed sub = 2"),
        (lambda: BlockSparse(torch.ones(2, 3, dtype=torch.bool), 4), r"block layout torch.bool \[2, 3\]"),
        (lambda: BlockSparse(torch.ones(2, 2, 2, dtype=torch.bool), 4), r"block layout torch.bool \[2, 2, 2\]"),
        (lambda: BlockSparse(torch.ones(0, 0, dtype=torch.bool), 4), r"block layout torch.bool \[0, 0\]"),
        (lambda: BlockSparse(torch.ones(2, 2), 4), r"block layout torch.float32 \[2, 2\]"),
        (lambda: BlockSparse([[True], [True, False]], 4), "block layout cannot be made of"),
        (lambda: BlockSparse("dense", 4), "block layout cannot be made of 'dense'"),
        (lambda: BlockSparse([[True]], 0), "block = 0"),
        (lambda: BlockSparse([[True]], 4).to_dense(5), "1 x 1 blocks of 4 covers 4 tokens, not 5"),
        (lambda: RandomBlocks(0, 4), "random r = 0"),
        (lambda: RandomBlocks(1, 0), "random block = 0"),
        (lambda: RandomBlocks(1, 4, -1), "random seed = -1"),
        (lambda: BigBird(0), "bigbird block = 0"),
        (lambda: BigBird(4, -1), "bigbird r = -1"),
        (lambda: BigBird(4, 1, -1), "bigbird seed = -1"),
        (lambda: Neighborhood(6), "neighborhood kernel = 6"),
        (lambda: Neighborhood(0), "neighborhood kernel = 0"),
        (lambda: Neighborhood(3, 0), "neighborhood dilation = 0"),
        (lambda: Documents(torch.ones(3)), r"document ids torch.float32 \[3\]"),
        (lambda: Documents(torch.ones(3, 2, dtype=torch.int64)), r"document ids torch.int64 \[3, 2\]"),
        (lambda: Documents([0, 0, 1]).rows(4), "documents of 3 tokens> do not fit 4 tokens"),
        (lambda: Padding(torch.ones(3)), r"padding torch.float32 \[3\]"),
        (lambda: Sinks(-1), "n = -1"),
        (lambda: GlobalTokens(()), r"\(\)"),
        (lambda: GlobalTokens(3), "3"),
        (lambda: GlobalTokens((0, -1)), "token = -1"),
        (lambda: Dense().to_dense(0), "^n = 0"),
        (lambda: Dense().rows(0), "n_queries = 0"),
        (lambda: Dense().rows(3, 0), "n_keys = 0"),
        (lambda: Dense().plot(0), "n = 0"),
        (lambda: Dense().stats(0), "n = 0"),
        (lambda: Dense().stats(5, tile=0), "tile = 0"),
        (lambda: BigBird().at(0), "n = 0"),
        (lambda: Dense().rows(-1), "n_queries = -1"),
        (lambda: Dense().rows(3, offset=-1), "offset = -1"),
    ],
)
def test_bad_parameters_are_named(make, named):
    with pytest.raises(InputError, match=f"{named}.*: give"):
        make()


def test_only_patterns_compose():
    with pytest.raises(TypeError):
        Dense() | "window(4)"
