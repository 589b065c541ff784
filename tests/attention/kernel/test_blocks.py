"""Every static pattern through the blocks, against the reference."""

import math
import resource

import pytest
import torch

from attention import (
    BigBird,
    BlockSparse,
    BlockTopK,
    Dense,
    Dilated,
    Documents,
    Fixed,
    GlobalTokens,
    LocalWindow,
    Neighborhood,
    PerHead,
    RandomBlocks,
    Routing,
    Screened,
    Sinks,
    Spiking,
    Strided,
    TopK,
    gated_attention,
)

N = 300  # more than the pairs that are computed in position order (attention.kernel.schedule)
DOCUMENTS = Documents(torch.arange(N) * 3 // N)
FAMILIES = [
    Dense(),
    LocalWindow(40) | Sinks(4),
    LocalWindow(8) | GlobalTokens((0, 70, 299)),
    Dilated(64, 4),
    Strided(17),
    Strided(16) | Sinks(3),
    Strided(16) & DOCUMENTS,
    Strided(12) | Dilated(64, 4),
    Fixed(32, 4),
    BlockSparse(torch.ones(10, 10, dtype=torch.bool).triu(2), 32),
    RandomBlocks(2, 32, seed=1),
    BigBird(32, 2),
    Neighborhood(7),
    Neighborhood(7, 3),
    TopK(7),
    BlockTopK(32, 3),
    TopK(7) | LocalWindow(20),
    (TopK(7) | Sinks(2)) & DOCUMENTS,
    Routing(8, 40),
    Routing(8, 40) | LocalWindow(20) | Sinks(3),
    PerHead([TopK(5), LocalWindow(30), Routing(4, 9), BlockTopK(32, 2)]),
    Screened(7, bits=4),
    (Screened(3, per="tile") | Sinks(2)) & DOCUMENTS,
    Spiking((0.5, 1.0, -1.0, 2.0), bits=4) | LocalWindow(20),
    PerHead([Screened(5), LocalWindow(30), TopK(5), Spiking(1.0)]),
    PerHead([LocalWindow(30), Strided(16), LocalWindow(30), Fixed(32, 4)]),
    PerHead([Dense(), Dense(), Neighborhood(5), Neighborhood(5)]),
]
EVERY = [*FAMILIES, *(family.causal() for family in FAMILIES)]


def draw(n, dtype=torch.float32, heads=4, kv_heads=2, batch=2, seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, heads, n, size), (batch, kv_heads, n, size), (batch, kv_heads, n, size))
    q, k, v = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)
    return q, k, v, torch.rand(batch, n, generator=generator) < 0.8


