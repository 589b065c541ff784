"""Sparse attention trained from nothing in digital, put on analog tiles, and calibrated: a row for each pattern.

Associative recall in 512 tokens (docs/attention.md). Columns: accuracy in digital, on PCM chips a day old as they are,
after the recipe `fast`, and after hardware-aware training of all weights before programming, and then `fast`.
"""

import argparse
from statistics import mean

from rich.console import Console
from rich.table import Table

from attention import parse
from calibration import Finetune, Recipe, calibrate, console
from calibration import recipe as recipes
from calibration.tasks.from_scratch import SmallTransformer, curriculum, train
from calibration.tasks.recall import Recall

PATTERNS = ["dense", "strided(16)", "fixed(16, 2)", "hierarchical(32, 4)"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patterns", nargs="+", default=PATTERNS, help="pattern texts")
    parser.add_argument("--minutes", type=float, default=10.0, help="of digital training, for each pattern at most")
    parser.add_argument("--steps", type=int, default=100, help="of hardware-aware training")
    parser.add_argument("--chips", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=64, help="of each split")
    options = parser.parse_args()

    task = Recall(sequences=options.sequences)
    steps = recipes.get("fast").steps
    finetune = Finetune(train="weights", chip="any", steps=options.steps, rate=3e-4, checkpoint=False)
    trained = Recipe("trained", (*steps[:2], finetune, *steps[2:]))  # lines, ranges of inputs
    table = Table(title=f"Recall accuracy, PCM at 1 d, {options.chips} chips", title_justify="left")
    for column in ("pattern", "digital", "analog", "fast", "trained, fast"):
        table.add_column(column, justify="left" if column == "pattern" else "right")
    for text in options.patterns:
        model = SmallTransformer(task.vocabulary, parse(text))
        with console.progress_bar(text) as progress:
            train(model, curriculum(task), minutes=options.minutes, progress=progress)
        found = {}
        for recipe in ("fast", trained):
            with console.progress_bar(f"{text}, {recipe if isinstance(recipe, str) else recipe.name}") as progress:
                found[recipe] = calibrate(
                    model, task, "pcm", recipe, times=["1d"], chips=options.chips, staircase=False, progress=progress
                )
        first, second = found.values()
        values = (
            first.values("digital"),
            first.values("analog"),
            first.values("calibrated"),
            second.values("calibrated"),
        )
        table.add_row(text, *(f"{mean(v):.1%}" for v in values))
        Console().print(table)


if __name__ == "__main__":
    main()
