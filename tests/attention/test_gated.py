import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from attention import (
    BigBird,
    Dense,
    GlobalTokens,
    LocalWindow,
    PerHead,
    PerSequence,
    Sinks,
    attention_reference,
    gated_attention,
)
from crossbar.errors import InputError

PATTERNS = [
    Dense(),
    Dense().causal(),
    LocalWindow(16),
    LocalWindow(64) | Sinks(4),
    (LocalWindow(33) | Sinks(4)).causal(),
    LocalWindow(8) | GlobalTokens((0, 70)),
    Sinks(3) & GlobalTokens((5, 100)),  # nearly all rows without a key
    Sinks(0),
]
problems = given(
    pattern=st.sampled_from(PATTERNS),
    batch=st.integers(1, 3),
    kv_heads=st.integers(1, 2),
    group=st.integers(1, 3),
    n_queries=st.integers(1, 200),
    n_keys=st.none() | st.integers(1, 200),
    offset=st.sampled_from([0, 1, 77]),
    padded=st.booleans(),
    strided=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


def draw(batch, heads, kv_heads, n_queries, n_keys, seed, dtype=torch.float64, padded=True, strided=False):
    """q, k, v and a padding mask whose first sequence is padding altogether."""
    generator = torch.Generator().manual_seed(seed)

    def normal(n_heads, n):
        if strided:  # as models hand them over
            return torch.randn(batch, n, n_heads, 4, generator=generator, dtype=torch.float64).to(dtype).transpose(1, 2)
        return torch.randn(batch, n_heads, n, 4, generator=generator, dtype=torch.float64).to(dtype)

    mask = torch.rand(batch, n_keys, generator=generator) < 0.7
    mask[0] = False
    return normal(heads, n_queries), normal(kv_heads, n_keys), normal(kv_heads, n_keys), mask if padded else None


def gradients(outputs, inputs, seed):
    """Gradients of a fixed random functional of the outputs; −∞ log-sum-exps take no part."""
    generator = torch.Generator().manual_seed(seed)
    total = 0
    for x in outputs:
        factor = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        total = total + (x.double().masked_fill(x == -math.inf, 0.0) * factor).sum()
    return torch.autograd.grad(total, inputs, materialize_grads=True)


@problems
@settings(max_examples=40)
@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_blocks_equal_reference(
    dtype, tolerance, return_lse, pattern, batch, kv_heads, group, n_queries, n_keys, offset, padded, strided, seed
):
    n_keys = offset + n_queries if n_keys is None else n_keys
    q, k, v, mask = draw(batch, kv_heads * group, kv_heads, n_queries, n_keys, seed, dtype, padded, strided)
    results = {}
    for impl in ("blocks", "reference"):
        inputs = [x.clone().requires_grad_() for x in (q, k, v)]
        outputs = gated_attention(
            *inputs, pattern, mask=mask, offset=offset, scale=0.6, return_lse=return_lse, impl=impl
        )
        outputs = outputs if return_lse else (outputs,)
        results[impl] = [*outputs, *gradients(outputs, inputs, seed)]
    for fast, slow in zip(results["blocks"], results["reference"], strict=True):
        assert fast.dtype == slow.dtype == dtype
        # Key gradients sum up to 3 × 200 terms, so errors are taken relative to the largest entry.
        largest = slow.detach().masked_fill(slow == -math.inf, 0).abs().max().clamp(min=1).item()
        torch.testing.assert_close(fast, slow, rtol=0, atol=tolerance * largest)


def test_reference_is_the_textbook_softmax():
    q, k, v, _ = draw(2, 3, 3, 7, 7, seed=0)
    allowed = torch.ones(7, 7, dtype=torch.bool).tril()
    output, lse = attention_reference(q, k, v, allowed, 0.5)
    torch.testing.assert_close(output, scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5))
    by_hand = torch.log(sum(math.e ** (0.5 * q[1, 2, 3] @ k[1, 2, j]) for j in range(4)))
    torch.testing.assert_close(lse[1, 2, 3], by_hand)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("return_lse", [False, True])
@pytest.mark.parametrize("n", [10, 150])  # one block and several
def test_rows_without_keys_give_zero_and_zero_gradients(dtype, return_lse, n):
    q, k, v, mask = draw(2, 2, 1, n, n, seed=1, dtype=dtype)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    outputs = gated_attention(*inputs, LocalWindow(5).causal(), mask=mask, return_lse=return_lse)
    output, lse = outputs if return_lse else (outputs, None)
    reached = (LocalWindow(5).causal().to_dense(n) & mask[:, None]).any(-1)  # [B, N]
    empty = ~reached[:, None].expand(2, 2, n)
    assert (output[empty] == 0).all()
    assert output.isfinite().all()
    if lse is not None:
        assert torch.equal(lse == -torch.inf, empty)
    grads = torch.autograd.grad(output.sum() if lse is None else output.sum() + lse[~empty].sum(), inputs)
    assert all(grad.isfinite().all() for grad in grads)
    assert (grads[0][empty] == 0).all()
    assert all((grad[:, 0][~mask] == 0).all() for grad in grads[1:])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("return_lse", [False, True])
def test_low_precision_is_as_good_as_its_dtype(dtype, return_lse):
    q, k, v, mask = draw(2, 4, 2, 150, 150, seed=2, dtype=dtype)
    results = []
    for impl in ("blocks", "reference"):
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        output = gated_attention(*inputs, PATTERNS[3], mask=mask, return_lse=return_lse, impl=impl)
        output = output[0] if return_lse else output
        assert output.dtype == dtype
        results.append([output, *torch.autograd.grad(output.float().square().sum(), inputs)])
    for fast, slow in zip(*results, strict=True):
        largest = slow.abs().max().item()
        torch.testing.assert_close(fast, slow, rtol=0, atol=4 * torch.finfo(dtype).eps * largest)


