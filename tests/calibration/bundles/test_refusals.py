"""A bundle that is not what was written: each kind of damage is one sentence, and nothing is unpickled."""

import hashlib
import json
import os
import pickle
import resource
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from calibration import calibrate, inspect_bundle, load_bundle
from calibration.bundles.files import MANIFEST, SEAL, Files
from crossbar import InputError
from tests.calibration.bundles.copies import copy_of, names, resealed
from tests.calibration.command import assert_one_sentence, run


@pytest.fixture(scope="module")
def bundle(folder, tmp_path_factory):
    """One of each file that there can be."""
    path = tmp_path_factory.mktemp("bundles") / "whole"
    result = calibrate(folder, "wordsim", pattern="window(2) | sinks(1)", times=["1d"], chips=1, staircase=False)
    with torch.no_grad():
        result.deployment.experiment.analog.embeddings.LayerNorm.weight.mul_(1.5)
    result.save(path)
    return path


@pytest.fixture
def broken(bundle, tmp_path):
    return copy_of(bundle, tmp_path)


def refuse(path, *words):
    """Both readers refuse; in one sentence."""
    for read in (load_bundle, inspect_bundle):
        with pytest.raises(InputError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value)


def refuse_to_load(path, *words):
    with pytest.raises(InputError) as caught:
        load_bundle(path)
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def write_manifest(folder, values):
    text = json.dumps(values) if isinstance(values, dict) else values
    (folder / MANIFEST).write_text(text)
    (folder / SEAL).write_text(f"{hashlib.sha256(text.encode()).hexdigest()}  {MANIFEST}\n")


def manifest(folder):
    return json.loads((folder / MANIFEST).read_text())


def test_the_bundle_is_whole(bundle):
    assert load_bundle(bundle).description["chip"] == 0
    assert {"recalibrated.safetensors", "routing.safetensors", "state.safetensors", "tiles"} <= {
        path.name for path in bundle.iterdir()
    }


