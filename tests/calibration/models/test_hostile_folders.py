"""Model folders that are damaged, of another kind, or made to do harm: one sentence, nothing run, little memory."""

import json
import os
import shutil
import struct
import time
from itertools import islice

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertForSequenceClassification,
    BertLMHeadModel,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)

from calibration import emulate, load_model, tasks
from crossbar import InputError, convert, presets
from tests.calibration.models.test_loading import save_tokenizer, tiny_config
from tests.mutations import of_bytes, of_values


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    config = tiny_config()
    config.num_hidden_layers = 1
    BertModel(config, add_pooling_layer=False).save_pretrained(path)
    save_tokenizer(path)
    return path


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "tiny")


def refuse(folder, *words):
    with pytest.raises(InputError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def change(folder, file="config.json", **values):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def index(folder, shard):
    names = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))


@pytest.fixture
def loads(monkeypatch):
    """Calls of `torch.load`."""
    calls = []
    monkeypatch.setattr(torch, "load", lambda *of, **how: calls.append(of))
    return calls


def test_an_index_that_names_pickled_weights_is_refused(folder, tmp_path, loads):
    torch.save({"weight": Trap(tmp_path / "sprung")}, folder / "pytorch_model.bin")
    index(folder, "pytorch_model.bin")
    refuse(folder, "names 'pytorch_model.bin'", "it may name safetensors files of the folder only")
    assert not loads
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("shard", ["../outside.safetensors", "/outside.safetensors", "sub/outside.safetensors", ".."])
def test_an_index_that_names_weights_outside_is_refused(folder, shard):
    shutil.copy(folder / "model.safetensors", folder.parent / "outside.safetensors")
    index(folder, shard)
    refuse(folder, f"names {shard!r}")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_link_that_leads_out_is_refused_and_one_inside_followed(folder, name):
    (folder / name).rename(folder / "data")
    (folder / name).symlink_to("data")
    load_model(folder)
    (folder / "data").rename(folder.parent / "data")
    (folder / name).unlink()
    (folder / name).symlink_to("../data")
    refuse(folder, repr(name), "is a link that leads out of the folder")


def test_a_snapshot_in_the_cache_of_the_hub_is_followed_to_its_blobs(folder, tmp_path):
    snapshot = tmp_path / "models--a--b" / "snapshots" / "0123"
    shutil.move(folder, tmp_path / "models--a--b" / "blobs")
    snapshot.mkdir(parents=True)
    for path in (tmp_path / "models--a--b" / "blobs").iterdir():
        (snapshot / path.name).symlink_to(f"../../blobs/{path.name}")
    assert load_model(snapshot).name == "0123"


def test_code_that_comes_with_a_model_is_not_run(folder, tmp_path):
    (folder / "trap.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    own = {"AutoConfig": "trap.Config", "AutoModel": "trap.Model", "AutoTokenizer": ["trap.Tokenizer", None]}
    change(folder, auto_map=own)
    load_model(folder)  # of a class that transformers has itself
    change(folder, "tokenizer_config.json", auto_map=own)
    load_model(folder)
    change(folder, "tokenizer_config.json", tokenizer_class="TrapTokenizer")
    load_model(folder)
    change(folder, model_type="trap")
    refuse(folder, "model_type 'trap'", "code that comes with a model is never run")
    change(folder, model_type="bert", _attn_implementation="someone/attention")
    refuse(folder, "asks for code from elsewhere")
    assert not (tmp_path / "sprung").exists()


def test_an_adapter_beside_the_weights_is_not_read(folder):
    expected = load_model(folder).model.state_dict()
    values = {"peft_type": "LORA", "base_model_name_or_path": "../elsewhere", "r": 4, "target_modules": ["query"]}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    save_file({"base_model.model.x.lora_A.weight": torch.ones(4, 16)}, folder / "adapter_model.safetensors")
    found = load_model(folder).model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_configuration_names_no_other_weights(folder):
    values = {name: torch.zeros_like(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(values, folder / "zeros.safetensors", metadata={"format": "pt"})
    change(folder, transformers_weights="zeros.safetensors")
    assert load_model(folder).model.get_input_embeddings().weight.std() > 0


def test_a_tokenizer_that_names_a_file_elsewhere_is_refused(folder):
    shutil.copy(folder / "tokenizer.json", folder.parent / "tokenizer.4.0.json")
    change(folder, "tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.0.json"])
    refuse(folder, "tokenizer_config.json names '../tokenizer.4.0.json'")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 100_000),
        ("num_hidden_layers", 900),
        ("num_hidden_layers", 1e300),
        ("num_hidden_layers", 10**30),
        ("num_labels", 10**9),
        ("vocab_size", 2**31),
        ("hidden_size", 10**6),
        ("intermediate_size", 10**12),
        ("max_position_embeddings", 10**10),
        ("type_vocab_size", 10**9),
    ],
)
def test_a_model_larger_than_its_weights_is_refused_before_it_is_built(folder, key, value):
    change(folder, **{key: value})
    began = time.process_time()
    refuse(folder)
    assert time.process_time() - began < 5


