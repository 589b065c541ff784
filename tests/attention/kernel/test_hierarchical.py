import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import Hierarchical, LocalWindow, Router, gated_attention, parse
from attention.kernel.hierarchical_reference import _attends, hierarchical_reference
from crossbar import presets
from crossbar.errors import InputError


def draw(n, n_keys=None, batch=2, heads=2, kv_heads=1, size=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q = torch.randn(batch, heads, n, size, generator=generator, dtype=torch.float64)
    k, v = (torch.randn(batch, kv_heads, n_keys or n, size, generator=generator, dtype=torch.float64) for _ in range(2))
    return q, k, v


@pytest.mark.parametrize("causal", [False, True])
@settings(max_examples=12)
@given(
    half=st.integers(1, 3), levels=st.integers(1, 5), n=st.integers(1, 45), offset=st.integers(0, 9),
    padded=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_levels_equal_the_reference(causal, half, levels, n, offset, padded, seed):
    offset = offset if causal else 0
    q, k, v = draw(n, n + offset, batch=1, seed=seed)
    mask = torch.rand(1, n + offset, generator=torch.Generator().manual_seed(seed)) < 0.6 if padded else None
    pattern = Hierarchical(2 * half, levels, is_causal=causal)
    found = gated_attention(q, k, v, pattern, mask=mask, offset=offset, scale=0.7, return_lse=True)
    wanted = hierarchical_reference(q, k, v, 2 * half, levels, causal, 0.7, mask, offset)
    for fast, slow in zip(found, wanted, strict=True):
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-12)


def test_float32_is_near_the_reference():
    q, k, v = (x.float() for x in draw(50))
    pattern = Hierarchical(4, 3)
    fast, slow = (gated_attention(q, k, v, pattern, impl=impl) for impl in ("auto", "reference"))
    assert fast.dtype == slow.dtype == torch.float32
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pattern", [Hierarchical(2, 3), Hierarchical(2, 3).causal()], ids=str)
def test_gradients(pattern):
    inputs = [x.requires_grad_() for x in draw(13, size=2)]
    mask = torch.rand(2, 13, generator=torch.Generator().manual_seed(1)) < 0.7
    mask[0] = False  # a sequence that is padding altogether
    assert torch.autograd.gradcheck(lambda *x: gated_attention(*x, pattern, mask=mask), inputs)


@pytest.mark.parametrize("causal", [False, True])
def test_a_constant_value_returns_itself(causal):
    q, k, v = draw(77)
    out = gated_attention(q, 3 * k, torch.full_like(v, 2.5), Hierarchical(4, 4, is_causal=causal))
    torch.testing.assert_close(out, torch.full_like(out, 2.5))


@pytest.mark.parametrize("causal", [False, True])
def test_one_level_and_short_sequences_are_dense(causal):
    q, k, v = draw(30)
    dense = gated_attention(q, k, v, parse("causal(dense)" if causal else "dense"))
    for block, levels in ((4, 1), (16, 5)):
        found = gated_attention(q, k, v, Hierarchical(block, levels, is_causal=causal))
        torch.testing.assert_close(found, dense)


def test_equal_keys_weigh_every_token_alike():
    """Coarse tokens count as many times as they have tokens: the mean of all values, as dense attention gives."""
    q, k, v = draw(64)
    out = gated_attention(q, torch.zeros_like(k), v, Hierarchical(4, 4))
    torch.testing.assert_close(out, v.mean(2, keepdim=True).expand_as(q))


def test_decoding_equals_prefill():
    pattern = Hierarchical(4, 3).causal()
    assert pattern.length_invariant
    assert not Hierarchical(4, 3).length_invariant
    q, k, v = draw(70)
    whole = gated_attention(q, k, v, pattern)
    for i in (0, 3, 8, 31, 32, 69):
        step = gated_attention(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], pattern, offset=i)
        torch.testing.assert_close(step[:, :, 0], whole[:, :, i], rtol=0, atol=1e-12)


def test_the_future_does_not_matter_if_causal():
    q, k, v = draw(40)
    pattern = Hierarchical(2, 4).causal()
    before = gated_attention(q, k, v, pattern)
    k[:, :, 25:], v[:, :, 25:] = 9.0, -9.0
    after = gated_attention(q, k, v, pattern)
    assert torch.equal(before[:, :, :25], after[:, :, :25])
    assert not torch.equal(before[:, :, 25:], after[:, :, 25:])


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("block", "levels", "n"), [(2, 3, 37), (4, 2, 50), (4, 6, 64), (3, 1, 10)])
def test_scores_are_counted(causal, block, levels, n):
    queries = {level: range(n) if causal else range(0, n, 2**level) for level in range(levels)}
    expected = sum(
        _attends(i, coarse, level, block, causal, level == levels - 1)
        for level in range(levels)
        for i in queries[level]
        for coarse in range(-(-n // 2**level))
    )
    assert Hierarchical(block, levels, is_causal=causal).scores(n) == expected


def test_some_heads_may_have_it():
    q, k, v = draw(40)
    mixed = gated_attention(q, k, v, parse("heads(hierarchical(4, 3), window(5))"))
    for head, pattern in enumerate((Hierarchical(4, 3), LocalWindow(5))):
        alone = gated_attention(q[:, head : head + 1], k, v, pattern)
        torch.testing.assert_close(mixed[:, head : head + 1], alone)


Q, K, V = draw(8)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Hierarchical(3, 2), "hierarchical block = 3 cannot be halved"),
        (lambda: Hierarchical(0, 1), "hierarchical block = 0"),
        (lambda: Hierarchical(2, 0), "hierarchical levels = 0"),
        (lambda: Hierarchical(2, 2) | LocalWindow(3), "no set of pairs"),
        (lambda: LocalWindow(3) & Hierarchical(2, 2), "no set of pairs"),
        (lambda: Hierarchical(2, 2).to_dense(4), "no set of pairs"),
        (lambda: gated_attention(Q[:, :, :3], K, V, Hierarchical(2, 2)), "averages queries: give all 8 queries"),
        (lambda: gated_attention(Q, K, V, Hierarchical(2, 2), dropout=0.1), "cannot have dropout"),
        (lambda: gated_attention(Q, K, V, Hierarchical(2, 2), hardware=presets.pcm()), "no set of pairs"),
        (lambda: gated_attention(Q.float(), K.float(), V.float(), Hierarchical(2, 2), impl="flex"), "no set of pairs"),
        (lambda: Router(Hierarchical(2, 2), 2, 4), "one kind of routing"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(InputError, match=named):
        make()
