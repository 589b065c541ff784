"""Gated attention inside transformers models, against transformers' own eager attention in float64."""

import copy

import pytest
import torch
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralModel,
    T5Config,
    T5EncoderModel,
)

from attention import Dense, LocalWindow, attach, attached_pattern, detach, parse
from calibration import load_model
from crossbar import InputError, Ledger

SPARSE = "window(4) | sinks(1)"
HEADS, KV_HEADS, HEAD_DIM, LAYERS = 4, 2, 8, 2


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def seeded(build, seed=0):
    """A model in eval mode whose weights are large enough that attention is far from uniform."""
    model = build().eval()
    draw = generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.3, generator=draw)
    return model


def bert(**options):
    config = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config |= {"intermediate_size": 32, "max_position_embeddings": 320, **options}
    return seeded(lambda: BertModel(BertConfig(**config), add_pooling_layer=False))


def llama(kind=LlamaModel, **options):
    config = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config |= {"num_key_value_heads": KV_HEADS, "intermediate_size": 32, "max_position_embeddings": 64}
    config |= {"bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, **options}
    return seeded(lambda: kind(LlamaConfig(**config)))


def gpt2(**options):
    config = {"vocab_size": 40, "n_embd": 32, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64, **options}
    return seeded(lambda: GPT2LMHeadModel(GPT2Config(**config)).transformer)


MODELS = {"bert": bert, "llama": llama, "gpt2": gpt2}
CAUSAL = {"bert": False, "llama": True, "gpt2": True}


def tokens(n=20, batch=2, seed=1):
    return torch.randint(1, 40, (batch, n), generator=generator(seed))


def padding(n=20, lengths=(20, 13)):
    return (torch.arange(n) < torch.tensor(lengths)[:, None]).long()


@torch.no_grad()
def run(model, ids, mask=None, **options):
    return model(input_ids=ids, attention_mask=mask, **options).last_hidden_state


@torch.no_grad()
def masked_reference(model, ids, mask, allowed):
    """The same weights in transformers' eager attention, in float64, under an additive 4D mask of the allowed pairs."""
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    pairs = allowed & mask[:, None, None, :].bool()  # [B, 1, N, N]
    additive = torch.zeros(pairs.shape, dtype=torch.float64).masked_fill(~pairs, torch.finfo(torch.float32).min)
    positions = torch.arange(ids.shape[1])[None].expand_as(ids)
    return exact(input_ids=ids, attention_mask=additive, position_ids=positions).last_hidden_state


def assert_same_where_real(found, expected, mask, atol):
    real = mask.bool()
    torch.testing.assert_close(found[real].double(), expected[real].double(), rtol=0, atol=atol)


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
        outputs.append(run(model, ids[:, part], mask[:, :stop], position_ids=positions[:, part], past_key_values=cache))
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
        run(model, ids[:, :5], past_key_values=cache)
        for k in range(5, 12):
            run(model, ids[:, k : k + 1], past_key_values=cache)
    assert stepwise.by_layer == full.by_layer


def test_nothing_is_booked_without_a_ledger_and_the_output_is_the_same():
    model, ids, mask = bert(), tokens(), padding()
    attach(model, SPARSE)
    with Ledger() as ledger:
        counted = run(model, ids, mask)
    totals = ledger.totals()
    assert torch.equal(run(model, ids, mask), counted)
    assert ledger.totals() == totals


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


def test_a_model_with_a_sliding_window_is_refused():
    config = MistralConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=32,
        sliding_window=8,
    )
    model = seeded(lambda: MistralModel(config))
    plain = run(model, tokens())
    attach(model, SPARSE)
    with pytest.raises(InputError, match="masks attention by a rule of its own"):
        run(model, tokens())
    detach(model)
    assert torch.equal(run(model, tokens()), plain)


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
