"""AnalogConfig in transformers' from_pretrained: the bits of emulate, written and read again."""

import copy
import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)

from attention import attached_pattern
from attention.hf.attach import memory_of
from calibration import calibrate, emulate, load_bundle, load_model, tasks
from calibration.hf import AnalogConfig
from calibration.hf.quantizer import STATE
from crossbar import Faults, InputError, WriteVerify, age, analog_layers, presets, reset_reads

TEXT = "a language model reads letters one by one and says which letter may come next " * 12
DAY = 86400.0


def perplexity(tokenizer, **options):
    return tasks.Perplexity(tokenizer, texts=TEXT, calibration_texts=TEXT[::-1], windows=4, window_length=32, **options)


def load(folder, kind=AutoModelForCausalLM, **options):
    return kind.from_pretrained(folder, quantization_config=AnalogConfig(**options))


@torch.no_grad()
def outputs(model, **inputs):
    reset_reads(model)
    inputs = inputs or {"input_ids": torch.arange(2, 26).view(2, 12)}
    found = model(**inputs)
    return found["logits"] if "logits" in found else found["last_hidden_state"]


@pytest.fixture(scope="module")
def bundle(llama_folder, letters, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    task = perplexity(letters, calibration_windows=2)
    calibrate(llama_folder, task, recipe="fast", pattern="window(8) | sinks(1)", times="1d", chips=1, out=path)
    return path


def test_a_loaded_model_scores_what_emulate_scores(llama_folder, letters):
    task, options = perplexity(letters), {"hardware": "pcm", "pattern": "window(8) | sinks(1)", "memory": "gain_cell"}
    scored = emulate(llama_folder, task, times="1d", chips=2, **options).values("analog")
    for seed in (0, 1):
        model = load(llama_folder, seed=seed, age="1d", **options)
        assert task.metrics(model)["perplexity"] == scored[seed]
    assert scored[0] != scored[1]


def test_an_encoder_scores_what_emulate_scores(folder):
    task = tasks.get("wordsim", load_model(folder).tokenizer)
    (scored,) = emulate(folder, task, times="30d", chips=1).values("analog")
    assert task.metrics(load(folder, AutoModel, age="30d"))["spearman"] == scored


@pytest.mark.parametrize("shards", ["50GB", "5KB"])
def test_what_is_saved_loads_to_the_same_bits(llama_folder, tmp_path, shards):
    options = {"seed": 3, "age": "1d", "pattern": "window(8)", "tied_heads": True, "exclude": "*.gate_proj"}
    model = load(llama_folder, hardware="hermes", **options)
    model.save_pretrained(tmp_path / "chip", max_shard_size=shards)
    told = json.loads((tmp_path / "chip" / "config.json").read_text())["quantization_config"]
    assert (told["quant_method"], told["seed"], told["age"]) == ("ohmformer", 3, DAY)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "chip")
    assert analog_layers(again).keys() == analog_layers(model).keys()
    assert str(attached_pattern(again)) == "window(8)"
    assert torch.equal(outputs(again), outputs(model))
    age(again, "30d")
    assert not torch.equal(outputs(again), outputs(model))
    age(model, "30d")
    assert torch.equal(outputs(again), outputs(model))
    again.save_pretrained(tmp_path / "older")  # at the age that it has now
    assert torch.equal(outputs(AutoModelForCausalLM.from_pretrained(tmp_path / "older")), outputs(model))


def test_a_file_has_no_cells_that_seed_and_weights_make_again(llama_folder, tmp_path):
    model = load(llama_folder)
    model.save_pretrained(tmp_path)
    assert (tmp_path / STATE).stat().st_size < (tmp_path / "model.safetensors").stat().st_size
    with torch.no_grad():  # trained on after it was programmed: the cells still hold the weights of before
        for parameter in model.parameters():
            parameter.mul_(1.25)
    model.save_pretrained(tmp_path)
    assert (tmp_path / STATE).stat().st_size > 2 * (tmp_path / "model.safetensors").stat().st_size
    assert torch.equal(outputs(AutoModelForCausalLM.from_pretrained(tmp_path)), outputs(model))


def test_verified_and_faulty_cells_come_back(llama_folder, tmp_path):
    hardware = replace(presets.pcm(), verify=WriteVerify(), faults=Faults(stuck_min=0.02))
    model = load(llama_folder, hardware=hardware, seed=2, age="1h")
    model.save_pretrained(tmp_path)
    assert torch.equal(outputs(AutoModelForCausalLM.from_pretrained(tmp_path)), outputs(model))


def test_a_bundle_is_taken_over_and_kept(bundle, tmp_path):
    loaded = load_bundle(bundle)
    model = load(bundle / "model", recipe=bundle)
    assert analog_layers(model)["model.layers.0.mlp.down_proj"].seconds == DAY + 3600
    assert torch.equal(outputs(model), outputs(loaded.model))
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert analog_layers(again)["model.layers.0.mlp.down_proj"].digital_lines is not None
    assert torch.equal(outputs(again), outputs(loaded.model))
    later = load(bundle / "model", recipe=bundle, age="30d")
    age(loaded.model, "30d")
    assert torch.equal(outputs(later), outputs(loaded.model))


def test_a_config_serves_several_models(bundle):
    config = AnalogConfig(recipe=bundle)
    one, two = (AutoModelForCausalLM.from_pretrained(bundle / "model", quantization_config=config) for _ in range(2))
    assert torch.equal(outputs(one), outputs(two))
    assert config.bundle is not None


