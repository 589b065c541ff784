"""Where the picojoules go: what a model takes on analog hardware under several patterns, beside its accuracy."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from attention import Memory, Pattern, attach
from attention.hf.attach import memory_of
from calibration.energy.products import Products
from calibration.energy.results import DECODE, PREFILL, Arm, EnergyStudy, Work
from calibration.models.outputs import device_of, is_generative
from calibration.placement.layout import Target, event_time, flow_of, layout, time_of
from calibration.progress import Progress
from calibration.runs.climb import Climb
from calibration.runs.experiment import Experiment
from calibration.runs.request import MemoryLike, ModelLike, PatternLike, RecipeLike, Request, as_pattern
from calibration.steps.observe import digital
from calibration.tasks import Task
from crossbar import InputError, Ledger, PriceBook, analog_layers, bypassed
from crossbar.costs.chips import DEFAULT as DEFAULT_CHIP
from crossbar.costs.chips import Chip
from crossbar.costs.floorplan import Edge, FloorPlan, Placer
from crossbar.costs.prices import DEFAULT
from crossbar.costs.schedule import ChipTime
from crossbar.presets import HardwareLike

PATTERNS = ("dense", "window(256) | sinks(4)", "window(64) | strided(64) | sinks(4)")


def energy(
    model: ModelLike = "smollm2",
    task: str | Task = "perplexity",
    hardware: HardwareLike = "pcm",
    patterns: Sequence[PatternLike] = PATTERNS,
    *,
    memory: MemoryLike | None = None,
    recipe: RecipeLike | None = "fast",
    age: str | float = "1h",
    wait: str | float = "1h",
    book: str | PriceBook | None = None,
    seed: int = 0,
    device: str | None = None,
    include: str | Sequence[str] | None = None,
    exclude: str | Sequence[str] | None = None,
    tied_heads: bool = True,
    chip: str | Chip = DEFAULT_CHIP,
    placer: str | Placer = "row_major",
    batch: int = 1,
    machine: str | None = None,
    progress: Progress | None = None,
) -> EnergyStudy:
    """Score a model under each pattern on one analog chip, and price and time everything that is counted meanwhile.

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
        tied_heads: put an output head that is tied to embeddings on tiles too, as for `crossbar.convert`: its copy of
            the weights is programmed there, and embeddings are looked up in DRAM, a row a token. False: it stays
            digital and streams its weights from DRAM.
        chip: parts, their times and areas: a packaged book, a YAML file, or a `crossbar.costs.chips.Chip`.
        placer: where tiles stand: ``row_major``, ``balanced``, or a function of blocks and chip
            (`crossbar.costs.floorplan.Placer`).
        batch: sequences that decode side by side.
        machine: ``ideal``, ``truenorth``, ``loihi1`` or ``loihi2``, whose events then give the time of attention.
        progress: called before each scoring.

    Raises:
        InputError: for unknown names, what `crossbar.convert` and `attention.attach` refuse, and, with a recipe, a wait
            of 0 s and a task whose calibration data are in its evaluation data.
    """
    target = Target.of(chip, placer, batch, machine)
    request, chosen = resolved(
        model,
        task,
        hardware,
        patterns,
        memory=memory,
        recipe=recipe,
        age=age,
        wait=wait,
        seed=seed,
        device=device,
        include=include,
        exclude=exclude,
        tied_heads=tied_heads,
    )
    prices = default_book(request.memory) if book is None else book
    book = PriceBook.get(prices) if isinstance(prices, str) else prices
    return run_energy(request, chosen, book, target, progress)


def resolved(
    model: ModelLike,
    task: str | Task,
    hardware: HardwareLike,
    patterns: PatternLike | Sequence[PatternLike],
    *,
    age: str | float,
    wait: str | float,
    recipe: RecipeLike | None,
    **others: Any,
) -> tuple[Request, list[Pattern]]:
    """What `energy` was asked for, with the first of the patterns, and all patterns.

    Raises:
        InputError: for no pattern, and as `Request.of`.
    """
    several = [patterns] if isinstance(patterns, str | Mapping | Pattern) else patterns
    chosen = [found for found in (as_pattern(pattern) for pattern in several) if found is not None]
    if not chosen:
        raise InputError("there is no pattern to price: give one or more, such as dense")
    request = Request.of(
        model,
        task,
        hardware,
        pattern=chosen[0],
        recipe=recipe,
        times=[age],
        wait=0.0 if recipe is None else wait,
        **others,
    )
    return request, chosen


def run_energy(
    request: Request,
    patterns: Sequence[Pattern],
    book: PriceBook,
    target: Target,
    progress: Progress | None = None,
) -> EnergyStudy:
    """`energy` of what is resolved already."""
    experiment = Experiment.prepare(request, progress)
    analog, task = experiment.analog, experiment.task
    (chip,), (time,), memory = request.chips, request.times, request.memory
    climb = Climb(experiment, request.recipe, request.wait)
    climb.write()
    climb.stand(chip, time)
    calibrated = memory_of(analog)
    if memory is not None and calibrated is not None:
        memory = replace(memory, protected=calibrated.protected)  # a step may have chosen it
    arms: list[Arm] = []
    uncounted: dict[str, str] = {}
    edges: list[Edge] | None = None
    for k, pattern in enumerate(patterns):
        for place, name in enumerate(("digital", "analog", "decoding")):
            if progress is not None:
                progress(3 * k + place, 3 * len(patterns), f"{name}, {pattern}")
            if name == "digital":
                attach(analog, pattern)
                with digital(analog):
                    reference = task.metrics(analog)[task.primary]
            elif name == "analog":
                attach(analog, pattern, memory)
                held = memory_of(analog)
                rows = None if held is None else held.capacity
                with Ledger(analog) as ledger, Products(analog) as products:
                    scored = climb.evaluate(chip)[task.primary]
                uncounted |= ledger.uncounted
                edges = flow_of(analog, ledger, next(iter(task.batches("evaluation")))) if edges is None else edges
                longest = max(batch["input_ids"].shape[1] for batch in task.batches("evaluation"))
                context = longest + is_generative(analog)
                plan = layout(analog, ledger, edges, context, target.chip, target.placer)
                on = _On(analog, pattern, plan, target)
                work = [_prefill(on, task, ledger, products, longest)]
            elif is_generative(analog):
                work.append(_decode(on, _first_sequence(task)))
        arms.append(Arm(str(pattern), reference, scored, tuple(work), plan, rows))
    setup = {
        "model": experiment.setup["model"],
        "task": task.name,
        "hardware": experiment.setup["hardware"],
        "memory": experiment.setup["memory"],
        "chip": chip,
        "recipe": None if request.recipe is None else request.recipe.to_dict(),
        "age": time,
        "wait": request.wait,
        "book": book.name,
        "on": target.chip.name,
        "placer": target.placer if isinstance(target.placer, str) else getattr(target.placer, "__name__", "own"),
        "batch": target.batch,
        "machine": target.machine,
        "tied_heads": {layer.name: layer.tied for layer in experiment.conversion.analog if layer.tied},
        "look_ups": [name for name, module in analog.named_modules() if isinstance(module, nn.Embedding)],
        "analog_parameters": experiment.conversion.analog_parameters,
        "parameters": experiment.conversion.parameters,
    }
    linear = frozenset(analog_layers(analog))
    return EnergyStudy(setup, task.primary, tuple(arms), book, request.hardware, linear, uncounted)


def default_book(memory: Memory | None) -> str:
    """The books of commands, with writes of the memory's kind of cell."""
    kind = None if memory is None else memory.hardware.device.kind
    if kind == "gain_cell":
        return f"gain_cell + {DEFAULT}"
    return DEFAULT.replace("nvsim_reram", "nvsim_pcm") if kind in ("pcm", "hermes") else DEFAULT


