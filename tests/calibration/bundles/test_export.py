"""A bundle's model in other software: transformers alone, and aihwkit."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

from calibration import DriftCompensation, InputRanges, Recipe, calibrate, load_bundle, load_model
from crossbar import InputError, analog_layers, presets, reset_reads
from tests.calibration.command import assert_one_sentence, run
from tests.calibration.conftest import TinyNet
from tests.peers import needs_aihwkit

PLAIN = Recipe("plain", (InputRanges(), DriftCompensation()))  # no output offsets, which some layers cannot keep
LAYER = "encoder.layer.0.intermediate.dense"


def corrected(result):
    """Put one of everything that calibration can leave beside the tiles into the first layers."""
    model, draw = result.deployment.experiment.analog, torch.Generator().manual_seed(0)
    for layer in list(analog_layers(model).values())[:3]:
        o, i = layer.out_features, layer.in_features
        offset = 0.1 * torch.randn(o, generator=draw) if layer.digital.bias is not None else torch.zeros(o)
        layer.set_output_correction(1 + 0.1 * torch.randn(o, generator=draw), offset)
        layer.set_adapter(0.1 * torch.randn(i, 2, generator=draw), torch.randn(2, o, generator=draw))
    return model


def saved(result, path, monkeypatch, change):
    """The bundle of a result whose chip is changed after it was put together."""
    from calibration.runs.deployment import Deployment

    real = Deployment.restore
    monkeypatch.setattr(Deployment, "restore", lambda self, *of: (real(self, *of), change(result)))
    result.save(path)
    return load_bundle(path)


@pytest.fixture(scope="module")
def bundle_path(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    calibrate(folder, "wordsim", times=["1d"], chips=1, staircase=False, out=path)
    return path


@pytest.fixture(scope="module")
def quiet():
    """Tiles whose only difference from digital layers is what the cells hold."""
    return replace(presets.pcm(), dac=None, adc=None, output_noise=0.0)


def test_effective_weights_compute_what_quiet_tiles_do(folder, quiet, tmp_path, monkeypatch):
    result = calibrate(folder, "wordsim", quiet, times=["1d"], chips=1, staircase=False)
    bundle = saved(result, tmp_path / "bundle", monkeypatch, corrected)
    with torch.no_grad():
        bundle.model.encoder.layer[0].output.LayerNorm.weight.mul_(1.5)
    missed = bundle.export(tmp_path / "plain")
    assert missed == ("converters, and the noise of reads",)
    model = AutoModel.from_pretrained(tmp_path / "plain", add_pooling_layer=False)
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        theirs, own = model(input_ids=ids).last_hidden_state, bundle.model(input_ids=ids).last_hidden_state
    torch.testing.assert_close(theirs, own, rtol=1e-4, atol=1e-5)
    digital = load_model(folder).model(input_ids=ids).last_hidden_state
    assert (own - digital).norm() > 0.01 * digital.norm()
    assert AutoTokenizer.from_pretrained(tmp_path / "plain").get_vocab() == bundle.tokenizer.get_vocab()
    told = json.loads((tmp_path / "plain" / "ohmformer_export.json").read_text())
    assert told == {"weights": "effective", "chip": 0, "seconds": 90000.0, "not exported": list(missed)}


def test_a_language_model_with_tied_embeddings(llama_folder, quiet, tmp_path):
    from calibration import tasks

    task = tasks.get("perplexity", load_model(llama_folder).tokenizer, windows=2, window_length=32)
    result = calibrate(llama_folder, task, quiet, PLAIN, pattern="window(8)", times=["1d"], chips=1, staircase=False)
    result.save(tmp_path / "bundle")
    bundle = load_bundle(tmp_path / "bundle")
    missed = bundle.export(tmp_path / "plain")
    assert missed[0] == "the attention pattern window(8) (the folder has the model's own attention)"
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    ids = torch.arange(8).view(1, 8)  # no longer than the window, so that both attend to the same
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, bundle.model(input_ids=ids).logits, rtol=1e-4, atol=1e-5)


def test_a_tied_head_on_tiles_is_the_same_chip_after_loading(llama_folder, quiet, tmp_path):
    from calibration import tasks

    task = tasks.get("perplexity", load_model(llama_folder).tokenizer, windows=2, window_length=32)
    result = calibrate(
        llama_folder, task, quiet, PLAIN, times=["1d"], chips=1, staircase=False, tied_heads=True,
        out=tmp_path / "bundle",
    )  # fmt: skip
    first, second = load_bundle(tmp_path / "bundle"), load_bundle(tmp_path / "bundle")
    assert first.model.lm_head.digital.weight is first.model.model.embed_tokens.weight
    ids = torch.arange(8).view(1, 8)
    with torch.no_grad():
        assert task.metrics(first.model)["perplexity"] == result.values("calibrated")[0]
        reset_reads(first.model)
        own = first.model(input_ids=ids).logits
        assert torch.equal(second.model(input_ids=ids).logits, own)
    # what the head's cells stand for is not what is looked up, so the folder has both
    first.export(tmp_path / "plain")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert not plain.config.tie_word_embeddings
    assert not torch.equal(plain.lm_head.weight, plain.model.embed_tokens.weight)
    with torch.no_grad():
        torch.testing.assert_close(plain(ids).logits, own, rtol=1e-4, atol=1e-5)
    first.export(tmp_path / "digital", "digital")
    kept = AutoModelForCausalLM.from_pretrained(tmp_path / "digital")
    assert kept.lm_head.weight.data_ptr() == kept.model.embed_tokens.weight.data_ptr()


def test_offsets_without_a_bias_are_said(llama_folder, quiet, tmp_path, monkeypatch):
    from calibration import tasks

    task = tasks.get("perplexity", load_model(llama_folder).tokenizer, windows=2, window_length=32)
    result = calibrate(llama_folder, task, quiet, PLAIN, times=["1d"], chips=1, staircase=False)
    bundle = saved(result, tmp_path / "bundle", monkeypatch, corrected)
    (_, told) = bundle.export(tmp_path / "plain")
    assert told.startswith(
        "the output offsets of 3 layers without a bias, the first is model.layers.0.self_attn.q_proj"
    )


def test_digital_weights_are_the_original_ones(folder, tmp_path):
    result = calibrate(folder, "wordsim", recipe=PLAIN, pattern="window(4)", times=["1d"], chips=1, staircase=False)
    result.save(tmp_path / "bundle")
    load_bundle(tmp_path / "bundle").export(tmp_path / "plain", "digital")
    theirs, own = (load_file(path / "model.safetensors") for path in (tmp_path / "plain", folder))
    assert theirs.keys() == own.keys()
    assert all(torch.equal(theirs[name], own[name]) for name in own)
    again = load_model(tmp_path / "plain")
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        expected = load_model(folder).model(input_ids=ids).last_hidden_state
        assert torch.equal(again.model(input_ids=ids).last_hidden_state, expected)


@needs_aihwkit
def test_aihwkit_computes_the_same(folder, tmp_path, monkeypatch):
    """8-bit converters, no noise: outputs differ where a sum lies on the border of two codes."""
    hardware = replace(presets.pcm(), output_noise=0.0)
    result = calibrate(folder, "wordsim", hardware, times=["1d"], chips=1, staircase=False)
    bundle = saved(result, tmp_path / "bundle", monkeypatch, corrected)
    model, missed = bundle.to_aihwkit()
    assert missed == ()
    ids = torch.arange(20).view(2, 10)
    reset_reads(bundle.model)
    with torch.no_grad():
        theirs, own = model(input_ids=ids).last_hidden_state, bundle.model(input_ids=ids).last_hidden_state
    assert (theirs - own).norm() < 0.01 * own.norm()


def test_refusals(capsys, net, task, bundle_path, tmp_path):
    calibrate(net, task, times=["1d"], chips=1, out=tmp_path / "own")
    own = load_bundle(tmp_path / "own", model=TinyNet())
    with pytest.raises(InputError, match="a class of your own, which transformers does not read"):
        own.export(tmp_path / "plain")
    bundle = load_bundle(bundle_path)
    with pytest.raises(InputError, match="weights 'best' are not known: choose effective or digital"):
        bundle.export(tmp_path / "plain", "best")
    with pytest.raises(InputError, match="exists already"):
        bundle.export(tmp_path / "own")
    found = run(capsys, "export", bundle_path, "--out", tmp_path / "plain", "--weights", "best")
    assert_one_sentence(*found, "weights 'best' are not known")
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_the_command(capsys, bundle_path, tmp_path):
    code, out, err = run(capsys, "export", bundle_path, "--out", tmp_path / "plain")
    assert (code, out, err) == (0, "not exported: converters, and the noise of reads\n", "")
    expected = analog_layers(load_bundle(bundle_path).model)[LAYER].effective_weight()
    assert torch.equal(load_file(tmp_path / "plain" / "model.safetensors")[f"{LAYER}.weight"], expected)
    assert [path.name for path in tmp_path.iterdir()] == ["plain"]
