"""Transformers models whose keys and values are in analog memory."""

import copy

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Zamba2Config,
    Zamba2ForCausalLM,
)

from attention import Memory, Protected, attach, detach, gated_attention, memory_cache, parse, renew_memory
from attention.hf.attach import attached_pattern, memory_of
from crossbar import Ledger, presets
from crossbar.errors import InputError
from crossbar.hardware import Hardware, Tile
from tests.attention.hf_models import HEAD_DIM, HEADS, KV_HEADS, LAYERS, bert, padding, run, seeded, tokens

IDEAL, PCM = presets.ideal(), presets.pcm()
SHAPE = {"vocab_size": 40, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0}


def llama():
    sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    sizes |= {"num_key_value_heads": KV_HEADS, "intermediate_size": 32, "max_position_embeddings": 320}
    return seeded(lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, **sizes)))


def gpt2():
    sizes = {"n_embd": 32, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 320}
    return seeded(lambda: GPT2LMHeadModel(GPT2Config(**SHAPE, **sizes)))


MODELS = {"llama": (llama, KV_HEADS), "gpt2": (gpt2, HEADS)}


def generate(model, ids, new=24, **options):
    return model.generate(ids, max_new_tokens=new, do_sample=False, **options)


@pytest.mark.parametrize("name", MODELS)
def test_generation_on_exact_rows_is_the_models_own_token_for_token(name):
    build, kv_heads = MODELS[name]
    model, ids, new = build(), tokens(n=12), 40
    own, beams = generate(model, ids, new), generate(model, ids, num_beams=3)
    attach(model, "dense", IDEAL)
    with Ledger() as ledger:
        found = generate(model, ids, new)
    assert torch.equal(found, own)
    assert torch.equal(generate(model, ids, num_beams=3), beams)
    # The last token is not fed back, so it has no row.
    appended = 2 * (12 + new - 1)
    assert ledger.totals()["row_writes"] == LAYERS * kv_heads * 2 * appended  # a row of K and one of V
    assert len(ledger.by_layer) == LAYERS
    pairs = 2 * sum(range(1, 12 + new))
    assert ledger.totals()["row_activations"] == LAYERS * HEADS * pairs
    detach(model)
    assert torch.equal(generate(model, ids, new), own)


@pytest.mark.parametrize("name", MODELS)
def test_a_step_at_window_256_opens_the_patterns_rows_and_writes_one(name):
    build, kv_heads = MODELS[name]
    model, ids = build(), tokens(n=280, batch=1)
    attach(model, "window(256) | sinks(4)", IDEAL)
    cache = memory_cache(model)
    with torch.no_grad():
        model(input_ids=ids, cache=cache)
        with Ledger() as ledger:
            model(input_ids=ids[:, :1], cache=cache)
    for counts in ledger.by_layer.values():
        found = {counter.name: n for counter, n in counts.items()}
        assert found["row_writes"] == 2 * kv_heads
        assert found["row_activations"] == found["column_activations"] == HEADS * 260
        assert found["adc_conversions"] == HEADS * (260 + 2 * HEAD_DIM)  # rows 0 to 255, and 4 on the second tile
    report = next(iter(cache.report().values()))
    assert (report.tokens, report.capacity, report.held, report.evicted, report.lost_pairs) == (281, 260, 260, 21, 0)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("protected", [None, Protected(2, 4)])
def test_a_window_generates_on_its_ring_what_it_generates_on_a_growing_cache(name, protected):
    model, ids = MODELS[name][0](), tokens(n=30)
    attach(model, "window(10) | sinks(2)")
    expected = generate(model, ids)
    attach(model, "window(10) | sinks(2)", Memory(IDEAL, protected=protected))
    assert memory_of(model).capacity == 12
    assert torch.equal(generate(model, ids), expected)
    assert torch.equal(generate(copy.deepcopy(model), ids), expected)


