"""What makes a model serve any chip: noise in training, clipped weights, one range for all ADCs?

    python benchmarks/foundation.py vit      # a vision transformer on 5,000 digits of MNIST
    python benchmarks/foundation.py minilm   # MiniLM on code search

The setting of analog foundation models (Büchel et al., arXiv 2505.09663): 8-bit inputs in static ranges, which are
learned, and all weights trained before programming to give what the digital model gives (`Finetune`), with or without
errors of cells, with or without clipping. Cells are PCM at 1 d, written with several times its errors, since small
models lose little to plain ones (`--programming`). Chips get a gain for each column (`DriftCompensation`), and then
one range for all ADCs of the model, or one for each column (`AdcRanges`). Arms have the same chips; differences are
paired.

Published: clipping does more than noise injection, and one range for all ADCs costs 0.2 to 0.5% of the score.
"""

import copy
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

import paired
from rich.console import Console
from rich.table import Table
from torch import Tensor
from training_compensation import SUBJECTS, Subject, cut, tell, timed

from calibration import AdcRanges, DriftCompensation, Finetune, InputRanges
from calibration.metrics import interval
from calibration.runs.journal import Evaluation, Journal
from calibration.steps.protocol import uncalibrate
from calibration.storage.hashes import of_values
from calibration.tasks.protocol import fitted_on
from crossbar import age, convert, presets, program, reset_reads, to_seconds
from crossbar.devices import PCM

TRAININGS = ("none", "neither", "noise", "clipping", "both")
ADCS = {"one range": AdcRanges(shared="model"), "a range a column": AdcRanges()}
SCORED, FITTED = to_seconds("1d") + to_seconds("1h"), to_seconds("1d")
Scores = dict[tuple[str, str], list[float]]
"""By training and ADC ranges: a score for each chip."""


def main() -> None:
    parser = paired.option_parser(__doc__, rounds=1)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--steps", type=int, help="of the training (vit: 400, minilm: 475)")
    parser.add_argument("--rate", type=float, help="of the training (vit: 5e-4, minilm: 1e-4)")
    parser.add_argument("--clip", type=float, default=1.75, help="in deviations of a layer's weights")
    parser.add_argument("--training-pairs", type=int, default=1900, help="minilm: functions that it is trained on")
    parser.add_argument("--chips", type=int, default=8)
    parser.add_argument("--programming", type=float, default=4.0, help="programming errors, as a multiple of PCM's")
    parser.add_argument("--keep", type=Path, help="a folder for results, from which the same call goes on")
    options = paired.use(parser)
    paired.print_setting()
    journal = Journal()
    if options.keep is not None:
        options.keep.mkdir(parents=True, exist_ok=True)
        chosen = [options.steps, options.rate, options.programming, options.training_pairs, options.clip]
        journal = Journal(options.keep / f"{options.subject}-{of_values(chosen)[:12]}")
    subject = SUBJECTS[options.subject](journal, options)
    digital = subject.task.metrics(subject.model)[subject.task.primary]
    print(f"{subject.task.primary} of the digital model: {digital:.1%}", flush=True)
    scores: Scores = {}
    for training in TRAININGS:
        scores |= measured(subject, journal, training, options)
    for view in views(scores, digital):
        Console(width=150).print(view)


def measured(subject: Subject, journal: Journal, training: str, options: Namespace) -> Scores:
    """Scores of every chip with weights that were trained in one of the ways."""
    model = copy.deepcopy(subject.model)
    convert(model, replace(presets.pcm(), device=PCM(prog_noise_scale=options.programming)))
    data = {split: list(cut(batches, subject.batch)) for split, batches in fitted_on(subject.task).items()}
    batches = data["calibration"]
    for step in (InputRanges(), InputRanges("quantile")):
        step.apply(model, step.fit(model, batches))
    if training != "none":
        finetune = finetune_of(subject, training, options.clip)

        def trained() -> dict[str, Tensor]:
            batches = data.get("training", data["calibration"])
            return finetune.fit_long(model, batches, journal.state(f"trained {training}"), tell)

        fitted = journal.fit(f"trained {training}", partial(timed, trained))["tensors"]
        finetune.apply(model, fitted)
        first, last = (float(part.mean()) for part in (fitted["losses"][:10], fitted["losses"][-10:]))
        print(f"trained with {training}: {finetune.steps} steps, loss {first:.4g} to {last:.4g}", flush=True)

    def score(chip: int) -> Evaluation:
        program(model, chip)
        uncalibrate(model)
        found = {}
        for name, ranges in ADCS.items():
            for step in (DriftCompensation(), ranges):
                age(model, FITTED)
                step.apply(model, step.fit(model, batches))
            age(model, SCORED)
            reset_reads(model)
            found[name] = subject.task.metrics(model)[subject.task.primary]
        return {"metrics": found, "counts": {}}

    scores: Scores = {(training, name): [] for name in ADCS}
    for chip in range(options.chips):
        found = journal.score(f"{training} chip {chip}", partial(score, chip))["metrics"]
        print(f"{training}, chip {chip}: {', '.join(f'{name} {v:.3f}' for name, v in found.items())}", flush=True)
        for name, value in found.items():
            scores[training, name].append(value)
    return scores


def finetune_of(subject: Subject, training: str, clip: float) -> Finetune:
    noise, clipped = training in ("noise", "both"), training in ("clipping", "both")
    return replace(subject.finetune, age=FITTED, errors=float(noise), clip=clip if clipped else None)


def views(scores: Scores, digital: float) -> list[Table]:
    """Scores of every arm, and what arms differ by, chip by chip."""
    found = Table(title=f"digital {digital:.1%}; mean of chips with 95% interval", title_justify="left")
    apart = Table(title="differences, points", title_justify="left")
    for name in ("training", *ADCS):
        found.add_column(name)
    for training in TRAININGS:
        found.add_row(training, *(percent(scores[training, name]) for name in ADCS))
    for name in ("of", "over", *ADCS):
        apart.add_column(name)
    for one, other in (("both", "noise"), ("both", "clipping"), ("clipping", "noise"), ("noise", "neither")):
        apart.add_row(one, other, *(percent(gains(scores[one, n], scores[other, n])) for n in ADCS))
    costs = Table(title="what one range for all ADCs costs, points", title_justify="left")
    for training in TRAININGS:
        costs.add_column(training)
    single, many = ADCS
    costs.add_row(*(percent(gains(scores[training, many], scores[training, single])) for training in TRAININGS))
    return [found, apart, costs]


def gains(better: list[float], worse: list[float]) -> list[float]:
    return [a - b for a, b in zip(better, worse, strict=True)]


def percent(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1%}"
    middle, low, _ = interval(values)
    return f"{middle:.1%} ± {middle - low:.1%}"


if __name__ == "__main__":
    main()
