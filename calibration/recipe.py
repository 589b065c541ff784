"""Recipes: ordered steps that fit a converted model's calibration and apply it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, is_dataclass
from itertools import pairwise
from typing import Any

from calibration.compensation import DriftCompensation
from calibration.ranges import InputRanges
from calibration.step import Step
from crossbar.errors import InputError


@dataclass(frozen=True)
class Recipe:
    """Steps in the order in which they are fitted and applied.

    Raises:
        InputError: for no steps, and for a step behind one of a later stage.
    """

    name: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise InputError(f"recipe {self.name!r} has no steps: give one or more")
        for before, after in pairwise(self.steps):
            if before.stage > after.stage:
                names = type(after).__name__, type(before).__name__
                raise InputError(f"recipe {self.name!r} is out of order: put {names[0]} before {names[1]}")

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the name, and each step with its fields (those of a dataclass)."""
        steps = [{"step": type(step).__name__, **(asdict(step) if is_dataclass(step) else {})} for step in self.steps]
        return {"name": self.name, "steps": steps}


def get(name: str) -> Recipe:
    """The recipe of this name; ``fast`` needs no gradients and takes seconds.

    Raises:
        InputError: for an unknown name.
    """
    recipes = {"fast": (InputRanges(), DriftCompensation())}
    if name not in recipes:
        raise InputError(f"recipe {name!r} is unknown: choose {', '.join(recipes)}, or give a Recipe of your own steps")
    return Recipe(name, recipes[name])
