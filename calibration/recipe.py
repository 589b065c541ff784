"""Recipes: ordered steps that fit a converted model's calibration and apply it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from calibration.steps.adc_ranges import AdcRanges
from calibration.steps.affine import AffineCorrection
from calibration.steps.average_reads import AverageReads
from calibration.steps.batch_norms import BatchNormStatistics
from calibration.steps.compensated_programming import CompensatedProgramming
from calibration.steps.compensation import DriftCompensation
from calibration.steps.digital_lines import DigitalLines
from calibration.steps.drift_targets import DriftTargets
from calibration.steps.finetune import Finetune
from calibration.steps.lowrank import LowRankAdapter
from calibration.steps.norm_recalibration import NormRecalibration
from calibration.steps.protection import TokenProtection
from calibration.steps.protocol import Stage, Step
from calibration.steps.ranges import InputRanges
from calibration.steps.reprogram import ReprogramWorst
from calibration.steps.rotation import Rotation
from calibration.steps.screening_thresholds import ScreeningThresholds
from calibration.steps.weight_ranges import WeightRanges
from calibration.steps.wire_aware import WireAware
from crossbar.errors import InputError, shown
from crossbar.storage.plain_values import read_yaml

_MOST_STEPS = 100
_KINDS = (
    DigitalLines,
    InputRanges,
    Rotation,
    WeightRanges,
    DriftTargets,
    WireAware,
    TokenProtection,
    ScreeningThresholds,
    ReprogramWorst,
    CompensatedProgramming,
    AverageReads,
    DriftCompensation,
    AdcRanges,
    AffineCorrection,
    LowRankAdapter,
    NormRecalibration,
    BatchNormStatistics,
    Finetune,
)
_STEPS: dict[str, Any] = {step.__name__: step for step in _KINDS}


@dataclass(frozen=True)
class Recipe:
    """Steps in the order in which they are fitted and applied.

    Raises:
        InputError: for no steps, and for a step behind one of a later stage.
    """

    name: str
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        if not 0 < len(self.steps) <= _MOST_STEPS:
            what = f"{len(self.steps)} steps" if self.steps else "no steps"
            raise InputError(f"recipe {shown(self.name)} has {what}: give one or more, at most {_MOST_STEPS}")
        for before, after in pairwise(self.steps):
            if before.stage > after.stage:
                names = type(after).__name__, type(before).__name__
                raise InputError(f"recipe {shown(self.name)} is out of order: put {names[0]} before {names[1]}")

    def steps_at(self, stage: Stage) -> dict[int, Step]:
        """The steps of a stage by their place in the recipe."""
        return {index: step for index, step in enumerate(self.steps) if step.stage is stage}

    @property
    def arms(self) -> list[str]:
        """The arm that is scored after each step; a kind of step that comes again is numbered."""
        arms: list[str] = []
        for step in self.steps[:-1]:
            arm = f"after {type(step).__name__}"
            again = sum(other.startswith(arm) for other in arms)
            arms.append(f"{arm} {again + 1}" if again else arm)
        return [*arms, "calibrated"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values: the name, and each step with its fields (those of a dataclass)."""
        return {"name": self.name, "steps": [step_to_dict(step) for step in self.steps]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """A recipe of this package's steps from plain values; a missing field keeps its default.

        Raises:
            InputError: for an unknown step or field, and a value that is not allowed.

        >>> Recipe.from_dict({"name": "fewer", "steps": [{"step": "DigitalLines", "share": 0.01}]}).steps
        (DigitalLines(share=0.01),)
        """
        if not isinstance(values, Mapping) or values.keys() != {"name", "steps"}:
            given = shown(", ".join(map(str, values)))[1:-1] if isinstance(values, Mapping) else shown(values)
            raise InputError(f"a recipe has the fields name and steps, and this one has {given}: write both")
        name, steps = values["name"], values["steps"]
        if not isinstance(name, str) or not isinstance(steps, list | tuple):
            raise InputError(f"recipe {shown(name)} is not usable: give a text as its name, and a list of steps")
        return cls(name, tuple(step_from_dict(step) for step in steps))

    @classmethod
    def from_yaml(cls, path: str | Path) -> Recipe:
        """A recipe from a YAML file with ``name`` and ``steps``.

        Raises:
            InputError: for what `crossbar.storage.plain_values.read_yaml` or `from_dict` refuses.
        """
        return cls.from_dict(read_yaml("recipe", path))


def step_to_dict(step: Step) -> dict[str, Any]:
    """A step's class, and its fields if it is a dataclass, as plain values."""
    return {"step": type(step).__name__, **(asdict(step) if is_dataclass(step) else {})}


def step_from_dict(values: Mapping[str, Any] | str) -> Step:
    """A step of this package from its class, as ``step``, and its fields; a name alone keeps every default.

    Raises:
        InputError: for an unknown step or field, and a value that is not allowed.
    """
    if isinstance(values, str):
        values = {"step": values}
    name = values.get("step") if isinstance(values, Mapping) else values
    if not isinstance(values, Mapping) or not isinstance(name, str) or name not in _STEPS:
        raise InputError(f"recipe step {shown(name)} is unknown: choose one of {', '.join(_STEPS)}")
    kind = _STEPS[name]
    given = {key: value for key, value in values.items() if key != "step"}
    hints = get_type_hints(kind)
    allowed = {field.name: hints[field.name] for field in fields(kind)}
    for key, value in given.items():
        if key not in allowed:
            raise InputError(f"recipe step {name} has no field {shown(key)}: allowed are {', '.join(allowed)}")
        if not _fits(value, allowed[key]):
            raise InputError(
                f"recipe step {name}: {key} = {shown(value)} is not allowed: give {_described(allowed[key])}"
            )
    step: Step = kind(**given)
    return step


def _fits(value: object, hint: Any) -> bool:
    """Whether a plain value is of an annotated kind: bool, int, float, str, None, Literal, or a union of these."""
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, (int, float) if hint is float else hint)


