import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention.flex_attention import flex_attention

import attention.kernel.flex
from attention import BigBird, LocalWindow, PerHead, Sinks, Strided, gated_attention, parse
from attention.kernel.blocks import Options
from attention.kernel.flex import BLOCK, block_mask
from attention.plan import Digital, Part, decide
from crossbar.errors import InputError
from tests.attention.kernel.test_blocks import EVERY, N, draw

X = torch.randn(1, 2, 20, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("x", "options", "named"),
    [
        (X.clone().requires_grad_(), {}, "cannot train on a CPU"),
        (X.double(), {}, "cannot have float64"),
        (X, {"return_lse": True}, "no log-sum-exp on a CPU"),
        (X, {"dropout": 0.1}, "cannot have dropout"),
    ],
)
def test_what_torch_does_not_have_is_refused(x, options, named):
    with pytest.raises(InputError, match=named):
        gated_attention(x, x, x, LocalWindow(4), impl="flex", **options)


PLAIN = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")  # where it asks every pair


def listed(mask, n_queries, n_keys):
    """What a block mask attends, bool [B, H, N_queries, N_keys], and the blocks that it names."""
    b, h, q, k = torch.meshgrid(*map(torch.arange, (*mask.kv_num_blocks.shape[:2], n_queries, n_keys)), indexing="ij")
    asked = mask.mask_mod(b, h, q, k)
    named = []
    for count, index in (
        (mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)
    ):  # fmt: skip
        chosen = torch.zeros(index.shape, dtype=torch.bool)
        if count is not None:
            there = torch.arange(index.shape[-1]) < count[..., None]
            chosen.scatter_(3, index.long(), there)
        named.append(chosen)
    partial, full = (x[b, h, q // BLOCK, k // BLOCK] for x in named)
    return (partial & asked) | full, named


@PLAIN
@pytest.mark.parametrize("pattern", [pattern for pattern in EVERY if pattern.is_static or pattern.is_causal], ids=str)
def test_block_masks_of_every_pattern(pattern, monkeypatch):
    """Lists of blocks, and values by torch's own computation from the rule, which asks every pair."""
    monkeypatch.setattr(attention.kernel.flex, "_compiled", lambda: flex_attention)
    q, k, v, _ = draw(N, batch=1, kv_heads=4 if pattern.n_heads else 1, heads=4, size=4)
    chosen = pattern.at(N).select(q, k)
    attended, (partial, full) = listed(block_mask(chosen, N, N, 0, q.device), N, N)
    for b, h in np.ndindex(attended.shape[:2]):
        dense = chosen.sequence(b).head(h).to_dense(N)
        assert torch.equal(attended[b, h], dense)
        cut = (
            torch.nn.functional.pad(dense, (0, -N % BLOCK, 0, -N % BLOCK))
            .unflatten(1, (-1, BLOCK))
            .unflatten(0, (-1, BLOCK))
        )
        assert torch.equal((partial | full)[b, h], cut.any(3).any(1))  # no block in vain
        assert torch.equal(full[b, h], cut.all(3).all(1))
    if pattern in EVERY[::3]:
        flex, own = (gated_attention(q, k, v, pattern, impl=i) for i in ("flex", "blocks"))
        torch.testing.assert_close(flex, own, rtol=0, atol=2e-6)


@PLAIN
@pytest.mark.parametrize("pattern", [(LocalWindow(40) | Sinks(4)).causal(), BigBird(32, 2).causal().at(N)], ids=str)
def test_padding_and_queries_after_others(pattern, monkeypatch):
    monkeypatch.setattr(attention.kernel.flex, "_compiled", lambda: flex_attention)
    q, k, v, real = draw(N)
    found = gated_attention(q[:, :, 150:], k, v, pattern, offset=150, mask=real, impl="flex")
    expected = gated_attention(q, k, v, pattern, mask=real)[:, :, 150:]
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "pattern", [(LocalWindow(256) | Sinks(4)).causal(), Strided(256).causal(), BigBird(64, 3)], ids=str
)
def test_a_mask_is_made_without_all_pairs_and_kept(pattern):
    """At 32,768 tokens one bool matrix of all pairs is 1 GiB."""
    n, largest = 32768, 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple | list) else (result,):
                if isinstance(x, torch.Tensor):
                    largest = max(largest, x.untyped_storage().nbytes())
            return result

    with Watch():
        made = block_mask(pattern.at(n), n, n, 0, torch.device("cpu"))
    assert largest <= 32 * 2**20
    assert block_mask(pattern.at(n), n, n, 0, torch.device("cpu")) is made
    assert made.shape == (1, 1, n, n)


