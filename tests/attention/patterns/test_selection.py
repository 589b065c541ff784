import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import attention.patterns.selection
from attention import BlockTopK, Dense, LocalWindow, PerHead, PerSequence, Sinks, TopK, gated_attention
from crossbar.errors import InputError


def draw(batch, heads, kv_heads, n_queries, n_keys, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, n_queries, 6, generator=generator, dtype=torch.float64)
    k = torch.randn(batch, kv_heads, n_keys, 6, generator=generator, dtype=torch.float64)
    return q.to(dtype), k.to(dtype)


def top_k(q, k, size, candidates):
    """The keys that one query selects, by sorting all scores."""
    scores = {j: float(q @ k[j]) for j in candidates}
    return sorted(sorted(scores, key=scores.get, reverse=True)[:size])


def block_top_k(q, k, pattern, query, real):
    """MoBA's choice for one query."""
    size, own = pattern.block, query // pattern.block
    blocks = [[j for j in range(b, min(b + size, len(k))) if real[j]] for b in range(0, len(k), size)]
    scores = {
        b: float(q @ k[keys].mean(0))
        for b, keys in enumerate(blocks)
        if keys and (b < own if pattern.is_causal else b != own)
    }
    chosen = {own, *sorted(scores, key=scores.get, reverse=True)[: pattern.k - 1]}
    return [j for j in range(len(k)) if j // size in chosen and (j <= query or not pattern.is_causal)]


def rows(pattern, n_queries, n_keys, offset=0):
    indptr, indices = pattern.rows(n_queries, n_keys, offset)
    return [row.tolist() for row in indices.tensor_split(indptr[1:-1])]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("family", ["top", "block"])
@settings(max_examples=15)
@given(
    size=st.integers(1, 9), block=st.integers(1, 9), batch=st.integers(1, 2), kv_heads=st.integers(1, 2),
    n_queries=st.integers(1, 25), n_keys=st.integers(1, 30), offset=st.integers(0, 5), padded=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_a_selection_is_the_definition(
    family, causal, size, block, batch, kv_heads, n_queries, n_keys, offset, padded, seed
):
    pattern = TopK(size) if family == "top" else BlockTopK(block, size)
    pattern = pattern.causal() if causal else pattern
    q, k = draw(batch, 2 * kv_heads, kv_heads, n_queries, n_keys, seed)
    mask = torch.rand(batch, n_keys, generator=torch.Generator().manual_seed(seed)) < 0.7 if padded else None
    chosen = pattern.select(q, k, mask=mask, offset=offset)
    assert chosen.is_static
    assert chosen.is_causal == causal
    for b in range(batch):
        real = [True] * n_keys if mask is None else mask[b].tolist()
        for h in range(2 * kv_heads):
            expected = []
            for i in range(n_queries):
                past = [j for j in range(n_keys) if real[j] and (j <= offset + i or not causal)]
                here = q[b, h, i], k[b, h // 2]
                if family == "top":
                    expected.append(top_k(*here, size, past))
                else:
                    expected.append(block_top_k(*here, pattern, offset + i, real))
            assert rows(chosen.sequence(b).head(h), n_queries, n_keys, offset) == expected


@pytest.mark.parametrize("pattern", [TopK(4), BlockTopK(5, 3)])
def test_chunks_and_grouped_heads_do_not_change_a_selection(pattern, monkeypatch):
    q, k = draw(2, 4, 2, 40, 40)
    whole = pattern.select(q, k)
    assert pattern.select(q, k.repeat_interleave(2, 1)) == whole
    monkeypatch.setattr(attention.patterns.selection, "_SCORES", 1000)
    assert pattern.select(q, k) == whole
    assert hash(pattern.select(q, k)) == hash(whole)
    assert pattern.select(q + 1, k) != whole


@pytest.mark.parametrize("pattern", [TopK(4), BlockTopK(5, 3), TopK(3) | Sinks(2), TopK(9) & LocalWindow(20)])
def test_selecting_step_by_step_equals_selecting_at_once(pattern):
    pattern = pattern.causal()
    assert pattern.length_invariant
    q, k = draw(1, 2, 2, 24, 24)
    whole = pattern.select(q, k)
    for i in (0, 4, 5, 17, 23):
        step = pattern.select(q[:, :, i : i + 1], k[:, :, : i + 1], offset=i)
        for h in range(2):
            assert rows(step.head(h), 1, i + 1, i) == rows(whole.head(h), 1, i + 1, i)


def test_what_a_selection_is():
    q, k = draw(1, 3, 3, 10, 10)
    alone = TopK(2).select(q, k)
    assert isinstance(alone, PerHead)
    assert (alone.n_heads, alone.n_sequences) == (3, None)
    both = TopK(2).select(*draw(2, 3, 3, 10, 10))
    assert isinstance(both, PerSequence)
    assert (both.n_heads, both.n_sequences) == (3, 2)
    assert both.sequence(0) != both.sequence(1)
    union = (TopK(2) | Sinks(1)).select(*draw(2, 3, 3, 10, 10))
    assert (union.n_heads, union.n_sequences) == (3, 2)
    assert union.sequence(1).head(2) == both.sequence(1).head(2) | Sinks(1)
    assert torch.equal(alone.head(1).causal().to_dense(10), alone.head(1).to_dense(10).tril())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_inputs_are_scored_in_float32(dtype):
    q, k = draw(1, 1, 1, 20, 20, dtype=dtype)
    assert TopK(3).select(q, k) == TopK(3).select(q.float(), k.float())


def test_no_gradient_flows_through_the_choice():
    q, k = draw(1, 1, 1, 8, 8)
    chosen = TopK(3).select(q.requires_grad_(), k.requires_grad_())
    assert not chosen.head(0).start.requires_grad


@pytest.mark.parametrize("causal", [False, True])
def test_straight_through_attends_the_chosen_with_the_gradient_of_all(causal):
    inputs = [x.requires_grad_() for x in (*draw(1, 2, 1, 20, 20), draw(1, 1, 1, 20, 20, seed=3)[0])]
    mask = torch.ones(1, 20, dtype=torch.bool)
    mask[0, 5] = False
    straight, hard, soft = (
        gated_attention(*inputs, pattern.causal() if causal else pattern, mask=mask, return_lse=True)
        for pattern in (TopK(3, "straight"), TopK(3), Dense())
    )
    assert torch.equal(straight[0], hard[0])
    assert torch.equal(straight[1], hard[1])
    assert not torch.allclose(straight[0], soft[0])
    found, wanted = (
        torch.autograd.grad(out.sin().sum() + lse.cos().sum(), inputs, grad_outputs=None)
        for out, lse in ((straight[0], straight[1]), (_at(soft[0], hard[0]), _at(soft[1], hard[1])))
    )
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)


def _at(soft, hard):
    """The gradient of ``soft`` where a function is evaluated at ``hard``."""
    return soft + (hard - soft).detach()


def test_a_mask_mod_of_a_selection_knows_heads_and_sequences():
    chosen = (TopK(3) | LocalWindow(2)).select(*draw(2, 2, 1, 12, 12))
    b, h, i, j = torch.meshgrid(*(torch.arange(n) for n in (2, 2, 12, 12)), indexing="ij")
    pairs = chosen.mask_mod(b, h, i, j)
    for sequence in range(2):
        for head in range(2):
            assert torch.equal(pairs[sequence, head], chosen.sequence(sequence).head(head).to_dense(12))


Q, K = draw(2, 4, 2, 10, 10)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: TopK(0), "topk k = 0"),
        (lambda: TopK(2, "all"), "topk gradient = 'all'"),
        (lambda: BlockTopK(0, 2), "blocktopk block = 0"),
        (lambda: BlockTopK(4, 0), "blocktopk k = 0"),
        (lambda: TopK(2).to_dense(5), r"'topk\(2\)' depends on queries and keys.*pattern.select"),
        (lambda: TopK(2).mask_mod(*torch.zeros(4, 1, dtype=torch.int64)), "depends on queries and keys"),
        (lambda: (TopK(2) | Sinks(1)).rows(5), "depends on queries and keys"),
        (lambda: TopK(2).select(Q[0], K[0]), r"q \[4, 10, 6\]"),
        (lambda: TopK(2).select(Q[:, :3], K), "whole multiple of the heads"),
        (lambda: TopK(2).select(Q, K[:1]), "one B and D"),
        (lambda: TopK(2).select(Q, K[:, :, :0]), "at least one sequence, query and key"),
        (lambda: TopK(2).select(Q, K, mask=torch.ones(2, 10)), r"padding mask torch.float32 \[2, 10\]"),
        (lambda: TopK(2).select(Q, K, offset=-1), "offset = -1"),
        (lambda: TopK(2).select(Q, K).rows(5), "is not one pattern: choose with pattern.sequence"),
        (lambda: TopK(2).select(Q, K).sequence(0).head(0).rows(11), "hold none for query 10"),
        (lambda: TopK(2).select(Q, K, offset=3).sequence(0).head(0).rows(5), "hold none for query 0"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(InputError, match=named):
        make()
