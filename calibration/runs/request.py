"""What a job was asked for: the one place where names, files and objects become what computes.

`emulate`, `calibrate`, `energy`, the command and studies all come through `Request.of`, so that each takes what the
others take and refuses it in the same words. What costs nothing to check is checked before anything is loaded.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attention import Memory, Pattern, parse
from calibration import models, tasks
from calibration import recipe as recipes
from calibration.models import Loaded
from calibration.placement.layout import Target
from calibration.progress import Progress
from calibration.recipe import Recipe
from calibration.runs import chips as which
from calibration.runs import engines, populations
from calibration.tasks import Task
from crossbar import Hardware, InputError, presets, to_seconds
from crossbar.errors import shown
from crossbar.presets import HardwareLike

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ModelLike = str | Path | nn.Module | Loaded
"""What a model is given as: a name, a folder, a loaded model, or any module with linear layers."""
PatternLike = str | Mapping[str, Any] | Pattern
"""What `as_pattern` makes a pattern of."""
MemoryLike = HardwareLike | Memory
"""What `as_memory` makes a memory of."""
RecipeLike = str | Mapping[str, Any] | Recipe
"""What `as_recipe` makes a recipe of."""
TimesLike = str | float | Sequence[str | float]
"""What `as_times` makes times of."""
TIMES = ("0s", "1h", "1d", "30d", "1y")
_MOST_TIMES = 10_000
_PLACEHOLDER = re.compile(r"\{([A-Za-z_]\w*)\}")  # in a pattern's text; no format of Python's own
_HERE = Path()


@dataclass(frozen=True)
class Subject:
    """A model and what scores it, ready to run.

    Attributes:
        network: the digital model.
        task: what it is scored on.
        name: of the model; of a module, its class.
        fingerprint: SHA-256 (hex) of what decides what a loaded model computes; None for a module.
        tokenizer: the model's own, where it came with one.
        is_borrowed: whether the network is the user's, who may go on to change it.
    """

    network: nn.Module
    task: Task
    name: str
    fingerprint: str | None
    tokenizer: PreTrainedTokenizerBase | None
    is_borrowed: bool


@dataclass(frozen=True)
class Request:
    """A job, everything of it resolved and checked but the model and the task, which `load` loads.

    Attributes:
        model: name, folder, module, or a model that is loaded.
        task: its name, or the task itself.
        hardware: the tiles.
        pattern: who attends to whom; None: the model's own attention.
        memory: where the analog model's keys and values are; None: they are digital.
        recipe: what is fitted; None: nothing, chips stay as they were programmed.
        times: since programming, s: when steps are fitted, or without a recipe when chips are scored.
        wait: from fitting to scoring, s.
        chips: seeds.
        population: how many other chips are fitted on; None: each chip itself.
        device: where it is computed; None: where the model is.
        include, exclude: shell patterns of layers, as for `crossbar.convert`.
        tied_heads: whether output heads tied to embeddings become analog, as for `crossbar.convert`.
        options: of the task's class, where the task is a name.
        target: what the model is placed on; None: nothing is timed.
        stream: whether a language model is taken block by block (`calibration.runs.streaming`); None: where memory
            does not hold it.
        engine: what computes the blocks of a stream: this process, or a Ray cluster.
    """

    model: ModelLike
    task: str | Task
    hardware: Hardware
    pattern: Pattern | None = None
    memory: Memory | None = None
    recipe: Recipe | None = None
    times: tuple[float, ...] = (0.0,)
    wait: float = 0.0
    chips: range = range(1)
    population: int | None = None
    device: str | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    tied_heads: bool = False
    options: Mapping[str, Any] = field(default_factory=dict)
    target: Target | None = None
    stream: bool | None = False
    engine: str = "local"

    @classmethod
    def of(
        cls,
        model: ModelLike,
        task: str | Task,
        hardware: HardwareLike = "pcm",
        *,
        pattern: PatternLike | None = None,
        memory: MemoryLike | None = None,
        memory_options: Mapping[str, Any] | None = None,
        recipe: RecipeLike | None = None,
        times: TimesLike = TIMES,
        wait: str | float = 0.0,
        chips: int = 1,
        seed: int = 0,
        population: int | None = None,
        device: str | None = None,
        include: str | Sequence[str] | None = None,
        exclude: str | Sequence[str] | None = None,
        tied_heads: bool = False,
        options: Mapping[str, Any] | None = None,
        target: Target | None = None,
        stream: bool | None = False,
        engine: str = "local",
        folder: Path = _HERE,
        elsewhere: bool = False,
    ) -> Request:
        """Resolve what was asked for, in any of the forms that each argument takes.

        Args:
            model: see `ModelLike`.
            task: a name, or an object with the members of `calibration.Task`.
            hardware: see `as_hardware`.
            pattern: see `as_pattern`.
            memory: see `as_memory`.
            memory_options: other fields of the memory.
            recipe: see `as_recipe`.
            times: see `as_times`.
            wait: from fitting to scoring; longer than 0 s where there is a recipe.
            chips: how many.
            seed: of the first chip; the others have the next whole numbers.
            population: on how many other chips to fit.
            device: ``cpu``, ``cuda``, or a GPU by number.
            include, exclude: shell patterns of layers, one or several.
            tied_heads: make output heads that are tied to embeddings analog too.
            options: of the task's class.
            target: what the model is placed on.
            stream: block by block; None: where memory does not hold the model.
            engine: ``local`` or, for a stream, ``ray``.
            folder: where relative paths of files in a study start from.
            elsewhere: whether others compute, so that a device need not be on this machine.

        Raises:
            InputError: for unknown names, values that are not allowed, and a device that is not there.
        """
        if isinstance(task, str):
            tasks.require(task)
        seeds = which.require_chips(chips, seed)
        if elsewhere:
            which.require_kind(device)
        else:
            which.require_device(device)
        if not isinstance(tied_heads, bool):
            raise InputError(f"tied_heads = {shown(tied_heads)} is not allowed: give true or false")
        if stream is not None and not isinstance(stream, bool):
            raise InputError(f"stream = {shown(stream)} is not allowed: give true, false or none")
        engines.require(engine)
        if engine != "local" and not stream:
            raise InputError(f"the engine {engine!r} shares out the blocks of a stream: give stream true too")
        seconds, tiles = as_times(times), as_hardware(hardware, folder)
        gate, store = as_pattern(pattern), as_memory(memory, folder, memory_options)
        steps = as_recipe(recipe, folder)
        delay = as_wait(wait, steps)
        if steps is not None:
            populations.require(steps, population, seeds)
        return cls(
            model=located_model(model, folder) if isinstance(model, str) else model,
            task=task,
            hardware=tiles,
            pattern=gate,
            memory=store,
            recipe=steps,
            times=tuple(seconds),
            wait=delay,
            chips=seeds,
            population=population,
            device=device,
            include=as_layers("include", include),
            exclude=as_layers("exclude", exclude),
            tied_heads=tied_heads,
            options=dict(options or {}),
            target=target,
            stream=stream,
            engine=engine,
        )

    @property
    def place(self) -> torch.device | None:
        """Torch's device; None: where the model is."""
        return which.require_device(self.device)

    def load(self, progress: Progress | None = None) -> Subject:
        """The model and the task.

        Raises:
            InputError: for a model that cannot be loaded, and a task that does not fit it.
        """
        named = isinstance(self.model, str | Path)
        loaded = self.load_model(progress)
        network = loaded.model if isinstance(loaded, Loaded) else loaded
        task = self.make_task(loaded)
        if isinstance(loaded, Loaded):
            return Subject(network, task, loaded.name, loaded.fingerprint, loaded.tokenizer, not named)
        return Subject(network, task, type(network).__name__, None, None, True)

    def load_model(self, progress: Progress | None = None, *, weights: bool = True) -> Loaded | nn.Module:
        """The model alone; without ``weights``, as `calibration.load_model` has it then.

        Raises:
            InputError: as `calibration.load_model`.
        """
        if not isinstance(self.model, str | Path):
            return self.model
        return models.load_model(self.model, progress, weights=weights)

    def make_task(self, model: Loaded | nn.Module) -> Task:
        """The task, of texts that the model's tokenizer reads where it is a name.

        Raises:
            InputError: for a task that does not fit the model, and options that it has not.
        """
        if not isinstance(self.task, str):
            return self.task
        if not isinstance(model, Loaded):
            raise InputError(
                f"task {self.task!r} needs a tokenizer, which a bare {type(model).__name__} has not: "
                "give calibration.tasks.get(name, tokenizer) or a task of your own"
            )
        tasks.require(self.task, model)
        return tasks.get(self.task, model.tokenizer, **self.options)


