"""Calibration for a population: fitted on some chips, for others that nobody has measured."""

from __future__ import annotations

from calibration.recipe import Recipe
from calibration.runs.chips import MOST_CHIPS
from calibration.steps.protocol import Fitted, PopulationStep, Stage
from crossbar import InputError
from crossbar.errors import require_whole

FIRST_SEED = 1_000_000
"""Seed of the first chip that is fitted on."""

Shared = dict[float, dict[int, Fitted]]
"""What was fitted for all chips, by time since programming (s) and place of the step in the recipe."""


def require(recipe: Recipe, population: int | None, chips: range) -> None:
    """Refuse a population of no chips, one with chips that are scored, and a recipe with steps that belong to one chip.

    Raises:
        InputError: in these cases.
    """
    if population is None:
        return
    require_whole("population", population, least=1, most=MOST_CHIPS)
    if chips[-1] >= FIRST_SEED and chips[0] < FIRST_SEED + population:
        raise InputError(
            f"seeds {chips[0]} to {chips[-1]} would be fitted on and scored, since a population has those from "
            f"{FIRST_SEED}: give another seed"
        )
    for step in recipe.steps:
        if step.stage is not Stage.BEFORE_PROGRAMMING and not isinstance(step, PopulationStep):
            raise InputError(
                f"{type(step).__name__} belongs to one chip: leave it out, or calibrate without population"
            )
