"""What becomes of each architecture of transformers: ``python -m tests.architectures.walk`` writes a table of it.

``--page docs/architectures.md`` writes the page of the docs; ``--out`` keeps rows, so that a walk can go on.

Models are tiny (`tests.architectures.tiny`). Asked of each: does it convert, does it equal the digital model in ideal
cells, which part of the parameters that are no look-up and no norm becomes analog, is a training step through the tiles
finite, and what becomes of its attention (`tests.architectures.attended`). What a model refuses needs its sentence; a
wrong result is a failure. Another question is a field of `Row` that `row_of` or `main` fills, and one of `COLUMNS`.
"""

from __future__ import annotations

import argparse
import copy
import json
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from crossbar import Tile, convert, presets, program
from tests.architectures import tiny
from tests.architectures.attended import Found, look

HARDWARE = replace(presets.ideal(), tile=Tile(64, 64))
MOST = 20_000_000  # parameters of a model that counts as small
SECONDS = 60
"""Of processor time, for each of the questions."""


@dataclass
class Row:
    """What was found of one architecture.

    Attributes:
        name: model type.
        built: why no small model of it runs in digital, or empty.
        analog: part of the parameters that become analog, of all but look-ups, positions and vectors (norms, biases).
        all: the same of all parameters.
        equal: largest difference from the digital outputs, as a part of their largest value; None: it was refused.
        sentence: with which conversion or the converted model refused; empty if it did not.
        trains: whether a training step is finite; None: it was not tried, or the model refused it.
        untrained: with which it refused.
        attention: what became of its attention; None: it was not asked.
    """

    name: str
    built: str = ""
    analog: float = 0.0
    all: float = 0.0
    equal: float | None = None
    sentence: str = ""
    trains: bool | None = None
    untrained: str = ""
    attention: Found | None = None

    def __post_init__(self) -> None:
        if isinstance(self.attention, dict):  # as JSON has it
            self.attention = Found(**self.attention)

    @property
    def verdict(self) -> str:
        """``equal``, ``refused`` (with a sentence of this project), ``not built`` or ``wrong``."""
        if self.built:
            return "not built"
        if self.sentence.startswith("InputError: "):
            return "refused"
        return "equal" if self.equal is not None and self.equal < 1e-3 else "wrong"


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raise `TimeoutError` in what takes longer, seconds of processor time."""

    def late(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    before = signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def built(name: str) -> tuple[nn.Module, Any, Any]:
    """A small model, its inputs and what it computes with them.

    Raises:
        ValueError: for one that is not small.
    """
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in tiny.model_of(name).parameters())
    if size > MOST:
        raise ValueError(f"{size:,} parameters are left of it")
    model = tiny.model_of(name)
    inputs = tiny.inputs_of(model)
    with torch.no_grad():
        outputs = called(model, inputs)
    if not outputs or not all(torch.isfinite(x).all() for x in outputs if x.is_floating_point()):
        raise ValueError("its outputs are not finite")
    return model, inputs, outputs


def called(model: nn.Module, inputs: Any) -> list[torch.Tensor]:
    """What a model gives; those that draw masks or noise draw the same each time."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return tiny.outputs_of(model(**copy.deepcopy(inputs)))


def row_of(name: str, seconds: int = SECONDS) -> Row:
    """Look at one architecture."""
    row = Row(name)
    try:
        with limited(seconds):
            model, inputs, expected = built(name)
    except Exception as error:  # noqa: BLE001 - whatever a configuration that is no model raises
        row.built = _told(error)
        return row
    try:
        with limited(seconds):
            _look(row, model, inputs, expected)
    except Exception as error:  # noqa: BLE001 - a defect, which the row tells
        row.sentence = _told(error)
        return row
    try:
        with limited(seconds):
            row.trains = _trains(model, inputs)
    except Exception as error:  # noqa: BLE001 - as above
        row.untrained = _told(error)
    return row


def _look(row: Row, model: nn.Module, inputs: Any, expected: list[torch.Tensor]) -> None:
    looked_up = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    products = sum(
        parameter.numel()
        for name, parameter in model.named_parameters()
        if parameter.dim() > 1 and len(parameter) > 1 and id(parameter) not in looked_up and "position" not in name
    )
    everything = sum(parameter.numel() for parameter in model.parameters())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = convert(model, HARDWARE)
    row.analog = min(1.0, report.analog_parameters / max(1, products))
    row.all = report.analog_parameters / everything
    with torch.no_grad():
        found = called(model, inputs)
    size = max(float(x.abs().max()) for x in expected) or 1.0
    row.equal = max(float((one - other).abs().max()) for one, other in zip(found, expected, strict=True)) / size


def _trains(model: nn.Module, inputs: Any) -> bool:
    """Whether gradients of a step through the tiles are finite."""
    program(model, 0)
    model.train()
    total = sum(x.float().square().mean() for x in called(model, inputs) if x.requires_grad)
    assert isinstance(total, torch.Tensor)
    total.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    return bool(grads) and all(bool(torch.isfinite(grad).all()) for grad in grads)


