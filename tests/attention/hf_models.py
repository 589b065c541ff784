"""Tiny transformers models, and what they compute in transformers' own eager attention in float64."""

import copy
import inspect

import torch
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaModel

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


def cached(model, cache):
    """The cache as the keyword argument that this transformers calls it by: another one since 5.24."""
    known = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in known else "past_key_values": cache}


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
