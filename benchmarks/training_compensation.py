"""Training by compensation over time: which of them keeps an analog model accurate? MiniLM, code search, PCM.

The four arms of Xpikeformer's table, in the same order. Training is hardware-aware finetuning of all weights before
programming (`Finetune`), compensation is `DriftCompensation` by column at each time. Published for a small vision
transformer over a year, accuracy in %: training and compensation 84.74 to 81.13, training alone 84.61 to 25.77,
compensation alone 84.31 to 70.04, neither 79.70 to 19.75.
"""

from statistics import mean

import paired
from rich.console import Console
from rich.table import Table

from calibration import DriftCompensation, Finetune, InputRanges, Recipe, calibrate, emulate, load_model, tasks

PUBLISHED = {
    "training and compensation": "84.74 to 81.13",
    "training alone": "84.61 to 25.77",
    "compensation alone": "84.31 to 70.04",
    "neither": "79.70 to 19.75",
}


def main() -> None:
    parser = paired.option_parser(__doc__, rounds=1)
    parser.add_argument("--steps", type=int, default=200, help="of training")
    parser.add_argument("--rate", type=float, default=2e-5)
    parser.add_argument("--pairs", type=int, default=500, help="of code search")
    parser.add_argument("--times", nargs="+", default=["1s", "1h", "1d", "30d", "1y"])
    parser.add_argument("--chips", type=int, default=8)
    options = paired.use(parser)
    paired.print_setting()
    loaded = load_model("minilm")
    task = tasks.CodeSearch(loaded.tokenizer, pairs=options.pairs)
    finetune = Finetune(train="weights", chip="any", steps=options.steps, rate=options.rate)
    given = {"task": task, "times": options.times, "chips": options.chips, "progress": _tell}
    written = (InputRanges(), finetune)
    both = calibrate(loaded, hardware="pcm", recipe=Recipe("both", (*written, DriftCompensation())), **given)
    alone = calibrate(loaded, hardware="pcm", recipe=Recipe("training", written), **given)
    compensated = calibrate(
        loaded, hardware="pcm", recipe=Recipe("compensation", (InputRanges(), DriftCompensation())), **given
    )
    neither = emulate(loaded, task, "pcm", times=options.times, chips=options.chips, progress=_tell)
    arms = {
        "training and compensation": (both, "calibrated"),
        "training alone": (alone, "calibrated"),
        "compensation alone": (compensated, "calibrated"),
        "neither": (neither, "analog"),
    }
    table = Table(title=f"{task.primary}, mean over {options.chips} chips; digital {both.values('digital')[0]:.3f}")
    for column in ("arm", *options.times, "published, 1 s to 1 y"):
        table.add_column(column)
    for name, (result, arm) in arms.items():
        values = result.values(arm)
        by_time = [mean(values[k :: len(options.times)]) for k in range(len(options.times))]
        table.add_row(name, *(f"{value:.3f}" for value in by_time), PUBLISHED[name])
    Console(width=140).print(table)


def _tell(done: int, total: int, text: str) -> None:
    print(f"{done}/{total} {text}", flush=True)


if __name__ == "__main__":
    main()
