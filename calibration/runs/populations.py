"""Calibration for a population: fitted on some chips, for others that nobody has measured."""

from __future__ import annotations

from functools import partial

from calibration.recipe import Recipe
from calibration.runs.chips import MOST_CHIPS
from calibration.runs.experiment import Experiment
from calibration.steps.protocol import Fitted, PopulationStep, Stage
from crossbar import InputError, age
from crossbar.errors import require_whole

_FIRST_SEED = 1_000_000
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
    if chips[-1] >= _FIRST_SEED and chips[0] < _FIRST_SEED + population:
        raise InputError(
            f"seeds {chips[0]} to {chips[-1]} would be fitted on and scored, since a population has those from "
            f"{_FIRST_SEED}: give another seed"
        )
    for step in recipe.steps:
        if step.stage is not Stage.BEFORE_PROGRAMMING and not isinstance(step, PopulationStep):
            raise InputError(
                f"{type(step).__name__} belongs to one chip: leave it out, or calibrate without population"
            )


def fit(experiment: Experiment, recipe: Recipe, times: list[float], population: int) -> Shared:
    """Fit the steps in use at each time, each on all chips of the population before the next one."""
    steps = recipe.steps_at(Stage.IN_USE)
    shared: Shared = {}
    for time in times:
        shared[time] = {}
        for index, step in steps.items():
            fits = []
            for seed in range(_FIRST_SEED, _FIRST_SEED + population):
                experiment.new_chip(seed)
                experiment.later(experiment.uncalibrate)
                experiment.later(partial(age, experiment.analog, time))
                for earlier, fitted in shared[time].items():
                    experiment.later(partial(steps[earlier].apply, experiment.analog, fitted))
                count = time == times[0]
                fits.append(experiment.fit(step, f"{index} population chip {seed} at {time!r}", count=count))
            assert isinstance(step, PopulationStep)
            shared[time][index] = step.combine(fits)
    experiment.later(experiment.uncalibrate)
    return shared
