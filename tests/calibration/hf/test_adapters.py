"""Adapters in peft's format, held against the real peft."""

import copy
import json

import pytest
import torch

pytest.importorskip("peft", reason="adapters of peft need peft")
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from calibration.hf.adapters import load_adapters, on_tiles, save_adapters
from crossbar import InputError, age, analog_layers, convert, presets, program, reset_reads

DOWN = "model.layers.0.mlp.down_proj"
IDS = torch.arange(2, 26).view(2, 12)


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=IDS).logits


@pytest.fixture
def ideal(tiny_llama):
    """The model on ideal cells, adapters of two ranks beside two layers."""
    model = copy.deepcopy(tiny_llama)
    convert(model, presets.ideal())
    draw = torch.Generator().manual_seed(3)
    for name, rank in ((DOWN, 2), ("model.layers.1.self_attn.q_proj", 3)):
        layer = analog_layers(model)[name]
        shapes = (layer.in_features, rank), (rank, layer.out_features)
        layer.set_adapter(*(torch.randn(shape, generator=draw) * 0.3 for shape in shapes))
    return model


def test_peft_computes_what_the_adapters_did(ideal, tiny_llama, tmp_path):
    save_adapters(ideal, tmp_path / "adapters")
    assert {file.name for file in (tmp_path / "adapters").iterdir()} >= {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    digital = PeftModel.from_pretrained(copy.deepcopy(tiny_llama), tmp_path / "adapters")
    torch.testing.assert_close(logits(digital), logits(ideal), rtol=1e-4, atol=1e-4)
    assert (logits(ideal) - logits(tiny_llama)).abs().max() > 0.1
    told = json.loads((tmp_path / "adapters" / "adapter_config.json").read_text())
    assert sorted(told["rank_pattern"].values()) == [2, 3]


def test_adapters_come_back(ideal, tiny_llama, tmp_path):
    save_adapters(ideal, tmp_path / "adapters")
    again = copy.deepcopy(tiny_llama)
    convert(again, presets.ideal())
    load_adapters(again, tmp_path / "adapters")
    assert torch.equal(logits(again), logits(ideal))


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"alpha_pattern": {"down_proj": 5}}])
def test_adapters_of_peft_are_taken_over(tiny_llama, tmp_path, options):
    digital = get_peft_model(
        copy.deepcopy(tiny_llama),
        LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False, **options),
    )
    digital.save_pretrained(tmp_path)
    model = copy.deepcopy(tiny_llama)
    convert(model, presets.ideal())
    load_adapters(model, tmp_path)
    torch.testing.assert_close(logits(model), logits(digital), rtol=1e-4, atol=1e-4)


def test_lora_trains_beside_tiles(tiny_llama, tmp_path):
    model = copy.deepcopy(tiny_llama)
    convert(model, presets.pcm())
    program(model, 2)
    age(model, "1d")
    cells = analog_layers(model)[DOWN].cells.digits.clone()
    lora = get_peft_model(model, on_tiles(LoraConfig(r=2, target_modules=["q_proj", "down_proj"])))
    before = {name: p.detach().clone() for name, p in lora.named_parameters()}
    optimizer = torch.optim.SGD([p for p in lora.parameters() if p.requires_grad], lr=0.5)
    losses = []
    for _ in range(8):
        reset_reads(model)
        loss = lora.eval()(input_ids=IDS, labels=IDS).loss  # this chip, not any
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0] - 0.1
    changed = {name for name, p in lora.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    layer = next(layer for layer in analog_layers(model).values() if layer.name == DOWN)
    assert torch.equal(layer.cells.digits, cells)
    lora.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 8

    again = copy.deepcopy(tiny_llama)
    convert(again, presets.pcm())
    program(again, 2)
    age(again, "1d")
    loaded = PeftModel.from_pretrained(again, tmp_path, config=on_tiles(PeftConfig.from_pretrained(tmp_path)))
    reset_reads(model)
    assert torch.equal(logits(loaded), logits(lora))
    reset_reads(again)
    with lora.disable_adapter(), loaded.disable_adapter():
        reset_reads(model)
        assert torch.equal(logits(loaded), logits(lora))
    with pytest.raises(InputError, match="into which no adapter can be merged"):
        lora.merge_adapter()


def test_a_model_with_lora_is_converted_around_it(tiny_llama):
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    lora = get_peft_model(copy.deepcopy(tiny_llama), config)
    wanted = logits(lora)
    report = convert(lora, presets.ideal(), exclude="*lora_*")
    assert {layer.reason for layer in report.digital if "lora_" in layer.name} == {"excluded by name"}
    assert any(layer.name.endswith("q_proj.base_layer") for layer in report.analog)
    torch.testing.assert_close(logits(lora), wanted, rtol=1e-4, atol=1e-4)


def test_refused(ideal, tiny_llama, tmp_path):
    plain = copy.deepcopy(tiny_llama)
    convert(plain, presets.ideal(), include="*.down_proj")
    with pytest.raises(InputError, match="has no adapters: fit them"):
        save_adapters(plain, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    save_adapters(ideal, tmp_path / "adapters")
    with pytest.raises(InputError, match="q_proj', which is no analog layer"):
        load_adapters(plain, tmp_path / "adapters")
    with pytest.raises(InputError, match="already"):
        save_adapters(ideal, tmp_path / "adapters")
    dora = get_peft_model(copy.deepcopy(tiny_llama), LoraConfig(r=2, target_modules=["down_proj"], use_dora=True))
    dora.save_pretrained(tmp_path / "dora")
    with pytest.raises(InputError, match="no matrix of plain LoRA"):
        load_adapters(ideal, tmp_path / "dora")
    with pytest.raises(InputError, match="cannot be read"):
        load_adapters(ideal, tmp_path)
