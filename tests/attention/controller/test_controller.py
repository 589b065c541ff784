"""Events and their counts, exactly: what holds of whole numbers needs no tolerance (docs/energy.md, "Events")."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention import (
    CSR,
    Axis,
    Controller,
    Counts,
    Dense,
    Events,
    GlobalTokens,
    LocalWindow,
    Placement,
    Sinks,
    accumulate,
    count,
    score,
    tally,
)
from attention.controller import platforms
from crossbar.errors import InputError

PATTERNS = [
    Dense(),
    Dense().causal(),
    LocalWindow(9) | Sinks(2),
    (LocalWindow(6) | GlobalTokens((3,))).causal(),
    Sinks(0),
    Sinks(3) & GlobalTokens((5,)),  # rows with no key
]
ROWS = 16
controller = Controller(platforms.ideal(rows=ROWS))
problems = given(pattern=st.sampled_from(PATTERNS), n=st.integers(1, 50), seed=st.integers(0, 2**32 - 1))


def shuffled_placement(n, generator):
    spots = torch.randperm(3 * n, generator=generator)[:n].int()
    return Placement(spots // ROWS, spots % ROWS)


def integers(shape, generator):
    return torch.randint(-7, 8, shape, generator=generator, dtype=torch.int8)


def weights_of(scores):
    return scores.clamp(min=0) // 4  # any integer function of the score stands in for the softmax


@problems
def test_1_gated_integers_equal_masked_dense_bit_for_bit(pattern, n, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (integers((n, 5), generator) for _ in range(3))
    placement = shuffled_placement(n, generator)
    events = controller.events(pattern.rows(n), placement)
    scores = score(events, placement, q, k)
    output = accumulate(events.with_weights(weights_of(scores)), placement, v, n)

    dense_scores = q.long() @ k.long().T
    dense = (weights_of(dense_scores) * pattern.to_dense(n)) @ v.long()
    assert torch.equal(scores, dense_scores[pattern.to_dense(n)])
    assert torch.equal(output, dense)


@problems
def test_2_injected_is_delivered_and_dropped_and_in_flight(pattern, n, seed):
    events = controller.events(pattern.rows(n), Placement.sequential(n, ROWS))
    done = controller.simulate(events)
    assert (done.injected, done.delivered, done.dropped, done.in_flight) == (len(events.time), len(events.time), 0, 0)
    for until in (0, n, 2 * n):
        timing = controller.simulate(events, until)
        assert timing.injected == timing.delivered + timing.dropped + timing.in_flight
        assert min(timing.injected, timing.delivered, timing.dropped, timing.in_flight) >= 0
        assert timing.delivered == len(events.where(events.time <= until).time)


@problems
def test_3_counts_of_one_head_slice_and_phase(pattern, n, seed):
    placement = shuffled_placement(n, torch.Generator().manual_seed(seed))
    events = controller.events(pattern.rows(n), placement)
    indptr, indices = (x.tolist() for x in pattern.rows(n))
    rows = [indices[a:b] for a, b in itertools.pairwise(indptr)]
    touched = sum(len({int(placement.tile[j]) for j in row}) for row in rows)
    pairs = len(indices)
    counts = tally(events, head_dim=8)
    assert counts == Counts(pairs, pairs, 8 * touched, pairs, 8 * touched)
    # A head of 20 dimensions lies across 3 tiles of 8 columns, which share its D lines among them.
    wide = tally(events, head_dim=20, columns=8, heads=12, slices=2, bits=8)
    assert wide == 12 * 2 * 8 * Counts(3 * pairs, 3 * pairs, 20 * touched, 3 * pairs, 20 * touched)


def test_4_a_full_mask_gives_dense_counts_and_an_empty_one_none():
    n = 40
    everything = count(LocalWindow(2 * n), n, head_dim=4, rows=ROWS)
    assert everything == count(Dense(), n, head_dim=4, rows=ROWS)
    assert everything == Counts(n * n, n * n, 4 * 3 * n, n * n, 4 * 3 * n)
    assert count(Sinks(0), n, head_dim=4) == Counts() == count(Dense(), 0, head_dim=4)


@problems
def test_5_the_order_inside_a_step_changes_nothing(pattern, n, seed):
    generator = torch.Generator().manual_seed(seed)
    placement = shuffled_placement(n, generator)
    events = controller.events(pattern.rows(n), placement)
    q, k, v = (integers((n, 5), generator) for _ in range(3))
    weighted = events.with_weights(weights_of(score(events, placement, q, k)))
    shuffle = torch.randperm(len(events.time), generator=generator)
    mixed = weighted.where(shuffle[weighted.time[shuffle].argsort(stable=True)])
    assert torch.equal(accumulate(mixed, placement, v, n), accumulate(weighted, placement, v, n))
    assert tally(mixed, head_dim=5) == tally(weighted, head_dim=5)
    sensed = mixed.of(Axis.COL)
    pairs = sensed.query.long() * n + placement.tokens(sensed)
    assert torch.equal(score(mixed, placement, q, k)[pairs.argsort()], score(events, placement, q, k))


@problems
def test_7_counts_add_over_disjoint_pairs_but_shared_tiles_open_once(pattern, n, seed):
    generator = torch.Generator().manual_seed(seed)
    placement, csr = shuffled_placement(n, generator), pattern.rows(n)
    chosen = torch.rand(len(csr.indices), generator=generator) < 0.5
    query = torch.repeat_interleave(torch.arange(n), csr.indptr.diff())

    def counted(kept):
        indptr = torch.cat([torch.zeros(1, dtype=torch.int64), torch.bincount(query[kept], minlength=n).cumsum(0)])
        return tally(controller.events(CSR(indptr, csr.indices[kept]), placement), head_dim=8)

    whole, parts = counted(torch.ones_like(chosen)), counted(chosen) + counted(~chosen)
    for name in ("score_sense_lines", "score_conversions", "value_row_drives"):
        assert getattr(parts, name) == getattr(whole, name)
    for name in ("value_conversions", "query_drives"):
        assert getattr(parts, name) >= getattr(whole, name)


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_events_come_in_time_order_with_the_design_s_dtypes(pattern):
    events = controller.events(pattern.rows(30), Placement.sequential(30, ROWS))
    dtypes = Events(torch.int64, torch.int32, torch.int32, torch.int8, torch.int32, torch.int32)
    assert tuple(x.dtype for x in events) == dtypes
    assert (events.time.diff() >= 0).all()
    assert torch.equal(events.time, 2 * events.query.long() + (events.axis == Axis.ROW))


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_count_in_pieces_equals_one_tally(pattern):
    n = 150  # more pairs than are counted at a time
    events = Controller(platforms.ideal(64)).events(pattern.rows(n), Placement.sequential(n, 64))
    assert count(pattern, n, head_dim=32, heads=3, rows=64) == tally(events, head_dim=32, heads=3)


def test_gating_closes_tiles():
    sparse, dense = (count(p, 256, head_dim=32, rows=32) for p in (LocalWindow(8), Dense()))
    assert sparse.value_row_drives < dense.value_row_drives / 20
    assert sparse.value_conversions < dense.value_conversions / 4


def test_counts_add_and_multiply():
    a = Counts(1, 2, 3, 4, 5)
    assert a + a + a == 3 * a == a * 3
    with pytest.raises(TypeError):
        a * 1.5


def test_placement():
    placement = Placement.sequential(5, rows=2)
    assert placement.tile.tolist() == [0, 0, 1, 1, 2]
    assert placement.line.tolist() == [0, 1, 0, 1, 0]


def place(tile, line):
    return Placement(torch.tensor(tile, dtype=torch.int32), torch.tensor(line, dtype=torch.int32))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: place([0, 0], [1, 1]), "two tokens on one line"),
        (lambda: place([0, 0], [1]), r"tiles \[2\] and lines \[1\]"),
        (lambda: place([0, -1], [1, 1]), "negative"),
        (lambda: Placement(torch.zeros(1), torch.zeros(1)), "float32"),
        (lambda: Placement.sequential(3, rows=0), "rows = 0"),
        (lambda: platforms.ideal(rows=0), "rows = 0"),
        (lambda: controller.events(Dense().rows(3), Placement.sequential(2)), "token 2 is attended but only 2"),
        (lambda: controller.events(Dense().rows(20), Placement.sequential(20)), "line 19 but tiles.* 16 rows"),
        (lambda: controller.simulate(small_stream(), until=-1), "until = -1"),
        (lambda: small_stream().with_weights(torch.ones(3, dtype=torch.int64)), "each of the 4 value events"),
        (lambda: small_stream().with_weights(torch.ones(4)), "float32"),
        (lambda: small_stream().with_weights(torch.full((4,), 2**40)), "32 bits"),
        (lambda: accumulate(small_stream(), Placement.sequential(1), torch.ones(2, 2).long(), 2), "holds no token"),
        (lambda: accumulate(small_stream(), Placement.sequential(2), torch.ones(2, 2), 2), "v torch.float32"),
        (lambda: tally(small_stream(), head_dim=0), "head_dim = 0"),
        (lambda: tally(small_stream()._replace(tile=torch.full((8,), -1).int()), head_dim=4), "tiles from -1"),
        (lambda: tally(small_stream()._replace(axis=torch.full((8,), 2).to(torch.int8)), head_dim=4), "axes 2 to 2"),
        (lambda: controller.events(rows([0, 1], [-1]), Placement.sequential(2)), "token -1 is attended"),
        (
            lambda: controller.events(rows([0, 2, 1], [0]), Placement.sequential(2)),
            "does not bound its 1",
        ),
        (
            lambda: next(controller.parts(rows([0, 2], [0]), Placement.sequential(2))),
            "does not bound its 1",
        ),
        (lambda: count(Dense(), -1, head_dim=4), "n = -1"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(InputError, match=named):
        make()


def rows(indptr, indices):
    return CSR(torch.tensor(indptr), torch.tensor(indices))


def small_stream():
    return controller.events(Dense().rows(2), Placement.sequential(2))
