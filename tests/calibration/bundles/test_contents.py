"""Bundles whose every hash is right and whose files do not belong together."""

import hashlib
import json
import math
import re
import resource
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from attention import parse
from calibration import DriftCompensation, InputRanges, Recipe, calibrate, inspect_bundle, load_bundle
from calibration.bundles import writer
from crossbar import InputError, Tile, presets, program
from tests.calibration.bundles.copies import copy_of, resealed
from tests.calibration.command import assert_one_sentence, run
from tests.limits import files_of_at_most

FIRST = "tiles/encoder.layer.0.attention.self.key.safetensors"
SECOND = "tiles/encoder.layer.0.attention.self.query.safetensors"
HARDWARE = replace(presets.pcm(), tile=Tile(16, 10))


@pytest.fixture(scope="module")
def bundle(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "whole"
    options = {"times": ["1d"], "chips": 1, "staircase": False, "out": path}
    recipe = Recipe("plain", (InputRanges(), DriftCompensation()))
    calibrate(folder, "wordsim", HARDWARE, recipe, pattern="window(2) | sinks(1)", **options)
    return path


@pytest.fixture
def broken(bundle, tmp_path):
    return copy_of(bundle, tmp_path)


def refuse(path, *words):
    """Both readers do, in one sentence."""
    resealed(path)
    for read in (inspect_bundle, load_bundle):
        with pytest.raises(InputError) as caught:
            read(path)
        assert "\n" not in str(caught.value)
        for word in words:
            assert word in str(caught.value), read


def refuse_to_load(path, *words):
    with pytest.raises(InputError) as caught:
        load_bundle(resealed(path))
    for word in words:
        assert word in str(caught.value)


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_whole_bundle(bundle):
    assert load_bundle(bundle).hardware == HARDWARE
    tiles = inspect_bundle(bundle)["tiles"]  # of 16 x 10 cells: 2 for 16 x 16 weights, 3 for 16 x 24, 4 for 24 x 16
    assert tiles == 4 * 2 + 3 + 4


# Tiles


def test_tiles_of_garbage(broken):
    (broken / FIRST).write_bytes(b"garbage")
    refuse(broken, f"{FIRST} is not a safetensors file")


def test_missing_and_foreign_tiles(broken):
    (broken / FIRST).rename(broken / "tiles" / "other.safetensors")
    refuse(broken, f"{FIRST} cannot be used, it is missing")
    (broken / FIRST).write_bytes((broken / "tiles" / "other.safetensors").read_bytes())
    refuse(broken, "tiles/other.safetensors cannot be used, no analog layer has it")


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors.pop("G_plus"),
        lambda tensors: tensors.update(G=torch.ones(1)),
        lambda tensors: tensors.update(G_minus=tensors["G_minus"][0].clone()),
        lambda tensors: tensors.update(G_minus=torch.ones(())),
    ],
    ids=["lacks", "more", "shape", "number"],
)
def test_tiles_of_another_shape(broken, change):
    tensors = load_file(broken / FIRST)
    change(tensors)
    save_file(tensors, broken / FIRST)
    refuse(broken, f"{FIRST} cannot be used, it holds", "not G_plus and G_minus of [2, 1, 16, 10] each")


@pytest.mark.parametrize("bad", [math.inf, -1.0, -math.inf])
def test_tiles_of_impossible_conductances(broken, bad):
    tensors = load_file(broken / FIRST)
    tensors["G_plus"][0, 0, 3, 4] = bad
    save_file(tensors, broken / FIRST)
    refuse(broken, f"{FIRST} cannot be used, G_plus")


def test_tiles_of_other_conductances(broken):
    """Of a single cell, of another layer, and NaN where there is a cell: only the model's weights show it."""
    whole = load_file(broken / FIRST)
    for key, change in (("G_plus", 0.01), ("G_minus", math.nan)):
        tensors = {name: tensor.clone() for name, tensor in whole.items()}
        tensors[key][0, 0, 3, 4] += change
        save_file(tensors, broken / FIRST)
        refuse_to_load(broken, f"{FIRST} cannot be used, {key} is not what the layer's weights are written as")
    (broken / FIRST).write_bytes((broken / SECOND).read_bytes())
    refuse_to_load(broken, f"{FIRST} cannot be used, G_plus is not what")


def test_tiles_that_hardware_only_claims_allocate_nothing(broken):
    """State and report agree with the hardware: the tiles' own sizes are what bounds it."""
    hardware = replace(HARDWARE, tile=Tile(8192, 8192))
    (broken / "hardware.json").write_text(json.dumps(hardware.to_dict()))
    edit(broken / "report.json", hardware=hardware.to_dict())
    with safe_open(broken / "state.safetensors", "pt") as file:
        metadata = file.metadata()
    metadata["layers"] = metadata["layers"].replace(repr(HARDWARE), repr(hardware))
    save_file(load_file(broken / "state.safetensors"), broken / "state.safetensors", metadata)
    refuse(broken, "not G_plus and G_minus of [1, 1, 8192, 8192] each")