def test_a_flipped_byte_in_every_file(broken):
    for name in names(broken):
        path = broken / name
        text = path.read_bytes()
        for place in {0, len(text) // 2, len(text) - 1}:
            path.write_bytes(text[:place] + bytes([text[place] ^ 1]) + text[place + 1 :])
            refuse(broken, "manifest.json" if name == SEAL else name)
        path.write_bytes(text)
    load_bundle(broken)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_bytes_anywhere(bundle, data):
    """Without the copies: Files.verified reads no more than the bytes."""
    name = data.draw(st.sampled_from(names(bundle)))
    text = (bundle / name).read_bytes()
    place = data.draw(st.integers(0, len(text) - 1))
    flip = data.draw(st.integers(1, 255))
    (bundle / name).write_bytes(text[:place] + bytes([text[place] ^ flip]) + text[place + 1 :])
    try:
        with pytest.raises(InputError):
            Files.verified(bundle)
    finally:
        (bundle / name).write_bytes(text)


def test_every_missing_file(broken):
    for name in names(broken):
        text = (broken / name).read_bytes()
        (broken / name).unlink()
        refuse(broken, name)
        (broken / name).write_bytes(text)


@pytest.mark.parametrize("cut", ["one byte", "half", "all"])
def test_every_truncated_file(broken, cut):
    for name in names(broken):
        text = (broken / name).read_bytes()
        (broken / name).write_bytes(text[: {"one byte": -1, "half": len(text) // 2, "all": 0}[cut]])
        refuse(broken, name)
        (broken / name).write_bytes(text)


def test_a_missing_folder(tmp_path):
    refuse(tmp_path / "absent", "absent' is not a folder")
    refuse(tmp_path, "is not a bundle, it has no manifest.json")


def test_a_model_folder_is_told_from_a_bundle_that_lacks_files(folder):
    refuse(folder, "is a model folder and not a bundle", f"`ohmformer inspect --model {folder}`")


def test_a_file_that_the_manifest_lists_and_nobody_wrote(broken):
    values = manifest(broken)
    values["files"]["model/extra.bin"] = {"sha256": "0" * 64, "size": 3}
    write_manifest(broken, values)
    refuse(broken, "'model/extra.bin' is missing")


def test_a_file_that_is_not_in_the_manifest(broken):
    (broken / "model" / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": 1}))
    refuse(broken, "'model/pytorch_model.bin' is not in the manifest")


@pytest.mark.parametrize(
    ("schema", "told"), [(2, "2"), (0, "0"), ("1", "'1'"), (None, "None"), (True, "True"), ([1], "[1]"), (1.5, "1.5")]
)
def test_another_schema_version(broken, schema, told):
    write_manifest(broken, {**manifest(broken), "schema": schema})
    refuse(broken, f"has schema version {told} and this version of ohmformer reads 1")


def test_another_format(broken):
    write_manifest(broken, {**manifest(broken), "format": "zip"})
    refuse(broken, "is not an ohmformer bundle")


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/passwd",
        "model/../../outside",
        "./report.json",
        "model//x",
        "",
        "C:\\x",
        "a\\..\\b",
        "a\x00b",
    ],
)
def test_a_path_that_climbs_out(broken, name):
    (broken.parent / "outside").write_bytes(b"secret")
    values = manifest(broken)
    values["files"][name] = {"sha256": hashlib.sha256(b"secret").hexdigest(), "size": 6}
    write_manifest(broken, values)
    refuse(broken, "which is not a path inside the bundle")


@pytest.mark.parametrize("name", ["report.json", "model"])
def test_a_link_in_the_place_of_a_file_or_a_folder(broken, name):
    (broken / name).rename(broken.parent / "elsewhere")
    (broken / name).symlink_to(broken.parent / "elsewhere")
    refuse(broken, "is reached through a link")


def test_a_link_that_nobody_listed(broken):
    (broken / "more").symlink_to(broken.parent)
    refuse(broken, "'more' is not in the manifest")


def test_a_pipe_in_the_place_of_a_file(broken):
    (broken / "report.json").unlink()
    os.mkfifo(broken / "report.json")
    refuse(broken, "'report.json' is not a plain file")


# A manifest that agrees with a file whose content is wrong


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"format": "ohmformer bundle", "schema": 1, "files": {', "is not JSON"),
        ('{"schema": 1, "schema": 1}', "a key comes twice"),
        ('{"schema": NaN}', "NaN is not a number in JSON"),
        ("[1]", "is not an object"),
        ("[" * 100_000, "is not JSON"),
        ('{"format": "ohmformer bundle", "schema": 1, "files": []}', "lists no files"),
        ('{"format": "ohmformer bundle", "schema": 1, "files": {"a": 3}}', "gives no SHA-256 and size of 'a'"),
        ('{"format": "ohmformer bundle", "schema": 1}', "lists no files"),
    ],
    ids=["cut", "twice", "NaN", "list", "deep", "files", "entry", "none"],
)
def test_a_manifest_of_another_kind(broken, text, told):
    write_manifest(broken, text)
    refuse(broken, told)


@pytest.mark.parametrize("entry", [{"sha256": 3}, {"size": -1}, {"size": 1.0}, {"size": True}, {"sha256": "A" * 64}])
def test_an_entry_of_wrong_types(broken, entry):
    values = manifest(broken)
    values["files"]["report.json"] |= entry
    write_manifest(broken, values)
    refuse(broken, "gives no SHA-256 and size of 'report.json'")


JSON = ["bundle.json", "hardware.json", "model/config.json"]


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize("text", ["{", "[]", "", '{"a": 1, "a": 2}', '{"a": Infinity}', "\xff\xfe", "null"])
def test_json_that_is_none(broken, name, text):
    (broken / name).write_bytes(text.encode("latin-1"))
    refuse_to_load(resealed(broken), broken.name)


@pytest.mark.parametrize("name", ["bundle.json", "model/config.json", "model/tokenizer.json", "report.json"])
def test_a_key_that_comes_twice(broken, name):
    text = (broken / name).read_text()
    (broken / name).write_text('{"twice": 1, "twice": 2,' + text.lstrip().removeprefix("{"))
    refuse_to_load(resealed(broken), f"{name} is not JSON", "a key comes twice")


@pytest.mark.parametrize("name", ["bundle.json", "report.json", "hardware.json", "recipe.json"])
def test_inspecting_json_that_is_none(broken, name):
    (broken / name).write_text("{")
    with pytest.raises(InputError, match=f"{name} is not JSON"):
        inspect_bundle(resealed(broken))


@pytest.mark.parametrize("value", [None, 3, "text", [], {}, [[]], {"a": []}, -1e308])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("bundle.json", "layers"),
        ("bundle.json", "model"),
        ("hardware.json", "device"),
        ("hardware.json", "tile"),
        ("hardware.json", "adc"),
        ("model/config.json", "hidden_size"),
        ("model/config.json", "num_hidden_layers"),
    ],
)
def test_values_of_wrong_types(broken, name, key, value):
    values = json.loads((broken / name).read_text())
    (broken / name).write_text(json.dumps({**values, key: value}))
    resealed(broken)
    if name == "hardware.json" and value == {} and key != "device":
        load_bundle(broken)  # every field keeps its default, which is what it was
    else:
        refuse_to_load(broken, "needs other hardware" if (key, value) == ("adc", None) else "")


