"""A pretrained encoder on drifting crossbars, and what calibration gets back.

MiniLM, all its linear layers on 256 x 256 PCM tiles with 8-bit converters and output noise, attention gated by a window
and sinks. `make demo` runs this file, on short texts; `make evaluate` runs it in full.
"""

import argparse
import json
from pathlib import Path

from rich.console import Console

import calibration
from calibration import console, tasks
from calibration.results import plots, tables

PATTERN = "window(64) | sinks(4)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="500 pairs of 128 tokens, recipe fast, 8 chips")
    full = parser.parse_args().full

    model = calibration.load_model("minilm")
    short = {} if full else {"pairs": 150, "max_length": 48}
    terminal, results = Console(), []
    for name, options in {"code-search": short, "wordsim": {}}.items():
        task = tasks.get(name, model.tokenizer, **options)
        with console.progress_bar(name) as progress:
            results.append(
                calibration.calibrate(
                    model,
                    task,
                    hardware="pcm",
                    recipe="fast" if full else "quick",
                    pattern=PATTERN,
                    times=["0s", "1h", "1d", "30d", "1y"],
                    chips=8 if full else 3,
                    staircase=False,
                    progress=progress,
                )
            )
        terminal.print(tables.accuracy_table(results[-1]))

    terminal.print(tables.conversion_table(results[0].conversion))
    terminal.print(tables.counts_table(results[0]))
    folder = Path("demo")
    folder.mkdir(exist_ok=True)
    stem = "evaluate" if full else "demo"
    plots.accuracy_over_time(results).savefig(folder / f"{stem}.png", dpi=150)
    (folder / f"{stem}.json").write_text(json.dumps([result.to_dict() for result in results], indent=2))
    terminal.print(f"Picture and numbers: {folder}/{stem}.png, {folder}/{stem}.json")


if __name__ == "__main__":
    main()
