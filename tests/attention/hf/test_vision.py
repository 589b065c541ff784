"""A vision transformer of transformers, whose tokens are patches of an image."""

import copy

import pytest
import torch
from transformers import ViTConfig, ViTForImageClassification, ViTModel, VJEPA2Config, VJEPA2Model

from attention import attach, detach, parse
from crossbar import Ledger, age, convert, presets, program
from tests.architectures.attended import as_eager
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


@pytest.mark.parametrize("alone", [True, False])
def test_videos_and_what_predicts_them_are_attended_as_the_pattern_says(alone):
    """V-JEPA 2, whose own eager attention takes no mask; its predictor attends context and targets in their order."""
    sizes = {"patch_size": 4, "crop_size": 8, "frames_per_clip": 8, "tubelet_size": 2, "mlp_ratio": 2}
    sizes |= dict.fromkeys(("hidden_size", "pred_hidden_size"), 36)
    sizes |= dict.fromkeys(("num_attention_heads", "pred_num_attention_heads", "num_hidden_layers"), 2)
    model = seeded(lambda: VJEPA2Model(VJEPA2Config(**sizes, pred_num_hidden_layers=2, pred_num_mask_tokens=2)))
    videos = torch.randn(2, 8, 3, 8, 8, generator=generator(1))

    @torch.no_grad()
    def states():
        found = model(pixel_values_videos=videos, skip_predictor=alone)
        return found.last_hidden_state if alone else found.predictor_output.last_hidden_state

    plain = states()
    with as_eager(model, "window(6) | sinks(2)"):
        expected = states()
    attach(model, "window(6) | sinks(2)")
    torch.testing.assert_close(states(), expected, rtol=0, atol=1e-4)
    assert (plain - expected).abs().max() > 1e-2
