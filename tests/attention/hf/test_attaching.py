"""Attaching transformers models, detaching them, and the models that are refused."""

import copy

import pytest
import torch
from transformers import (
    BartConfig,
    BartModel,
    BertModel,
    LlamaForCausalLM,
    T5Config,
    T5EncoderModel,
)

from attention import Dense, LocalWindow, attach, attached_pattern, detach, parse
from crossbar import InputError
from tests.attention.hf_models import (
    HEADS,
    MODELS,
    SPARSE,
    assert_same_where_real,
    bert,
    llama,
    masked_reference,
    padding,
    run,
    seeded,
    tokens,
)

# Attaching and detaching


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_detach_gives_the_model_back(name, implementation):
    model, ids, mask = MODELS[name](), tokens(), padding()
    model.set_attn_implementation(implementation)
    plain, keys = run(model, ids, mask), {id(m): set(vars(m)) for m in model.modules()}
    attach(model, SPARSE)
    attach(model, "window(2)")  # replaces; what came first is still what detach restores
    assert not torch.equal(run(model, ids, mask), plain)
    assert attached_pattern(model) == LocalWindow(2)
    detach(model)
    assert model.config._attn_implementation == implementation
    assert attached_pattern(model) is None
    assert torch.equal(run(model, ids, mask), plain)
    assert {id(m): set(vars(m)) for m in model.modules()} == keys
    detach(model)  # nothing left to do
    assert torch.equal(run(model, ids, mask), plain)


def test_attaching_again_replaces_the_pattern():
    model, ids = bert(), tokens()
    attach(model, "window(2)")
    first = run(model, ids)
    attach(model, SPARSE)
    assert not torch.equal(run(model, ids), first)
    attach(model, LocalWindow(2))
    assert torch.equal(run(model, ids), first)


def test_two_attached_models_do_not_meet():
    one, two, plain, ids = bert(), llama(), bert(), tokens()
    own = run(plain, ids)
    attach(one, "window(2)")
    alone = run(one, ids)
    attach(two, SPARSE)
    attach(two, "dense")
    assert torch.equal(run(one, ids), alone)
    assert torch.equal(run(plain, ids), own)
    detach(two)
    assert torch.equal(run(one, ids), alone)
    assert attached_pattern(one) == LocalWindow(2)


def test_models_of_one_configuration_object_do_not_meet():
    config = bert().config
    one, two = (seeded(lambda: BertModel(config, add_pooling_layer=False), seed) for seed in (0, 1))
    ids = tokens()
    plain = run(two, ids)
    attach(one, "window(2)")
    assert torch.equal(run(two, ids), plain)


def test_a_copy_stays_attached_and_goes_its_own_way():
    model, ids = bert(), tokens()
    plain = run(model, ids)
    attach(model, "window(2)")
    gated, twin = run(model, ids), copy.deepcopy(model)
    assert torch.equal(run(twin, ids), gated)
    attach(twin, Dense())
    assert attached_pattern(model) == LocalWindow(2)
    assert torch.equal(run(model, ids), gated)
    detach(twin)
    assert torch.equal(run(twin, ids), plain)
    assert torch.equal(run(model, ids), gated)


# Refusals


def test_another_kind_of_model_is_refused():
    with pytest.raises(InputError, match="Linear is not a transformers model: attach takes a PreTrainedModel"):
        attach(torch.nn.Linear(3, 3), "dense")


@pytest.mark.parametrize("text", ["windows(4)", "window(4", "window()", "window(-1)", "", "window(4) + sinks(1)"])
def test_a_bad_pattern_leaves_the_model_alone(text):
    model, ids = bert(), tokens()
    plain = run(model, ids)
    with pytest.raises(InputError):
        attach(model, text)
    assert attached_pattern(model) is None
    assert torch.equal(run(model, ids), plain)


@pytest.mark.parametrize("mask", [torch.ones(2, 1, 20, 20, dtype=torch.bool), torch.zeros(2, 1, 20, 20)])
def test_a_mask_of_ones_own_is_refused(mask):
    model = bert()
    attach(model, "dense")
    with pytest.raises(InputError, match=r"got a mask of shape \[2, 1, 20, 20\]: give padding as \[batch, keys\]"):
        run(model, tokens(), mask)


def test_packed_documents_are_refused():
    model, ids = llama(), tokens(batch=1)
    packed = {"position_ids": torch.cat([torch.arange(12), torch.arange(8)])[None], "use_cache": False}
    plain = run(model, ids, **packed)
    attach(model, SPARSE)
    with pytest.raises(InputError, match="masks attention by a rule of its own"):
        run(model, ids, **packed)
    detach(model)
    assert torch.equal(run(model, ids, **packed), plain)


def test_a_static_cache_is_refused():
    model = llama(LlamaForCausalLM)
    attach(model, SPARSE)
    with pytest.raises(InputError, match="use transformers' DynamicCache"):
        model.generate(tokens(), attention_mask=torch.ones(2, 20), max_new_tokens=3, cache_implementation="static")


def test_attention_in_code_of_its_own_is_refused_or_gated():
    config = T5Config(vocab_size=40, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=HEADS)
    model = seeded(lambda: T5EncoderModel(config))
    plain = run(model, tokens())
    try:
        attach(model, "window(1)")
        gated = run(model, tokens())
    except InputError:
        return
    assert not torch.equal(gated, plain)


def bart():
    config = {"vocab_size": 40, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    config |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS)
    config |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32)
    return seeded(lambda: BartModel(BartConfig(**config)))


def test_a_model_that_attends_another_sequence_is_refused_and_left_alone():
    model, ids, other = bart(), tokens(), tokens(seed=2)
    plain = run(model, ids, decoder_input_ids=other)
    with pytest.raises(InputError, match="BartModel has cross-attention, which no pattern fits"):
        attach(model, SPARSE)
    assert attached_pattern(model) is None
    assert torch.equal(run(model, ids, decoder_input_ids=other), plain)


def test_the_encoder_of_such_a_model_is_gated_alone():
    """What the refusal advises."""
    encoder, ids, mask = bart().encoder, tokens(), padding()
    expected = masked_reference(encoder, ids, mask, parse(SPARSE).to_dense(20))
    attach(encoder, SPARSE)
    assert_same_where_real(run(encoder, ids, mask), expected, mask, 1e-5)
