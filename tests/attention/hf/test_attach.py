"""Gated attention inside transformers models, against transformers' own eager attention in float64."""

import copy

import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from attention import attach, parse
from calibration import load_model
from crossbar import InputError
from tests.attention.hf_models import (
    CAUSAL,
    MODELS,
    SPARSE,
    assert_same_where_real,
    cached,
    generator,
    gpt2,
    llama,
    masked_reference,
    padding,
    run,
    tokens,
)

# What an attached model computes


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("padded", [False, True])
def test_dense_is_the_models_own_attention(name, padded):
    model, ids = MODELS[name](), tokens()
    mask = padding() if padded else torch.ones_like(ids)
    plain = run(model, ids, mask)
    attach(model, "dense")
    assert_same_where_real(run(model, ids, mask), plain, mask, 1e-5)
    if not padded:
        torch.testing.assert_close(run(model, ids), plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("text", [SPARSE, "window(3)", "window(2) | global(0, 7)", "dense & window(5)"])
def test_a_pattern_is_eager_attention_under_its_mask(name, text):
    model, ids, mask = MODELS[name](), tokens(), padding()
    pattern = parse(text).causal() if CAUSAL[name] else parse(text)
    expected = masked_reference(model, ids, mask, pattern.to_dense(20))
    dense = run(model, ids, mask)
    attach(model, text)
    assert_same_where_real(run(model, ids, mask), expected, mask, 1e-5)
    assert (dense - expected)[mask.bool()].abs().max() > 1e-2  # the mask does something


def test_gpt2_keeps_its_own_scale():
    model, ids, mask = gpt2(scale_attn_by_inverse_layer_idx=True), tokens(), padding()
    expected = masked_reference(model, ids, mask, parse(SPARSE).causal().to_dense(20))
    attach(model, SPARSE)
    assert_same_where_real(run(model, ids, mask), expected, mask, 1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_future_changes_nothing_in_a_causal_model(name):
    model, ids = MODELS[name](), tokens(batch=1)
    attach(model, SPARSE)
    before = run(model, ids)
    for place in (19, 10):
        changed = ids.clone()
        changed[0, place] = ids[0, place] % 38 + 1
        after = run(model, changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.equal(after[:, place], before[:, place])


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_token_reaches_exactly_the_queries_that_attend_it(name):
    layers = {"bert": {"num_hidden_layers": 1}, "llama": {"num_hidden_layers": 1}}
    model, ids = MODELS[name](**layers[name]), tokens(n=12, batch=1)
    attach(model, SPARSE)
    dense = (parse(SPARSE).causal() if CAUSAL[name] else parse(SPARSE)).to_dense(12)
    before = run(model, ids)[0]
    for place in range(12):
        changed = ids.clone()
        changed[0, place] = ids[0, place] % 38 + 1
        reached = (run(model, changed)[0] - before).abs().amax(1) > 1e-7
        assert torch.equal(reached, dense[:, place]), place


@pytest.fixture(scope="module")
def minilm():
    return load_model("minilm")


def test_minilm_equals_the_masked_float64_reference(minilm):
    """Issue 2, item 2: noise-free ``window(64) | sinks(4)`` within 1e-5."""
    ids = torch.randint(1000, 30000, (3, 200), generator=generator())
    mask = padding(200, (200, 130, 40))
    model = copy.deepcopy(minilm.model)
    pattern = parse("window(64) | sinks(4)")
    expected = masked_reference(model, ids, mask, pattern.to_dense(200))
    dense = run(model, ids, mask)
    attach(model, "dense")
    assert_same_where_real(run(model, ids, mask), dense, mask, 1e-5)
    attach(model, pattern)
    assert_same_where_real(run(model, ids, mask), expected, mask, 1e-5)
    assert (dense - expected)[mask.bool()].abs().max() > 1e-2


# Decoding with a cache


@pytest.mark.parametrize("prefill", [1, 5])
@pytest.mark.parametrize("padded", [False, True])
def test_decoding_step_by_step_is_the_full_forward(prefill, padded):
    model, ids = llama(), tokens(n=16)
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :3] = 0  # on the left, as generate pads
    attach(model, "window(4)" if padded else "window(4) | sinks(5)")
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    full = run(model, ids, mask, position_ids=positions)
    cache, outputs = DynamicCache(config=model.config), []
    for start in [0, *range(prefill, 16)]:
        stop = max(prefill, start + 1) if start == 0 else start + 1
        part = slice(start, stop)
        outputs.append(
            run(model, ids[:, part], mask[:, :stop], position_ids=positions[:, part], **cached(model, cache))
        )
    assert_same_where_real(torch.cat(outputs, 1), full, mask, 1e-5)


def test_generate_is_a_greedy_loop_over_full_forwards():
    model, ids = llama(LlamaForCausalLM), tokens(n=6)
    attach(model, SPARSE)
    generated = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=8, do_sample=False)
    with torch.no_grad():
        for _ in range(8):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
    assert torch.equal(generated, ids)
    assert len(generated[0, 6:].unique()) > 1


def left_padded(model):
    ids = tokens(n=10, batch=1)
    padded = torch.cat([torch.zeros(1, 3, dtype=ids.dtype), ids], dim=1)
    mask = (torch.arange(13) >= 3).long()[None]
    alone = run(model, ids)
    together = run(model, padded, mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0))
    return together[:, 3:], alone


@pytest.mark.parametrize("text", ["dense", "window(4)", "dense & window(3)"])
def test_padding_on_the_left_does_not_matter_to_a_window(text):
    model = llama()
    attach(model, text)
    torch.testing.assert_close(*left_padded(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("text", ["sinks(1)", SPARSE, "window(4) | global(0)"])
def test_padding_on_the_left_does_not_take_the_sinks_away(text):
    model = llama()
    attach(model, text)
    with pytest.raises(InputError, match="got padding on the left, where sinks and global tokens stand: pad on the"):
        left_padded(model)