@pytest.mark.parametrize("n", [5, 70])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradcheck(n, dropout):
    q, k, v, mask = draw(2, 2, 1, n, n, seed=3)
    if n > 64:  # several blocks, but few inputs, since gradcheck perturbs each
        q, k, v, mask = (None if x is None else x[1:] for x in (q, k, v, mask))
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    pattern = LocalWindow(4) | Sinks(1)

    def attend(q, k, v):
        output, lse = gated_attention(q, k, v, pattern, mask=mask, dropout=dropout, seed=5, return_lse=True)
        return output, lse.masked_fill(lse == -torch.inf, 0.0)

    assert torch.autograd.gradcheck(attend, inputs, fast_mode=n > 64)


def test_step_by_step_equals_all_at_once():
    pattern = (LocalWindow(16) | Sinks(2)).causal()
    q, k, v, _ = draw(1, 2, 2, 80, 80, seed=4)
    whole = gated_attention(q, k, v, pattern)
    for i in range(80):
        step = gated_attention(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], pattern, offset=i)
        torch.testing.assert_close(step, whole[:, :, i : i + 1])


def test_dropout_is_keyed_by_its_seed_and_keeps_the_mean():
    n, p = 150, 0.4
    q, k, v, _ = draw(1, 1, 1, n, n, seed=5)
    state = torch.random.get_rng_state()
    first, again, other = (gated_attention(q, k, v, Dense(), dropout=p, seed=s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    # Ones as values and equal scores: an output is the mean of n variables of mean 1 and variance p / (1 − p).
    ones = torch.ones_like(v)
    output = gated_attention(torch.zeros_like(q), k, ones, Dense(), dropout=p)[..., 0]
    error = math.sqrt(p / (1 - p) / n**2)
    assert abs(output.mean().item() - 1) < 4 * error


def test_many_heads_to_a_key_head_are_consecutive():
    q, k, v, _ = draw(1, 6, 2, 20, 20, seed=6)
    grouped = gated_attention(q, k, v, Dense())
    repeated = gated_attention(q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), Dense())
    torch.testing.assert_close(grouped, repeated)


def test_a_schedule_first_used_for_inference_can_be_trained_with():
    pattern = LocalWindow(11) | Sinks(3)
    q, k, v, _ = draw(1, 1, 1, 170, 170, seed=7)
    with torch.inference_mode():
        gated_attention(q, k, v, pattern)
    q.requires_grad_()
    gated_attention(q, k, v, pattern).sum().backward()
    assert q.grad.isfinite().all()


X = torch.zeros(2, 4, 10, 8)


@pytest.mark.parametrize(
    ("arguments", "options", "named"),
    [
        ((X[0], X, X, Dense()), {}, r"q \[4, 10, 8\].*four dimensions"),
        ((X, X, X[:, :, :5], Dense()), {}, "k and v the same heads and tokens"),
        ((X[:1], X, X, Dense()), {}, "give all one B, q and k one D"),
        ((X, X[..., :4], X[..., :4], Dense()), {}, "give all one B, q and k one D"),
        ((X, X[:, :3], X[:, :3], Dense()), {}, "whole multiple"),
        ((X[:, :, :0], X, X, Dense()), {}, r"q \[2, 4, 0, 8\].*at least one"),
        ((X, X[:, :, :0], X[:, :, :0], Dense()), {}, "at least one sequence, head, token"),
        ((X, X, X, PerHead([Dense()] * 3)), {}, "patterns for 3 heads do not fit queries of 4"),
        ((X, X, X, PerSequence([Dense()] * 3)), {}, "patterns for 3 sequences do not fit queries of 2"),
        ((X, X, X, BigBird(8, 1).causal()), {"offset": 3}, "cannot decode from position 3"),
        ((X, X.double(), X.double(), Dense()), {}, "q torch.float32, k torch.float64"),
        ((X.int(), X.int(), X.int(), Dense()), {}, "give all one of float32"),
        ((X, X, X, "dense"), {}, "'dense' is not a Pattern"),
        ((X, X, X, Dense()), {"mask": torch.ones(2, 10)}, r"padding mask torch.float32 \[2, 10\]"),
        ((X, X, X, Dense()), {"mask": torch.ones(2, 9, dtype=torch.bool)}, r"give bool \[2, 10\]"),
        ((X, X, X, Dense()), {"dropout": 1.0}, "dropout 1.0"),
        ((X, X, X, Dense()), {"dropout": 0.1, "impl": "reference"}, "'reference' cannot have dropout"),
        ((X, X, X, Dense()), {"dropout": 0.1, "impl": "flex"}, "'flex' cannot have dropout"),
        ((X, X, X, Dense()), {"scale": math.nan}, "scale nan"),
        ((X, X, X, Dense()), {"offset": -1}, "offset = -1"),
        ((X, X, X, Dense()), {"seed": 1.5}, "seed = 1.5"),
        ((X, X, X, Dense()), {"impl": "fast"}, "impl 'fast'.*auto, blocks, flex, reference"),
        ((X, X.to("meta"), X, Dense()), {}, "k on meta"),
        ((X, X, X, Dense()), {"mask": torch.ones(2, 10, dtype=torch.bool, device="meta")}, "mask is on meta"),
    ],
)
def test_bad_input_is_named(arguments, options, named):
    with pytest.raises(InputError, match=named):
        gated_attention(*arguments, **options)