@pytest.mark.parametrize("name", MODELS)
def test_padding_on_the_left_has_no_rows(name):
    build, kv_heads = MODELS[name]
    model, ids, mask = build(), tokens(n=12), torch.ones(2, 12, dtype=torch.long)
    mask[1, :5] = 0
    own = generate(model, ids, attention_mask=mask)
    attach(model, "dense", IDEAL)
    with Ledger() as ledger:
        assert torch.equal(generate(model, ids, attention_mask=mask), own)
    assert ledger.totals()["row_writes"] == LAYERS * kv_heads * 2 * (12 + 7 + 2 * 23)


def test_prefill_and_single_steps_program_the_same_rows():
    model, ids = llama(), tokens(n=20)
    attach(model, "window(8)", Memory(PCM, token_seconds=1.0))
    caches = []
    for sizes in ([20], [1] * 20, [5, 15]):
        renew_memory(model)
        caches.append(memory_cache(model))
        with torch.no_grad():
            for part in ids.split(sizes, 1):
                model(input_ids=part, cache=caches[-1])
    for memories in zip(*(cache.memories for cache in caches), strict=True):
        first = memories[0]
        for other in memories[1:]:
            # Rows of the first layer hold the same numbers; those of later ones see what was read before them.
            assert torch.equal(first.keys.rows.at, other.keys.rows.at)
            assert first.now == other.now == 20.0
    whole, *others = (cache.memories[0].values.rows for cache in caches)
    for other in others:
        for state in whole.state:
            torch.testing.assert_close(whole.state[state], other.state[state], rtol=0, atol=1e-4)


def test_a_plain_call_runs_on_the_memory_and_repeats_after_a_renewal():
    model, ids = llama(), tokens()
    exact = model(input_ids=ids).logits.detach()
    attach(model, "dense", PCM)
    with torch.no_grad():
        found = [model(input_ids=ids).logits for _ in range(2)]
        renew_memory(model)
        again = model(input_ids=ids).logits
        renew_memory(model, seed=1)
        other = model(input_ids=ids).logits
    assert torch.equal(found[0], again)
    for noisy in (found[1], other):
        assert not torch.equal(found[0], noisy)
    assert 0.01 < float((found[0] - exact).std() / exact.std()) < 1.0


def test_time_passes_between_tokens():
    model, ids = llama(), tokens()
    device = presets.gain_cell()
    attach(model, "dense", Memory(device, token_seconds=1e-3))
    cache = memory_cache(model)
    with torch.no_grad(), Ledger() as ledger:
        model(input_ids=ids, cache=cache)
    reports = list(cache.report().values())
    assert all(report.expired_reads == 6 for report in reports)  # 20 tokens: ages of 14 to 19 ms are above 13.2 ms
    assert ledger.totals()["expired_row_reads"] == LAYERS * KV_HEADS * 2 * 6
    cache.age(1.0)
    assert cache.memories[0].now == pytest.approx(1.020)


def test_an_encoder_writes_all_rows_at_once():
    model, ids, mask = bert(), tokens(), padding()
    exact = run(model, ids, mask)
    attach(model, "dense", IDEAL)
    with Ledger() as ledger:
        found = run(model, ids, mask)
    torch.testing.assert_close(found[mask.bool()], exact[mask.bool()], rtol=0, atol=1e-4)
    assert ledger.totals()["row_writes"] == LAYERS * HEADS * 2 * int(mask.sum())
    with pytest.raises(InputError, match="keeps no tokens in analog memory"):
        memory_cache(model)


def test_gradients_reach_the_weights_through_rows_written_anew():
    model, ids = llama(), tokens()
    attach(model, "dense", PCM)
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    assert float(model.model.layers[0].self_attn.k_proj.weight.grad.abs().sum()) > 0


def test_training_meets_another_chip_at_each_call_and_the_seed_alone_decides_which():
    def gradients(seed, calls=2):
        model, ids, found = llama(), tokens(), []
        attach(model, "dense", Memory(PCM, seed=seed))
        model.train()
        for _ in range(calls):
            torch.rand(3)  # torch's own generator decides nothing
            model.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            found.append(model.model.layers[0].self_attn.k_proj.weight.grad.clone())
        return found

    first, second = gradients(1)
    assert not torch.equal(first, second)
    assert all(torch.equal(a, b) for a, b in zip((first, second), gradients(1), strict=True))
    assert not torch.equal(first, gradients(2, calls=1)[0])


