"""Tokens that a better memory holds."""

import pytest
import torch

from attention import AnalogMemory, LocalWindow, Memory, Protected, Sinks, gated_attention
from crossbar import Ledger, presets
from tests.attention.memory.cases import IDEAL, STEPS, WINDOW, B, D, H, N, draw, run


@pytest.mark.parametrize("protected", [Protected(3, 4), Protected(0, 9), Protected(2, 5, by="pairs", copies=3)])
def test_protection_changes_nothing_where_rows_are_exact(protected):
    q, k, v = draw()
    for steps in STEPS.values():
        memory = AnalogMemory(Memory(IDEAL, capacity=15, sinks=3, protected=protected))
        found = run(memory, q, k, v, WINDOW, steps)
        torch.testing.assert_close(found, gated_attention(q, k, v, WINDOW), rtol=0, atol=2e-6)


def test_protected_tokens_are_read_from_the_better_memory():
    q, k, v = draw()
    exact = gated_attention(q, k, v, WINDOW)
    error = {}
    better = {"pairs": Protected(3, 6, by="pairs", copies=8), "digital": Protected(3, 6), "all": Protected(3, 12)}
    for name, protected in {"none": None, **better}.items():
        memory = AnalogMemory(Memory(presets.pcm(), capacity=N, protected=protected))
        with Ledger() as ledger:
            found = run(memory, q, k, v, WINDOW, [N])
        error[name] = float((found - exact).std())
        if name == "digital":
            near = (LocalWindow(6) | Sinks(3)).causal() & WINDOW
            pairs, whole = (B * H * int(p.rows(N).indptr[-1]) for p in (near, WINDOW))
            counts = {layer: {c.name: n for c, n in found.items()} for layer, found in ledger.by_layer.items()}
            assert counts["memory.protected"]["digital_macs"] == 2 * D * pairs
            assert counts["memory"]["row_activations"] == whole - pairs
    assert error["all"] < 1e-6
    assert error["digital"] < 0.8 * error["none"]
    assert error["pairs"] < 0.9 * error["none"]