def results(pattern, impl, inputs, **options):
    """Output, log-sum-exp and the gradients of a fixed random functional of both."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    outputs = gated_attention(*inputs, pattern, impl=impl, return_lse=True, scale=0.6, **options)
    generator, total = torch.Generator().manual_seed(1), 0
    for x in outputs:
        factor = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        total = total + (x.double().masked_fill(x == -math.inf, 0) * factor).sum()
    return [*outputs, *torch.autograd.grad(total, inputs)]


@pytest.mark.parametrize("pattern", EVERY, ids=str)
def test_every_pattern_equals_the_reference(pattern):
    q, k, v, mask = draw(N)
    expected = results(pattern, "reference", (q, k, v), mask=mask)
    for fast, slow in zip(results(pattern, "blocks", (q, k, v), mask=mask), expected, strict=True):
        largest = slow.detach().masked_fill(slow == -math.inf, 0).abs().max().clamp(min=1).item()
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5 * largest)
    plain = gated_attention(q, k, v, pattern, mask=mask, scale=0.6)  # without gradient or log-sum-exp: another path
    torch.testing.assert_close(plain, expected[0].detach(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("pattern", [Strided(17), Fixed(32, 4).causal(), BigBird(32, 2), FAMILIES[-2]], ids=str)
def test_gradcheck(pattern, dropout):
    inputs = [x.requires_grad_() for x in draw(270, torch.float64, batch=1, size=2)[:3]]

    def attend(q, k, v):
        return gated_attention(q, k, v, pattern, dropout=dropout, seed=5, return_lse=True)

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_merged_pieces_are_as_good_as_their_dtype(dtype):
    q, k, v, _ = draw(N, dtype)
    slow = results(Strided(17), "reference", (q, k, v))
    for fast, expected in zip(results(Strided(17), "blocks", (q, k, v)), slow, strict=True):
        assert fast.dtype == expected.dtype
        atol = 4 * torch.finfo(dtype).eps * expected.abs().max().item()
        torch.testing.assert_close(fast, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("pattern", [LocalWindow(40) | Sinks(4), Strided(17), Fixed(32, 4)], ids=str)
def test_packed_documents_equal_separate_ones(pattern):
    """Also for strides and sinks in one document's positions, as long as documents begin at multiples of them."""
    size = 17 * 32
    q, k, v, _ = draw(2 * size, torch.float64)
    own = pattern if pattern.shift_invariant else LocalWindow(40)
    packed = gated_attention(q, k, v, own.causal() & Documents(torch.arange(2 * size) // size).causal())
    for half in (slice(0, size), slice(size, 2 * size)):
        apart = gated_attention(*(x[:, :, half] for x in (q, k, v)), own.causal())
        torch.testing.assert_close(packed[:, :, half], apart)


@pytest.mark.parametrize(
    "pattern", [family.causal() for family in FAMILIES if family.causal().length_invariant], ids=str
)
def test_decoding_equals_prefill(pattern):
    q, k, v, _ = draw(N, torch.float64, batch=1)
    whole = gated_attention(q, k, v, pattern)
    for i in (1, 31, 64, 150, 299):
        step = gated_attention(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], pattern, offset=i)
        torch.testing.assert_close(step, whole[:, :, i : i + 1])
    late = gated_attention(q[:, :, 200:], k, v, pattern, offset=200)  # some steps at once
    torch.testing.assert_close(late, whole[:, :, 200:])


def test_a_pattern_that_depends_on_the_length_decodes_once_it_is_bound():
    q, k, v, _ = draw(N, torch.float64, batch=1)
    pattern = Neighborhood(7).causal().at(N)
    whole = gated_attention(q, k, v, pattern)
    step = gated_attention(q[:, :, 99:100], k[:, :, :100], v[:, :, :100], pattern, offset=99)
    torch.testing.assert_close(step, whole[:, :, 99:100])


@pytest.mark.parametrize("pattern", [Strided(17), FAMILIES[-2]], ids=str)
def test_dropout_is_keyed_by_its_seed(pattern):
    q, k, v, _ = draw(N)
    first, again, other = (gated_attention(q, k, v, pattern, dropout=0.4, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    ones = gated_attention(q * 0, k, torch.ones_like(v), pattern, dropout=0.4, seed=3)
    assert abs(ones[..., 0].mean().item() - 1) < 4 * math.sqrt(0.4 / 0.6 / (2 * 4 * N * 34))  # 34 pairs a query


@pytest.mark.parametrize(
    "pattern",
    [(LocalWindow(64) | Sinks(4)).causal(), Strided(64).causal(), Fixed(64, 4).causal(), BigBird(64, 3)],
    ids=str,
)
def test_no_tensor_of_all_pairs(pattern):
    """At 8,192 tokens one bool matrix of all pairs is 64 MiB, one of float32 scores 256 MiB."""
    n = 8192
    q, k, v, _ = draw(n, heads=1, kv_heads=1, batch=1, size=4)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple | list) else (result,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.untyped_storage().nbytes())
            return result

    inputs = [x.requires_grad_() for x in (q, k, v)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Watch():
        gated_attention(*inputs, pattern).sum().backward()
    assert largest < n * n  # bytes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600 * 2**10