@pytest.mark.parametrize("value", [None, 3, "text", [], {}, [3], {"a": 3}])
@pytest.mark.parametrize(
    ("name", "key"),
    [
        *(("report.json", key) for key in ("conversion", "measurements", "primary")),
        *(("bundle.json", key) for key in ("model", "chip", "fitted", "seconds", "refits", "versions")),
        ("recipe.json", "steps"),
        ("hardware.json", "device"),
    ],
)
def test_the_command_inspects_values_of_wrong_types(capsys, broken, name, key, value):
    """Told as they are, or refused in a sentence; never a traceback."""
    values = json.loads((broken / name).read_text())
    (broken / name).write_text(json.dumps({**values, key: value}))
    code, out, err = run(capsys, "inspect", resealed(broken))
    if code:
        assert_one_sentence(code, out, err)


def header_of(size, text=b""):
    return struct.pack("<Q", size) + text


TENSORS = ["state.safetensors", "recalibrated.safetensors", "routing.safetensors", "model/model.safetensors"]


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize(
    "text",
    [
        header_of(10 * 2**30, b"{}"),
        header_of(2**64 - 1, b"{}"),
        header_of(90, b'{"x":{"dtype":"F32","shape":[2684354560],"data_offsets":[0,10737418240]}}'.ljust(90)),
        header_of(90, b'{"x":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'.ljust(90)),
        header_of(10, b"not a json"),
        b"\x80\x04\x95",
        b"",
    ],
    ids=["10 GB header", "largest header", "10 GB tensor", "overflow", "not JSON", "pickle", "empty"],
)
def test_a_header_that_claims_what_is_not_there(broken, name, text):
    (broken / name).write_bytes(text)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refuse_to_load(resealed(broken))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB: less than 1 GB was touched


def rewrite(path, change):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    change(tensors, metadata)
    save_file(tensors, path, metadata)


