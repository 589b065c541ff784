"""What attached transformers models book in a ledger."""

import pytest
import torch
from transformers import DynamicCache

from attention import Memory, Protected, attach, gated_attention, parse
from crossbar import Ledger, Price, PriceBook, presets, price
from tests.attention.hf_models import (
    CAUSAL,
    HEAD_DIM,
    HEADS,
    LAYERS,
    MODELS,
    SPARSE,
    bert,
    cached,
    llama,
    padding,
    run,
    tokens,
)

# The ledger


def layer_names(prefix, suffix):
    return [f"{prefix}.{k}.{suffix}" for k in range(LAYERS)]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("bert", layer_names("encoder.layer", "attention.self")),
        ("llama", layer_names("layers", "self_attn")),
        ("gpt2", layer_names("h", "attn")),
    ],
)
def test_counts_by_hand(name, layers):
    model, lengths = MODELS[name](), (20, 13)
    attach(model, SPARSE)
    with Ledger() as ledger:
        run(model, tokens(), padding(20, lengths))
    pattern = parse(SPARSE).causal() if CAUSAL[name] else parse(SPARSE)
    pairs = HEADS * sum(int(pattern.rows(n).indptr[-1]) for n in lengths)
    lines = HEADS * HEAD_DIM * sum(lengths)  # D lines a query in the one tile that it touches
    assert set(ledger.by_layer) == set(layers)
    for counts in ledger.by_layer.values():
        assert {counter.name: n for counter, n in counts.items()} == {
            "row_activations": pairs,
            "query_drives": lines,
            "column_activations": pairs,
            "dac_conversions": lines + pairs,
            "adc_conversions": pairs + lines,
            "cell_macs": 2 * HEAD_DIM * pairs,
            "tile_reads": 2 * lines // HEAD_DIM,
            "attended_pairs": pairs,
            "digital_macs": 2 * pairs + lines,  # scale and add conversions; the softmax's sums
            "special_functions": pairs + HEADS * sum(lengths),
        }


@pytest.mark.parametrize("name", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("memory", [presets.ideal(), Memory(presets.ideal(), protected=Protected(2, 3))])
def test_rows_in_analog_memory_are_opened_by_the_queries_that_open_them_without_one(name, memory):
    """Padding asks nothing, in encoders either."""
    model, counts = MODELS[name](), []
    for held in (None, memory):
        attach(model, SPARSE, held)
        with Ledger() as ledger, torch.no_grad():
            run(model, tokens(), padding(20, (20, 13)))
        counts.append(ledger.totals())
    digital, analog = counts
    for counter in ("special_functions", *(() if ledger.totals().get("digital_pairs") else tuple(digital))):
        assert analog[counter] == digital[counter]
    assert ledger.pairs == digital["attended_pairs"]


def test_energy_of_a_tiny_attention_by_hand():
    """One head of 3 numbers and 2 tokens, dense: 4 pairs on one tile, each thing that happens priced once."""
    q = k = v = torch.ones(1, 1, 2, 3)
    with Ledger() as ledger:
        gated_attention(q, k, v, parse("dense"), hardware=presets.pcm(), layer="a")
    report = price(ledger, "isaac + horowitz + nvsim_pcm")
    by_hand = {
        "DAC and row drive": (2 * 3 + 4) * 0.39,  # a query drives 3 lines of the K tile, a pair a row of the V tile
        "ADC": (4 + 2 * 3) * 1.56,  # a score a pair, 3 outputs a query
        "cells": 2 * 4 * 3 * 0.00183,
        "writes": 2 * 2 * 3 * 2 * 19.2,  # keys and values of 2 tokens, a pulse for each cell of a pair
        "digital logic": ((4 + 6) + 4) * 1.5 + (4 + 2) * 7.5,  # conversions and pairs; exponentials and reciprocals
    }
    assert {part: energy.pj for part, energy in report.by_component().items()} == pytest.approx(by_hand)
    assert report.unpriced == {"column_activations": 4}
    whole = price(ledger, "gain_cell + isaac + horowitz")  # its price of a pair pays for all but the digital logic
    assert whole.total.pj == pytest.approx(4 * 5.95703125 + by_hand["digital logic"])
    assert whole.unpriced == {}
    alone = price(ledger, PriceBook("mine", (Price("dac_conversions", 2.0), Price("query_drives", 3.0))))
    assert alone.total.pj == pytest.approx(10 * 2.0 + 6 * 3.0)


def test_a_window_of_two_on_three_tokens_is_seven_pairs():
    model = bert(num_hidden_layers=1)
    attach(model, "window(2)")  # |i - j| < 2: 2 + 3 + 2
    with Ledger() as ledger:
        run(model, tokens(n=3, batch=1))
    assert ledger.totals()["row_activations"] == 7 * HEADS


def test_tokens_beyond_256_lie_on_a_second_tile():
    model, n = bert(num_hidden_layers=1), 300
    attach(model, "dense")
    with Ledger() as ledger:
        run(model, tokens(n=n, batch=1))
    assert ledger.totals()["row_activations"] == HEADS * n * n
    assert ledger.totals()["adc_conversions"] == HEADS * (n * n + HEAD_DIM * n * 2)


def test_decoding_opens_the_rows_that_the_full_forward_opens():
    model, ids = llama(), tokens(n=12)
    attach(model, SPARSE)
    with Ledger() as full:
        run(model, ids)
    cache = DynamicCache(config=model.config)
    with Ledger() as stepwise:
        run(model, ids[:, :5], **cached(model, cache))
        for k in range(5, 12):
            run(model, ids[:, k : k + 1], **cached(model, cache))
    assert stepwise.by_layer == full.by_layer


def test_nothing_is_booked_without_a_ledger_and_the_output_is_the_same():
    model, ids, mask = bert(), tokens(), padding()
    attach(model, SPARSE)
    with Ledger() as ledger:
        counted = run(model, ids, mask)
    totals = ledger.totals()
    assert torch.equal(run(model, ids, mask), counted)
    assert ledger.totals() == totals