class _On(NamedTuple):
    """An attached model, where it stands, and what that is."""

    model: nn.Module
    pattern: Pattern
    plan: FloorPlan
    target: Target

    def time(self, ledger: Ledger, tokens: int, first: int, queries: int) -> ChipTime:
        """Of one token of a phase whose queries begin at a position."""
        machine = self.target.machine
        events = None if machine is None else event_time(machine, self.pattern, first, queries)
        return time_of(self.model, ledger, tokens, self.plan, events)


def _book_traffic(ledger: Ledger, plan: FloorPlan, tokens: int) -> None:
    """What moves between cores, which no layer books."""
    ledger.add("(network)", "hop_bytes", round(tokens * sum(moved.byte_hops for moved in plan.traffic)))


def _prefill(on: _On, task: Task, ledger: Ledger, products: Products, longest: int) -> Work:
    sizes = [batch["input_ids"].shape for batch in task.batches("evaluation")]
    tokens = sum(size.numel() for size in sizes)
    _book_traffic(ledger, on.plan, tokens)
    macs = products.macs + 2 * _head_dim(on.model) * ledger.pairs
    numbers = products.weights + _kv_numbers(on.model) * tokens
    return Work(PREFILL, tokens, ledger, macs, numbers, on.time(ledger, tokens, 0, longest))


@torch.inference_mode()
def _decode(on: _On, ids: Tensor) -> Work:
    """One token after ``ids`` [1, N]; what is before it comes from the digital layers, on which no count depends."""
    model = on.model
    known = inspect.signature(model.forward).parameters
    keyword = "cache" if "cache" in known else "past_key_values"  # transformers renamed it in 5.24
    ids = ids.to(device_of(model))
    with bypassed(model):
        past = model(input_ids=ids, use_cache=True)
    cache = {keyword: past[keyword if keyword in past else "past_key_values"]}
    with Ledger(model) as ledger, Products(model) as products:
        model(input_ids=past.logits[:, -1:].argmax(-1), use_cache=True, **cache)
    _book_traffic(ledger, on.plan, 1)
    pairs = ledger.pairs
    heads = _config(model).num_attention_heads * _config(model).num_hidden_layers
    macs = products.macs + 2 * _head_dim(model) * pairs
    numbers = products.weights + _kv_numbers(model) * pairs // heads
    return Work(DECODE, 1, ledger, macs, numbers, on.time(ledger, 1, ids.shape[1], 1), on.target.batch)


def _first_sequence(task: Task) -> Tensor:
    batch: Tensor = next(iter(task.batches("evaluation")))["input_ids"]
    return batch[:1]


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
