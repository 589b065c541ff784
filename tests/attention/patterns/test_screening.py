"""Rows that the array chooses, held against loops over one row at a time."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attention.patterns.screening
from attention import (
    Dense,
    LocalWindow,
    PerHead,
    PerSequence,
    Screened,
    Sinks,
    Spiking,
    TopK,
    gated_attention,
    parse,
    recall,
)
from attention.patterns.screening import Lines, Screen, is_screening, screen
from crossbar.errors import InputError


def draw(batch, heads, kv_heads, n_queries, n_keys, seed=0, size=6):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, n_queries, size, generator=generator, dtype=torch.float64)
    return q, torch.randn(batch, kv_heads, n_keys, size, generator=generator, dtype=torch.float64)


def rows(pattern, n_queries, n_keys, offset=0):
    indptr, indices = pattern.rows(n_queries, n_keys, offset)
    return [row.tolist() for row in indices.tensor_split(indptr[1:-1])]


def ramp(scores, k, bits):
    """Rows that spike, comparisons and steps of one ramp, from scores by row; one row and step at a time."""
    if not scores:
        return [], 0, 0
    high, low, last = max(scores.values()), min(scores.values()), 2**bits - 1
    size = (high - low) / last
    crossed, comparisons = [], 0
    for step in range(last + 1):
        level = high - (step + 1e-4) * size  # rounding is no step
        for row in sorted(scores):
            if row in crossed:
                continue
            comparisons += 1
            if scores[row] >= level or step == last:
                crossed.append(row)
        if len(crossed) >= min(k, len(scores)):
            return sorted(crossed[:k]), comparisons, step + 1
    raise AssertionError


@pytest.mark.parametrize("per", ["query", "tile"])
@settings(max_examples=20)
@given(
    k=st.integers(1, 9), bits=st.integers(1, 6), batch=st.integers(1, 2), kv_heads=st.integers(1, 2),
    n_queries=st.integers(1, 12), n_keys=st.integers(1, 30), offset=st.integers(0, 5), causal=st.booleans(),
    padded=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_a_ramp_is_the_loop(per, k, bits, batch, kv_heads, n_queries, n_keys, offset, causal, padded, seed):
    q, keys = draw(batch, 2 * kv_heads, kv_heads, n_queries, n_keys, seed)
    mask = torch.rand(batch, n_keys, generator=torch.Generator().manual_seed(seed)) < 0.7 if padded else None
    pattern = Screened(k, bits, per)
    pattern = pattern.causal() if causal else pattern
    chosen, taken = screen(pattern, Lines(q, keys, offset, mask, rows=7))
    found = Screen(*taken[pattern].tolist())
    expected = Screen(0, 0, 0, 0, 0, 0, 0)
    for b in range(batch):
        real = [True] * n_keys if mask is None else mask[b].tolist()
        for h in range(2 * kv_heads):
            each = []
            for i in range(n_queries):
                scores = {
                    j: float(q[b, h, i] @ keys[b, h // 2, j])
                    for j in range(n_keys)
                    if real[j] and (j <= offset + i or not causal)
                }
                tiles = [[j for j in scores if j // 7 == t] for t in range(5)]
                parts = [tile for tile in tiles if tile] if per == "tile" else [list(scores)]
                ran = [ramp({j: scores[j] for j in part}, k, bits) for part in parts]
                each.append(sorted(j for own in ran for j in own[0]))
                touched = sum(map(bool, tiles))
                steps = [own[2] for own in ran]
                more = (len(scores), touched, len(each[-1]), sum(own[1] for own in ran))
                more += (sum(steps) if per == "tile" else touched * steps[0], max(steps, default=0), len(scores) > 0)
                expected = Screen(*(a + x for a, x in zip(expected, more, strict=True)))
            assert rows(chosen.sequence(b).head(h), n_queries, n_keys, offset) == each
    assert found == expected


@pytest.mark.parametrize("causal", [False, True])
def test_full_bits_are_topk_and_all_rows_are_dense(causal):
    q, k = draw(2, 4, 2, 40, 40)
    for size in (1, 7, 40):
        screened, topk = (p.causal() if causal else p for p in (Screened(size), TopK(size)))
        mine, exact = screened.select(q, k), topk.select(q, k)
        for b in range(2):
            for h in range(4):
                assert torch.equal(mine.sequence(b).head(h).to_dense(40), exact.sequence(b).head(h).to_dense(40))
        assert torch.equal(recall(mine, q, k), torch.ones(2, 4, dtype=torch.float64))
    for bits in (None, 1, 3):
        every, dense = (p.causal() if causal else p for p in (Screened(40, bits), Dense()))
        torch.testing.assert_close(gated_attention(q, k, k, every), gated_attention(q, k, k, dense), rtol=0, atol=1e-12)


def test_equal_rows_spike_in_their_order():
    q, k = torch.ones(1, 1, 1, 2), torch.ones(1, 1, 9, 2)
    assert rows(Screened(4).select(q, k), 1, 9) == [[0, 1, 2, 3]]
    assert rows(Screened(4, 5).select(q, k), 1, 9) == [[0, 1, 2, 3]]


def test_recall_grows_with_bits_and_falls_with_mismatch():
    q, k = draw(1, 4, 4, 64, 200)
    found = [float(recall(Screened(20, bits).select(q, k), q, k).mean()) for bits in (1, 3, 5, 8)]
    assert found == sorted(found)
    assert found[0] < 0.4
    assert found[-1] > 0.99
    exact, near, far = (float(recall(Screened(20, 8, mismatch=m).select(q, k), q, k).mean()) for m in (0.0, 0.01, 0.2))
    assert exact > near > far
    again = Screened(20, 8, mismatch=0.2).select(q, k)
    assert rows(again.head(1), 64, 200) == rows(Screened(20, 8, mismatch=0.2).select(q, k).head(1), 64, 200)


def test_recall_counts():
    q = torch.tensor([[[[1.0], [1.0]]]], dtype=torch.float64)
    k = torch.tensor([[[[3.0], [1.0], [2.0], [4.0]]]], dtype=torch.float64)
    assert float(recall(LocalWindow(2).causal(), q, k, offset=2)) == pytest.approx((0.5 + 0.5) / 2)
    assert float(recall(LocalWindow(2).causal(), q, k, offset=2, size=1)) == pytest.approx((0 + 1) / 2)


@settings(max_examples=20)
@given(
    bits=st.one_of(st.none(), st.integers(2, 6)), beta=st.sampled_from([1.0, 0.8]), causal=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_neurons_are_the_loop(bits, beta, causal, seed):
    """Potentials by hand: the query's bits with their signs, the most significant first."""
    beta = 1.0 if bits is None else beta
    levels = (0.3, -0.2, 1.0, 0.6)
    pattern = Spiking(levels, bits, beta)
    pattern = pattern.causal() if causal else pattern
    q, k = draw(1, 4, 2, 9, 14, seed)
    chosen, taken = screen(pattern, Lines(q, k, 5, rows=7))
    spikes = comparisons = 0
    for h, level in enumerate(levels):
        each = []
        for i in range(9):
            fired = []
            for j in range(14):
                if causal and j > 5 + i:
                    continue
                row, potential, when = k[0, h // 2, j].tolist(), 0.0, None
                query = q[0, h, i].tolist()
                full = max(map(abs, query))
                if bits is None:
                    steps = [query]
                else:
                    most = 2 ** (bits - 1) - 1
                    codes = [round(x / full * most) for x in query]
                    steps = [
                        [math.copysign((abs(c) >> place & 1) * 2**place / most * full, c) for c in codes]
                        for place in range(bits - 2, -1, -1)
                    ]
                for number, step in enumerate(steps):
                    potential = beta * potential + sum(a * x for a, x in zip(step, row, strict=True))
                    if potential > level * math.sqrt(6):
                        when = number + 1
                        break
                comparisons += when or len(steps)
                if when:
                    fired.append(j)
            spikes += len(fired)
            each.append(fired)
        assert rows(chosen.head(h), 9, 14, 5) == each
    found = Screen(*taken[pattern].tolist())
    assert (found.spikes, found.comparisons, found.ramp_steps) == (spikes, comparisons, 0)
    assert (found.waited, found.queries) == (4 * 9 * pattern.phases, 4 * 9)


@pytest.mark.parametrize(
    "text",
    [
        "screened(4, bits=4)", "screened(3, bits=3, per=tile) | sinks(2)", "spiking(0.5) & window(20)",
        "spiking(0.5, bits=5, beta=0.9) | window(2)", "heads(screened(3), topk(2))",
    ],
)  # fmt: skip
def test_step_by_step_equals_at_once(text):
    pattern = parse(text).causal()
    assert pattern.length_invariant
    assert is_screening(pattern)
    q, k = draw(1, 2, 2, 24, 24)
    whole = pattern.select(q, k)
    for i in (0, 4, 17, 23):
        step = pattern.select(q[:, :, i : i + 1], k[:, :, : i + 1], offset=i)
        for h in range(2):
            assert rows(step.head(h), 1, i + 1, i) == rows(whole.head(h), 24, 24)[i : i + 1]


def test_pieces_change_nothing_and_memory_is_that_of_the_pairs(monkeypatch):
    q, k = draw(2, 4, 2, 40, 40)
    whole = Screened(4, 5).select(q, k)
    monkeypatch.setattr(attention.patterns.screening, "_SCORES", 300)
    pieces = Screened(4, 5).select(q, k)
    assert pieces.choice.keys.numel() == 2 * 4 * 40 * 4
    assert torch.equal(pieces.choice.keys, whole.choice.keys)
    assert torch.equal(pieces.choice.pairs(3, 9, 40), whole.choice.pairs(3, 9, 40))
    assert pieces.sequence(1).head(2) != whole.sequence(1).head(2)  # choices are told apart by what they are
    assert (whole.n_sequences, whole.n_heads) == (2, 4)


def test_straight_through_attends_the_chosen_with_the_gradient_of_all():
    q, k = draw(1, 2, 1, 20, 20)
    inputs = [x.requires_grad_() for x in (q, k, k.clone())]
    for family in (Screened(3, 4), Spiking(0.4)):
        straight, soft = type(family)(**(vars(family) | {"gradient": "straight"})).causal(), Dense().causal()
        hard = gated_attention(*inputs, family.causal())
        found = gated_attention(*inputs, straight)
        torch.testing.assert_close(found, hard, rtol=0, atol=0)
        weight = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        grads, wanted = (
            torch.autograd.grad((gated_attention(*inputs, p) * weight).sum(), inputs) for p in (straight, soft)
        )
        for a, b in zip(grads, wanted, strict=True):
            torch.testing.assert_close(a, b)
        chosen = torch.autograd.grad((hard * weight).sum(), inputs)
        assert not torch.allclose(chosen[1], wanted[1])


def test_heads_and_sequences_choose_for_themselves():
    q, k = draw(2, 2, 2, 10, 10)
    both = Screened(3, 4).causal()
    listed = PerHead([both, Dense().causal()]).select(q, k)
    assert rows(listed.sequence(1).head(0), 10, 10) == rows(both.select(q, k).sequence(1).head(0), 10, 10)
    by_sequence = PerSequence([both, Sinks(1).causal()])
    chosen, taken = screen(by_sequence, Lines(q, k))
    assert rows(chosen.sequence(0).head(1), 10, 10) == rows(both.select(q, k).sequence(0).head(1), 10, 10)
    assert taken[both][0] == 2 * 55
    assert copy.deepcopy(both) == pickle.loads(pickle.dumps(both)) == both


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Screened(0), "screened k = 0 is not allowed"),
        (lambda: Screened(4, bits=13), "screened bits = 13 is not allowed: give a whole number from 1 to 12"),
        (lambda: Screened(4, per="row"), "screened per = 'row' is not allowed: choose query, tile"),
        (lambda: Screened(4, gradient="soft"), "screened gradient = 'soft' is not allowed: choose chosen, straight"),
        (lambda: Screened(4, mismatch=-1), "screened mismatch = -1 is not allowed"),
        (lambda: Spiking(()), "spiking has no threshold: give one, or one for each head"),
        (lambda: Spiking(math.nan), "spiking threshold = nan is not allowed"),
        (lambda: Spiking(1.0, bits=1), "spiking bits = 1 is not allowed: give a whole number from 2 to 12"),
        (lambda: Spiking(1.0, beta=0.5), "spiking beta = 0.5 is not allowed without bits"),
        (lambda: Spiking((1.0, 2.0)).select(*draw(1, 3, 3, 4, 4)), "thresholds for 2 heads, which do not fit queries"),
    ],
)
def test_what_is_not_allowed_is_refused(make, message):
    with pytest.raises(InputError, match=message):
        make()
