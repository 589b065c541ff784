"""What a study's cells are known by, and what is checked and estimated without a model's weights."""

import json
import shutil
from itertools import count

import pytest

from calibration.studies import design
from calibration.studies.estimate import estimate
from calibration.studies.plan import resolve_plan
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


@pytest.fixture
def ticks(monkeypatch):
    """A clock that moves by one whenever somebody looks."""
    clock = count()
    monkeypatch.setattr("calibration.runs.one_block.time.process_time", lambda: float(next(clock)))


def test_estimate_counts_chips_times_and_setups(folder, ticks):
    grid = {"hardware.adc.bits": [4, 8], "time": ["0s", "1h", "1d"], "seed": "0..3"}
    found = plan(folder, grid=grid)
    chips = [cell for cell in found.cells.values() if cell.seed is not None]
    first = chips[0]
    same_chip = [cell for cell in chips if (cell.setup, cell.seed) == (first.setup, first.seed)]
    same_setup = [cell for cell in chips if cell.setup == first.setup]
    one, three, twelve, all_ = (
        estimate(found, cells, {}, workers=1) for cells in ([first], same_chip, same_setup, chips)
    )
    cell = (three - one) / 2
    chip = (twelve - three - 9 * cell) / 3
    setup = all_ - twelve - 12 * cell - 4 * chip
    assert min(cell, chip, setup) > 0
    assert one == pytest.approx(setup + chip + cell)
    assert estimate(found, chips, {}, workers=4) == pytest.approx(all_ / 4)


def test_estimate_of_cells_whose_kind_was_done(folder):
    found = plan(folder, grid={"hardware.adc.bits": [4, 8], "seed": "0..3"})
    chips = [cell for cell in found.cells.values() if cell.seed is not None]
    assert estimate(found, chips, {chips[0].setup: 7.0}, workers=2) == 7.0 * 8 / 2


@pytest.mark.parametrize("pattern", [None, "window(2)"])
def test_estimate_of_digital_models_recipes_and_layers_by_name(folder, ticks, pattern):
    recipe = {"name": "own", "steps": ["InputRanges", "AffineCorrection", {"step": "Finetune", "steps": 10**6}]}
    model = {"name": str(folder), "include": ["*.attention.*"]}
    found = plan(folder, model=model, recipe=recipe, pattern=pattern, grid={"seed": "0..1"})
    assert estimate(found, found.cells.values(), {}, workers=1) > 3 * 10**6