# Routing


def test_a_pattern_is_not_removed_with_its_routing_kept(broken):
    edit(broken / "bundle.json", pattern=None)
    refuse(broken, "routing.safetensors cannot be used, it opens rows and bundle.json names no pattern")
    (broken / "routing.safetensors").unlink()
    refuse(broken, "report.json cannot be used, it is of another pattern than the bundle")


def tables(tokens, pairs=0):
    indptr = torch.zeros(tokens + 1, dtype=torch.int64)
    indptr[-1] = pairs
    return {"head.0.indptr": indptr, "head.0.indices": torch.zeros(pairs, dtype=torch.int32)}


@pytest.mark.parametrize(
    ("pattern", "tokens"), [("dense", 25_000), ("dense", 2**18), ("window(100000)", 2**18), ("strided(2)", 2**18)]
)
def test_a_small_table_does_not_become_gigabytes(broken, pattern, tokens):
    """A table of 200 kB: as many rows of a dense pattern would take 5 GB."""
    edit(broken / "bundle.json", pattern=pattern)
    save_file(tables(tokens), broken / "routing.safetensors")
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    refuse(broken, f"the pattern {pattern} opens other rows")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**20  # kB
    assert time.process_time() - began < 10


def test_rows_are_compared_to_the_last(broken, bundle):
    """In pieces: the last row, the last key of the first piece."""
    routing = load_file(bundle / "routing.safetensors")
    for place in (-1, 0):
        changed = {name: table.clone() for name, table in routing.items()}
        changed["head.0.indices"][place] += 1
        save_file(changed, broken / "routing.safetensors")
        resealed(broken)
        with pytest.raises(InputError, match=r"opens other rows|does not hold compressed rows"):
            inspect_bundle(broken)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.clear(),
        lambda t: t.update({"head.1.indptr": t["head.0.indptr"].clone()}),
        lambda t: t.update({"head.0.more": t["head.0.indptr"].clone()}),
        lambda t: t.update(tables(2**18 + 1)),
        lambda t: t.update({"head.0.indptr": t["head.0.indptr"].int()}),
        lambda t: t.update({"head.0.indices": t["head.0.indices"].long()}),
        lambda t: t.update({"head.0.indptr": torch.tensor([0])}),
        lambda t: t.update({"head.0.indptr": torch.tensor(3)}),
        lambda t: t["head.0.indptr"].add_(1),
        lambda t: t["head.0.indptr"][1:3].copy_(torch.tensor([5, -1])),
        lambda t: t["head.0.indptr"][-1:].fill_(2**62),
        lambda t: t["head.0.indices"][:1].fill_(-1),
        lambda t: t["head.0.indices"][:1].fill_(2**30),
    ],
)
def test_tables_that_are_none(broken, change):
    routing = load_file(broken / "routing.safetensors")
    change(routing)
    save_file(routing, broken / "routing.safetensors")
    refuse(broken, "routing.safetensors cannot be used, it does not hold")


def test_a_pattern_of_another_number_of_heads(broken):
    edit(broken / "bundle.json", pattern="heads(window(2) | sinks(1), window(2) | sinks(1))")
    refuse(broken, "opens other rows")


def test_no_rows_are_written_beyond_the_longest_sequence(monkeypatch, tiny_llama):
    batches = [{"input_ids": torch.zeros(1, 5, dtype=torch.int64)}]
    experiment = SimpleNamespace(
        pattern=parse("window(2)"), digital=tiny_llama, task=SimpleNamespace(batches=lambda _: batches)
    )
    assert writer.routing(experiment)["head.0.indices"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4]
    monkeypatch.setattr(writer, "MOST_TOKENS", 4)
    assert writer.routing(experiment) == {}


# What the files tell of


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("task", "lee", "it is of another task than the bundle"),
        ("recipe", {"name": "fast", "steps": []}, "it is of another recipe than the bundle"),
        ("model", "minilm", "it is of another model than the bundle"),
        ("model_fingerprint", "0" * 64, "it is of another model fingerprint than the bundle"),
        ("hardware", presets.hermes().to_dict(), "it is of other hardware than the bundle"),
        ("hardware", 3, "it is of other hardware than the bundle"),
        ("measurements", [], "it does not score chip 0 as calibrated at 86400 s"),
        ("measurements", [3], "it lacks a part"),
        ("conversion", {}, "it lacks a part"),
        ("conversion", {"layers": []}, "its analog layers are not those of bundle.json"),
    ],
)
def test_a_report_of_something_else(broken, key, value, told):
    edit(broken / "report.json", **{key: value})
    refuse(broken, f"report.json cannot be used, {told}")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"chip": 1}, "state.safetensors cannot be used, it is of chip 0 at 90000 s in encoder"),
        ({"seconds": 86400.0}, "and bundle.json tells of chip 0 at 86400 s"),
        ({"fitted": 3600.0}, "report.json cannot be used, it does not score chip 0 as calibrated at 3600 s"),
        ({"seconds": -1}, "bundle.json cannot be used, seconds = -1 is not allowed"),
        ({"chip": "0"}, "bundle.json cannot be used, chip = '0' is not allowed"),
        ({"layers": ["a", "a"]}, "its layers are not a list of different names"),
        ({"layers": [3]}, "its layers are not a list of different names"),
        ({"layers": ["encoder.layer.0.attention.self.key"]}, "differ|its analog layers are not those"),
        ({"refits": [{"seconds": 1e5}]}, "its refits do not say their time and step"),
        ({"refits": [{"seconds": 1e5, "step": "x"}]}, "its refits do not say their time and step"),
        ({"versions": {"torch": 2}}, "its versions are not text"),
    ],
)
def test_a_description_of_something_else(broken, changes, told):
    edit(broken / "bundle.json", **changes)
    refuse(broken, told.rpartition("|")[2])


