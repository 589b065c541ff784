"""Recipes as plain values and as YAML."""

import json

import pytest
import yaml

from calibration import DriftCompensation, InputRanges, Recipe, recipe
from crossbar import InputError
from tests.calibration.command import assert_one_sentence, run

KINDS = list(recipe._STEPS.values())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_step_goes_to_plain_values_and_back(kind):
    values = recipe.step_to_dict(kind())
    assert values["step"] == kind.__name__
    assert recipe.step_from_dict(json.loads(json.dumps(values))) == kind()
    assert recipe.step_from_dict(kind.__name__) == recipe.step_from_dict({"step": kind.__name__}) == kind()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_field_of_every_step_is_checked(kind):
    for name in recipe.step_to_dict(kind()).keys() - {"step"}:
        for value in ({}, [1], "no such choice", object()):
            with pytest.raises(InputError, match=f"recipe step {kind.__name__}: {name} = .* is not allowed: give "):
                recipe.step_from_dict({"step": kind.__name__, name: value})


def test_a_recipe_goes_to_yaml_and_back(tmp_path):
    mine = Recipe("mine", (InputRanges("quantile", quantile=0.99), DriftCompensation(per="tile", reads=32)))
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine.to_dict()))
    assert recipe.get(str(tmp_path / "mine.yaml")) == mine
    assert Recipe.from_dict(recipe.get("fast").to_dict()) == recipe.get("fast")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: a\nsteps: [Fly]\n", "recipe step 'Fly' is unknown: choose one of DigitalLines, InputRanges"),
        ("name: a\nsteps: [{step: [1]}]\n", r"recipe step \[1\] is unknown"),
        ("name: a\nsteps: [{reads: 3}]\n", "recipe step None is unknown"),
        ("name: a\nsteps: [3]\n", "recipe step 3 is unknown"),
        ("name: a\nsteps: [{step: DriftCompensation, reeds: 3}]\n", "has no field 'reeds': allowed are per, reference"),
        ("name: a\nsteps: [{step: DriftCompensation, reads: many}]\n", "reads = 'many' is not allowed: give a whole"),
        ("name: a\nsteps: [{step: DriftCompensation, reads: 0}]\n", "reads = 0 is not allowed: give a whole"),
        ("name: a\nsteps: [{step: DriftCompensation, reads: 2.5}]\n", "reads = 2.5 is not allowed"),
        ("name: a\nsteps: [{step: DriftCompensation, reads: true}]\n", "reads = True is not allowed"),
        ("name: a\nsteps: [{step: DriftCompensation, per: row}]\n", "per = 'row' is not allowed: give one of tile"),
        ("name: a\nsteps: [{step: InputRanges, quantile: .nan}]\n", "quantile = nan is not allowed"),
        ("name: a\nsteps: [{step: InputRanges, exponent: 2}]\n", "exponent = 2 is not allowed"),
        ("name: a\nsteps: [DriftCompensation, InputRanges]\n", "put InputRanges before DriftCompensation"),
        ("name: a\nsteps: []\n", "has no steps"),
        ("name: a\nsteps: {}\n", "give a text as its name, and a list of steps"),
        ("name: 3\nsteps: [InputRanges]\n", "give a text as its name, and a list of steps"),
        ("name: a\n", "has the fields name and steps, and this one has name: write both"),
        ("name: a\nsteps: [InputRanges]\nspeed: 3\n", "this one has name, steps, speed"),
        ("- InputRanges\n", "this one has"),
        ("", "is empty: give a mapping"),
        ("name: a\nsteps: [InputRanges]\nname: b\n", "has 'name' again in line 3: give it once"),
        ("name: a\nsteps:\n  - step: DriftCompensation\n    reads: 3\n    reads: 4\n", "has 'reads' again in line 5"),
        ("a: b: c\n", "is not YAML"),
        ("name: !!python/object/apply:os.getcwd []\n", "is not YAML"),
    ],
)
def test_a_bad_recipe_file_is_one_sentence(capsys, tmp_path, job, text, told):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=told):
        Recipe.from_yaml(path)
    assert_one_sentence(*run(capsys, "calibrate", *job, "--recipe", path))


def test_a_recipe_file_that_is_not_there(capsys, job):
    found = run(capsys, "calibrate", *job, "--recipe", "absent.yaml")
    assert_one_sentence(*found, "recipe file 'absent.yaml' does not exist")


def test_the_command_follows_a_recipe_file(capsys, tmp_path, job):
    path = tmp_path / "mine.yaml"
    path.write_text("name: tiles\nsteps:\n  - step: DriftCompensation\n    per: tile\n    reads: 16\n")
    code, out, _ = run(capsys, "calibrate", *job, "--json", "--recipe", path)
    assert code == 0
    steps = [{**recipe.step_to_dict(DriftCompensation()), "per": "tile", "reads": 16}]
    assert json.loads(out)["recipe"] == {"name": "tiles", "steps": steps}
