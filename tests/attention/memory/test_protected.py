"""Tokens that a better memory holds."""

import pytest
import torch

from attention import AnalogMemory, LocalWindow, Memory, PerHead, Protected, Sinks, gated_attention
from crossbar import Ledger, presets, price
from tests.attention.memory.cases import IDEAL, KV, STEPS, WINDOW, B, D, H, N, draw, run


@pytest.mark.parametrize("protected", [Protected(3, 4), Protected(0, 9), Protected(2, 5, by="pairs", copies=3)])
def test_protection_changes_nothing_where_rows_are_exact(protected):
    q, k, v = draw()
    for steps in STEPS.values():
        memory = AnalogMemory(Memory(IDEAL, capacity=15, sinks=3, protected=protected))
        found = run(memory, q, k, v, WINDOW, steps)
        torch.testing.assert_close(found, gated_attention(q, k, v, WINDOW), rtol=0, atol=2e-6)


def test_heads_of_patterns_of_their_own_find_their_key_heads():
    q, k, v = draw()
    pattern = PerHead([WINDOW, LocalWindow(5).causal(), WINDOW, LocalWindow(9).causal()])
    memory = AnalogMemory(Memory(IDEAL, capacity=15, sinks=3, protected=Protected(3, 4)))
    found = run(memory, q, k, v, pattern, STEPS["in pieces"])
    torch.testing.assert_close(found, gated_attention(q, k, v, pattern), rtol=0, atol=2e-6)


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
            assert counts["memory.protected"] == {
                "digital_pairs": pairs,
                "digital_macs": (2 * D + 1) * pairs,  # both products, and the softmax's difference and sum
                "special_functions": pairs,
                "sram_bytes": 2
                * (2 * 2 * D * B * KV * N),  # a key and a value of 16 bits for each token: written, read once
            }
            assert counts["memory"]["row_activations"] == counts["memory"]["attended_pairs"] == whole - pairs
            assert counts["memory"]["special_functions"] == whole - pairs + B * H * N  # one reciprocal a query
    assert error["all"] < 1e-6
    assert error["digital"] < 0.8 * error["none"]
    assert error["pairs"] < 0.9 * error["none"]


def test_a_layer_whose_rows_are_all_protected_takes_what_a_digital_buffer_takes():
    """One head of 3 numbers and 2 tokens: 3 pairs, none of which opens a row."""
    q = k = v = torch.ones(1, 1, 2, 3)
    pattern = (LocalWindow(40) | Sinks(2)).causal()
    memory = AnalogMemory(Memory(presets.reram(), capacity=42, sinks=2, protected=Protected(sinks=2, recent=40)))
    with Ledger() as ledger:
        run(memory, q, k, v, pattern, [1, 1])
    assert ledger.pairs == ledger.totals()["digital_pairs"] == 3
    report = price(ledger, "isaac + horowitz + nvsim_reram")
    assert report.unpriced == {}
    own = {name: energy.pj for name, energy in report.by_layer().items()}
    assert own["memory"] == pytest.approx(2 * 2 * 3 * 2 * 0.6 + 2 * 7.5)  # pulses of both rows' cells; reciprocals
    digital = 3 * (2 * 3 + 1) * 1.5 + 3 * 7.5
    moved = (
        (2 + 1 + 2) * 2 * 3 * 2 * 2.70
    )  # two tokens are written, one is read in the first step and two in the second
    assert own["memory.protected"] == pytest.approx(digital + moved)


def test_padding_and_shared_heads_of_a_digital_buffer():
    """Two query heads on one key head, each with a pattern of its own, and 2 of 5 tokens padded in one sequence."""
    q, k, v = (torch.ones(2, heads, 5, 3) for heads in (2, 1, 1))
    real = torch.tensor([[True] * 5, [False] * 2 + [True] * 3])
    memory = AnalogMemory(Memory(IDEAL, capacity=5, protected=Protected(sinks=1, recent=5)))
    with Ledger() as ledger:
        memory.append(k, v, padding=real)
        memory.read(q, PerHead([LocalWindow(1).causal(), LocalWindow(2).causal()]), mask=real)
    counts = {layer: {c.name: n for c, n in found.items()} for layer, found in ledger.by_layer.items()}
    pairs = (5 + 3) + (9 + 5)
    assert counts["memory"]["special_functions"] == 2 * (5 + 3)
    assert counts["memory.protected"] == {
        "digital_pairs": pairs,
        "digital_macs": 7 * pairs,
        "special_functions": pairs,
        "sram_bytes": (1 + 2) * (5 + 3) * 2 * 3 * 2,  # written once, read by each head
    }
