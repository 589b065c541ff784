"""SmolLM2 whose K rows choose what opens: perplexity against open rows, beside windows, exact top-k and dense.

    python benchmarks/screening.py                  # one window of 2,048 tokens, PCM keys and values
    python benchmarks/screening.py --bits 1 2 4 8   # the ramp's bits at a quarter of the rows
    python benchmarks/screening.py --memory none    # digital keys: what choosing alone loses
    python benchmarks/screening.py --age 1d         # rows of all ages up to a day
    python benchmarks/screening.py --second digital # rows choose, and a digital buffer has what is read

``screened(k) | sinks | window`` has ramps of ``--bits``, ``spiking(θ) | sinks | window`` a threshold for each head of
each layer that the recipe step `ScreeningThresholds` finds on a calibration window; ``window | sinks`` has as many
pairs, and top-k tells any two lines apart. Recall is that of the exact top keys, as many as open, of the last 256
queries in six layers, whose rows are half of ``--age`` old. Energy and time are those of `ohmformer energy` on the chip
``mesh``: attention alone, without writes, its layers one after another, a token of the window on average.

The second table has energy and time at one perplexity, ``--loss`` above dense attention on the same rows. Between an
arm's own points, and dense attention, the logarithms of perplexity, energy and time are taken to lie on straight lines.
Measurements are kept in a file as they are made; ``--fresh`` begins again.
"""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import paired
import torch
from analog_memory import Kept
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from attention import Memory, Protected, attach, detach, parse, recall, renew_memory
from attention.hf import attach as attaching
from attention.kernel.coarse import lines_of_rows
from attention.kernel.token_rows import write
from attention.patterns.screening import Lines, is_screening, screen, with_thresholds
from calibration import ScreeningThresholds, load_model
from calibration.tasks.perplexity import Perplexity
from crossbar import Hardware, Ledger, PriceBook, presets, price
from crossbar.costs.chips import DEFAULT as CHIP
from crossbar.costs.chips import Chip
from crossbar.costs.floorplan import Block, floor_plan
from crossbar.costs.prices import DEFAULT
from crossbar.costs.schedule import chip_time
from crossbar.units import to_seconds

SINKS = 4
ARMS = ("window", "screened", "spiking", "top-k")
PUBLISHED = "published: about 75% pruned (arXiv 2409.04940); 0.4% to 1.2% of accuracy at k = 5 (Topkima, 2411.13050)"
_LAST = 256  # queries whose recall is found
_WRITES = ("row_writes", "write_pulses")


