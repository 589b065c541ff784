"""Results as runs of an experiment tracker: a folder of MLflow, or offline runs of W&B. Nothing is sent anywhere."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from crossbar.errors import InputError, shown

if TYPE_CHECKING:
    from calibration.results.results import Row

_FOLDERS = {"mlflow": "mlruns", "wandb": "."}
"""Trackers, and where their own commands look for runs; W&B makes a folder ``wandb`` there."""
_EXPERIMENT = "ohmformer"
_LONGEST = 500  # characters of a parameter
_AT_ONCE = 100  # parameters or scores that MLflow takes in one call


class Score(NamedTuple):
    """A number of a run: a ``name`` such as ``calibrated/spearman``, and ``seconds`` since programming as its step."""

    name: str
    seconds: float
    value: float


@dataclass(frozen=True)
class Run:
    """What a tracker keeps together.

    Attributes:
        name: what its tables call it.
        parameters: plain values under dotted names.
        scores: of all times.
        result: the whole as plain values, kept as ``result.json``.
    """

    name: str
    parameters: Mapping[str, Any]
    scores: Sequence[Score]
    result: Mapping[str, Any]


@dataclass(frozen=True)
class Tracker:
    """A tracker and its folder.

    Attributes:
        kind: ``mlflow`` or ``wandb``.
        folder: where runs are kept.
    """

    kind: str
    folder: Path

    @classmethod
    def of(cls, text: str) -> Tracker:
        """From ``mlflow`` or ``wandb``, with a folder behind a colon if not the tracker's own: ``mlflow:runs``.

        Raises:
            InputError: for another tracker, one that is not installed, and a folder that is a file.
        """
        kind, _, folder = text.partition(":")
        if kind not in _FOLDERS:
            raise InputError(
                f"report_to {shown(text)} is no tracker: give mlflow or wandb, with a folder as in mlflow:runs"
            )
        if importlib.util.find_spec(kind) is None:
            raise InputError(f"report_to {kind} needs a package: pip install 'ohmformer[{kind}]'")
        place = Path(folder or _FOLDERS[kind])
        if place.exists() and not place.is_dir():
            raise InputError(f"report_to {shown(text)} is a file: name a folder")
        return cls(kind, place)

    def keep(self, runs: Iterable[Run]) -> None:
        """Write runs, each as one that is new."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for run in runs:
            (_to_mlflow if self.kind == "mlflow" else _to_wandb)(self.folder, run)


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings under dotted names; what is no number, text or truth value as JSON.

    >>> flat({"model": "minilm", "hardware": {"adc": {"bits": 8}}, "times": [1.0, 2.0]})
    {'model': 'minilm', 'hardware.adc.bits': 8, 'times': '[1.0, 2.0]'}
    """
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            plain = value is None or isinstance(value, str | int | float)
            found[f"{prefix}{name}"] = value if plain else json.dumps(value, default=str)
    return found


def scores_of(rows: Iterable[Row]) -> list[Score]:
    """The means of a result's rows and the ends of their intervals; what does not age stands at 0 s.

    Characters that MLflow refuses are underscores: ``recall@1`` is ``recall_1``.
    """
    found = []
    for row in rows:
        name = re.sub(r"[^\w./: -]", "_", f"{row.arm}/{row.metric}")
        values = {name: row.mean} | ({f"{name} low": row.low, f"{name} high": row.high} if row.n > 1 else {})
        found += [Score(key, row.seconds or 0.0, value) for key, value in values.items() if math.isfinite(value)]
    return found


def _to_mlflow(folder: Path, run: Run) -> None:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

    with _folders_allowed():
        client = MlflowClient(tracking_uri=folder.resolve().as_uri())
    now = int(1000 * time.time())
    known = client.get_experiment_by_name(_EXPERIMENT)
    experiment = client.create_experiment(_EXPERIMENT) if known is None else known.experiment_id
    number = client.create_run(experiment, run_name=run.name).info.run_id
    parameters = [Param(name, str(value)[:_LONGEST]) for name, value in run.parameters.items()]
    metrics = [Metric(score.name, score.value, now, int(score.seconds)) for score in run.scores]
    for start in range(0, max(len(parameters), len(metrics)), _AT_ONCE):
        here = slice(start, start + _AT_ONCE)
        client.log_batch(number, metrics=metrics[here], params=parameters[here])
    client.log_dict(number, dict(run.result), "result.json")
    client.set_terminated(number)


@contextmanager
def _folders_allowed() -> Iterator[None]:
    """MLflow opens a store that is a folder only where its environment says so."""
    name, before = "MLFLOW_ALLOW_FILE_STORE", os.environ.get("MLFLOW_ALLOW_FILE_STORE")
    os.environ[name] = "true"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _to_wandb(folder: Path, run: Run) -> None:
    import wandb

    settings = wandb.Settings(silent=True, console="off", disable_git=True, save_code=False, x_disable_stats=True)
    kept = wandb.init(
        project=_EXPERIMENT,
        name=run.name,
        config=dict(run.parameters),
        mode="offline",
        dir=folder,
        reinit="create_new",
        settings=settings,
    )
    for seconds in sorted({score.seconds for score in run.scores}):
        at = {score.name: score.value for score in run.scores if score.seconds == seconds}
        kept.log(at | {"seconds": seconds}, step=int(seconds))
    file = Path(kept.dir) / "result.json"
    file.write_text(json.dumps(dict(run.result)), encoding="utf-8")
    kept.finish()
