"""Recipes: ordered steps that fit a converted model's calibration and apply it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from calibration.compensation import DriftCompensation
from calibration.embedding import Batch
from calibration.ranges import InputRanges
from crossbar.errors import InputError

Fitted = dict[str, Tensor]
"""What a step found: one tensor a layer, by the layer's name."""


class Step(Protocol):
    """One calibration step."""

    @property
    def before_programming(self) -> bool:
        """Whether the step changes what is written into the cells, so that it comes before programming."""

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """Find the step's values for a converted model as it is now; leaves the model unchanged."""

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Put fitted values into a converted model."""


@dataclass(frozen=True)
class Recipe:
    """Steps in the order in which they are fitted and applied.

    Raises:
        InputError: for a step that belongs before programming behind one that does not.
    """

    name: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not self.steps:
            raise InputError(f"recipe {self.name!r} has no steps: give one or more")
        stages = [step.before_programming for step in self.steps]
        if stages != sorted(stages, reverse=True):
            raise InputError(f"recipe {self.name!r} changes the cells after measuring them: put InputRanges first")

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
