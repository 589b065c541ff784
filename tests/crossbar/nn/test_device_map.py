"""Converted models that accelerate's `dispatch_model` spreads by a device map: the same bits wherever layers lie."""

import pytest
import torch
from accelerate import cpu_offload, dispatch_model

from crossbar import Hardware, InputError, Tile, age, analog_layers, convert, presets, program, reset_reads
from tests.crossbar.nn.test_shard import IDS, llama

PCM = Hardware(presets.pcm().device, tile=Tile(16, 16), output_noise=0.04)
MAPS = {
    "one device": {"": "cpu"},
    "layer by layer": {
        "model.embed_tokens": "cpu",
        "model.layers.0": "cpu",
        "model.layers.1": "cpu",
        "model.norm": "cpu",
        "model.rotary_emb": "cpu",
        "lm_head": "cpu",
    },
}
MAPS["a block on disk"] = {**MAPS["layer by layer"], "model.layers.1": "disk"}


def chip(seed=2):
    model = llama()
    convert(model, PCM)
    if seed is not None:
        program(model, seed)
        age(model, "1d")
    return model


@torch.inference_mode()
def scores(model):
    reset_reads(model)
    return torch.stack([model(input_ids=IDS).logits for _ in range(2)])


@pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS)
def test_a_chip_that_is_dispatched(device_map, tmp_path):
    wanted, model = scores(chip()), chip()
    model = dispatch_model(model, device_map, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert torch.equal(scores(model), wanted)
    age(model, "30d")
    assert not torch.equal(scores(model), wanted)
    age(model, "1d")
    assert torch.equal(scores(model), wanted)


def test_weights_that_are_offloaded_while_a_chip_computes():
    wanted, model = scores(chip()), chip()
    cpu_offload(model, torch.device("cpu"))
    assert all(layer.digital.weight.is_meta for layer in analog_layers(model).values())
    assert torch.equal(scores(model), wanted)


def test_a_model_that_is_dispatched_before_it_is_converted():
    model = dispatch_model(llama(), MAPS["layer by layer"], main_device="cpu", force_hooks=True)
    with pytest.raises(InputError, match="load without, convert, and then call accelerate's dispatch_model or"):
        convert(model, PCM)
