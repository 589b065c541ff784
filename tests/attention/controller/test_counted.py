"""Counts of a GPU, which makes no events: those of the events that the host makes of the same pairs."""

import dataclasses

import pytest
import torch

from attention import Controller, Dense, LocalWindow, PerHead, Platform, Sinks, gated_attention, parse
from attention.controller import platforms
from attention.controller.counted import Totals, count_pairs
from attention.controller.delivery import deliver
from crossbar import Ledger, Tile, presets
from tests.attention.test_gpu_without_one import SELECTIONS

B, H, N, D = 2, 4, 50, 8
MESH = dataclasses.replace(platforms.loihi1(), rows=4, width=3, share=2)
PLATFORMS = {
    "ideal": platforms.ideal(16),
    "fifo": Platform("fifo", rows=16, timing="fifo", unit=1e-9, step=4, service=1),
    "mesh": MESH,
}
PCM = dataclasses.replace(presets.pcm(), tile=Tile(16, 4))


def draw():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, heads, N, D, generator=generator) for heads in (H, 2, 2))
    return q, k, v, torch.rand(B, N, generator=generator) < 0.8


@pytest.mark.parametrize("platform", PLATFORMS.values(), ids=PLATFORMS)
@pytest.mark.parametrize("text", SELECTIONS)
@pytest.mark.parametrize("padded", [False, True], ids=["whole", "padded"])
def test_ledgers_of_a_selection_are_those_of_its_events(text, platform, padded, monkeypatch):
    q, k, v, mask = draw()
    mask = mask if padded else None
    hardware = PCM if platform.rows == 16 else None
    found, outputs = [], []
    for on_a_gpu in (False, True):
        monkeypatch.setattr("attention.patterns.selection.stays", lambda device, stays=on_a_gpu: stays)
        with Ledger() as ledger:
            outputs.append(
                gated_attention(
                    q, k, v, parse(text), mask=mask, hardware=hardware, controller=Controller(platform), seed=3
                )
            )
        found.append(ledger.to_dict()["attention"])
    assert found[0] == found[1]
    assert found[0]["events"] == 2 * found[0]["attended_pairs"] > 0
    assert (found[0]["hops_x"] > 0) == (found[0]["barriers"] > 0) == (platform is MESH)
    torch.testing.assert_close(*outputs, rtol=0, atol=0.02 if hardware else 1e-5)


@pytest.mark.parametrize("offset", [0, 30])
@pytest.mark.parametrize("platform", PLATFORMS.values(), ids=PLATFORMS)
@pytest.mark.parametrize(
    "pattern",
    [(LocalWindow(9) | Sinks(2)).causal(), Dense(), PerHead([Sinks(0), Dense(), LocalWindow(3), Sinks(0)])],
    ids=str,
)
def test_pairs_are_counted_in_parts_as_their_events_are(pattern, platform, offset, monkeypatch):
    monkeypatch.setattr("attention.controller.counted._PAIRS", 7 * B * H * N)  # seven queries at once
    q, _, _, mask = draw()
    q = q[:, :, offset:]
    with Ledger():
        delivery = deliver(Controller(platform), pattern, q, N, offset, mask, True)
    expected = []
    delivery.count("attention", expected.append)
    assert [Totals.of(count_pairs(platform, pattern, q, N, offset, mask).tolist())] == expected
    assert expected[0].queries == H * int(mask[:, offset:].sum())