def test_a_configuration_that_makes_long_lists_is_refused_before_it_is_made(folder):
    values = {"model_type": "gpt_neo", "num_layers": 2, "attention_types": [[["global", "local"], 10**9]]}
    change(folder, **values)
    refuse(folder, "attention_types = [[['global', 'local'], 1000000000]]", "at most 4194304")


def test_a_tensor_larger_than_its_file_is_refused(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    name = "encoder.layer.0.output.dense.weight"
    header[name]["shape"] = [10**6, 10**6]
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])
    refuse(folder, "model.safetensors")


def test_a_tensor_of_another_shape_is_named(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    state["encoder.layer.0.output.dense.weight"] = torch.zeros(16, 31)
    save_file(state, path, metadata={"format": "pt"})
    refuse(folder, "'encoder.layer.0.output.dense.weight' is [16, 31] in the weights and [16, 32] by config.json")


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_refused_by_name(folder, value):
    path = folder / "model.safetensors"
    state = load_file(path)
    state["encoder.layer.0.output.dense.bias"][3] = value
    save_file(state, path, metadata={"format": "pt"})
    refuse(folder, "'encoder.layer.0.output.dense.bias' holds NaN or infinite numbers")


@pytest.mark.parametrize(("value", "told"), [(0.0, "only zeros"), (1e6, "numbers beyond 65504")])
def test_weights_that_are_zero_or_huge_are_named(folder, value, told):
    path = folder / "model.safetensors"
    state = load_file(path)
    state["encoder.layer.0.output.dense.weight"].fill_(value)
    save_file(state, path, metadata={"format": "pt"})
    with pytest.warns(UserWarning, match=f"{told} in 'encoder.layer.0.output.dense.weight'"):
        load_model(folder)


def test_quantised_weights_are_refused(folder):
    change(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    refuse(folder, "quantised")


def test_a_classifier_that_is_left_out_is_named(folder):
    BertForSequenceClassification(tiny_config()).save_pretrained(folder)
    with pytest.warns(UserWarning, match=r"no place for 'classifier\.bias' and 1 more: they are"):
        load_model(folder)


def without_tokenizer(folder):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).unlink()


def test_a_folder_without_a_tokenizer_is_inspected_and_not_scored_on_texts(folder):
    without_tokenizer(folder)
    loaded = load_model(folder)
    assert loaded.tokenizer is None
    assert len(convert(loaded.model, presets.ideal()).analog) == 6
    with pytest.raises(InputError, match="model 'tiny' has no tokenizer: save the tokenizer"):
        emulate(folder, "wordsim", chips=1)
    with pytest.raises(InputError, match="the model has no tokenizer"):
        tasks.get("wordsim", loaded.tokenizer)


def test_a_language_model_without_a_tokenizer_is_not_scored(tmp_path):
    GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32)).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no tokenizer"):
        emulate(tmp_path, "perplexity", chips=1)


def test_an_empty_tokenizer_is_refused(folder):
    change(folder, "tokenizer.json", model={"type": "WordLevel", "vocab": {}, "unk_token": "[UNK]"})
    refuse(folder, "its tokenizer knows no token but special ones")
    (folder / "tokenizer.json").unlink()
    change(folder, "tokenizer_config.json", tokenizer_class="BertTokenizer")
    refuse(folder, "its tokenizer knows no token but special ones")