def test_recalibrated_parameters_that_are_not_finite(broken):
    save_file({"embeddings.LayerNorm.weight": torch.full((16,), math.nan)}, broken / "recalibrated.safetensors")
    refuse_to_load(broken, "embeddings.LayerNorm.weight holds NaN or infinite numbers")


def test_another_chip_is_not_saved_as_this_one(bundle, tmp_path):
    loaded = load_bundle(bundle)
    program(loaded.model, 7)
    with pytest.raises(InputError, match="the model is chip 7 and the bundle's is 0"):
        loaded.save(tmp_path / "newer")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["a" * 1025, "a/" * 600 + "b", "\ud800"])
def test_names_that_no_file_can_have(broken, name):
    resealed(broken)
    values = json.loads((broken / "manifest.json").read_text())
    values["files"][name] = {"sha256": "0" * 64, "size": 0}
    text = json.dumps(values)
    (broken / "manifest.json").write_text(text)
    (broken / "manifest.json.sha256").write_text(f"{hashlib.sha256(text.encode()).hexdigest()}  manifest.json\n")
    with pytest.raises(InputError, match=r"which is not a path inside the bundle|surrogates not allowed"):
        load_bundle(broken)


# Where a bundle may be written


@pytest.mark.parametrize("place", ["newer", "model/newer", "tiles/a"])
def test_nothing_is_written_into_a_bundle(broken, net, task, place, capsys):
    """It would no longer be what its manifest says; seen before anything is computed."""
    told = f"{str(broken / place)!r} lies in the bundle {str(broken.resolve())!r}, which takes no other files"
    (broken.parent / "link").symlink_to(broken)
    loaded = load_bundle(broken)
    for write in (loaded.save, loaded.export, lambda path: calibrate(net, Unasked(), out=path)):
        with pytest.raises(InputError, match=re.escape(told)):
            write(broken / place)
        with pytest.raises(InputError, match="which takes no other files"):
            write(broken.parent / "link" / place)
        with pytest.raises(InputError, match="exists already"):
            write(broken)
    for command in (["refit", broken, "--time", "30d"], ["export", broken]):
        assert_one_sentence(*run(capsys, *command, "--out", broken / place), told)
    load_bundle(broken)


class Unasked:
    """A task that nothing may be asked of."""


@pytest.mark.parametrize("size", [0, 500, 1500, 10_000, 30_000])
def test_a_full_disk_is_a_sentence_and_leaves_nothing(bundle, tmp_path, size):
    """At whatever file it is full: JSON, tokenizer, weights, tiles or state."""
    loaded = load_bundle(bundle)
    before = {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()}
    for name, write in (
        ("saved", loaded.save),
        ("effective", loaded.export),
        ("digital", lambda path: loaded.export(path, "digital")),
    ):
        if size == 30_000 and name != "saved":
            continue  # a model of 17 kB
        with files_of_at_most(size), pytest.raises(InputError) as caught:
            write(tmp_path / name)
        reason = "cannot be written (File too large): make room and access there, or give another path"
        assert str(caught.value) == f"folder {str(tmp_path / name)!r} {reason}"
        assert list(tmp_path.iterdir()) == []
    loaded.save(tmp_path / "saved")
    assert load_bundle(tmp_path / "saved").seconds == loaded.seconds
    assert {path: path.read_bytes() for path in bundle.rglob("*") if path.is_file()} == before


def test_a_folder_that_takes_nothing_is_refused_at_once(net, capsys, bundle):
    """The kernel's own takes no files, not even those of root."""
    with pytest.raises(InputError, match=r"'/proc/newer' cannot be written .*: make room and access there"):
        calibrate(net, Unasked(), out="/proc/newer")
    for command in (["refit", bundle, "--time", "30d"], ["export", bundle]):
        assert_one_sentence(*run(capsys, *command, "--out", "/proc/newer"), "'/proc/newer' cannot be written")
