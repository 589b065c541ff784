"""``ohmformer energy``: options, tables and pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from calibration.energy.study import PATTERNS

if TYPE_CHECKING:
    from rich.table import Table

    from calibration.energy import EnergyStudy


def add_options(parser: ArgumentParser) -> None:
    """The options of the command beside those of every model's."""
    parser.add_argument("--task", type=str, default="perplexity", help="what accuracy is measured by")
    parser.add_argument("--windows", type=int | None, default=1, help="perplexity: how many windows (default 1)")
    parser.add_argument(
        "--window-length", type=int | None, default=2048, help="perplexity: tokens in a window (default 2048)"
    )
    parser.add_argument(
        "--patterns", type=list[str] | str, default=list(PATTERNS), help="attention patterns to compare"
    )
    parser.add_argument(
        "--memory", type=str | None, default=None, help="keys and values: gain_cell, pcm, or a YAML file of hardware"
    )
    parser.add_argument("--memory-capacity", type=int | None, default=None, help="token rows of each head")
    parser.add_argument(
        "--book",
        type=str | None,
        default=None,
        help="price books, joined by +, or a YAML file (default isaac + horowitz and the memory's writes)",
    )
    parser.add_argument("--recipe", type=str | None, default="fast", help="calibration of the chip; null for none")
    parser.add_argument("--age", type=str, default="1h", help="age of the chip when it is calibrated")
    parser.add_argument("--wait", type=str, default="1h", help="between calibrating and scoring (default 1h)")
    parser.add_argument("--seed", type=int, default=0, help="of the programmed chip")
    parser.add_argument("--device", type=str, default="cpu", help="cpu or cuda")
    parser.add_argument("--out", type=str | None, default=None, help="write the JSON to this file")
    parser.add_argument("--plot", type=str | None, default=None, help="write a picture of where the energy goes")
    parser.add_argument("--pareto", type=str | None, default=None, help="write a picture of accuracy against energy")


def study_of(options: Namespace) -> EnergyStudy:
    """Price what the options ask for; what costs nothing to check comes before what takes seconds to load."""
    from attention import parse
    from calibration import models, tasks
    from calibration import recipe as recipes
    from calibration.console import progress_bar
    from calibration.energy import default_book, energy
    from calibration.energy.study import times
    from calibration.runs.chips import require_chips, require_device
    from calibration.runs.experiment import as_memory
    from crossbar import InputError, PriceBook, presets

    tasks.require(options.task)
    times(options.recipe, options.age, options.wait)
    require_chips(1, options.seed)
    require_device(options.device)
    if options.recipe is not None:
        recipes.get(options.recipe)
    memory = as_memory(options.memory)
    if options.memory_capacity is not None:
        if memory is None:
            raise InputError(f"memory capacity {options.memory_capacity} has no memory to be of: give --memory too")
        memory = replace(memory, capacity=options.memory_capacity)
    book = PriceBook.get(default_book(memory) if options.book is None else options.book)
    hardware = presets.get(options.hardware)
    texts = [options.patterns] if isinstance(options.patterns, str) else options.patterns
    patterns = [parse(text) for text in texts]
    if not patterns:
        raise InputError("patterns [] are not usable: give one or more, such as dense")
    with progress_bar("energy") as progress:
        model = models.load_model(options.model, progress)
        tasks.require(options.task, model)
        sizes = {name: options[name] for name in ("windows", "window_length")} if options.task == "perplexity" else {}
        task = tasks.get(options.task, model.tokenizer, **sizes)
        chosen = {name: options[name] for name in ("seed", "device", "recipe", "age", "wait", "include", "exclude")}
        return energy(model, task, hardware, patterns, book=book, memory=memory, progress=progress, **chosen)


def tables(study: EnergyStudy) -> list[Table]:
    """A table for each phase: µJ a token by part and component, a column for each pattern, digital machines below."""
    from rich.table import Table

    views = []
    for k, phase in enumerate(work.phase for work in study.arms[0].work):
        tokens = study.arms[0].work[k].tokens
        title = f"{study.setup['model']}, {phase}{f' of {tokens:,} tokens' if tokens > 1 else ' step'}: µJ a token"
        view = Table(title=title, title_justify="left", caption=_notes(study, k), caption_justify="left")
        view.add_column("part")
        view.add_column("component")
        for arm in study.arms:
            view.add_column(arm.pattern, justify="right")
        stacks = [study.by_part(arm, arm.work[k]) for arm in study.arms]
        keys = sorted({key for stack in stacks for key in stack}, key=lambda key: (_ORDER.index(key[0]), key[1]))
        for key in keys:
            view.add_row(*key, *(_uj(stack.get(key, 0.0)) for stack in stacks))
        view.add_section()
        totals = [study.report(arm, arm.work[k]).total for arm in study.arms]
        view.add_row("all", "", *(_uj(total.pj / tokens) for total in totals))
        view.add_row("all", "by bounds of prices", *(_bounds(total, tokens) for total in totals))
        view.add_section()
        baselines = [arm.work[k].baselines() for arm in study.arms]
        for rows in zip(*baselines, strict=True):
            view.add_row(rows[0].machine, f"{rows[0].bound} bound", *(_uj(row.pj / tokens) for row in rows))
        view.add_section()
        view.add_row(f"digital {study.metric}", "", *(f"{arm.digital:.2f}" for arm in study.arms))
        chip = f"chip {study.setup['chip']}"
        view.add_row(f"analog {study.metric}", chip, *(f"{arm.analog:.2f}" for arm in study.arms))
        views.append(view)
    return views


_ORDER = ("linear", "attention", "digital")


def _notes(study: EnergyStudy, k: int) -> str:
    report = study.report(study.arms[0], study.arms[0].work[k])
    shares = ", ".join(f"{energy.pj / report.total.pj:.0%} {kind}" for kind, energy in report.by_evidence().items())
    notes = [f"prices: {report.book}; of the first pattern's energy {shares} prices", *report.notes]
    if report.unpriced:
        missing = ", ".join(f"{name} ({n:,})" for name, n in report.unpriced.items())
        notes.append(f"without a price, in no sum: {missing}")
    rows = ", ".join(f"{arm.rows:,} ({arm.pattern})" for arm in study.arms if arm.rows is not None)
    if rows:
        notes.append(f"endurance: a row is written again after so many tokens: {rows}; no row is refreshed between")
    if study.uncounted:
        notes.append("not counted: " + ", ".join(sorted(set(study.uncounted.values()))))
    return "\n".join(notes)


def _uj(pj: float) -> str:
    return f"{pj * 1e-6:.4g}" if pj else ""


def _bounds(total: Any, tokens: int) -> str:
    return f"{_uj(total.low / tokens)} to {_uj(total.high / tokens)}"