def attention_of(name: str, seconds: int = SECONDS) -> Found:
    """Look at the attention of one architecture that can be built small."""
    try:
        with limited(2 * seconds):
            return look(name)
    except Exception as error:  # noqa: BLE001 - a defect, which the row tells
        return Found(sentence=_told(error))


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _equals(row: Row) -> str:
    return "yes" if row.verdict == "equal" else f"{row.verdict}: {row.sentence or row.equal}"


def _trained(row: Row) -> str:
    return row.untrained or {True: "yes", False: "no", None: "not tried"}[row.trains]


def _attached(row: Row) -> str:
    found = row.attention
    if found is None:
        return "not asked"
    return {"equal": "yes", "refused": found.sentence}.get(found.verdict, f"{found.verdict}: {found.sentence}")


def _remembers(row: Row) -> str:
    found = row.attention
    if found is None or found.remembers == "none":
        return ""
    if found.verdict == "refused":
        return "no"
    return "yes" if found.remembers == "equal" else f"{found.remembers}: {found.forgot or found.memory}"


COLUMNS: dict[str, Callable[[Row], str]] = {
    "model type": lambda row: row.name,
    "analog, of matrices": lambda row: f"{row.analog:.0%}",
    "of all": lambda row: f"{row.all:.0%}",
    "equals digital": _equals,
    "trains": _trained,
    "attached": _attached,
    "memory": _remembers,
}


def summary(rows: list[Row]) -> str:
    """How many of the models do what."""
    seen = [row for row in rows if not row.built]
    equal = [row for row in seen if row.verdict == "equal"]
    return (
        f"transformers {transformers.__version__}: {len(seen)} of {len(rows)} model types are small models that run; "
        f"{len(equal)} of these convert and equal the digital model, "
        f"{sum(row.analog >= 0.95 for row in equal)} of them with at least 95% of their matrices analog; "
        f"{sum(row.trains is True for row in equal)} train. {_attentions(seen)}"
    )


def _attentions(rows: list[Row]) -> str:
    found = [row.attention for row in rows if row.attention is not None]
    several = [x for x in found if x.remembers != "none" and x.verdict == "equal"]
    verdicts = Counter(x.verdict for x in found)
    return (
        f"Of {len(found)} whose attention was looked at, {verdicts['equal']} are attached and equal their own eager "
        f"attention with the same pairs, attach refuses {verdicts['refused']}, {verdicts['late']} are refused as they "
        f"run, and {verdicts['wrong']} are wrong; {sum(x.remembers == 'equal' for x in several)} of {len(several)} "
        "that generate and are attached give the tokens of their own cache on analog memory."
    )


def table(rows: list[Row]) -> str:
    """A table of the models that run, in Markdown."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    for row in rows:
        if not row.built:
            lines.append(f"| {' | '.join(cell(row).replace('|', '/') for cell in COLUMNS.values())} |")
    return "\n".join(lines)


def page(rows: list[Row]) -> str:
    """The page of the docs."""
    left_out = ", ".join(f"`{row.name}`" for row in rows if row.built)
    return f"""# Architectures of transformers

{summary(rows)}

Written by `python -m tests.architectures.walk --page docs/architectures.md`. Each model is made small, with two layers
and random weights, and put on ideal cells. *Analog, of matrices*: part of the parameters that become analog, of those
that are no look-up, norm or bias; *of all*: of all parameters. *Equals digital*: to 1e-3 of the largest output, or the
sentence that the user gets. *Trains*: whether gradients of a step through the tiles are finite, or what the model says
in train mode. *Attached*: `attach` with `window(6) | sinks(2)` equals the model's own eager attention with these pairs
alone, also with padding, to 1e-3 of the largest output, or the sentence of the refusal. *Memory*: on analog rows of
ideal cells it generates the tokens, and to 1e-3 the logits, of its own cache; empty where it does not generate.

{table(rows)}

Of these model types no small model runs by what the walk knows of configurations and inputs, which says nothing about
them: {left_out}.
"""


def main() -> None:
    """Walk all architectures, or those named, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="model types; none: all")
    parser.add_argument("--out", type=Path, help="JSON of the rows, taken up again if it exists")
    parser.add_argument("--page", type=Path, help="write the page of the docs here")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    known = json.loads(options.out.read_text()) if options.out and options.out.exists() else []
    rows = {row["name"]: Row(**row) for row in known}
    for name in options.names or tiny.architectures():
        changed = False
        if name not in rows:
            rows[name] = row_of(name)
            sys.stderr.write(f"{name} {rows[name].verdict} {rows[name].built or rows[name].sentence}\n")
            sys.stderr.flush()
            changed = True
        if not rows[name].built and rows[name].attention is None:
            rows[name].attention = attention_of(name)
            sys.stderr.write(f"{name} attention: {rows[name].attention}\n")
            changed = True
        if changed and options.out:
            options.out.write_text(json.dumps([asdict(row) for row in rows.values()], indent=1))
    found = [rows[name] for name in sorted(rows)]
    sys.stdout.write(f"{summary(found)}\n\n{table(found)}\n")
    if options.page:
        options.page.write_text(page(found))


if __name__ == "__main__":
    main()