LAYER = "encoder.layer.0.attention.self.query"


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors, metadata: tensors.pop(f"{LAYER}/scales"),
        lambda tensors, metadata: tensors.update({f"{LAYER}/scales": torch.ones(3)}),
        lambda tensors, metadata: tensors.update({f"{LAYER}/column_gain": torch.ones(1, 16, dtype=torch.float64)}),
        lambda tensors, metadata: metadata.update(layers="{"),
        lambda tensors, metadata: metadata.update(layers="[]"),
        lambda tensors, metadata: metadata.update(layers=json.dumps({LAYER: 3})),
        lambda tensors, metadata: metadata.update(layers=metadata["layers"].replace('"seed": 0', '"seed": "x"')),
        lambda tensors, metadata: metadata.update(layers=metadata["layers"].replace('"seconds": 9', '"seconds": -9')),
        lambda tensors, metadata: metadata.update(layers=metadata["layers"].replace('"cells": [', '"cells": [3,')),
        lambda tensors, metadata: metadata.update(layers=metadata["layers"].replace('"seed"', '"sead"')),
        lambda tensors, metadata: metadata.update(version="99"),
    ],
    ids=["lacks", "shape", "dtype", "json", "list", "layer", "seed", "time", "cells", "field", "version"],
)
def test_a_state_of_wrong_content(broken, change):
    rewrite(broken / "state.safetensors", change)
    refuse_to_load(resealed(broken))


def test_recalibrated_parameters_that_the_model_has_not(broken):
    save_file({"embeddings.LayerNorm.wait": torch.ones(16)}, broken / "recalibrated.safetensors")
    refuse_to_load(resealed(broken), "recalibrated.safetensors cannot be used", "embeddings.LayerNorm.wait")


def test_routing_tables_that_are_not_the_pattern(broken):
    values = json.loads((broken / "bundle.json").read_text())
    (broken / "bundle.json").write_text(json.dumps({**values, "pattern": "window(8) | sinks(1)"}))
    refuse_to_load(resealed(broken), "the pattern window(8) | sinks(1) opens other rows")


def test_a_pattern_that_is_none(broken):
    values = json.loads((broken / "bundle.json").read_text())
    (broken / "bundle.json").write_text(json.dumps({**values, "pattern": "windows(3)"}))
    refuse_to_load(resealed(broken), "its pattern cannot be made from text", "load_bundle(path, pattern=...)")


@pytest.mark.parametrize("name", ["BertPickle", "os", "torch", "BertTokenizer", "AutoModel", "", 3, ["BertModel"]])
def test_a_class_that_is_not_a_model_of_transformers(broken, name):
    values = json.loads((broken / "bundle.json").read_text())
    values["model"]["class"] = name
    (broken / "bundle.json").write_text(json.dumps(values))
    refuse_to_load(resealed(broken), "is not known to transformers")


class Evil:
    """Writes a file if it is ever unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("name", ["model/pytorch_model.bin", "model/model.safetensors", "state.safetensors"])
def test_nothing_is_unpickled(broken, tmp_path, name):
    mark = tmp_path / "executed"
    (broken / name).write_bytes(pickle.dumps(Evil(str(mark))))
    if name.endswith(".bin"):
        (broken / "model/model.safetensors").unlink()
    refuse_to_load(resealed(broken))
    assert not mark.exists()


@pytest.mark.parametrize("shard", ["pytorch_model.bin", "../../outside.safetensors"])
def test_an_index_of_shards_names_safetensors_of_the_bundle_only(broken, tmp_path, monkeypatch, shard):
    mark, calls = tmp_path / "executed", []
    monkeypatch.setattr(torch, "load", lambda *of, **how: calls.append(of))
    torch.save(Evil(str(mark)), broken / "model/pytorch_model.bin")
    (broken / "model/model.safetensors").rename(tmp_path / "outside.safetensors")
    names = load_file(tmp_path / "outside.safetensors")
    (broken / "model/model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))
    refuse_to_load(resealed(broken), f"names {shard!r}", "it may name safetensors files of the folder only")
    assert not calls
    assert not mark.exists()


@pytest.mark.parametrize("command", ["inspect", "refit"])
def test_the_command_refuses(capsys, broken, command):
    (broken / "report.json").write_text("{}")
    more = ["--time", "30d", "--out", broken.parent / "newer"] if command == "refit" else []
    found = run(capsys, command, broken, *more)
    assert_one_sentence(*found, "'report.json' has 2 bytes and the manifest says")
    assert not (broken.parent / "newer").exists()
