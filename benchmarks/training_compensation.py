"""Training by compensation over a year: which of them keeps a model on PCM accurate, and in the published order?

    python benchmarks/training_compensation.py vit      # a vision transformer on 5,000 digits of MNIST
    python benchmarks/training_compensation.py minilm   # MiniLM on code search
    python benchmarks/training_compensation.py minilm --programming 3   # cells written less exactly than PCM's are

Training is hardware-aware finetuning of all weights before programming (`Finetune`), with errors drawn from the
device's statistics as they are right after programming, so it knows nothing of drift. Compensation is a gain for each
column (`DriftCompensation`), measured when the chip has nine tenths of the age at which it is scored. All arms have
balanced inputs (`InputRanges`) and the same chips, and differences between arms are paired over these.

Published: the four arms of Xpikeformer's small vision transformer (Song et al., arXiv 2408.08794), at once and after a
year. In between, a pair of arms is held against the published one where that is the same way round at both ends.
"""

import copy
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import mean
from time import monotonic
from typing import NamedTuple

import digits
import paired
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from calibration import DriftCompensation, Finetune, InputRanges, Task, load_model, tasks
from calibration.metrics import interval
from calibration.runs.journal import Evaluation, Fit, Journal
from calibration.storage.hashes import of_values
from calibration.tasks import Batch
from calibration.tasks.protocol import fitted_on
from crossbar import Hardware, age, convert, format_seconds, presets, program, reset_gains, reset_reads, to_seconds
from crossbar.devices import PCM

PUBLISHED = {  # arm: accuracy in %, at once and after a year
    "training and compensation": (84.74, 81.13),
    "training alone": (84.61, 25.77),
    "compensation alone": (84.31, 70.04),
    "neither": (79.70, 19.75),
}

Scores = dict[str, dict[float, list[float]]]
"""By arm and seconds since programming: a score for each chip."""


class Subject(NamedTuple):
    """What is put on chips.

    Attributes:
        model: trained in digital.
        task: what it is scored on.
        finetune: the hardware-aware training.
        batch: samples in a batch of that training.
    """

    model: nn.Module
    task: Task
    finetune: Finetune
    batch: int


def vision_transformer(journal: Journal, options: Namespace) -> Subject:
    """A ViT that was trained on 4,000 digits, scored on 1,000 others."""
    task, model = digits.Digits(), digits.build()

    def trained() -> dict[str, Tensor]:
        digits.train(model, task)
        return dict(model.state_dict())

    model.load_state_dict(journal.fit("digital", partial(timed, trained))["tensors"])
    return Subject(model, task, _finetune(options.steps or 400, options.rate or 5e-4), 100)


def minilm(journal: Journal, options: Namespace) -> Subject:
    """MiniLM as it is published, scored on 250 functions of the standard library."""
    loaded = load_model("minilm")
    task = tasks.CodeSearch(loaded.tokenizer, pairs=250, training_pairs=options.training_pairs)
    return Subject(loaded.model, task, _finetune(options.steps or 475, options.rate or 1e-4), 8)


def _finetune(steps: int, rate: float) -> Finetune:
    return Finetune(train="weights", chip="any", steps=steps, rate=rate, age=0.0, checkpoint=False)


SUBJECTS = {"vit": vision_transformer, "minilm": minilm}


def main() -> None:
    parser = paired.option_parser(__doc__, rounds=1)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--steps", type=int, help="of hardware-aware training (vit: 400, minilm: 475)")
    parser.add_argument("--rate", type=float, help="of hardware-aware training (vit: 5e-4, minilm: 1e-4)")
    parser.add_argument("--training-pairs", type=int, default=1900, help="minilm: functions that it is trained on")
    parser.add_argument("--times", nargs="+", default=["1s", "1h", "1d", "30d", "1y"])
    parser.add_argument("--chips", type=int, default=8)
    parser.add_argument("--programming", type=float, default=1.0, help="programming errors, as a multiple of PCM's")
    parser.add_argument("--keep", type=Path, help="a folder for results, from which the same call goes on")
    options = paired.use(parser)
    paired.print_setting()
    times = [to_seconds(time) for time in options.times]
    journal = Journal()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        chosen = [options.steps, options.rate, options.programming, options.training_pairs]
        journal = Journal(options.keep / f"{options.subject}-{of_values(chosen)[:12]}")
    subject = SUBJECTS[options.subject](journal, options)
    hardware = replace(presets.pcm(), device=PCM(prog_noise_scale=options.programming))
    digital = subject.task.metrics(subject.model)[subject.task.primary]
    print(f"{subject.task.primary} of the digital model: {digital:.1%}", flush=True)
    scores: Scores = {arm: {time: [] for time in times} for arm in PUBLISHED}
    for training in (True, False):
        for arm, time, value in measured(subject, hardware, journal, training, times, options.chips):
            scores[arm][time].append(value)
    console = Console(width=150)
    console.print(table(f"{subject.task.primary}, mean of {options.chips} chips with 95% interval", scores))
    for line in verdicts(scores):
        console.print(line, highlight=False)


