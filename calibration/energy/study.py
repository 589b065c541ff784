"""Where the picojoules go: what a model takes on analog hardware under several patterns, beside its accuracy."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from attention import Memory, Pattern, attach, parse, renew_memory
from attention.hf.attach import memory_of
from calibration import models, tasks
from calibration import recipe as recipes
from calibration.energy.results import DECODE, PREFILL, Arm, EnergyStudy, Work
from calibration.models import Loaded
from calibration.models.outputs import device_of, is_generative
from calibration.progress import Progress
from calibration.recipe import Recipe
from calibration.runs.chips import require_chips, require_device
from calibration.runs.experiment import MemoryLike, as_memory
from calibration.runs.overlap import require_disjoint
from calibration.steps.protocol import Stage
from calibration.tasks import Task
from crossbar import (
    InputError,
    Ledger,
    PriceBook,
    analog_layers,
    bypassed,
    convert,
    presets,
    program,
    reset_reads,
    to_seconds,
)
from crossbar import age as set_age
from crossbar.adapters import digital_weight, is_convertible
from crossbar.costs.prices import DEFAULT
from crossbar.presets import HardwareLike

PATTERNS = ("dense", "window(256) | sinks(4)", "window(64) | strided(64) | sinks(4)")


def energy(
    model: str | Path | nn.Module | Loaded = "smollm2",
    task: str | Task = "perplexity",
    hardware: HardwareLike = "pcm",
    patterns: Sequence[str | Pattern] = PATTERNS,
    *,
    memory: MemoryLike | None = None,
    recipe: str | Recipe | None = "fast",
    age: str | float = "1h",
    wait: str | float = "1h",
    book: str | PriceBook | None = None,
    seed: int = 0,
    device: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    progress: Progress | None = None,
) -> EnergyStudy:
    """Score a model under each pattern on one analog chip, and price everything that is counted meanwhile.

    Linear layers are on tiles. Keys and values are counted as rows of analog tiles of 256 x 256 and computed in
    digital, unless ``memory`` has them: then they are written and read there, and their writes are counted too. Norms,
    activation functions, embeddings, softmax and layers that stay digital are counted in any case. A language model
    also decodes one token after the first sequence of the task.

    Args:
        model: a name, a folder, a `Loaded`, or a module (with a task that is not a name).
        task: scored whole under each pattern.
        hardware: of the linear layers: a preset's name, a YAML or CSV file, a mapping of fields, or a description.
        patterns: who attends to whom, texts or patterns.
        memory: of the analog model's keys and values: hardware, given in one of these ways, or an `attention.Memory`.
        recipe: calibration of the chip, fitted at ``age`` with the first pattern; None: none.
        age: of the chip when it is calibrated, or scored where there is no recipe.
        wait: between calibrating and scoring, as in `calibrate`; without a recipe there is none.
        book: prices: see `crossbar.PriceBook.get`; None: `default_book` of the memory.
        seed: of the chip.
        device: where it is computed, as in `emulate`.
        include, exclude: layers to convert, as for `crossbar.convert`.
        progress: called before each scoring.

    Raises:
        InputError: for unknown names, what `crossbar.convert` and `attention.attach` refuse, and, with a recipe, a wait
            of 0 s and a task whose calibration data are in its evaluation data.
    """
    fitted, delay = times(recipe, age, wait)
    require_chips(1, seed)
    where = require_device(device)
    hardware = presets.get(hardware)
    recipe = recipes.get(recipe) if isinstance(recipe, str) else recipe
    memory = as_memory(memory)
    book = default_book(memory) if book is None else book
    book = PriceBook.get(book) if isinstance(book, str) else book
    chosen = [parse(pattern) if isinstance(pattern, str) else pattern for pattern in patterns]
    if not chosen:
        raise InputError("no pattern to price: give one or more")
    loaded = models.load_model(model, progress) if isinstance(model, str | Path) else model
    network = loaded.model if isinstance(loaded, Loaded) else loaded
    if isinstance(task, str):
        if not isinstance(loaded, Loaded):
            raise InputError(f"task {task!r} needs a tokenizer: give a task of your own with a bare module")
        tasks.require(task, loaded)
        task = tasks.get(task, loaded.tokenizer)
    if recipe is not None:
        require_disjoint(task)
    analog = copy.deepcopy(network).eval()
    if where is not None:
        analog.to(where)
    attach(analog, chosen[0], memory)
    renew_memory(analog, seed)
    conversion = convert(analog, hardware, include, exclude)
    _make_chip(analog, task, recipe, seed, fitted)
    set_age(analog, fitted + delay)
    arms: list[Arm] = []
    uncounted: dict[str, str] = {}
    for k, pattern in enumerate(chosen):
        for place, name in enumerate(("digital", "analog", "decoding")):
            if progress is not None:
                progress(3 * k + place, 3 * len(chosen), f"{name}, {pattern}")
            if name == "digital":
                attach(analog, pattern)
                with bypassed(analog):
                    digital = task.metrics(analog)[task.primary]
            elif name == "analog":
                attach(analog, pattern, memory)
                renew_memory(analog, seed)
                reset_reads(analog)
                held = memory_of(analog)
                rows = None if held is None else held.capacity
                with Ledger(analog) as ledger:
                    scored = task.metrics(analog)[task.primary]
                uncounted |= ledger.uncounted
                work = [_prefill(analog, task, ledger)]
            elif is_generative(analog):
                work.append(_decode(analog, _first_sequence(task)))
        arms.append(Arm(str(pattern), digital, scored, tuple(work), rows))
    setup = {
        "model": loaded.name if isinstance(loaded, Loaded) else type(network).__name__,
        "task": task.name,
        "hardware": hardware.to_dict(),
        "memory": None if memory is None else memory.to_dict(),
        "chip": seed,
        "recipe": None if recipe is None else recipe.to_dict(),
        "age": fitted,
        "wait": delay,
        "book": book.name,
        "analog_parameters": conversion.analog_parameters,
        "parameters": conversion.parameters,
    }
    return EnergyStudy(setup, task.primary, tuple(arms), book, frozenset(analog_layers(analog)), uncounted)


def times(recipe: str | Recipe | None, age: str | float, wait: str | float) -> tuple[float, float]:
    """Seconds until the chip is calibrated and from then until it is scored.

    Raises:
        InputError: for impossible times, and with a recipe for a wait of 0 s.
    """
    fitted, delay = to_seconds(age), to_seconds(wait)
    if recipe is not None and delay == 0:
        raise InputError("a wait of 0 s would score the very noise that was fitted: wait longer, such as '1h'")
    return fitted, 0.0 if recipe is None else delay


def default_book(memory: Memory | None) -> str:
    """The books of commands, with writes of the memory's kind of cell."""
    kind = None if memory is None else memory.hardware.device.kind
    if kind == "gain_cell":
        return f"gain_cell + {DEFAULT}"
    return DEFAULT.replace("nvsim_reram", "nvsim_pcm") if kind in ("pcm", "hermes") else DEFAULT


