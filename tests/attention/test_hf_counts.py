"""What attached transformers models book in a ledger."""

import pytest
import torch
from transformers import DynamicCache

from attention import attach, parse
from crossbar import Ledger
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
            "column_activations": pairs,
            "dac_conversions": lines + pairs,
            "adc_conversions": pairs + lines,
            "cell_macs": 2 * HEAD_DIM * pairs,
            "tile_reads": 2 * lines // HEAD_DIM,
            "attended_pairs": pairs,
            "digital_macs": 2 * pairs + lines,  # scale and add conversions; the softmax's sums
            "special_functions": pairs + HEADS * sum(lengths),
        }


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
