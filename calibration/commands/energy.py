"""``ohmformer energy``: its options, and the study they ask for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from calibration.energy.study import PATTERNS
from crossbar.costs.chips import DEFAULT as CHIP

if TYPE_CHECKING:
    from calibration.energy.results import EnergyStudy


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
    parser.add_argument(
        "--chip-book", type=str, default=CHIP, help=f"book of times and areas, or a YAML file (default {CHIP})"
    )
    parser.add_argument("--placer", type=str, default="row_major", help="where tiles stand: row_major or balanced")
    parser.add_argument("--batch", type=int, default=1, help="sequences that decode side by side (default 1)")
    parser.add_argument(
        "--machine",
        type=str | None,
        default=None,
        help="time attention by events on ideal, truenorth, loihi1 or loihi2",
    )
    parser.add_argument("--recipe", type=str | None, default="fast", help="calibration of the chip; null for none")
    parser.add_argument("--age", type=str, default="1h", help="age of the chip when it is calibrated")
    parser.add_argument("--wait", type=str, default="1h", help="between calibrating and scoring (default 1h)")
    parser.add_argument("--seed", type=int, default=0, help="of the programmed chip")
    parser.add_argument("--out", type=str | None, default=None, help="write the JSON to this file")
    parser.add_argument("--plot", type=str | None, default=None, help="write a picture of where the energy goes")
    parser.add_argument("--pareto", type=str | None, default=None, help="write a picture of accuracy against energy")
    parser.add_argument("--floor", type=str | None, default=None, help="write a picture of the floor plan")
    parser.add_argument("--gantt", type=str | None, default=None, help="write a picture of one token's way")


def study_of(options: Namespace) -> EnergyStudy:
    """Price what the options ask for; what costs nothing to check comes before what takes seconds to load."""
    from calibration.console import progress_bar
    from calibration.energy.study import default_book, resolved, run_energy
    from calibration.placement.layout import Target
    from crossbar import PriceBook

    target = Target.of(options.chip_book, options.placer, options.batch, options.machine)
    chosen = {
        name: options[name] for name in ("seed", "device", "recipe", "age", "wait", "include", "exclude", "tied_heads")
    }
    sizes = ("windows", "window_length") if options.task == "perplexity" else ()
    request, patterns = resolved(
        options.model,
        options.task,
        options.hardware,
        options.patterns,
        memory=options.memory,
        memory_options=memory_options(options),
        options={name: options[name] for name in sizes},
        **chosen,
    )
    book = PriceBook.get(default_book(request.memory) if options.book is None else options.book)
    with progress_bar("energy") as progress:
        return run_energy(request, patterns, book, target, progress)


def memory_options(options: Namespace) -> dict[str, Any]:
    """Fields of `attention.Memory` that were given."""
    given = {"capacity": options.memory_capacity, "token_seconds": options.get("token_seconds")}
    return {name: value for name, value in given.items() if value is not None}
