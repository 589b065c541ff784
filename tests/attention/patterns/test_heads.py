import pytest
import torch

from attention import (
    Dense,
    Documents,
    Fixed,
    LocalWindow,
    Padding,
    PerHead,
    PerSequence,
    Sinks,
    Strided,
    TopK,
    count,
    parse,
)
from crossbar.errors import InputError

HEADS = PerHead([LocalWindow(4), Dense(), Sinks(2)])


def test_a_list_gives_each_head_its_pattern():
    assert HEADS.n_heads == 3
    assert [HEADS.head(h) for h in range(3)] == [LocalWindow(4), Dense(), Sinks(2)]
    assert PerHead((LocalWindow(4), Dense(), Sinks(2))) == HEADS
    assert hash(PerHead((LocalWindow(4), Dense(), Sinks(2)))) == hash(HEADS)
    assert HEADS.causal().head(0) == LocalWindow(4).causal()
    assert not HEADS.shift_invariant
    assert HEADS.length_invariant


def test_a_list_composes():
    pattern = (HEADS | Sinks(1)) & Documents(torch.arange(9) // 3)
    assert pattern.n_heads == 3
    assert pattern.head(1) == (Dense() | Sinks(1)) & Documents(torch.arange(9) // 3)
    with pytest.raises(InputError, match="patterns for 2 and 3 heads do not fit together"):
        HEADS | PerHead([Dense(), Dense()])


def test_counts_of_a_list_are_those_of_its_heads():
    apart = [count(HEADS.head(h), 30, head_dim=8, first=5) for h in range(3)]
    assert count(HEADS, 30, head_dim=8, first=5, heads=3) == apart[0] + apart[1] + apart[2]
    with pytest.raises(InputError, match="patterns for 3 heads do not fit 4 heads"):
        count(HEADS, 30, head_dim=8, heads=4)


def test_text_round_trip():
    for pattern in (HEADS, HEADS.causal(), HEADS | Sinks(9), PerHead([HEADS.head(0) | Sinks(1), Dense().causal()])):
        assert parse(str(pattern)) == pattern
    assert str(HEADS.causal()) == "causal(heads(window(4), dense, sinks(2)))"


def test_mask_mod_tells_heads_apart():
    h, i, j = torch.meshgrid(torch.arange(3), torch.arange(9), torch.arange(9), indexing="ij")
    pairs = (HEADS & LocalWindow(6)).mask_mod(torch.tensor(0), h, i, j)
    assert torch.equal(pairs, torch.stack([(HEADS.head(n) & LocalWindow(6)).to_dense(9) for n in range(3)]))


def test_sequences_of_a_batch():
    ids = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 1]])
    pattern = LocalWindow(8) & Documents.of_batch(ids)
    assert pattern.n_sequences == 2
    assert pattern.sequence(1) == LocalWindow(8) & Documents(ids[1])
    assert Documents.of_batch(ids[:1]) == Documents(ids[0])
    assert Padding.of_batch(ids > 0).sequence(0) == Padding(ids[0] > 0)
    assert str(PerSequence([Dense(), Dense()])) == "<2 sequences: dense>"
    assert (HEADS & Documents.of_batch(ids)).sequence(1).head(2) == Sinks(2) & Documents(ids[1])


def test_heads_and_sequences_select_by_their_own_queries():
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 4, 12, 5, generator=generator), torch.randn(2, 2, 12, 5, generator=generator)
    every = TopK(3).select(q, k)
    mixed = PerHead([TopK(3), Dense(), Sinks(1), TopK(3)]).select(q, k)
    for b in range(2):
        chosen = [mixed.sequence(b).head(h) for h in range(4)]
        assert chosen == [every.sequence(b).head(0), Dense(), Sinks(1), every.sequence(b).head(3)]
    listed = PerSequence([TopK(3), TopK(3) & Dense()]).select(q, k)
    assert listed.sequence(0) == every.sequence(0)
    assert listed.sequence(1).head(2) == every.sequence(1).head(2) & Dense()
    assert HEADS.select(q, k) is HEADS


def test_the_two_sets_of_a_stride_go_to_half_the_heads_each():
    local, strided = Strided(8, part="local"), Strided(8, part="stride")
    assert Strided(8).per_head(4) == PerHead([local, local, strided, strided])
    assert torch.equal((local | strided).causal().to_dense(50), Strided(8).causal().to_dense(50))


def test_heads_read_distinct_sub_blocks():
    heads = Fixed(8, 3).per_head(3)
    assert heads == PerHead([Fixed(8, 3, 0), Fixed(8, 3, 1), Fixed(8, 3, 0)])
    columns = [set(p.rows(1, 40, 39).indices.tolist()) - set(range(32, 40)) for p in heads.parts[:2]]
    assert not columns[0] & columns[1]


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: PerHead([]), r"PerHead cannot have \[\]: give a list of one or more patterns"),
        (lambda: PerHead(Dense()), "give a list"),
        (lambda: PerHead(["dense"]), "give a list"),
        (lambda: PerHead([HEADS, Dense()]), "give patterns of one head each"),
        (lambda: PerSequence([PerSequence([Dense()])]), "give patterns of one sequence each"),
        (lambda: PerSequence([HEADS, PerHead([Dense()])]), "patterns for 1 and 3 heads"),
        (lambda: HEADS.rows(4), "is not one pattern: choose"),
        (lambda: HEADS.head(3), "head 3 is not there"),
        (lambda: Strided(8).per_head(3), "3 heads do not divide into the two sets.*give an even number"),
        (lambda: Strided(8).per_head(0), "heads = 0"),
        (lambda: PerHead([TopK(1)] * 3).select(torch.ones(1, 2, 3, 4), torch.ones(1, 2, 3, 4)), "3 heads do not fit"),
        (lambda: PerSequence([TopK(1)]).select(torch.ones(2, 2, 3, 4), torch.ones(2, 2, 3, 4)), "a batch of 2"),
        (lambda: Documents.of_batch(torch.arange(3)), r"give \[B, N\]"),
    ],
)
def test_bad_lists_are_named(make, named):
    with pytest.raises(InputError, match=named):
        make()
