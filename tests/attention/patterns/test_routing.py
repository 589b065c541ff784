"""Routing against its definition, its centroids, and centroids in tiles."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import crossbar
from attention import LocalWindow, Router, Routing, commitment, gated_attention, parse, place_centroids
from attention.patterns.routing import random_directions
from crossbar import presets
from crossbar.errors import InputError


class Fixed:
    """Centroids that are given."""

    def __init__(self, centroids):
        self.centroids = centroids

    def similarity(self, x):
        return torch.nn.functional.normalize(x, dim=-1) @ self.centroids.transpose(1, 2)


def draw(n, batch=1, heads=2, kv_heads=1, size=6, n_keys=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (batch, heads, n, size), (batch, kv_heads, n_keys or n, size)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (shapes[0], *shapes[1:] * 2)]


def near(x, centroids):
    """Similarity of each vector with each centroid, one by one."""
    return [[float(vector @ c) / float(vector.norm()) for c in centroids] for vector in x]


def nearest(similarities):
    return max(range(len(similarities)), key=lambda c: similarities[c])


def by_definition(pattern, q, k, centroids, real, offset):
    """The keys of each query of one head."""
    near_q, near_k, tokens = near(q, centroids), near(k, centroids), [j for j in range(len(k)) if real[j]]
    if pattern.is_causal:
        rows = []
        for i, row in enumerate(near_q):
            own = [j for j in tokens if j <= offset + i and nearest(near_k[j]) == nearest(row)]
            alone = [offset + i] if offset + i in tokens else []
            rows.append(own[-pattern.top :] or alone)
        return rows
    self_attention = len(q) == len(k) and offset == 0
    asking = tokens if self_attention else range(len(q))
    taken = [set() for _ in q]
    lists = []
    for c in range(pattern.clusters):
        for i in sorted(asking, key=lambda i: -near_q[i][c])[: pattern.top]:
            taken[i].add(c)
        lists.append(sorted(tokens, key=lambda j: -near_k[j][c])[: pattern.top])
    return [
        sorted({j for c in clusters or {nearest(row)} for j in lists[c]})
        for clusters, row in zip(taken, near_q, strict=True)
    ]


@pytest.mark.parametrize("causal", [False, True])
@settings(max_examples=25)
@given(
    clusters=st.integers(1, 5), top=st.integers(1, 9), n=st.integers(1, 20), n_keys=st.integers(1, 20),
    alike=st.booleans(), offset=st.integers(0, 5), padded=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_routing_is_the_definition(causal, clusters, top, n, n_keys, alike, offset, padded, seed):
    if alike:
        n_keys, offset = n, 0
    q, k, _ = draw(n, n_keys=n_keys, seed=seed)
    centroids = torch.randn(2, clusters, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pattern = Routing(clusters, top, centroids=Fixed(centroids), is_causal=causal)
    mask = torch.rand(1, n_keys, generator=torch.Generator().manual_seed(seed)) < 0.7 if padded else None
    chosen = pattern.select(q, k, mask=mask, offset=offset)
    for h in range(2):
        indptr, indices = chosen.head(h).rows(n, n_keys, offset)
        rows = [row.tolist() for row in indices.tensor_split(indptr[1:-1])]
        real = [True] * n_keys if mask is None else mask[0].tolist()
        assert rows == by_definition(pattern, q[0, h], k[0, 0], centroids[h], real, offset)


@pytest.mark.parametrize("text", ["routing(5, 3)", "causal(routing(5, 3))"])
def test_no_query_is_dropped(text):
    """5 clusters of 3 hold at most 15 of 40 tokens, yet every query attends a key and no output is 0."""
    q, k, v = draw(40)
    chosen = parse(text).select(q, k)
    for h in range(2):
        assert (chosen.head(h).rows(40).indptr.diff() > 0).all()
    assert (gated_attention(q, k, v, parse(text)).abs().amax(-1) > 0).all()


@pytest.mark.parametrize("text", ["routing(4, 5)", "routing(4, 5) | window(7)"])
def test_decoding_equals_prefill(text):
    pattern = parse(text).causal()
    q, k, v = draw(60, batch=2)
    whole = gated_attention(q, k, v, pattern)
    for i in (0, 1, 17, 40, 59):
        step = gated_attention(q[:, :, i : i + 1], k[:, :, : i + 1], v[:, :, : i + 1], pattern, offset=i)
        torch.testing.assert_close(step[:, :, 0], whole[:, :, i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("text", ["routing(3, 4)", "causal(routing(3, 4) | window(3))"])
def test_gradients_with_the_choice_held(text):
    inputs = [x.requires_grad_() for x in draw(14, size=3)]
    assert torch.autograd.gradcheck(lambda *x: gated_attention(*x, parse(text)), inputs)


def test_work_follows_the_clusters():
    q, k, _ = draw(2048, heads=1)
    chosen = parse("causal(routing(16, 32))").select(q, k)
    assert len(chosen.head(0).rows(2048).indices) <= 2048 * 32


def test_random_directions_are_the_same_for_a_head_whatever_the_number_of_heads():
    assert torch.equal(random_directions(3, 4, 5, 7)[:2], random_directions(2, 4, 5, 7))
    assert not torch.equal(random_directions(2, 4, 5, 7), random_directions(2, 4, 5, 8))


def clouds(seed, heads=2, n=200):
    """Tokens around 4 orthogonal directions, the same for all heads; [1, H, N, 8] and the directions."""
    generator = torch.Generator().manual_seed(seed)
    number = torch.arange(n) % 4
    x = torch.eye(8)[number] + 0.1 * torch.randn(1, heads, n, 8, generator=generator)
    return x, number


def test_centroids_find_clouds_and_follow_them():
    x, number = clouds(0)
    router = Router(parse("routing(4, 50)"), heads=2, size=8, decay=0.5, seed=3)
    router(x, x)
    assert bool(router.started)
    pairs = router.pattern.select(x, x).head(0).to_dense(200)
    assert torch.equal(pairs, number[:, None] == number)
    for step in range(20):
        router(x.roll(1, 3), clouds(step)[0].roll(1, 3))  # the clouds turn to other directions
    assert torch.allclose(router.centroids.abs().amax(1)[:, 1:5].min(), torch.tensor(1.0), atol=0.05)


def test_a_step_is_the_exponential_average_of_the_nearest_tokens():
    x, _ = clouds(1, heads=1)
    router = Router(parse("routing(3, 5)"), heads=1, size=8, decay=0.9)
    router.started.fill_(True)
    before = router.centroids.clone()
    router(x, 2 * x)
    tokens = torch.nn.functional.normalize(torch.cat([x, x], 2)[0, 0], dim=1)
    own = (tokens @ before[0].t()).argmax(1)
    for c in range(3):
        mean = tokens[own == c].mean(0) if (own == c).any() else before[0, c]
        moved = 0.9 * before[0, c] + 0.1 * mean
        torch.testing.assert_close(router.centroids[0, c], moved / moved.norm())


def test_the_commitment_draws_tokens_to_their_centroids():
    x = clouds(2)[0].requires_grad_()
    router = Router(parse("routing(4, 5)"), heads=2, size=8, commitment=1.0)
    router(x, x)
    before = commitment(router)
    (gradient,) = torch.autograd.grad(before, x)
    router(x.detach() - 100 * gradient, x.detach() - 100 * gradient)
    assert commitment(router) < before
    assert not router.centroids.requires_grad


def test_eval_and_inference_learn_nothing():
    x, _ = clouds(0)
    router = Router(parse("routing(4, 5)"), heads=2, size=8)
    before = router.centroids.clone()
    with torch.no_grad():
        router(x, x)
    router.eval()
    router(x, x)
    assert torch.equal(router.centroids, before)
    assert router.loss is None
    assert not bool(router.started)


def test_a_router_that_waits_attends_everywhere_and_then_starts():
    x, _ = clouds(0)
    dense = torch.ones(200, 200, dtype=torch.bool).tril()
    router = Router(parse("causal(routing(4, 20) | window(3))"), heads=2, size=8, wait=2)
    directions = router.centroids.clone()
    for _ in range(2):
        assert torch.equal(router(x, x).at(200).to_dense(200), dense)
        with torch.no_grad():  # does not count
            assert torch.equal(router.eval()(x, x).to_dense(200), dense)
        router.train()
    assert torch.equal(router.centroids, directions)
    with pytest.raises(InputError, match="router still waits, 2 of 2 steps"):
        router.place(presets.ideal())
    resumed = Router(parse("causal(routing(4, 20) | window(3))"), heads=2, size=8, wait=2)
    resumed.load_state_dict(router.state_dict())
    for twin in (router, resumed):
        assert twin(x, x) is twin.pattern
        assert bool(twin.started)
        assert twin.eval()(x, x) is twin.pattern
    assert torch.equal(router.centroids, resumed.centroids)
    assert not torch.equal(router.centroids, directions)


def test_waiting_replaces_routing_alone():
    x, _ = clouds(0)
    router = Router(parse("routing(4, 20) & window(9)"), heads=2, size=8, wait=1)
    assert torch.equal(router(x, x).to_dense(200), LocalWindow(9).to_dense(200))


def test_a_layer_computed_again_in_the_backward_pass_attends_alike():
    x, _ = clouds(0)
    router = Router(parse("causal(routing(4, 20))"), heads=2, size=8, wait=2, decay=0.5)
    attended = []

    def layer(q):
        attended.append(router(q, q))
        return gated_attention(q, q, q, attended[-1])

    for _ in range(4):
        torch.utils.checkpoint.checkpoint(layer, x.clone().requires_grad_(), use_reentrant=False).sum().backward()
    assert [a is router.pattern for a in attended] == [False] * 4 + [True] * 4


def test_centroids_that_keep_everything_stay_random():
    x, _ = clouds(0)
    router = Router(parse("routing(4, 5)"), heads=2, size=8, decay=1.0)
    before = router.centroids.clone()
    for _ in range(2):
        router(x, x)
    assert torch.equal(router.centroids, before)
    assert router.loss > 0


def test_state_is_saved_and_loaded():
    x, _ = clouds(0)
    router, twin = (Router(parse("routing(4, 5)"), heads=2, size=8) for _ in range(2))
    router(x, x)
    twin.load_state_dict(router.state_dict())
    assert twin.pattern.select(x, x) == router.pattern.select(x, x)


def test_centroids_in_tiles_have_the_chips_error_and_are_booked():
    x, _ = clouds(0)
    model = torch.nn.ModuleDict({"router": Router(parse("routing(4, 50)"), heads=2, size=8)})
    router = model["router"]
    router(x, x)
    digital = router.similarity(x)
    place_centroids(model, presets.ideal())
    torch.testing.assert_close(router.similarity(x), digital, rtol=0, atol=1e-5)
    report = place_centroids(model, presets.pcm())
    assert [layer.name for layer in report.layers] == ["router.tiles.0", "router.tiles.1"]
    crossbar.program(model, seed=1)
    crossbar.age(model, 86400.0)
    with crossbar.Ledger() as ledger:
        error = router.similarity(x) - digital
    assert 0.001 < error.std() < 0.3
    assert ledger.totals()["adc_conversions"] == 2 * 200 * 4
    with pytest.raises(InputError, match="centroids in tiles do not learn"):
        router(x, x)
    router.lift()
    torch.testing.assert_close(router.similarity(x), digital)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Routing(0, 4), "routing clusters = 0"),
        (lambda: Routing(4, 0), "routing top = 0"),
        (lambda: Routing(4, 2, -1), "routing seed = -1"),
        (lambda: Routing(4, 2).to_dense(5), r"'routing\(4, 2\)' depends on queries and keys"),
        (lambda: Router(LocalWindow(4), 2, 8), r"give one kind of routing"),
        (lambda: Router(Routing(2, 2) | Routing(3, 2), 2, 8), r"give one kind of routing"),
        (lambda: Router(Routing(2, 2), 2, 8, decay=1.5), "decay from 0 to 1"),
        (lambda: Router(Routing(2, 2), 0, 8), "router heads = 0"),
        (lambda: Router(Routing(2, 2), 2, 8, wait=-1), "router wait = -1"),
        (lambda: place_centroids(torch.nn.Linear(2, 2), presets.pcm()), "has no Router"),
        (lambda: parse("<routing(4, 2) by learned centroids>"), "has no text"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(InputError, match=named):
        make()
