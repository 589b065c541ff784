"""What the command says of model folders: refusals before anything runs, and what a user should know of a model."""

import json
import shutil
import warnings

import pytest
from transformers import BertConfig, BertForSequenceClassification, ViTConfig, ViTModel

from tests.calibration.command import assert_one_sentence, run


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "letters")


def test_a_folder_without_a_tokenizer(capsys, copied):
    for path in copied.glob("tokenizer*"):
        path.unlink()
    assert run(capsys, "inspect", "--model", copied)[0] == 0
    for task in ("wordsim", "lee", "code-search"):
        found = run(capsys, "emulate", "--model", copied, "--task", task)
        assert_one_sentence(*found, f"task {task!r} reads text, and model 'letters' has no tokenizer")


def test_a_model_of_images(capsys, tmp_path):
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4
    )
    ViTModel(config).save_pretrained(tmp_path)
    code, out, _ = run(capsys, "inspect", "--model", tmp_path, "--json")
    assert (code, json.loads(out)["analog_layers"]) == (0, 8)  # the embedding of patches is a convolution
    found = run(capsys, "emulate", "--model", tmp_path, "--task", "wordsim")
    assert_one_sentence(*found, "it reads pixel_values instead of tokens")


def test_a_configuration_of_a_huge_model(capsys, copied):
    values = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**values, "num_hidden_layers": 100_000}))
    found = run(capsys, "inspect", "--model", copied)
    assert_one_sentence(*found, "num_hidden_layers = 100000", "its weights are")


def test_a_head_that_is_left_out_is_named_in_one_line(capsys, copied):
    values = json.loads((copied / "config.json").read_text())
    BertForSequenceClassification(BertConfig.from_dict(values)).save_pretrained(copied)
    with pytest.warns(UserWarning, match="no place for") as told:
        assert run(capsys, "inspect", "--model", copied)[0] == 0
    assert len(told) == 1
    assert warnings.formatwarning(told[0].message, UserWarning, "loading.py", 1) == (
        "ohmformer: model 'letters': BertModel has no place for 'classifier.bias' and 1 more: they are left out, with "
        "the head that they belong to\n"
    )


def test_a_name_on_the_hub_without_a_hub(capsys):
    found = run(capsys, "inspect", "--model", "some/model")
    assert_one_sentence(*found, "model 'some/model' is neither a known name", "set HF_HUB_OFFLINE=0")
