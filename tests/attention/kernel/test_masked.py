"""Selections as a GPU has them: the same pairs, outputs, gradients and counts as where the host makes a schedule."""

import dataclasses

import pytest
import torch

from attention import gated_attention, parse
from attention.kernel.masked import make_masked
from attention.patterns.on_device import is_chosen
from crossbar import Ledger, Tile, presets
from tests.attention.test_gpu_without_one import SELECTIONS

PCM = dataclasses.replace(presets.pcm(), tile=Tile(16, 8))
B, H, KV, N, D = 2, 4, 2, 50, 8


def draw():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, heads, N, D, generator=generator) for heads in (H, KV, KV))
    return q, k, v, torch.rand(B, N, generator=generator) < 0.8


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Selections of the CPU's tensors are left where a GPU would leave its own."""
    monkeypatch.setattr("attention.patterns.selection.stays", lambda device: True)
    monkeypatch.setattr("attention.kernel.masked.MOST", 2**14)  # several blocks


def computed(pattern, hardware):
    q, k, v, mask = draw()
    inputs = [x.requires_grad_() for x in (q, k, v)]
    with Ledger() as ledger:
        found = gated_attention(*inputs, pattern, hardware=hardware, mask=mask, return_lse=True, seed=3)
    gradients = torch.autograd.grad(found[0].square().sum() + found[1].clamp(-9, 9).sum(), inputs)
    return [*found, *gradients], ledger.totals()


@pytest.mark.parametrize("hardware", [None, PCM], ids=["digital", "pcm"])
@pytest.mark.parametrize("text", SELECTIONS)
def test_outputs_gradients_and_counts_are_those_of_the_hosts_schedule(text, hardware, request):
    expected, counts = computed(parse(text), hardware)
    request.getfixturevalue("as_on_a_gpu")
    q, k, _, mask = draw()
    selected = parse(text).select(q, k, mask=mask)
    assert is_chosen(selected)
    found, own = computed(parse(text), hardware)
    assert own == counts
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5 if hardware is None else 0.02)


@pytest.mark.parametrize("text", SELECTIONS)
def test_pairs_are_those_of_the_pattern(text, as_on_a_gpu):
    q, k, _, mask = draw()
    selected = parse(text).at(N).select(q, k, mask=mask)
    for group in make_masked(selected, (B, H, N, N), 0, q.device).groups:
        first, width = group.first_queries[0], group.shape[2]
        found = group.pairs(0, group.shape[1]).expand(B, H, -1, -1)
        for b in range(B):
            for h in range(H):
                query = torch.arange(first, first + group.shape[1])[:, None].expand(-1, width)
                expected = selected.sequence(b).head(h).allowed(query, torch.arange(width).expand_as(query))
                assert torch.equal(found[b, h], expected)