def measured(
    subject: Subject, hardware: Hardware, journal: Journal, training: bool, times: list[float], chips: int
) -> Iterator[tuple[str, float, float]]:
    """Scores ``(arm, seconds, score)`` of every chip, with weights as they are or trained for chips."""
    model = copy.deepcopy(subject.model)
    conversion = convert(model, hardware)
    data = {split: list(cut(batches, subject.batch)) for split, batches in fitted_on(subject.task).items()}
    batches = data["calibration"]
    balance, finetune, compensation = InputRanges(), subject.finetune, DriftCompensation()
    balance.apply(model, balance.fit(model, batches))
    if training:
        print(conversion, flush=True)
        fitted = journal.fit(
            "trained",
            partial(
                timed,
                partial(finetune.fit_long, model, data.get("training", batches), journal.state("trained"), tell),
            ),
        )["tensors"]
        finetune.apply(model, fitted)
        first, last = (float(part.mean()) for part in (fitted["losses"][:10], fitted["losses"][-10:]))
        print(f"hardware-aware training: {finetune.steps} steps, loss {first:.4g} to {last:.4g}", flush=True)
    arms = ("training and compensation", "training alone") if training else ("compensation alone", "neither")

    def score(chip: int, time: float) -> Evaluation:
        program(model, chip)
        age(model, 0.9 * time)
        gains = compensation.fit(model, batches)
        age(model, time)
        reset_reads(model)
        alone = subject.task.metrics(model)
        compensation.apply(model, gains)
        reset_reads(model)
        compensated = subject.task.metrics(model)
        reset_gains(model)
        values = (found[subject.task.primary] for found in (compensated, alone))
        return {"metrics": dict(zip(arms, values, strict=True)), "counts": {}}

    for chip in range(chips):
        for time in times:
            found = journal.score(f"{arms[1]} chip {chip} at {time!r}", partial(score, chip, time))["metrics"]
            parts = ", ".join(f"{arm} {value:.3f}" for arm, value in found.items())
            print(f"chip {chip} at {format_seconds(time)}: {parts}", flush=True)
            for arm, value in found.items():
                yield arm, time, value


def timed(train: Callable[[], dict[str, Tensor]]) -> Fit:
    """What a training finds, and how long it took."""
    began = monotonic()
    return {"tensors": train(), "counts": {}, "seconds": monotonic() - began}


def tell(step: int, steps: int, text: str) -> None:
    if step % 50 == 0:
        print(f"step {step} of {steps}, {text}", flush=True)


def cut(batches: Iterable[Batch], size: int) -> Iterator[Batch]:
    """Batches of at most ``size`` samples."""
    for batch in batches:
        for parts in zip(*(values.split(size) for values in batch.values()), strict=True):
            yield dict(zip(batch, parts, strict=True))


def table(title: str, scores: Scores) -> Table:
    """Means over chips with 95% intervals, beside what was published."""
    view = Table(title=title, title_justify="left")
    view.add_column("arm")
    for column in (*map(format_seconds, scores["neither"]), "published, at once", "after a year"):
        view.add_column(column, justify="right")
    for arm, published in PUBLISHED.items():
        spreads = map(interval, scores[arm].values())
        own = (f"{middle:.1%} ± {middle - low:.1%}" for middle, low, _ in spreads)
        view.add_row(arm, *own, *(f"{accuracy:.2f}%" for accuracy in published))
    return view


def verdicts(scores: Scores) -> Iterator[str]:
    """The order of the arms at each time, and how each pair stands to the published order."""
    times = list(scores["neither"])
    for time in times:
        ends = [end for end, at in ((0, times[0]), (1, times[-1])) if at == time] or [0, 1]
        order = sorted(PUBLISHED, key=lambda arm: -mean(scores[arm][time]))
        yield f"{format_seconds(time)}: {' > '.join(order)}"
        for one, other in combinations(PUBLISHED, 2):
            signs = {PUBLISHED[one][end] > PUBLISHED[other][end] for end in ends}
            if len(signs) > 1:
                continue
            better, worse = (one, other) if signs.pop() else (other, one)
            gains = [a - b for a, b in zip(scores[better][time], scores[worse][time], strict=True)]
            middle, low, high = interval(gains)
            word = "as published" if low > 0 else "OTHER THAN PUBLISHED" if high < 0 else "within the chips' spread"
            yield f"    {better} over {worse}: {middle:+.1%} ± {middle - low:.1%}, {word}"


if __name__ == "__main__":
    main()
