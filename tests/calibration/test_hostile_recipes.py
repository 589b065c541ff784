"""Recipe files, damaged: refused in one sentence, or the recipe that they say (issue 18)."""

import dataclasses
import math
from pathlib import Path

import pytest

from calibration.recipe import _KINDS, Recipe
from crossbar import InputError
from crossbar.storage.plain_values import load_yaml
from tests.mutations import of_bytes, of_values

EXAMPLE = Path(__file__).parents[2] / "docs/recipe.example.yaml"


def test_damaged_recipes_are_refused_or_read():
    every = {"name": "every", "steps": sorted((kind().__class__.__name__ for kind in _KINDS), key=str)}
    values = Recipe("every", tuple(sorted((kind() for kind in _KINDS), key=lambda step: step.stage))).to_dict()
    texts = [damaged.decode("utf-8", "replace") for damaged in of_bytes(EXAMPLE.read_bytes(), 250)]
    taken = 0
    for damaged in [every, *texts, *of_values(values, 250)]:
        try:
            recipe = Recipe.from_dict(load_yaml("recipe", damaged) if isinstance(damaged, str) else damaged)
        except InputError:
            continue
        taken += 1
        assert Recipe.from_dict(recipe.to_dict()) == recipe
        for step in recipe.steps:
            numbers = [value for value in dataclasses.asdict(step).values() if isinstance(value, float)]
            assert all(math.isfinite(number) for number in numbers)
    assert taken > 60


@pytest.mark.parametrize("kind", _KINDS, ids=lambda kind: kind.__name__)
def test_every_number_of_a_step_is_bounded(kind):
    for field in dataclasses.fields(kind):
        if isinstance(field.default, int | float) and not isinstance(field.default, bool):
            for value in (-1, 10**400, math.inf, math.nan, 1e38):
                with pytest.raises(InputError, match=rf"{field.name} = |{field.name} "):
                    Recipe.from_dict({"name": "a", "steps": [{"step": kind.__name__, field.name: value}]})


def test_too_many_steps_are_refused():
    with pytest.raises(InputError, match="recipe 'a' has 101 steps: give one or more, at most 100"):
        Recipe.from_dict({"name": "a", "steps": ["AdcRanges"] * 101})
