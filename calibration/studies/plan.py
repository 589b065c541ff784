"""A design resolved into cells, each with an identity that holds everything that decides its result."""

from __future__ import annotations

import hashlib
import itertools
import os
import platform
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from attention import attach
from calibration.models import Loaded
from calibration.models.sharing import shared_copy
from calibration.progress import Progress
from calibration.runs import fingerprint
from calibration.runs.request import Request
from calibration.storage import hashes
from calibration.studies.design import Design, plain
from calibration.studies.fields import resolve
from calibration.tasks import Task
from calibration.versions import version_of
from crossbar import InputError, convert, presets, to_seconds

_VERSIONS = ("ohmformer", "torch", "numpy", "scipy", "transformers", "aihwkit")


@dataclass(frozen=True)
class Cell:
    """One chip at one time, or a digital baseline.

    Attributes:
        id: hash of the setup, the time and the seed.
        setup: id of the setup, which is everything else.
        seconds: since programming; None for digital.
        seed: of the chip; None for digital.
    """

    id: str
    setup: str
    seconds: float | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Setting:
    """One combination of a study's axes but time and seed.

    Attributes:
        axes: values by axis name, as plain values.
        setup: id of what it adds up to.
        digital: id of the digital setup with the same pattern.
    """

    axes: dict[str, Any]
    setup: str
    digital: str


@dataclass
class Plan:
    """All cells of a study.

    Attributes:
        design: what they come from.
        setups: plain values that decide a result, by id.
        settings: the combinations of axes.
        cells: each once, those of a setup together; by id.
        loaded: models by fingerprint.
        sources: names or folders of models by fingerprint.
        tasks: by fingerprint.
    """

    design: Design
    setups: dict[str, dict[str, Any]] = field(default_factory=dict)
    settings: list[Setting] = field(default_factory=list)
    cells: dict[str, Cell] = field(default_factory=dict)
    loaded: dict[str, Loaded] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    tasks: dict[str, Task] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """Hash of the configuration as it was written."""
        return hashes.of_values(self.design.written)[:32]

    def provenance(self, engine: str, workers: int) -> dict[str, Any]:
        """Where and with what a run computes."""
        return {
            "command": " ".join([os.path.basename(sys.argv[0]), *sys.argv[1:]]),
            "engine": engine,
            "workers": workers,
            "versions": {"python": platform.python_version(), **{name: version_of(name) for name in _VERSIONS}},
            "code": fingerprint.of_code(),
            "machine": {
                "system": platform.platform(),
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "host": platform.node(),
            },
            "models": {key: loaded.name for key, loaded in self.loaded.items()},
        }


def resolve_plan(design: Design, progress: Progress | None = None, *, weights: bool = True) -> Plan:
    """Check every setting of a design and give every cell its identity; models are loaded, nothing is computed.

    Args:
        design: what is to be computed.
        progress: called while a model is converted for the first time.
        weights: whether to read the weights of models too, of which all but what stands in the files' headers is then
            checked.

    Raises:
        InputError: for an unknown field, an impossible value, a model, task or pattern that do not fit together.
    """
    plan = Plan(design)
    resolver = _Resolver(plan, progress, weights)
    entered: dict[tuple[Any, ...], str] = {}
    for labels, values, times, seeds in design.combinations():
        request = resolve({**values, "time": times[0], "seed": seeds[0]}, design.folder)
        setup, digital = resolver.setup(request)
        setting = Setting({name: v for name, v in labels.items() if name not in ("time", "seed")}, setup, digital)
        key = tuple(plain(value) for value in setting.axes.values())
        if key not in entered:  # samples may differ in time alone, and grids overlap
            plan.settings.append(setting)
            entered[key] = setup
        if entered[key] != setup:
            named = ", ".join(f"{name} {plain(value)!r}" for name, value in setting.axes.items())
            raise InputError(
                f"two grids have different fields under the same values ({named}): where an axis varies several "
                "fields, give all of them the same values in each grid and in the base"
            )
        _add(plan, digital, None, None)
        for seed, seconds in itertools.product(seeds, times):
            _add(plan, setup, to_seconds(seconds), seed)
    return plan