def _make_chip(model: nn.Module, task: Task, recipe: Recipe | None, chip: int, seconds: float) -> None:
    """Program, age and calibrate, each step of the recipe at its stage."""
    batches = list(task.batches("calibration")) if recipe is not None else []
    steps = recipe.steps if recipe is not None else ()

    def fit(stage: Stage) -> None:
        for step in steps:
            if step.stage is stage:
                step.apply(model, step.fit(model, batches))

    fit(Stage.BEFORE_PROGRAMMING)
    program(model, chip)
    fit(Stage.PROGRAMMED)
    set_age(model, seconds)
    fit(Stage.IN_USE)


def _prefill(model: nn.Module, task: Task, ledger: Ledger) -> Work:
    sizes = [batch["input_ids"].shape for batch in task.batches("evaluation")]
    tokens = sum(size.numel() for size in sizes)
    weights, pairs = _linear_weights(model), ledger.pairs
    macs = weights * tokens + 2 * _head_dim(model) * pairs
    return Work(PREFILL, tokens, ledger, macs, len(sizes) * weights + _kv_numbers(model) * tokens)


@torch.inference_mode()
def _decode(model: nn.Module, ids: Tensor) -> Work:
    """One token after ``ids`` [1, N]; what is before it comes from the digital layers, on which no count depends."""
    known = inspect.signature(model.forward).parameters
    keyword = "cache" if "cache" in known else "past_key_values"  # transformers renamed it in 5.24
    ids = ids.to(device_of(model))
    with bypassed(model):
        past = model(input_ids=ids, use_cache=True)
    cache = {keyword: past[keyword if keyword in past else "past_key_values"]}
    with Ledger(model) as ledger:
        model(input_ids=past.logits[:, -1:].argmax(-1), use_cache=True, **cache)
    weights, pairs = _linear_weights(model), ledger.pairs
    heads = _config(model).num_attention_heads * _config(model).num_hidden_layers
    macs = weights + 2 * _head_dim(model) * pairs
    return Work(DECODE, 1, ledger, macs, weights + _kv_numbers(model) * pairs // heads)


def _first_sequence(task: Task) -> Tensor:
    batch: Tensor = next(iter(task.batches("evaluation")))["input_ids"]
    return batch[:1]


def _linear_weights(model: nn.Module) -> int:
    """Weights of every linear layer, each multiplied with every token."""
    return sum(digital_weight(module).numel() for module in model.modules() if is_convertible(module))


def _kv_numbers(model: nn.Module) -> int:
    """Keys and values of one token in all layers, numbers."""
    config = _config(model)
    kv_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads  # encoders share none
    return 2 * int(config.num_hidden_layers) * int(kv_heads) * _head_dim(model)


def _head_dim(model: nn.Module) -> int:
    config = _config(model)
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _config(model: nn.Module) -> Any:
    return cast(Any, model).config