def test_training_does_not_write_rows_again_in_the_backward_pass():
    model, ids = llama(), tokens()
    attach(model, "dense", PCM)
    model.train()
    loss = checkpoint(lambda ids: model(input_ids=ids, labels=ids).loss, ids, use_reentrant=False)
    with pytest.raises(InputError, match="train without gradient checkpointing"):
        loss.backward()


def test_what_does_not_fit_is_refused():
    model, ids = llama(), tokens()
    attach(model, "dense")
    digital = DynamicCache(config=model.config)
    model(input_ids=ids, cache=digital)
    attach(model, "dense", IDEAL)
    with pytest.raises(InputError, match="DynamicCache holds 20 tokens in digital"):
        model(input_ids=ids[:, :1], cache=digital)
    cache = memory_cache(model)
    with torch.no_grad():
        model(input_ids=ids, cache=cache)
    with pytest.raises(InputError, match="cannot take tokens back"):
        cache.crop(-1)
    detach(model)
    with (
        pytest.raises(InputError, match=r"layers\.0\.self_attn has its keys and values in analog memory"),
        torch.no_grad(),
    ):
        model(input_ids=ids[:, :1], cache=cache)
    with pytest.raises(InputError, match=r"tile\.slices"):
        attach(model, "dense", Hardware(tile=Tile(slices=2)))
    attach(model, "dense", Memory(IDEAL, capacity=16, eviction="refuse"))
    with pytest.raises(InputError, match="16 token rows"), torch.no_grad():
        model(input_ids=ids)


@pytest.mark.parametrize("build", [llama, bert])
@pytest.mark.parametrize("pattern", ["topk(4)", "blocktopk(4, 2) | sinks(1)", "routing(2, 4) | window(4)"])
def test_patterns_that_choose_by_digital_keys_are_refused_before_anything_runs(build, pattern):
    model = build()
    with pytest.raises(InputError, match="cannot read a memory: give a pattern that does not choose by digital keys"):
        attach(model, pattern, IDEAL)
    assert attached_pattern(model) is None


def test_keys_at_hand_can_be_chosen_from():
    q = torch.zeros(1, 2, 4, 4)
    gated_attention(q, q, q, parse("topk(2)"), hardware=IDEAL)  # where keys are at hand


@pytest.mark.parametrize("blocks", [1, 2])
def test_blocks_that_share_their_weights_have_a_memory_each(blocks):
    """Zamba 2: attention modules hold layer index -1, and are told in which layer they are when they are called."""
    kinds = ["linear_attention", "hybrid"] * 2
    config = Zamba2Config(
        vocab_size=40, hidden_size=16, num_hidden_layers=4, layers_block_type=kinds, mamba_d_state=8, mamba_d_conv=2,
        n_mamba_heads=4, intermediate_size=24, num_attention_heads=2, num_mem_blocks=blocks, chunk_size=8,
        max_position_embeddings=64, use_mem_rope=True, pad_token_id=0, eos_token_id=None,
    )  # fmt: skip
    model = seeded(lambda: Zamba2ForCausalLM(config)).eval()
    ids = torch.randint(1, 40, (2, 6), generator=torch.Generator().manual_seed(3))

    def steps(cache):
        with torch.no_grad():
            return torch.cat([model(ids[:, place : place + 1], cache=cache).logits for place in range(6)], 1)

    own = steps(DynamicCache(config=config))
    attach(model, "dense", presets.ideal())
    cache = memory_cache(model)
    torch.testing.assert_close(steps(cache), own, rtol=0, atol=5e-5)  # float32; weights differ from run to run
    held = {f"model.layers.{layer}.shared_transformer.self_attn": 6 for layer in (1, 3)}
    assert {name: report.tokens for name, report in cache.report().items()} == held
    attach(model, "dense", presets.pcm())
    assert (steps(memory_cache(model)) - own).abs().max() > 1e-4
