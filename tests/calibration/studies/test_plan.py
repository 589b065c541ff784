"""What a study's cells are known by, and what is checked and estimated without a model's weights."""

import json
import shutil
import time

import pytest

from calibration import load_model
from calibration.studies import design
from calibration.studies.estimate import estimate
from calibration.studies.plan import resolve_plan
from calibration.studies.worker import Unit, Worker
from crossbar import InputError
from tests.calibration.studies import tiny


def plan(folder, weights=False, **changes):
    return resolve_plan(design.read(tiny.config(folder, **changes)), weights=weights)


@pytest.fixture
def own(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "letters")


def change(path, **values):
    written = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**written, **values}))


@pytest.mark.parametrize(
    ("file", "values"),
    [
        ("config.json", {"hidden_act": "relu"}),
        ("config.json", {"num_attention_heads": 1}),
        ("config.json", {"layer_norm_eps": 1e-3}),
        ("tokenizer_config.json", {"model_max_length": 33}),
        ("generation_config.json", {"temperature": 0.5}),
    ],
)
def test_a_model_is_known_by_all_of_its_files(own, file, values):
    """Not by its weights alone: old scores would stand for another model."""
    before = plan(own)
    assert plan(own).cells == before.cells
    change(own / file, **values)
    assert plan(own).cells.keys().isdisjoint(before.cells)


def test_weights_change_no_identity(own):
    assert plan(own).cells == plan(own, weights=True).cells
    assert plan(own).sources == plan(own, weights=True).sources


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model": {"include": ["nothing*"]}}, "nothing*"),
        ({"grid": {"model.exclude": [["nothing*"]]}}, "nothing*"),
        ({"task": "perplexity"}, "perplexity"),
        ({"memory": {"hardware": "pcm", "capacity": 0}}, "capacity"),
    ],
)
def test_models_without_weights_are_checked(own, changes, words):
    changes = {**changes, "model": {"name": str(own), **changes.get("model", {})}}
    for weights in (False, True):
        with pytest.raises(InputError) as refusal:
            plan(own, weights=weights, **changes)
        assert words in str(refusal.value)


def test_weights_that_are_not_finite_are_found_by_the_run_alone(own):
    from safetensors.torch import load_file, save_file

    tensors = load_file(own / "model.safetensors")
    next(iter(tensors.values())).view(-1)[0] = float("nan")
    save_file(tensors, own / "model.safetensors", metadata={"format": "pt"})
    assert plan(own).cells
    with pytest.raises(InputError, match="NaN"):
        plan(own, weights=True)


@pytest.mark.parametrize("seed", [None, 0])
def test_estimate_of_a_cell(folder, seed):
    """Within a factor of three of what a cell takes, both on one core; small as it is, most of it is overhead."""
    found = plan(folder, grid={"seed": "0..9", "pattern": ["dense"]})
    cells = [cell for cell in found.cells.values() if (cell.seed is None) == (seed is None)]
    expected = estimate(found, cells, {}, workers=1) / len(cells)
    loaded = load_model(folder)
    worker = Worker(lambda key: loaded)
    units = [Unit(cell.setup, found.setups[cell.setup], cell.seed, (cell.seconds,)) for cell in cells]
    [*worker.run(units[0])]
    began = time.process_time()
    for unit in units:
        [*worker.run(unit)]
    took = (time.process_time() - began) / len(units)
    assert took / 3 < expected < 3 * took
    assert estimate(found, cells, {cells[0].setup: 7.0}, workers=2) == 7.0 * len(cells) / 2