def _add(plan: Plan, setup: str, seconds: float | None, seed: int | None) -> None:
    key = cell_id(setup, seconds, seed)
    plan.cells[key] = Cell(key, setup, seconds, seed)


def cell_id(setup: str, seconds: float | None, seed: int | None) -> str:
    """The identity of a cell."""
    return hashlib.sha256(f"{setup} {seconds!r} {seed!r}".encode()).hexdigest()[:32]


class _Resolver:
    """Models and tasks of a plan, each loaded and checked once."""

    def __init__(self, plan: Plan, progress: Progress | None, weights: bool) -> None:
        self._weights = weights
        self._plan = plan
        self._calibrates = any(chosen.values["recipe"] is not None for chosen in plan.design.combinations())
        self._progress = progress
        self._models: dict[str, str] = {}
        self._tasks: dict[str, dict[str, str]] = {}
        self._checked: set[str] = set()

    def setup(self, request: Request) -> tuple[str, str]:
        """Ids of the setup of a job and of its digital baseline, entered into the plan."""
        model = self._model(request)
        self._check(request, model)
        common: dict[str, Any] = {
            "model": {"name": self._plan.loaded[model].name, "fingerprint": model},
            "task": {"name": request.task, "options": request.options, **self._task(request, model)},
            "pattern": None if request.pattern is None else str(request.pattern),
            "device": request.device,
            "code": fingerprint.of_code(),
        }
        digital = self._enter({**common, "hardware": None, "memory": None, "recipe": None})
        layers: dict[str, Any] = {"include": request.include, "exclude": request.exclude}
        if request.tied_heads:
            layers["tied_heads"] = True
        analog = {
            **common,
            "model": {**common["model"], **layers},
            "hardware": request.hardware.to_dict(),
            "memory": None if request.memory is None else request.memory.to_dict(),
            "recipe": None,
        }
        if request.recipe is not None:
            analog |= {"recipe": request.recipe.to_dict(), "staircase": self._plan.design.staircase}
        if request.target is not None:
            analog["chip"] = request.target.to_dict()
        if self._calibrates:  # chips without a recipe are scored when those with one are
            analog |= {"wait": request.wait}
        return self._enter(analog), digital

    def _enter(self, values: dict[str, Any]) -> str:
        key = hashes.of_values(values)[:32]
        self._plan.setups[key] = values
        return key

    def _model(self, request: Request) -> str:
        assert isinstance(request.model, str)  # a study names its models
        if request.model not in self._models:
            loaded = request.load_model(self._progress, weights=self._weights)
            assert isinstance(loaded, Loaded)
            self._models[request.model] = loaded.fingerprint
            self._plan.loaded[loaded.fingerprint] = loaded
            self._plan.sources[loaded.fingerprint] = request.model
        return self._models[request.model]

    def _task(self, request: Request, model: str) -> dict[str, str]:
        key = hashes.of_values([model, request.task, request.options])
        if key not in self._tasks:
            task = request.make_task(self._plan.loaded[model])
            found = fingerprint.of_task(task)
            self._tasks[key] = {"primary": task.primary, "fingerprint": found}
            self._plan.tasks[found] = task
        return self._tasks[key]

    def _check(self, request: Request, model: str) -> None:
        """Refuse layers that do not exist, and a pattern or a memory that the model cannot have."""
        chosen = {name: getattr(request, name) for name in ("include", "exclude", "tied_heads")}
        layers, gate = str((model, chosen)), str((model, request.pattern, request.memory))
        network = self._plan.loaded[model].model
        if layers not in self._checked:
            convert(shared_copy(network), presets.ideal(), **chosen)
        if gate not in self._checked and (request.pattern is not None or request.memory is not None):
            attach(shared_copy(network), request.pattern or "dense", request.memory)
        self._checked |= {layers, gate}


def now() -> str:
    """The time in UTC, to a second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")