def test_too_many_different_blocks_are_refused(monkeypatch):
    monkeypatch.setattr(attention.kernel.flex, "_MOST_MASKS", 3)
    with pytest.raises(InputError, match=r"bigbird.* has more than 3 different blocks.*give impl='blocks'"):
        block_mask(BigBird(32, 2).at(1000).causal(), 1000, 1000, 0, torch.device("cpu"))


def test_hierarchical_is_no_set_of_pairs():
    with pytest.raises(InputError, match="no set of pairs"):
        gated_attention(X, X, X, parse("hierarchical(8, 2)"), impl="flex")


@pytest.mark.parametrize(
    ("change", "way"),
    [
        ({}, "flex"),
        ({"device": "cpu"}, "blocks"),
        ({"dtype": torch.float64}, "blocks"),
        ({"size": 8}, "blocks"),
        ({"n": 1}, "blocks"),
        ({"dropout": 0.1}, "blocks"),
        ({"fixed": False}, "blocks"),
        ({"impl": "blocks"}, "blocks"),
        ({"pattern": "hierarchical(8, 2)"}, "hierarchical"),
        ({"pattern": "heads(window(4), dense)"}, "flex"),
        ({"pattern": "random(1, 64)"}, "blocks"),  # where its table would be too large
        ({"pattern": "heads(window(4), hierarchical(8, 2))"}, "heads"),
    ],
)
def test_on_cuda_flex_computes_what_it_can(change, way, monkeypatch):
    monkeypatch.setattr(
        attention.kernel.flex, "_kept", lambda pattern, *rest: None if "random" in str(pattern) else pattern
    )
    told = {"device": "cuda", "dtype": torch.float32, "size": 32, "n": 256, "dropout": 0.0, "fixed": True}
    told |= {"impl": "auto", "pattern": "window(4)", **change}
    with FakeTensorMode():
        q = torch.empty(1, 2, told["n"], told["size"], dtype=told["dtype"], device=told["device"])
        options = Options(1.0, None, told["dropout"], 0, False)
        part = Part(q, Digital(q, q), parse(told["pattern"]), options, 0, told["fixed"], told["impl"])
        assert decide(part) == way


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own imports
@pytest.mark.parametrize("case", ["window", "heads", "padding", "bigbird"])
def test_flex_equals_blocks(case):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 150, 16, generator=generator)
    k, v = torch.randn(2, 2, 2, 200, 16, generator=generator)
    window = (LocalWindow(30) | Sinks(2)).causal()
    bigbird = BigBird(16, 1).causal().at(200)
    pattern = {"heads": PerHead([window, bigbird] * 2), "bigbird": bigbird}.get(case, window)
    mask = None
    if case == "padding":
        mask = torch.rand(2, 200, generator=generator) < 0.5
        mask[0, :100] = False  # rows without any key
    q.requires_grad_()  # of no use without a gradient, and no reason to refuse
    with torch.no_grad():
        flex, blocks = (gated_attention(q, k, v, pattern, mask=mask, offset=50, impl=i) for i in ("flex", "blocks"))
    torch.testing.assert_close(flex, blocks, rtol=0, atol=1e-5)
