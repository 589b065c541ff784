"""Language models of random weights as folders of safetensors shards, of any size: a shard at a time is in memory."""

import json
import random
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ALPHABET = "abcdefghijklmnopqrstuvwxyz'-"
TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
"""Sizes of a Llama that takes no time."""


def texts(length=400):
    """Options of the task ``perplexity`` by which it reads random letters, which takes no time to prepare."""
    draw = random.Random(0)
    scored, fitted = ("".join(draw.choices(ALPHABET, k=length)) for _ in range(2))
    return {"texts": scored, "calibration_texts": fitted}


def write_llama(folder, *, dtype=torch.float32, seed=0, spread=0.02, **config):
    """Write a Llama that reads letters, a shard for each block and one for the rest; returns its parameters."""
    folder = Path(folder)
    raw = Tokenizer(models.WordLevel({w: k for k, w in enumerate(["[PAD]", "[UNK]", *ALPHABET])}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)
    config = LlamaConfig(architectures=["LlamaForCausalLM"], dtype=dtype, **config)
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    tied = model.all_tied_weights_keys
    shards = {}
    for name, tensor in model.state_dict().items():
        if name not in tied:
            block = name.split(".")[2] if ".layers." in name else "rest"
            shards.setdefault(f"model-{block}.safetensors", {})[name] = tensor.shape
    draw = torch.Generator().manual_seed(seed)
    numbers, places = 0, {}
    for shard, shapes in shards.items():
        tensors = {
            name: (
                torch.ones(shape, dtype=dtype)
                if len(shape) == 1
                else (torch.randn(shape, generator=draw) * spread).to(dtype)
            )
            for name, shape in shapes.items()
        }
        save_file(tensors, folder / shard, {"format": "pt"})
        places |= dict.fromkeys(shapes, shard)
        numbers += sum(tensor.numel() for tensor in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return numbers
