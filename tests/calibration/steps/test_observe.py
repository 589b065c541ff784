"""What observers of a model's layers see: vectors of tokens, never those of padding, wherever a model sends them."""

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, GptOssConfig, MixtralConfig

from calibration.steps.observe import observe, some
from crossbar import analog_layers, convert, presets

SIZES = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "num_local_experts": 4, "num_experts_per_tok": 2, "max_position_embeddings": 64,
    "pad_token_id": 0,
}  # fmt: skip
LENGTHS = (7, 4, 2)


def padded(length):
    """Three sequences, the two short ones padded on the right."""
    ids = torch.randint(1, 40, (3, length), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(length) < torch.tensor(LENGTHS).unsqueeze(1)
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def seen_by(model, batches):
    """All that each layer saw, vectors sorted so that their order is none."""
    found = {}
    observe(
        model, batches, analog_layers(model), lambda name, x, y: found.setdefault(name, []).append(torch.cat([x, y], 1))
    )
    joined = {name: torch.cat(parts) for name, parts in found.items()}
    return {name: values[values[:, 0].argsort()] for name, values in joined.items()}


@pytest.mark.parametrize(
    "config", [MixtralConfig(**SIZES), GptOssConfig(**SIZES, head_dim=8)], ids=["mixtral", "gpt-oss"]
)
def test_experts_show_the_tokens_that_are_routed_to_them_without_padding(config):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).eval()
    convert(model, presets.ideal())
    together = padded(max(LENGTHS))
    alone = [
        {"input_ids": ids[None, :length], "attention_mask": torch.ones(1, length, dtype=torch.long)}
        for ids, length in zip(together["input_ids"], LENGTHS, strict=True)
    ]
    found, expected = seen_by(model, [together]), seen_by(model, alone)
    assert found.keys() == expected.keys()
    for name, vectors in expected.items():
        assert found[name].shape == vectors.shape, name
        torch.testing.assert_close(found[name], vectors, rtol=1e-3, atol=1e-4)
    gates = [len(vectors) for name, vectors in found.items() if "layers.0.mlp.experts.tiles.gate_up" in name]
    assert sum(gates) == 2 * sum(LENGTHS)


def test_tokens_in_one_row_are_tokens():
    class Flat(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x, attention_mask=None):
            return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    model = Flat().eval()
    convert(model, presets.ideal())
    x, mask = torch.arange(18.0).view(2, 3, 3), torch.tensor([[1, 1, 0], [1, 0, 0]])
    seen = []
    observe(model, [{"x": x, "attention_mask": mask}], analog_layers(model), lambda name, *values: seen.append(values))
    ((inputs, outputs),) = seen
    assert torch.equal(inputs, x[mask.bool()])
    assert outputs.shape == (3, 2)


@pytest.mark.parametrize(("count", "most"), [(0, 4), (3, 4), (4, 4), (5, 4), (128 * 17, 64), (4096, 64), (512, 128)])
def test_some_vectors_lie_all_over_them(count, most):
    found = some(count, most, torch.device("cpu"))
    assert len(found) == min(count, most)
    assert (found.diff() > 0).all()
    assert ((found >= 0) & (found < count)).all()
    edges = torch.arange(len(found) + 1) * count // max(1, len(found))
    assert ((found >= edges[:-1]) & (found < edges[1:])).all()


@pytest.mark.parametrize("tokens", [8, 16, 17, 32, 34, 64, 128])
def test_some_vectors_are_of_every_position_of_a_sample(tokens):
    positions = some(128 * tokens, 64, torch.device("cpu")) % tokens
    assert len(positions.unique()) >= 0.8 * min(tokens, 40)
