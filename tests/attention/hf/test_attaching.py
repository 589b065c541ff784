"""Attaching transformers models, detaching them, and the models that are refused."""

import copy

import pytest
import torch
from transformers import (
    BartConfig,
    BartModel,
    BertModel,
    FalconConfig,
    FalconModel,
    LlamaForCausalLM,
    MambaConfig,
    MambaModel,
    T5Config,
    T5Model,
)

from attention import Controller, Dense, LocalWindow, attach, attached_pattern, detach, parse
from attention.controller import platforms
from crossbar import InputError, Ledger, presets
from tests.architectures.attended import as_eager
from tests.attention.hf_models import (
    HEADS,
    LAYERS,
    MODELS,
    SPARSE,
    assert_same_where_real,
    bert,
    cached,
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


@pytest.mark.parametrize("additive", [False, True])
def test_a_mask_of_pairs_is_met_within_the_pattern(additive):
    model, ids = bert(), tokens()
    pairs = torch.rand(2, 1, 20, 20, generator=torch.Generator().manual_seed(3)) < 0.6
    pairs |= torch.eye(20, dtype=torch.bool)
    expected = masked_reference(model, ids, torch.ones(2, 20), pairs & parse(SPARSE).to_dense(20))
    attach(model, SPARSE)
    mask = torch.zeros(pairs.shape).masked_fill(~pairs, torch.finfo(torch.float32).min) if additive else pairs
    torch.testing.assert_close(run(model, ids, mask).double(), expected, rtol=0, atol=1e-5)


def test_a_mask_that_fits_no_pairs_is_refused():
    model = bert()
    attach(model, "dense")
    with pytest.raises(InputError, match=r"got a mask of shape \[2, 1, 20, 19\]: give padding as \[batch, keys\]"):
        run(model, tokens(), torch.zeros(2, 1, 20, 19))


def test_packed_documents_stay_apart():
    model, ids = llama(), tokens(batch=1)
    packed = {"position_ids": torch.cat([torch.arange(12), torch.arange(8)])[None], "use_cache": False}
    plain = run(model, ids, **packed)
    attach(model, "dense")
    torch.testing.assert_close(run(model, ids, **packed), plain, rtol=0, atol=1e-5)
    attach(model, "window(4)")
    whole = run(model, ids, **packed)
    alone = torch.cat([run(model, ids[:, :12], use_cache=False), run(model, ids[:, 12:], use_cache=False)], 1)
    torch.testing.assert_close(whole, alone, rtol=0, atol=1e-5)


def test_a_static_cache_is_refused():
    model = llama(LlamaForCausalLM)
    attach(model, SPARSE)
    with pytest.raises(InputError, match="use transformers' DynamicCache"):
        model.generate(tokens(), attention_mask=torch.ones(2, 20), max_new_tokens=3, cache_implementation="static")


def test_attention_in_code_of_its_own_is_refused():
    config = FalconConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, num_attention_heads=HEADS)
    model = seeded(lambda: FalconModel(config))
    plain = run(model, tokens())
    with pytest.raises(InputError, match=r"FalconModel computes attention in code of its own in h\.0\.self_attention"):
        attach(model, "window(1)")
    assert attached_pattern(model) is None
    assert torch.equal(run(model, tokens()), plain)


def test_a_model_that_attends_nothing_is_refused():
    model = MambaModel(MambaConfig(vocab_size=40, hidden_size=32, num_hidden_layers=1, state_size=4))
    with pytest.raises(InputError, match="MambaModel has no softmax attention that a pattern could restrict"):
        attach(model, "window(1)")


def t5():
    sizes = {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": HEADS}
    return seeded(lambda: T5Model(T5Config(**sizes, decoder_start_token_id=0)))


def bart():
    config = {"vocab_size": 40, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "max_position_embeddings": 64}
    config |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), HEADS)
    config |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 32)
    return seeded(lambda: BartModel(BartConfig(**config)))


@pytest.mark.parametrize("build", [bart, t5])
def test_decoders_attend_the_encoder_by_a_pattern_of_their_own(build):
    """Item 3 of the issue on layers: patterns for the self parts and, apart, the cross part; dense by default."""
    ids, other = tokens(), tokens(n=7, seed=2)
    for cross in ("dense", "window(6)"):
        model = build()
        plain = run(model, ids, padding(), decoder_input_ids=other)
        with as_eager(model, SPARSE, cross):
            expected = run(model, ids, padding(), decoder_input_ids=other)
        attach(model, SPARSE, cross=cross)
        torch.testing.assert_close(run(model, ids, padding(), decoder_input_ids=other), expected, rtol=0, atol=1e-4)
        assert (plain - expected).abs().max() > 1e-2
        steps, cache = [], None
        for place in range(7):
            with torch.no_grad():
                out = model(
                    input_ids=ids, attention_mask=padding(), decoder_input_ids=other[:, place : place + 1],
                    use_cache=True, **cached(model, cache),
                )  # fmt: skip
            cache = out.cache if "cache" in out else out.past_key_values
            steps.append(out.last_hidden_state)
        torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=0, atol=1e-4)
        detach(model)
        assert torch.equal(run(model, ids, padding(), decoder_input_ids=other), plain)


def test_the_memory_of_a_model_with_two_caches_is_refused():
    with pytest.raises(InputError, match="BartModel keeps what its decoder attends in two caches"):
        attach(bart(), SPARSE, presets.ideal())


def test_an_encoder_is_gated_alone():
    encoder, ids, mask = bart().encoder, tokens(), padding()
    expected = masked_reference(encoder, ids, mask, parse(SPARSE).to_dense(20))
    attach(encoder, SPARSE)
    assert_same_where_real(run(encoder, ids, mask), expected, mask, 1e-5)


@pytest.mark.parametrize("build", [bart, t5])
def test_events_of_both_parts_are_counted(build):
    """The same by a controller's events and by counts; the encoder's 20 and 13 tokens by 7 queries each."""
    ids, other, totals = tokens(), tokens(n=7, seed=2), []
    for controller in (None, Controller(platforms.ideal())):
        model = build()
        attach(model, SPARSE, controller=controller)
        with Ledger() as ledger:
            run(model, ids, padding(), decoder_input_ids=other)
        totals.append({name: counts["attended_pairs"] for name, counts in ledger.to_dict().items()})
    assert totals[0] == totals[1]
    assert sum(pairs == HEADS * 7 * (20 + 13) for pairs in totals[0].values()) == (2 if build is t5 else 1)


def test_pairs_of_a_mask_are_counted():
    model, mask = bert(), torch.ones(2, 1, 20, 20).tril()
    mask[1, 0, 10:, :10] = 0
    attach(model, "window(5)")
    with Ledger() as ledger:
        run(model, tokens(), mask.bool())
    opened = mask.bool() & parse("window(5)").to_dense(20)
    assert ledger.totals()["attended_pairs"] == LAYERS * HEADS * int(opened.sum())


def test_gradients_reach_the_biases_of_scores():
    model, ids, found = t5(), tokens(), []

    def grads():
        model.zero_grad()
        states = model(input_ids=ids, attention_mask=padding(), decoder_input_ids=ids[:, :7]).last_hidden_state
        (states * torch.arange(states.shape[-1])).mean().backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    with as_eager(model, SPARSE):
        found.append(grads())
    attach(model, SPARSE)
    found.append(grads())
    biases = [name for name in found[0] if "relative_attention_bias" in name]
    assert len(biases) == 2
    for name in found[0]:
        torch.testing.assert_close(found[1][name], found[0][name], rtol=1e-3, atol=1e-4)
    assert all(found[0][name].abs().max() > 1e-2 for name in biases)
