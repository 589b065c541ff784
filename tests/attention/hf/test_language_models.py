"""Attached language models with their heads score what they score under the pattern's mask (issue 4, item 6)."""

import copy

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from attention import attach, parse
from tests.attention.hf_models import seeded, tokens

N = 300  # longer than a tile and than a block of queries


def llama(**options):
    config = {"vocab_size": 40, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6}
    config |= {"num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 512}
    return seeded(lambda: LlamaForCausalLM(LlamaConfig(**config, **options)))


def gpt2():
    config = GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=512)
    return seeded(lambda: GPT2LMHeadModel(config))


MODELS = {
    "llama, three query heads to a key head": llama,
    "llama, tied": lambda: llama(tie_word_embeddings=True),
    "gpt2": gpt2,
}


@torch.no_grad()
def masked_scores(model, ids, allowed):
    """Scores of the same weights in transformers' eager attention, in float64, under an additive mask."""
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    mask = torch.zeros(1, 1, N, N, dtype=torch.float64).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return exact(input_ids=ids, attention_mask=mask.expand(len(ids), 1, N, N)).logits


@pytest.mark.parametrize("text", ["dense", "window(64) | sinks(4)", "window(32)", "window(16) | global(0, 150)"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_are_those_of_eager_attention_under_the_mask(name, text):
    model, ids = MODELS[name](), tokens(n=N)
    expected = masked_scores(model, ids, parse(text).causal().to_dense(N))
    attach(model, text)
    with torch.no_grad():
        found = model(input_ids=ids).logits
    # 1e-5 of the largest score: eager attention in float32 is no closer to itself in float64.
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))
    assert expected.std() > 0.5  # scores that mean something


@pytest.mark.parametrize("name", MODELS)
def test_the_loss_and_its_gradients_are_those_of_eager_attention(name):
    plain, ids = MODELS[name](), tokens(n=40)
    plain.set_attn_implementation("eager")
    gated = copy.deepcopy(plain)
    attach(gated, "dense")
    losses = [model(input_ids=ids, labels=ids).loss for model in (plain, gated)]
    for loss in losses:
        loss.backward()
    assert float(losses[1].detach()) == pytest.approx(float(losses[0].detach()), abs=1e-5)
    for one, other in zip(plain.parameters(), gated.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, rtol=0, atol=1e-5 * max(1.0, float(one.grad.abs().max())))