def _described(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_described(part) for part in get_args(hint))
    names = {
        float: "a number",
        int: "a whole number",
        str: "a text",
        bool: "true or false",
        type(None): "nothing (null)",
    }
    return names[hint]


def get(name: str) -> Recipe:
    """The recipe of this name, or that of a YAML file if the name ends in ``.yaml`` or ``.yml``.

    ``quick`` fits what is written, and reads out each chip at each time: seconds. ``fast`` also leaves 1% of the word
    lines to digital arithmetic, rotates the inputs of the others, and reads real inputs, for converter ranges and
    output corrections: minutes at most. ``thorough`` writes each chip line by line (`CompensatedProgramming`), and then
    trains adapters and ranges on it (`Finetune`), which for a language model takes an hour. ``foundation`` is ``fast``
    with all weights trained once for any chip before programming (`Finetune` of weights).

    Raises:
        InputError: for an unknown name, or what `Recipe.from_yaml` refuses.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return Recipe.from_yaml(name)
    quick: tuple[Step, ...] = (InputRanges(), WeightRanges(), DriftCompensation())
    written: tuple[Step, ...] = (DigitalLines(), InputRanges(), Rotation(), WeightRanges())
    in_use: tuple[Step, ...] = (DriftCompensation(), AdcRanges(), AffineCorrection())
    fast = (*written, *in_use)
    thorough = (*written, CompensatedProgramming(), *in_use, LowRankAdapter(), Finetune())
    foundation = (*written, Finetune("weights", "any", rate=1e-5, accumulate=2), *in_use)
    recipes = {"quick": quick, "fast": fast, "thorough": thorough, "foundation": foundation}
    if name not in recipes:
        raise InputError(f"recipe {shown(name)} is unknown: choose {', '.join(recipes)}, a .yaml file, or a Recipe")
    return Recipe(name, recipes[name])
