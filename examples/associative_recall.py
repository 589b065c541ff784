"""Which patterns can a two-layer model be trained through? Associative recall, 512 tokens, a row for each pattern.

A pattern covers a question if it attends the value directly, or a token between that can take up key and value.
"""

import argparse
import json
import os
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from attention import BlockSparse, GlobalTokens, Hierarchical, LocalWindow, Strided, parse
from calibration import console
from calibration.tasks.from_scratch import SmallTransformer, curriculum, train
from calibration.tasks.recall import Recall

TEXTS = """dense; window(256); window(160); window(32); window(32) | sinks(4); window(16) | dilated(256, 16);
strided(16); fixed(16, 2); window(16) | random(6, 64); bigbird(64, 3); neighborhood(511); topk(16); blocktopk(16, 4);
routing(8, 64) | window(16); window(16) | random(1, 64); hierarchical(32, 4)"""
PATTERNS = {text.strip(): parse(text) for text in TEXTS.split(";")} | {
    "strided(16), a set to each head": Strided(16).per_head(2),
    "blocks of 64: own and 4 before": BlockSparse(torch.ones(8, 8, dtype=torch.bool).tril().triu(-4), 64),
    "routing(8, 64) | window(16), random centroids": parse("routing(8, 64) | window(16)"),
    "window(16), every 16th token global": LocalWindow(16) | GlobalTokens(tuple(range(15, 512, 16))),
}


def describe(pattern, task):
    """Density of the whole square, and the questions that the pattern covers: directly / by relays too."""
    if isinstance(pattern, Hierarchical):
        return pattern.scores(task.n) / task.n**2, "averages"
    if not pattern.is_static:
        q, k = torch.randn(2, 1, 2, task.n, 8, generator=torch.Generator().manual_seed(0))
        return density(pattern.select(q, k), task.n), "selects"
    direct, relayed = task.reach(pattern)
    return density(pattern, task.n), f"{direct:.0%} / {relayed:.0%}"


def density(pattern, n):
    heads = range(pattern.n_heads or 1)
    return sum(pattern.at(n).head(h).stats(n).density for h in heads) / len(heads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patterns", nargs="+", default=list(PATTERNS), help="names of the table, or pattern texts")
    parser.add_argument("--minutes", type=float, default=10.0, help="of training, for each pattern at most")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    task, rows = Recall(), []
    path = Path("demo") / "associative_recall.json"
    path.parent.mkdir(exist_ok=True)
    table = Table(title=f"Recall over {task.nearest} to {task.farthest} of {task.n} tokens", title_justify="left")
    for column in ("pattern", "density", "covers", "accuracy", "steps", "seconds"):
        table.add_column(column, justify="left" if column in ("pattern", "covers") else "right")
    for name in options.patterns:
        pattern = (PATTERNS[name] if name in PATTERNS else parse(name)).causal()
        share, covers = describe(pattern, task)
        learned = not name.endswith("random centroids")
        model = SmallTransformer(task.vocabulary, pattern, seed=options.seed, learn_routing=learned)
        with console.progress_bar(name) as progress:
            training = train(model, curriculum(task), minutes=options.minutes, seed=options.seed, progress=progress)
        row = {"pattern": name, "density": share, "covers": covers, **task.metrics(model), **training._asdict()}
        rows.append({**row, "load": os.getloadavg()[0], "threads": torch.get_num_threads(), "seed": options.seed})
        steps, seconds = str(sum(training.steps)), f"{training.seconds:.0f}{'' if training.finished else ' (ended)'}"
        table.add_row(name, f"{share:.1%}", covers, f"{row['accuracy']:.1%}", steps, seconds)
        path.with_suffix(".part").write_text(json.dumps(rows, indent=2))
        path.with_suffix(".part").replace(path)
    terminal = Console()
    terminal.print(table, f"Guessing: {1 / task.values:.1%}. Numbers: {path}")


if __name__ == "__main__":
    main()
