"""Deployment bundles: what is in them, and that a loaded one is the chip that was saved, bit for bit."""

import copy
import hashlib
import json
import statistics

import pytest
import torch
from safetensors.torch import load_file

from attention import attached_pattern, parse
from attention.hf.attach import set_thresholds, thresholds
from calibration import DriftCompensation, Recipe, ScreeningThresholds, calibrate, load_bundle, tasks
from crossbar import Hardware, InputError, age, analog_layers, presets, reset_reads
from crossbar.nn.rotation import rotate
from tests.calibration.bundles.copies import copy_of, names
from tests.calibration.command import assert_one_sentence, run
from tests.calibration.conftest import TinyNet

HOUR, DAY = 3600.0, 86400.0
SPARSE = "window(2) | sinks(1)"


@pytest.fixture(scope="module")
def calibrated(folder):
    return calibrate(folder, "wordsim", pattern=SPARSE, times=["1h", "1d"], chips=2)


@pytest.fixture(scope="module")
def bundle(calibrated, tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "bundle"
    calibrated.save(path)
    return path


def logits(model, ids):
    reset_reads(model)
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_without_aihwkit_a_bundle_is_written_and_read(net, task, tmp_path, monkeypatch):
    from calibration.bundles import writer
    from calibration.runs import fingerprint
    from calibration.versions import version_of

    def missing(name):
        return None if name == "aihwkit" else version_of(name)

    fingerprint.of_code.cache_clear()
    for module in (writer, fingerprint):
        monkeypatch.setattr(module, "version_of", missing)
    calibrate(net, task, recipe="quick", times="1d", chips=1, staircase=False, out=tmp_path / "bundle")
    fingerprint.of_code.cache_clear()
    versions = load_bundle(tmp_path / "bundle", model=TinyNet()).description["versions"]
    assert sorted(versions) == ["ohmformer", "torch", "transformers"]


def test_a_bundle_is_loaded_where_it_is_wanted(bundle, monkeypatch):
    from calibration.runs import chips

    assert {p.device.type for p in load_bundle(bundle, device="cpu").model.parameters()} == {"cpu"}
    with pytest.raises(InputError, match="device 'cuda:999' is not there"):
        load_bundle(bundle, device="cuda:999")
    monkeypatch.setattr(chips, "require_device", lambda device: torch.device("meta"))
    moved = load_bundle(bundle, device="cuda").model
    tensors = [*moved.parameters(), *(buffer for _, buffer in moved.named_buffers())]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


# The same bits


def test_a_loaded_bundle_scores_what_was_scored(calibrated, bundle):
    loaded = load_bundle(bundle)
    assert loaded.seconds == DAY + HOUR
    found = tasks.get("wordsim", loaded.tokenizer).metrics(loaded.model)["spearman"]
    assert found == calibrated.values("calibrated", fitted=DAY)[0]


@pytest.mark.parametrize(("chip", "fitted"), [(0, "1h"), (1, "1h"), (1, "1d")])
def test_any_calibrated_chip_and_time_can_be_saved(calibrated, tmp_path, chip, fitted):
    calibrated.save(tmp_path / "bundle", chip=chip, fitted=fitted)
    loaded = load_bundle(tmp_path / "bundle")
    seconds = {"1h": HOUR, "1d": DAY}[fitted]
    assert {layer.seed for layer in analog_layers(loaded.model).values()} == {chip}
    assert loaded.seconds == seconds + HOUR
    found = tasks.get("wordsim", loaded.tokenizer).metrics(loaded.model)["spearman"]
    assert found == calibrated.values("calibrated", fitted=seconds)[chip]


def test_every_state_of_every_layer_comes_back(calibrated, bundle):
    loaded = load_bundle(bundle).model
    calibrated.deployment.restore(0, DAY)
    saved = analog_layers(calibrated.deployment.experiment.analog)
    for name, layer in analog_layers(loaded).items():
        # Those with an underscore are worked out from the others when they are asked for.
        own, found = (
            {key: tensor for key, tensor in part.named_buffers() if key.rpartition(".")[2][0] != "_"}
            for part in (saved[name], layer)
        )
        assert found.keys() == own.keys()
        assert all(torch.equal(found[key], own[key]) for key in own), name
        assert torch.equal(layer.cells.digits, saved[name].cells.digits)


def test_the_logits_of_a_language_model_repeat(llama_folder, tmp_path):
    result = calibrate(
        llama_folder,
        tasks.get("perplexity", _letters(llama_folder), windows=2, window_length=32),
        pattern="window(8) | sinks(2)",
        times=["1d"],
        chips=1,
        out=tmp_path / "bundle",
    )
    ids = torch.arange(64).view(2, 32) % 28
    loaded = load_bundle(tmp_path / "bundle")
    found = logits(loaded.model, ids)
    assert torch.equal(found, logits(result.deployment.experiment.analog, ids))
    assert found.std() > 0.1
    # One read on, the noise is another, and again the same in both.
    with torch.no_grad():
        again = [m(input_ids=ids).logits for m in (loaded.model, result.deployment.experiment.analog)]
    assert torch.equal(*again)
    assert not torch.equal(again[0], found)


def test_thresholds_of_rows_that_spike_come_back(llama_folder, tmp_path):
    """They open the same rows: the logits are those of the saved model, and not those of the pattern's own text."""
    result = calibrate(
        llama_folder,
        tasks.get("perplexity", _letters(llama_folder), windows=1, window_length=32),
        pattern="spiking(0) | window(2)",
        recipe=Recipe("spikes", (ScreeningThresholds(share=0.3),)),
        times=["1d"],
        chips=1,
        staircase=False,
        out=tmp_path / "bundle",
    )
    own, loaded = result.deployment.experiment.analog, load_bundle(tmp_path / "bundle").model
    found, wanted = thresholds(loaded), thresholds(own)
    assert found.keys() == wanted.keys() == {"model.layers.0.self_attn", "model.layers.1.self_attn"}
    assert all(torch.equal(found[name], wanted[name]) and bool((found[name] != 0).all()) for name in wanted)
    ids = torch.arange(64).view(2, 32) % 28
    saved = logits(own, ids)
    assert torch.equal(logits(loaded, ids), saved)
    set_thresholds(loaded, {name: torch.zeros_like(values) for name, values in found.items()})
    assert not torch.equal(logits(loaded, ids), saved)


def _letters(folder):
    from calibration import load_model

    return load_model(folder).tokenizer


def test_the_same_chip_at_other_times(calibrated, bundle):
    """Not the state of one moment: the trajectory goes on as it would have."""
    loaded = load_bundle(bundle).model
    calibrated.deployment.restore(0, DAY)
    own = calibrated.deployment.experiment.analog
    ids = torch.arange(20).view(2, 10)
    for time in ("1y", "0s", "25h"):
        age(loaded, time)
        age(own, time)
        with torch.no_grad():
            assert torch.equal(loaded(input_ids=ids).last_hidden_state, own(input_ids=ids).last_hidden_state)


def test_a_second_save_gives_the_same_files(calibrated, bundle, tmp_path):
    calibrated.save(tmp_path / "again")
    assert names(tmp_path / "again") == names(bundle)
    for name in set(names(bundle)) - {"manifest.json", "manifest.json.sha256", "state.safetensors"}:
        assert (tmp_path / "again" / name).read_bytes() == (bundle / name).read_bytes(), name
    # safetensors writes the metadata of a file in any order.
    first, second = (load_file(path / "state.safetensors") for path in (bundle, tmp_path / "again"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


class Few:
    """The first words of a task."""

    name, primary = "few", "mean"

    def __init__(self, task):
        self.first = {split: next(iter(task.batches(split))) for split in ("calibration", "evaluation")}

    def batches(self, split):
        return [self.first[split]]

    def metrics(self, model):
        with torch.no_grad():
            return {"mean": float(model(**self.first["evaluation"]).last_hidden_state.mean())}


def test_minilm(minilm, tmp_path):
    task = Few(tasks.get("wordsim", minilm.tokenizer))
    recipe = Recipe("drift", (DriftCompensation(),))
    result = calibrate(
        minilm, task, recipe=recipe, pattern="window(64) | sinks(4)", times=["1d"], chips=1, staircase=False
    )
    result.save(tmp_path / "bundle")
    loaded = load_bundle(tmp_path / "bundle")
    assert task.metrics(loaded.model)["mean"] == result.values("calibrated")[0]
    own = result.deployment.experiment.analog
    batch = next(iter(task.batches("evaluation")))
    reset_reads(own)
    reset_reads(loaded.model)
    with torch.no_grad():
        assert torch.equal(loaded.model(**batch).last_hidden_state, own(**batch).last_hidden_state)


# What is in it


def test_target_conductances_stand_for_the_weights(calibrated, bundle):
    """By hand: (G+ - G-) / g_max times the column's scale is the line's times the weight, rotated and clipped.

    Lines in digital have cells at 0.
    """
    state = load_file(bundle / "state.safetensors")
    weights = load_file(bundle / "model" / "model.safetensors")
    name = "encoder.layer.0.output.dense"
    tiles = load_file(bundle / "tiles" / f"{name}.safetensors")
    assert tiles["G_plus"].shape == (1, 1, 256, 256)
    g_plus, g_minus = (tiles[key][0, 0, :24, :16] for key in ("G_plus", "G_minus"))
    assert 0 <= float(g_plus.min()) <= float(g_plus.max()) <= 25 + 1e-5  # µS
    assert torch.isnan(tiles["G_plus"][0, 0, 24:]).all()
    scales, line_scale = state[f"{name}/scales"][0], state[f"{name}/line_scale"].unsqueeze(1)
    scaled = weights[f"{name}.weight"].t() * line_scale
    (line,) = state[f"{name}/digital_lines"].tolist()  # 1% of 24, at least one
    scaled[line] = 0
    scaled = rotate(scaled.t(), int(state[f"{name}/rotation"])).t()
    assert 0 < (scaled.abs() > scales * 1.001).double().mean() < 0.1  # few are clipped
    mapped = scaled + state[f"{name}/weight_correction"].t()
    clipped = torch.minimum(torch.maximum(mapped, -scales), scales)
    assert torch.allclose((g_plus - g_minus) / 25 * scales, clipped, rtol=1e-5, atol=1e-7)


def test_routing_tables_are_the_pattern(bundle):
    tables = load_file(bundle / "routing.safetensors")
    n = len(tables["head.0.indptr"]) - 1
    rows = parse(SPARSE).rows(n)
    assert torch.equal(tables["head.0.indptr"], rows.indptr)
    assert torch.equal(tables["head.0.indices"].long(), rows.indices)
    assert str(attached_pattern(load_bundle(bundle).model)) == SPARSE


def test_the_manifest_can_be_checked_without_us(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert (manifest["format"], manifest["schema"]) == ("ohmformer bundle", 1)
    assert sorted([*manifest["files"], "manifest.json", "manifest.json.sha256"]) == names(bundle)
    for name, entry in manifest["files"].items():
        text = (bundle / name).read_bytes()
        assert (hashlib.sha256(text).hexdigest(), len(text)) == (entry["sha256"], entry["size"])
    digest = hashlib.sha256((bundle / "manifest.json").read_bytes()).hexdigest()
    assert (bundle / "manifest.json.sha256").read_text() == f"{digest}  manifest.json\n"


def test_json_files_say_what_was_done(calibrated, bundle, tmp_path):
    assert Hardware.from_dict(json.loads((bundle / "hardware.json").read_text())) == presets.pcm()
    assert Recipe.from_dict(json.loads((bundle / "recipe.json").read_text())).to_dict() == calibrated.setup["recipe"]
    for name, read in (("hardware", Hardware.from_yaml), ("recipe", Recipe.from_yaml)):
        (tmp_path / f"{name}.yaml").write_bytes((bundle / f"{name}.json").read_bytes())
        assert read(tmp_path / f"{name}.yaml").to_dict() == json.loads((bundle / f"{name}.json").read_text())
    assert json.loads((bundle / "report.json").read_text()) == calibrated.to_dict()


def test_recalibrated_parameters_come_back(folder, tmp_path):
    """A step that changes what stays digital needs nothing here to know of it."""
    result = calibrate(folder, "wordsim", recipe="quick", times=["1d"], chips=1, staircase=False)
    analog = result.deployment.experiment.analog
    with torch.no_grad():
        analog.encoder.layer[0].output.LayerNorm.weight.mul_(1.25)
    result.save(tmp_path / "bundle")
    assert list(load_file(tmp_path / "bundle" / "recalibrated.safetensors")) == [
        "encoder.layer.0.output.LayerNorm.weight"
    ]
    ids = torch.arange(20).view(2, 10)
    with torch.no_grad():
        own = analog(input_ids=ids).last_hidden_state
        assert torch.equal(load_bundle(tmp_path / "bundle").model(input_ids=ids).last_hidden_state, own)


def test_the_digital_model_is_unchanged_by_saving(folder, tmp_path):
    result = calibrate(folder, "wordsim", recipe="quick", pattern=SPARSE, times=["1d"], chips=1, staircase=False)
    digital = result.deployment.experiment.digital
    before = copy.deepcopy(digital.state_dict())
    result.save(tmp_path / "bundle")
    assert str(attached_pattern(digital)) == SPARSE
    assert all(torch.equal(tensor, before[name]) for name, tensor in digital.state_dict().items())


# Refusals


def test_a_folder_that_exists_is_left_alone(calibrated, net, task, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="exists already and would be overwritten"):
        calibrated.save(tmp_path)
    with pytest.raises(InputError, match="exists already"):
        calibrate(net, task, out=tmp_path)
    with pytest.raises(InputError, match="does not exist: make it first"):
        calibrated.save(tmp_path / "absent" / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"chip": 2}, "chip 2 was not calibrated at 1 d: choose a chip from 0 to 1 and one of 1 h, 1 d"),
        ({"fitted": "30d"}, "chip 0 was not calibrated at 30 d"),
        ({"fitted": "soon"}, "time 'soon' is not understood"),
    ],
)
def test_a_chip_or_a_time_that_was_not_calibrated(calibrated, tmp_path, options, told):
    with pytest.raises(InputError, match=told):
        calibrated.save(tmp_path / "bundle", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_fails_leaves_nothing(calibrated, tmp_path, monkeypatch):
    from calibration.bundles import writer

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writer, "save_state", full)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\): make room"):
        calibrated.save(tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_save_left_is_removed(calibrated, tmp_path):
    left = tmp_path / ".bundle.999999999.partial"
    left.mkdir()
    (left / "state.safetensors").write_bytes(b"half")
    calibrated.save(tmp_path / "bundle")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


# In the field


def test_a_refit_needs_no_data_and_improves_the_bundle(net, task, tmp_path):
    """Eight chips, calibrated after a day, read a year on: as they were, and refit from read-outs alone."""
    result = calibrate(net, task, times=["1d"], chips=8, staircase=False)
    differences = []
    for chip in range(8):
        result.save(tmp_path / f"{chip}", chip=chip)
        stale, fresh = (load_bundle(tmp_path / f"{chip}", model=TinyNet()) for _ in range(2))
        refit = fresh.refit("1y")
        assert refit.seconds == 365 * DAY
        for found in (stale, refit):
            age(found.model, 365 * DAY + HOUR)
        differences.append(task.metrics(refit.model)["closeness"] - task.metrics(stale.model)["closeness"])
    assert statistics.mean(differences) > 2.5 * statistics.stdev(differences) / 8**0.5  # p < 0.02 in Student's t
    assert min(differences) > -0.01


def test_a_refit_bundle_is_saved_with_its_age_and_history(bundle, tmp_path):
    loaded = load_bundle(bundle)
    refit = loaded.refit("30d").refit("60d", DriftCompensation(per="tile"))
    refit.save(tmp_path / "newer")
    again = load_bundle(tmp_path / "newer")
    assert again.seconds == again.description["seconds"] == 60 * DAY
    assert [r["seconds"] for r in again.description["refits"]] == [30 * DAY, 60 * DAY]
    assert [r["step"]["per"] for r in again.description["refits"]] == ["column", "tile"]
    ids = torch.arange(20).view(2, 10)
    reset_reads(refit.model)
    with torch.no_grad():
        assert torch.equal(again.model(input_ids=ids).last_hidden_state, refit.model(input_ids=ids).last_hidden_state)
    unchanged = set(names(bundle)) - {"bundle.json", "state.safetensors", "manifest.json", "manifest.json.sha256"}
    assert all((bundle / name).read_bytes() == (tmp_path / "newer" / name).read_bytes() for name in unchanged)


def test_a_refit_uses_the_recipes_own_compensation(net, task, tmp_path):
    recipe = Recipe("tiles", (DriftCompensation(per="tile", reads=32),))
    calibrate(net, task, recipe=recipe, times=["1d"], chips=1, out=tmp_path / "bundle")
    refit = load_bundle(tmp_path / "bundle", model=TinyNet()).refit("30d")
    assert refit.description["refits"][0]["step"] == {"step": "DriftCompensation", **vars(recipe.steps[0])}


def test_a_chip_is_not_refit_in_its_past(bundle):
    with pytest.raises(InputError, match="time '1h' lies before the bundle's own age of 90000 s"):
        load_bundle(bundle).refit("1h")


def test_a_bundle_that_changed_since_it_was_loaded_is_not_saved_on(bundle, tmp_path):
    place = copy_of(bundle, tmp_path)
    loaded = load_bundle(place)
    (place / "report.json").write_text("{}")
    with pytest.raises(InputError, match=r"'report.json' changed since it was loaded"):
        loaded.refit("30d").save(tmp_path / "newer")
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_refit_in_the_past_is_a_sentence(capsys, bundle, tmp_path):
    found = run(capsys, "refit", bundle, "--time", "1h", "--out", tmp_path / "newer")
    assert_one_sentence(*found, "lies before the bundle's own age")
    assert list(tmp_path.iterdir()) == []
