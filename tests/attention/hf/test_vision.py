"""A vision transformer of transformers, whose tokens are patches of an image."""

import copy

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel

from attention import attach, detach, parse
from crossbar import Ledger, age, convert, presets, program
from tests.attention.hf_models import generator, seeded

TOKENS = 17  # a class token, and 4 x 4 patches


def vit(kind=ViTModel, **options):
    config = {"image_size": 16, "patch_size": 4, "num_channels": 1, "hidden_size": 32, "intermediate_size": 32}
    return seeded(lambda: kind(ViTConfig(**config, num_hidden_layers=2, num_attention_heads=4), **options))


def images():
    return torch.randn(3, 1, 16, 16, generator=generator(1))


@torch.no_grad()
def run(model):
    return model(pixel_values=images().to(model.dtype)).last_hidden_state


@torch.no_grad()
def under_mask(model, allowed):
    """The same weights in transformers' eager attention, in float64, under an additive mask."""
    exact = copy.deepcopy(model).double()
    exact.set_attn_implementation("eager")
    additive = torch.zeros(3, 1, TOKENS, TOKENS, dtype=torch.float64).masked_fill(~allowed, -1e30)
    return exact(pixel_values=images().double(), attention_mask=additive).last_hidden_state


@pytest.mark.parametrize("text", ["dense", "window(3) | global(0)", "neighborhood(5)", "topk(4)"])
def test_patches_attend_as_the_pattern_says(text):
    model = vit(add_pooling_layer=False)
    plain = run(model)
    attach(model, text)
    found = run(model)
    if text == "dense":
        torch.testing.assert_close(found, plain, rtol=0, atol=1e-5)
    elif text != "topk(4)":
        detach(model)
        torch.testing.assert_close(found.double(), under_mask(model, parse(text).to_dense(TOKENS)), rtol=0, atol=1e-5)
    assert (text == "dense") == torch.allclose(found, plain, atol=1e-2)


def test_every_layer_and_the_memory_of_a_classifier_are_analog():
    """The convolution that embeds patches too."""
    model = vit(ViTForImageClassification)
    with torch.no_grad():
        digital = model(pixel_values=images()).logits
    attach(model, "dense", presets.pcm())
    report = convert(model, presets.pcm())
    assert len(report.analog) == 1 + 2 * 6 + 1
    assert report.analog[0].name == "vit.embeddings.patch_embeddings.projection.tiles.weight"
    program(model, 0)
    age(model, "1h")
    with torch.no_grad(), Ledger() as ledger:
        analog = model(pixel_values=images()).logits
    error = float((analog - digital).norm() / digital.norm())
    assert 0.01 < error < 1.0
    assert any(name.endswith(".attention") for name in ledger.by_layer)