def as_hardware(hardware: HardwareLike, folder: Path = _HERE) -> Hardware:
    """Hardware by name, from a file, of a mapping of its fields, or as it is: see `crossbar.presets.get`."""
    if isinstance(hardware, str):
        return presets.get(_located(hardware, folder))
    return Hardware.from_dict(hardware, folder) if isinstance(hardware, Mapping) else presets.get(hardware)


def as_pattern(pattern: PatternLike | None) -> Pattern | None:
    """A pattern from its text, with values for its ``{placeholders}`` if it is a mapping with ``text``, or as it is.

    >>> str(as_pattern({"text": "window({size}) | sinks(4)", "size": 64}))
    'window(64) | sinks(4)'
    """
    if pattern is None or isinstance(pattern, Pattern):
        return pattern
    values = named("pattern", "text", pattern)
    text = values.pop("text")
    names = set(_PLACEHOLDER.findall(text))
    if isinstance(pattern, str):
        return parse(text)
    if names != set(values):
        name = min(names ^ set(values))
        raise InputError(
            f"pattern {shown(text)} and its fields differ in {shown(name)}: each {{placeholder}} needs a value"
        )
    for name, part in values.items():
        if isinstance(part, bool) or not isinstance(part, int | str):
            raise InputError(f"pattern.{name} = {shown(part)} is not allowed: give a whole number or a text")
    return parse(_PLACEHOLDER.sub(lambda found: str(values[found[1]]), text))