def test_a_tokenizer_of_another_model_is_refused(folder, letters):
    letters.save_pretrained(folder)
    refuse(folder, "its tokenizer gives tokens up to 29, and the model knows 8")


def test_an_encoder_decoder_is_inspected_and_not_scored_on_texts(tmp_path):
    T5Model(T5Config(vocab_size=8, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert convert(load_model(tmp_path).model, presets.ideal()).analog
    for task in ("wordsim", "perplexity"):
        with pytest.raises(InputError, match="it is an encoder-decoder"):
            emulate(tmp_path, task, chips=1)


def test_a_model_of_images_is_inspected_without_a_tokenizer(tmp_path):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    ViTModel(config).save_pretrained(tmp_path)
    assert convert(load_model(tmp_path).model, presets.ideal()).analog
    with pytest.raises(InputError, match="it reads pixel_values instead of tokens"):
        emulate(tmp_path, "wordsim", chips=1)


def test_a_language_model_that_sees_the_future_is_not_scored(tmp_path):
    BertLMHeadModel(tiny_config()).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert load_model(tmp_path).unfit == "it scores each token in the light of those that follow"
    with pytest.raises(InputError, match="in the light of those that follow"):
        emulate(tmp_path, "perplexity", chips=1)


def test_a_configuration_that_makes_outputs_nan_is_found_before_scoring(folder):
    change(folder, layer_norm_eps=-1.0)
    with pytest.raises(InputError, match="outputs for a short input are not finite"):
        emulate(folder, "wordsim", chips=1)


def test_the_hub_is_asked_for_a_name_and_refuses_in_one_sentence():
    with pytest.raises(
        InputError, match=r"model 'some/model' is neither .* set HF_HUB_OFFLINE=0 where the Hub"
    ) as caught:
        load_model("some/model")
    assert "\n" not in str(caught.value)


def test_a_model_in_the_cache_of_the_hub_is_found_by_its_name(whole, tmp_path, monkeypatch):
    cache = tmp_path / "models--some--model"
    shutil.copytree(whole, cache / "snapshots" / ("0" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub._snapshot_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert load_model("some/model").name == "some/model"


FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")


def damaged(whole):
    """A name and bytes of each damaged file."""
    for seed, name in enumerate(FILES):
        values = json.loads((whole / name).read_text())
        for tree in of_values(values, 70, seed):
            yield name, json.dumps(tree).encode()
        for data in of_bytes((whole / name).read_bytes(), 40, seed):
            yield name, data
    data = (whole / "model.safetensors").read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    for header in of_bytes(data[: 8 + size], 90, 7):
        yield "model.safetensors", header + data[8 + size :]
    weights = dict.fromkeys(load_file(whole / "model.safetensors"), "model-1.safetensors")
    for tree in of_values({"metadata": {"total_size": 100}, "weight_map": weights}, 40, 8):
        yield "model.safetensors.index.json", json.dumps(tree).encode()
    for text in of_bytes(json.dumps({"weight_map": weights}).encode(), 40, 9):
        yield "model.safetensors.index.json", text


def outcome(folder):
    """What a folder was refused for, or nothing for a model whose outputs are finite."""
    try:
        loaded = load_model(folder)
    except InputError as error:
        return str(error)
    outputs = loaded.model(torch.arange(6).unsqueeze(0)).last_hidden_state if not loaded.unfit else torch.zeros(1)
    return "" if torch.isfinite(outputs).all() else "\n"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_damaged_folders_are_refused_in_one_sentence_or_give_a_finite_model(folder, whole, every):
    """Every fifth of 500, and all."""
    found = []
    for name, data in islice(damaged(whole), 0, None, every):
        if name.endswith("index.json"):
            os.replace(folder / "model.safetensors", folder / "model-1.safetensors")
        (folder / name).write_bytes(data)
        began = time.process_time()
        found.append(outcome(folder))
        assert time.process_time() - began < 10
        if name.endswith("index.json"):
            (folder / name).unlink()
            os.replace(folder / "model-1.safetensors", folder / "model.safetensors")
        else:
            shutil.copy(whole / name, folder / name)
    assert len(found) == 500 // every
    assert not [said for said in found if "\n" in said or len(said) > 1000]
    assert 50 < found.count("") * every < 300