def test_a_bundle_of_other_weights_is_refused(bundle, tmp_path, tiny_llama):
    other = copy.deepcopy(tiny_llama)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.mul_(-1)
    other.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is not what the layer's weights are written as"):
        load(tmp_path, recipe=bundle)


def test_generate_and_memory(llama_folder):
    model = load(llama_folder, hardware="ideal", memory="ideal")
    assert memory_of(model) is not None
    ids = torch.arange(2, 8).unsqueeze(0)
    found = model.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    plain = AutoModelForCausalLM.from_pretrained(llama_folder)
    assert torch.equal(found, plain.generate(input_ids=ids, max_new_tokens=6, do_sample=False, pad_token_id=0))
    chip = load(llama_folder, age="1d")
    assert chip.generate(input_ids=ids, min_new_tokens=6, max_new_tokens=6, pad_token_id=0).shape == (1, 12)


def test_classifiers_of_text_and_of_pictures(folder, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertForSequenceClassification.from_pretrained(folder).save_pretrained(tmp_path / "text")
        shape = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "intermediate_size": 24}
        config = ViTConfig(**shape, num_hidden_layers=1, num_attention_heads=2, num_labels=3)
        ViTForImageClassification(config).save_pretrained(tmp_path / "pictures")
    pixels = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    for kind, name, inputs in (
        (AutoModelForSequenceClassification, "text", {"input_ids": torch.arange(2, 8).unsqueeze(0)}),
        (AutoModelForImageClassification, "pictures", {"pixel_values": pixels}),
    ):
        plain = outputs_of_digital(kind, tmp_path / name, inputs)
        ideal = load(tmp_path / name, kind, hardware="ideal")
        assert any(layer.name.endswith("classifier") for layer in analog_layers(ideal).values())
        torch.testing.assert_close(outputs(ideal, **inputs), plain, rtol=1e-4, atol=1e-5)
        chip = load(tmp_path / name, kind, seed=1, age="1d")
        assert not torch.equal(outputs(chip, **inputs), plain)
        chip.save_pretrained(tmp_path / f"{name} chip")
        again = kind.from_pretrained(tmp_path / f"{name} chip")
        assert torch.equal(outputs(again, **inputs), outputs(chip, **inputs))


@torch.no_grad()
def outputs_of_digital(kind, folder, inputs):
    return kind.from_pretrained(folder)(**inputs).logits


def test_the_digital_model_comes_back(llama_folder, tiny_llama, tmp_path):
    model = load(llama_folder, pattern="window(2)")
    model.dequantize()
    ids = torch.arange(2, 14).unsqueeze(0)
    with torch.no_grad():
        assert torch.equal(model(input_ids=ids).logits, tiny_llama(input_ids=ids).logits)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert not (tmp_path / STATE).exists()


def test_a_cached_model_of_the_hub_is_read(llama_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    own = tmp_path / "models--somebody--chip"
    snapshot = own / "snapshots" / ("0" * 40)
    model = load(llama_folder, seed=4)
    model.save_pretrained(snapshot)
    (own / "refs").mkdir()
    (own / "refs" / "main").write_text("0" * 40)
    again = AutoModelForCausalLM.from_pretrained("somebody/chip", cache_dir=tmp_path)
    assert torch.equal(outputs(again), outputs(model))


# Refused


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hardware": "pmc"}, "'pmc'"),
        ({"seed": -1}, "seed = -1 is not allowed"),
        ({"age": "1 fortnight"}, "1 fortnight"),
        ({"tied_heads": 1}, "tied_heads = 1 is not allowed"),
        ({"recipe": "fast"}, "recipe = 'fast' is no folder: give a bundle"),
    ],
)
def test_impossible_configurations(options, said):
    with pytest.raises(InputError, match=said):
        AnalogConfig(**options)


def test_what_a_bundle_says_is_not_said_twice(bundle):
    with pytest.raises(InputError, match=r"seed = 1 is what the bundle .* says: leave it out"):
        AnalogConfig(recipe=bundle, seed=1)


def test_folders_that_are_not_whole(llama_folder, tmp_path):
    load(llama_folder, seed=1).save_pretrained(tmp_path / "chip")
    with pytest.raises(InputError, match=r"one chip of a model\): load it with from_pretrained"):
        load_model(tmp_path / "chip")
    shutil.copytree(tmp_path / "chip", tmp_path / "half")
    (tmp_path / "half" / STATE).unlink()
    with pytest.raises(InputError, match=f"is analog and has no {STATE} beside its weights"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "half")
    told = json.loads((tmp_path / "chip" / "config.json").read_text())
    told["quantization_config"]["seed"] = 2
    (tmp_path / "chip" / "config.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=r"is of chip 1 and config\.json says 2"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "chip")
    told["quantization_config"]["colour"] = "red"
    (tmp_path / "chip" / "config.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="no field 'colour': allowed are hardware"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "chip")


def test_what_cannot_be_saved(llama_folder, tmp_path):
    model = load(llama_folder)
    with pytest.raises(InputError, match=r"call model\.push_to_hub"):
        model.save_pretrained(tmp_path / "no", push_to_hub=True)
    next(iter(analog_layers(model).values())).map_anew()
    with pytest.raises(InputError, match="was not programmed"):
        model.save_pretrained(tmp_path / "no")
    spiking = load(llama_folder, pattern="spiking(1.5)")
    with pytest.raises(InputError, match="thresholds of rows that spike"):
        spiking.save_pretrained(tmp_path / "no")
    assert not (tmp_path / "no").exists()
