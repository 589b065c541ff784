"""Bundles of large models: cells that a seed makes again, compared by a sample, and files of a bounded size."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from calibration import calibrate, inspect_bundle, load_bundle
from calibration.bundles.files import MANIFEST, SEAL, seal
from crossbar import Hardware, InputError, Tile, WriteVerify, analog_layers, presets, reset_reads
from tests.calibration.bundles.copies import copy_of
from tests.calibration.command import assert_one_sentence, run

PCM = Hardware(presets.pcm().device, tile=Tile(8, 8), output_noise=0.02)
LAYER = "encoder.layer.0.intermediate.dense"  # 24 outputs: three rows of tiles


@pytest.fixture(scope="module")
def calibrated(folder):
    return calibrate(folder, "wordsim", PCM, "quick", times="1d", chips=1, staircase=False)


@pytest.fixture(scope="module")
def bundles(calibrated, tmp_path_factory):
    place = tmp_path_factory.mktemp("bundles")
    for cells in ("conductances", "seeds"):
        calibrated.save(place / cells, cells=cells, largest=2100)
    calibrated.save(place / "plain")
    return place


def outputs(path):
    model = load_bundle(path).model
    reset_reads(model)
    with torch.no_grad():
        return model(input_ids=torch.arange(12).view(2, 6)).last_hidden_state


def sealed_anew(bundle, cells):
    for name in (MANIFEST, SEAL):
        (bundle / name).unlink()
    seal(bundle, cells)


def state_of(bundle):
    return {key: value for path in sorted((bundle / "states").iterdir()) for key, value in load_file(path).items()}


@pytest.mark.parametrize("cells", ["conductances", "seeds"])
def test_the_same_bits_from_either_and_from_many_files(bundles, cells):
    assert torch.equal(outputs(bundles / cells), outputs(bundles / "plain"))
    assert json.loads((bundles / cells / "manifest.json").read_text())["cells"] == cells
    assert inspect_bundle(bundles / cells)["cells"] == cells


def test_files_have_a_largest_size(bundles):
    """A pair of targets of a row of two tiles is 1,024 bytes, and a file of 2,100 holds two of the three rows."""
    files = sorted((bundles / "seeds" / "tiles" / LAYER).iterdir())
    shapes = [load_file(path)["G_plus"].shape for path in files]
    assert shapes == [(2, 2, 8, 8), (1, 2, 8, 8)]
    whole = load_file(bundles / "plain" / "tiles" / f"{LAYER}.safetensors")
    for key, values in whole.items():
        torch.testing.assert_close(torch.cat([load_file(path)[key] for path in files]), values, equal_nan=True)
    weights = sorted((bundles / "seeds" / "model").glob("*.safetensors"))
    assert len(weights) > 2
    # The tables of 40 words and of 64 places are single tensors.
    assert all(sum(t.nbytes for t in load_file(path).values()) <= 4096 for path in weights)
    assert len([*(bundles / "conductances" / "states").iterdir()]) == 6  # a layer's cells are in one file


def test_seeds_take_less_and_keep_a_sample(bundles):
    state, whole = state_of(bundles / "seeds"), state_of(bundles / "conductances")
    assert {key for key in whole if ".cells." in key or "/cells." in key}.isdisjoint(state)
    sample = load_file(bundles / "seeds" / "samples.safetensors")
    assert len(sample) == len([key for key in whole if "/cells." in key])
    for key, values in sample.items():
        layer, _, part = key.rpartition("/")
        cells = whole[f"{layer}/cells.{part}"]
        line = cells.shape[1] // 2
        assert torch.equal(values, cells[:, line : line + 1])


def test_cells_that_are_not_made_again_as_they_were_are_refused(bundles, tmp_path):
    bundle = copy_of(bundles / "seeds", tmp_path)
    sample = load_file(bundle / "samples.safetensors")
    key = next(key for key in sample if key.startswith(LAYER))
    sample[key] = sample[key] * (1 + 2.0**-22)
    save_file(sample, bundle / "samples.safetensors")
    sealed_anew(bundle, "seeds")
    for read in (load_bundle, inspect_bundle):
        with pytest.raises(InputError, match=f"seed 0 does not make the cells of {LAYER} again as they were"):
            read(bundle)


def test_a_manifest_of_other_cells_is_refused(bundles, tmp_path):
    bundle = copy_of(bundles / "seeds", tmp_path)
    sealed_anew(bundle, "photographs")
    with pytest.raises(InputError, match="says cells = 'photographs', which is none of conductances, seeds"):
        load_bundle(bundle)


def test_tiles_with_rows_too_many_are_refused(bundles, tmp_path):
    bundle = copy_of(bundles / "seeds", tmp_path)
    files = bundle / "tiles" / LAYER
    shutil.copyfile(files / "0001.safetensors", files / "0002.safetensors")
    sealed_anew(bundle, "seeds")
    with pytest.raises(InputError, match="its layer has 3 rows of tiles, and the files 4"):
        load_bundle(bundle)


def test_a_refit_keeps_what_there_is_of_cells(bundles, tmp_path):
    load_bundle(bundles / "seeds").refit("30d").save(tmp_path / "newer")
    newer = load_bundle(tmp_path / "newer")
    assert newer.files.cells == "seeds"
    assert newer.seconds == 30 * 86400.0
    assert not [key for key in load_file(tmp_path / "newer" / "state.safetensors") if "/cells." in key]


def test_cells_that_were_verified_are_kept(net, task, tmp_path):
    verified = replace(PCM, verify=WriteVerify())
    calibrate(net, task, verified, "quick", times="1d", chips=1, staircase=False, out=tmp_path / "own", cells="seeds")
    kept = load_file(tmp_path / "own" / "state.safetensors")
    assert any("/cells." in key for key in kept)
    assert not (tmp_path / "own" / "samples.safetensors").exists()
    loaded = load_bundle(tmp_path / "own", model=type(net)())
    assert all(layer.seed == 0 for layer in analog_layers(loaded.model).values())


def test_cells_of_another_name_are_a_sentence(capsys, job, tmp_path):
    words = ["cells = 'some' is not allowed", "conductances or seeds"]
    assert_one_sentence(*run(capsys, "calibrate", *job, "--cells", "some", "--out", tmp_path / "bundle"), *words)