def as_memory(
    memory: MemoryLike | None, folder: Path = _HERE, options: Mapping[str, Any] | None = None
) -> Memory | None:
    """A memory of hardware alone, by name for example, of fields, among them ``hardware``, or as it is.

    ``options`` are other fields, which take the place of its own.
    """
    if memory is None:
        for name, value in (options or {}).items():
            raise InputError(f"memory {name.replace('_', ' ')} {value!r} has no memory to be of: give --memory too")
        return None
    if isinstance(memory, Memory):
        found = memory
    elif isinstance(memory, Mapping) and memory.keys() & {own.name for own in fields(Memory)}:
        own = memory.get("hardware")
        found = Memory.from_dict({**memory, "hardware": _located(own, folder)} if isinstance(own, str) else memory)
    elif not isinstance(memory, str | Path | Hardware | Mapping):
        raise InputError(f"memory = {shown(memory)} is not allowed: give a mapping, or the name of hardware")
    else:
        found = Memory(as_hardware(memory, folder))
    return replace(found, **options) if options else found


def as_recipe(recipe: RecipeLike | None, folder: Path = _HERE) -> Recipe | None:
    """A recipe by name, from a file, of its steps, or as it is; other fields change those of the steps they name.

    ``fast``, ``{name: fast, DriftCompensation: {reads: 64}}``, ``{name: tiles, steps: [{step: DriftCompensation}]}``.
    """
    if recipe is None or isinstance(recipe, Recipe):
        return recipe
    changes = named("recipe", "name", recipe)
    name, steps = changes.pop("name"), changes.pop("steps", None)
    found = recipes.get(_located(name, folder)) if steps is None else Recipe.from_dict({"name": name, "steps": steps})
    written = found.to_dict()["steps"]
    kinds = list(dict.fromkeys(step["step"] for step in written))
    for kind, values in changes.items():
        if kind not in kinds or not isinstance(values, Mapping):
            raise InputError(
                f"recipe field {shown(kind)} = {shown(values)} is not allowed: give fields of the steps "
                f"{', '.join(kinds)}"
            )
        written = [{**step, **values} if step["step"] == kind else step for step in written]
    return Recipe.from_dict({"name": name, "steps": written}) if changes else found


def as_times(times: TimesLike) -> list[float]:
    """Times in seconds, as given, each once; a text may have several with commas between them.

    Raises:
        InputError: for no time at all, for more than 10,000, and for an impossible one.
    """
    if isinstance(times, str):
        times = times.split(",")
    elif isinstance(times, int | float):
        times = [times]
    if not isinstance(times, Sequence) or not 0 < len(times) <= _MOST_TIMES:
        raise InputError(f"times {shown(times)} are not usable: give '1h', or a list such as ['0s', '1h', '1d']")
    return list(dict.fromkeys(to_seconds(time) for time in times))


def as_wait(wait: str | float, recipe: Recipe | None) -> float:
    """Seconds from fitting to scoring.

    Raises:
        InputError: for an impossible time and, with a recipe, 0 s.
    """
    delay = to_seconds(wait)
    if delay == 0 and recipe is not None:
        raise InputError("a wait of 0 s would score the very noise that was fitted: wait longer, such as '1h'")
    return delay


def located_model(name: str, folder: Path) -> str:
    """A model's name as it is, or the path of its folder, which starts from that of the study."""
    if name in models.NAMED or folder == _HERE:
        return name
    path = folder / Path(name).expanduser()
    return str(path) if path.is_dir() or Path(name).is_dir() or name.startswith((".", "/", "~")) else name


def named(section: str, key: str, value: Any) -> dict[str, Any]:
    """A section as a mapping with its name under a key; a bare text is the name."""
    values = {key: value} if isinstance(value, str) else value
    if not isinstance(values, Mapping) or not isinstance(values.get(key), str):
        raise InputError(f"{section} = {shown(value)} is not allowed: give a name, or a mapping with {shown(key)}")
    return dict(values)


def _located(name: str, folder: Path) -> str:
    """A name, or, of a file, its path."""
    return str(folder / name) if Path(name).suffix in (".yaml", ".yml", ".csv") else name


def as_layers(field: str, value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Shell patterns of layers, one or several, as a tuple; ``field`` names them in errors."""
    if value is None or isinstance(value, str):
        return None if value is None else (value,)
    if not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise InputError(f"{field} = {shown(value)} is not allowed: give a list of layer patterns, such as ['*.query']")
    return tuple(value)