def main() -> None:
    parser = paired.option_parser(__doc__, rounds=1)
    parser.add_argument("--windows", type=int, default=1)
    parser.add_argument("--window-length", type=int, default=2048)
    parser.add_argument("--shares", type=float, nargs="*", default=[0.25, 0.12])
    parser.add_argument("--near", type=int, default=64, help="the window beside rows that are chosen")
    parser.add_argument("--bits", type=int, nargs="*", default=[4])
    parser.add_argument("--memory", default="pcm", help="hardware of keys and values, or none")
    parser.add_argument("--key-scale", default="channel", choices=("row", "channel", "head"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS, help="beside dense attention")
    parser.add_argument("--second", default="rows", choices=("rows", "digital"), help="where what opens is read")
    parser.add_argument("--age", default="0s", help="of the oldest row: tokens arrive evenly in that time")
    parser.add_argument("--loss", type=float, default=0.05, help="of perplexity, for the second table")
    parser.add_argument("--out", type=Path, default=Path("screening.json"))
    parser.add_argument("--plot", type=Path, default=Path("screening.png"))
    parser.add_argument("--fresh", action="store_true")
    options = paired.use(parser)
    paired.print_setting()
    loaded = load_model("smollm2")
    task = Perplexity(
        loaded.tokenizer, windows=options.windows, window_length=options.window_length, calibration_windows=1
    )
    kept = Kept(options.out, options.fresh)
    n = options.window_length
    arms: dict[str, list[tuple[str, str]]] = {"dense": [("dense", "dense")]}
    for share in options.shares:
        k = of_share(n, share, options.near)
        rest = f"sinks({SINKS}) | window({options.near})"
        arms.setdefault("window", []).append((f"{share}", f"window({window_of(n, share)}) | sinks({SINKS})"))
        for bits in options.bits:
            arms.setdefault(f"screened, {bits} bits", []).append((f"{share}", f"screened({k}, bits={bits}) | {rest}"))
        arms.setdefault("spiking", []).append((f"{share}", f"spiking(0) | {rest}"))
        exact = "topk" if options.memory == "none" else "screened"
        arms.setdefault("top-k", []).append((f"{share}", f"{exact}({k}) | {rest}"))
    arms = {arm: points for arm, points in arms.items() if arm == "dense" or arm.startswith(tuple(options.arms))}
    found: dict[str, list[dict[str, Any]]] = {}
    wanted = ["dense", *map(str, options.shares)]  # all arms at one share before the next

    def rank(each: tuple[str, str, str]) -> int:
        return wanted.index(each[1])

    order = sorted(((arm, *point) for arm, points in arms.items() for point in points), key=rank)
    for arm, share, text in order:
        name = f"{arm}, {share}, {options.memory}, {options.key_scale}, {n} x {options.windows}, {options.seed}"
        name += f", {options.age}, {options.second}, {text}"
        measured = kept.measure(name, lambda s=share, t=text, a=arm: score(loaded.model, task, a, s, t, options))
        found.setdefault(arm, []).append(measured)
    show(found, options)
    draw(found, options)


def of_share(n: int, share: float, near: int) -> int:
    """K for which ``k | sinks | window`` opens about a share of the causal triangle, if few keys are chosen twice."""
    static = parse(f"causal(window({near}) | sinks({SINKS}))").stats(n).pairs
    wanted = share * n * (n + 1) / 2 - static
    k = next((k for k in range(1, n) if k * n - k * (k - 1) / 2 >= wanted), n)
    return max(1, int(k * 1.15))  # some of the best keys are near or first


def window_of(n: int, share: float) -> int:
    """The window whose pairs, with the sinks', are a share of the causal triangle."""
    wanted = share * n * (n + 1) / 2
    low, high = 1, n
    while low < high:
        middle = (low + high) // 2
        low, high = (
            (middle + 1, high)
            if parse(f"causal(window({middle}) | sinks({SINKS}))").stats(n).pairs < wanted
            else (low, middle)
        )
    return low


def score(model: Any, task: Perplexity, arm: str, share: str, text: str, options: Any) -> dict[str, Any]:
    """Perplexity, pairs, recall, and energy and time a token under one pattern."""
    memory, n = None, options.window_length
    if options.memory != "none":
        seconds = to_seconds(options.age) / n
        memory = Memory(
            presets.get(options.memory),
            key_scale=options.key_scale,
            capacity=n,
            token_seconds=seconds,
            protected=Protected(sinks=1, recent=n) if options.second == "digital" else None,
        )
    attach(model, text, memory)
    if arm == "spiking":
        step = ScreeningThresholds(share=float(share))
        step.apply(model, step.fit(model, task.batches("calibration")))
    renew_memory(model, options.seed)
    with Ledger() as ledger:
        perplexity = task.metrics(model)["perplexity"]
    totals, tokens = ledger.totals(), options.windows * n
    config = model.config
    heads = config.num_hidden_layers * config.num_attention_heads
    causal = options.windows * heads * n * (n + 1) // 2
    report = price(ledger, PriceBook.get(DEFAULT), tokens=tokens)
    pj = sum(line.pj for line in report.lines if line.counter not in _WRITES)
    hardware = Hardware() if memory is None else memory.hardware
    tile = hardware.tile
    tiles = 2 * config.num_key_value_heads * -(-n // tile.rows) * -(-config.head_dim // tile.cols)
    plan = floor_plan([Block(name, tiles, tiles) for name in ledger.by_layer], [], Chip.get(CHIP))  # ways take nothing
    time = chip_time(ledger, tokens, plan, dict.fromkeys(ledger.by_layer, hardware))
    result = {
        "pattern": text,
        "share": ledger.pairs / causal,
        "perplexity": perplexity,
        "uj": pj / tokens * 1e-6,
        "us": time.latency * 1e-3,
        "waited_us": {name: ns * 1e-3 for name, ns in time.waited().items() if ns},
        "energy_uj": {name: part.pj / tokens * 1e-6 for name, part in report.by_component().items()},
        "conversions": totals.get("adc_conversions", 0) / tokens,
        "comparisons": totals.get("comparisons", 0) / tokens,
        "recall": recalled(model, task, memory, to_seconds(options.age) / 2) if arm != "dense" else 1.0,
    }
    detach(model)
    return result


@torch.inference_mode()
def recalled(model: Any, task: Perplexity, memory: Memory | None, age: float, layers: int = 6) -> float:
    """Recall of the exact top keys, as many as open, over some layers spread over the model and the scored window."""
    seen: list[float] = []
    every = model.config.num_hidden_layers // layers
    attend = attaching._attend
    calls = 0

    def watched(module: Any, q: Any, k: Any, v: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        own = attaching._attachment(module)
        if calls % every == 0 and own is not None:
            pattern, first = own.pattern.causal(), max(0, q.shape[2] - _LAST)
            if (levels := attaching.thresholds(module).get("")) is not None:
                pattern = with_thresholds(pattern, tuple(levels.tolist()))
            last = q[:, :, first:]
            lines = Lines(last, k, first, numbers=(last, k))
            if memory is not None:
                rows = write(k, memory.hardware, (memory.seed, own.name, "keys"), age)
                lines = lines_of_rows(
                    last, rows, memory.hardware, (memory.seed, own.name), (0, own.name, "read"), offset=first
                )
            chosen = screen(pattern, lines)[0] if is_screening(pattern) else pattern.select(last, k, offset=first)
            seen.append(float(recall(chosen, last, k, offset=first).mean()))
        return attend(module, q, k, v, *args, **kwargs)

    patterns = {name: attaching._attachment(m) for name, m in model.named_modules()}
    for name, module in model.named_modules():  # keys as numbers, so that rows are written here
        module.__dict__[attaching._KEY] = attaching.replace(patterns[name], store=None)
        attaching._unhook(module)
    from transformers import AttentionInterface

    AttentionInterface.register(attaching._INTERFACE, watched)
    try:
        model(input_ids=next(iter(task.batches("evaluation")))["input_ids"][:1], use_cache=False)
    finally:
        AttentionInterface.register(attaching._INTERFACE, attend)
    return sum(seen) / len(seen)


def setting(options: Any) -> str:
    """What was measured, in a line."""
    what = f"SmolLM2, {options.windows} x {options.window_length} tokens, rows: {options.memory}, {options.age} old"
    return f"{what}; what opens is read {'from a digital buffer' if options.second == 'digital' else 'there too'}"


def show(found: dict[str, list[dict[str, Any]]], options: Any) -> None:
    """The tables."""
    view = Table(title=setting(options), caption=PUBLISHED, title_justify="left", caption_justify="left")
    for column in (
        "arm",
        "open",
        "perplexity",
        "recall",
        "µJ a token",
        "µs a token",
        "conversions",
        "comparisons",
    ):
        view.add_column(column, justify="left" if column == "arm" else "right")
    for arm, points in found.items():
        for p in points:
            numbers = f"{p['share']:.1%}", f"{p['perplexity']:.2f}", f"{p['recall']:.1%}", f"{p['uj']:.2f}"
            more = f"{p['us']:.2f}", f"{p['conversions']:,.0f}", f"{p['comparisons']:,.0f}"
            view.add_row(arm, *numbers, *more)
    Console(width=140).print(view)
    (dense,) = found["dense"]
    wanted = dense["perplexity"] * (1 + options.loss)
    equal = Table(title=f"at a perplexity of {wanted:.2f}", title_justify="left")
    for column in ("arm", "open", "µJ a token", "µs a token"):
        equal.add_column(column, justify="left" if column == "arm" else "right")
    for arm, points in found.items():
        if arm != "dense":
            values = [at_perplexity([*points, dense], key, wanted) for key in ("share", "uj", "us")]
            shown = ("not reached" if x is None else f"{x:.1%}" if k == 0 else f"{x:.2f}" for k, x in enumerate(values))
            equal.add_row(arm, *shown)
    Console(width=140).print(equal)


def at_perplexity(points: list[dict[str, Any]], key: str, wanted: float) -> float | None:
    """What an arm takes at a perplexity, on straight lines of logarithms between its points; None: beyond them."""
    ordered = sorted(points, key=lambda p: -p["share"])
    for here, there in pairwise(ordered):  # from dense on: the last place where it is still as good
        low, high = math.log(here["perplexity"]), math.log(there["perplexity"])
        if low <= math.log(wanted) < high:
            part = (math.log(wanted) - low) / (high - low)
            return math.exp((1 - part) * math.log(here[key]) + part * math.log(there[key]))
    return None


def draw(found: dict[str, list[dict[str, Any]]], options: Any) -> None:
    """Perplexity against open rows, energy and time."""
    figure = Figure(figsize=(11.0, 4.0), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    for (arm, points), marker in zip(found.items(), "xosD^vP*", strict=False):
        points = sorted(points, key=lambda p: p["share"])
        for own, key, factor in ((axes[0], "share", 100), (axes[1], "uj", 1), (axes[2], "us", 1)):
            if arm == "dense":
                own.axhline(points[0]["perplexity"], color="black", linestyle="--", linewidth=1)
            x, y = [p[key] * factor for p in points], [p["perplexity"] for p in points]
            (line,) = own.plot(x, y, marker=marker, markersize=4, label=arm)
            whole = found["dense"][0]  # what `at_perplexity` goes along
            ends = [x[-1], whole[key] * factor], [y[-1], whole["perplexity"]]
            own.plot(*ends, color=line.get_color(), linestyle=":", linewidth=0.8)
    axes[0].axvline(25, color="0.7", linewidth=0.8)
    note = "open on a hybrid chip\n(arXiv 2409.04940)"
    axes[0].text(27, 0.98, note, fontsize=6, va="top", transform=axes[0].get_xaxis_transform())
    axes[0].set_xlabel("open rows, % of the causal pairs")
    axes[1].set_xlabel("attention, µJ a token")
    axes[2].set_xlabel("attention, µs a token")
    axes[0].set_ylabel("perplexity (lower is better)")
    axes[0].set_ylim(top=min(axes[0].get_ylim()[1], 3 * min(p["perplexity"] for ps in found.values() for p in ps)))
    axes[0].legend(frameon=False, fontsize=8)
    figure.suptitle(setting(options), fontsize=9)
    figure.savefig(options.plot, dpi=150)
    print(f"wrote {options.plot}")


if __name__ == "__main__":
    main()
