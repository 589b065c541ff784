"""Models with sliding windows of their own: on every layer (Mistral) and on every other (Gemma 3)."""

import pytest
import torch
from transformers import DynamicCache, Gemma3ForCausalLM, Gemma3TextConfig, MistralConfig, MistralForCausalLM

from attention import Memory, attach, detach, memory_cache
from attention.hf.masks import window_of
from crossbar import Ledger, presets
from tests.attention.hf_models import cached, seeded, tokens

IDEAL, WINDOW = presets.ideal(), 8
SHAPE = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "hidden_size": 32}
SHAPE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 32}
SHAPE |= {"max_position_embeddings": 64, "num_hidden_layers": 2, "sliding_window": WINDOW}


def mistral():
    return seeded(lambda: MistralForCausalLM(MistralConfig(**SHAPE)))


def gemma():
    kinds = ["sliding_attention", "full_attention"]
    return seeded(lambda: Gemma3ForCausalLM(Gemma3TextConfig(**SHAPE, layer_types=kinds)))


MODELS = {"mistral": (mistral, [WINDOW, WINDOW]), "gemma": (gemma, [WINDOW, 64])}
models = pytest.mark.parametrize("name", MODELS)


def generate(model, ids, **options):
    return model.generate(ids, max_new_tokens=20, do_sample=False, **options)


@models
def test_generation_on_exact_rows_is_the_models_own_while_its_windows_move_on(name):
    build, capacities = MODELS[name]
    model, ids = build(), tokens(n=15)
    own = generate(model, ids)
    attach(model, "dense", IDEAL)
    cache = memory_cache(model)
    with Ledger() as ledger:
        assert torch.equal(generate(model, ids, **cached(model, cache)), own)
    assert [memory.addresses.capacity for memory in cache.memories] == capacities
    assert [report.lost_pairs for report in cache.report().values()] == [0, 0]  # what is evicted is out of the window
    evicted = [max(34 - capacity, 0) for capacity in capacities]
    assert [report.evicted for report in cache.report().values()] == evicted
    opened = [2 * 4 * sum(min(n, capacity) for n in range(1, 35)) for capacity in capacities]
    assert ledger.totals()["row_activations"] == sum(opened)
    detach(model)
    assert torch.equal(generate(model, ids), own)


@models
def test_a_pattern_is_met_within_the_models_own_window(name):
    build, _ = MODELS[name]
    model, ids = build(), tokens()
    with torch.no_grad():
        own = model(input_ids=ids, use_cache=False).logits
        attach(model, "dense")
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, own, rtol=0, atol=1e-4)
        attach(model, "window(3)")  # narrower than the model's window, which so does nothing
        narrow = model(input_ids=ids, use_cache=False).logits
        for layer in model.model.layers:
            layer.self_attn.sliding_window = None
        model.config.sliding_window = 3
        torch.testing.assert_close(model(input_ids=ids, use_cache=False).logits, narrow, rtol=0, atol=1e-4)
    assert not torch.allclose(narrow, own, atol=1e-2)


def test_a_pattern_of_sinks_needs_no_more_rows_than_the_models_window():
    model = gemma()
    attach(model, "window(16) | sinks(4)", Memory(IDEAL))
    assert [memory.addresses.capacity for memory in memory_cache(model).memories] == [WINDOW, 20]
    attach(model, "window(4) | sinks(2)", Memory(IDEAL))
    assert [memory.addresses.capacity for memory in memory_cache(model).memories] == [6, 6]


def test_only_a_plain_window_is_known_without_a_matrix():
    from transformers import masking_utils as masks

    window = masks.sliding_window_causal_mask_function(4)
    assert window_of(window) == 4
    for other in (
        masks.causal_mask_function,
        masks.sliding_window_bidirectional_mask_function(4),
        masks.and_masks(window, lambda *_: True),
        masks.or_masks(masks.sliding_window_overlay(4), masks.causal_mask_function),
    ):
        assert window_of(other) is None


@models
@pytest.mark.parametrize("text", ["dense", "window(5) | sinks(2)"])
def test_a_digital_cache_that_drops_keys_goes_on(name, text):
    """As plain ``generate`` does it, whose cache keeps no more than the windows of the model."""
    model, ids = MODELS[name][0](), tokens(n=15)
    attach(model, text)
    with torch.no_grad():
        full = model(input_ids=ids, use_cache=False).logits
        cache, steps = DynamicCache(config=model.config), []
        for place in range(15):
            steps.append(model(input_ids=ids[:, place : place + 1], **cached(model, cache)).logits)
    torch.testing.assert_close(torch.cat(steps, 1), full, rtol=0, atol=1e-4)
