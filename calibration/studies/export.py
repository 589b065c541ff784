"""Every score of a study with its axes, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibration.results.results import Row, finite
from calibration.results.trackers import Run, scores_of
from calibration.studies.stored import StoredStudy, level
from crossbar import InputError
from crossbar.storage.files import require_writable, write_whole


def write_scores(study: StoredStudy, path: Path) -> None:
    """`calibration.studies.results.Study.export`."""
    import numpy as np
    import pandas as pd

    kinds = {".csv": "CSV", ".parquet": "Parquet"}
    if path.suffix not in kinds:
        raise InputError(f"export {str(path)!r} is of no known kind: end its name in {' or '.join(kinds)}")
    require_writable(path)
    kept: dict[str, Any] = {
        "seconds": float,
        "seed": "Int64",
        "arm": str,
        "metric": str,
    }  # the digital model has neither time nor seed
    digital = study.digital.assign(seconds=np.nan, seed=pd.array([None] * len(study.digital), dtype="Int64"))
    parts: list[pd.DataFrame] = [part[[*study.scores.columns]].astype(kept) for part in (digital, study.scores)]
    scores = pd.concat(parts)
    settings = study.settings[["setting", *study.varying]]
    frame = settings.merge(scores, on="setting").drop(columns="setting").rename(columns={"seconds": "time"})
    frame = frame.infer_objects()
    for name in study.varying:  # one kind of values a column
        if frame[name].map(type).nunique() > 1:
            frame[name] = frame[name].astype(str)
    write = frame.to_csv if path.suffix == ".csv" else frame.to_parquet
    try:
        write_whole(path, lambda partial: write(partial, index=False), "export")
    except ImportError:
        raise InputError("Parquet needs pyarrow: pip install 'ohmformer[parquet]', or write .csv") from None


def runs(study: StoredStudy) -> list[Run]:
    """Each combination of a study's axes but time and seed, with means and intervals over chips at each time."""
    axes, table = study.varying, study.table()
    for axis in axes:
        table[axis] = [level(axis, value) for value in table[axis]]
    found = []
    for levels, rows in table.groupby(axes, sort=False) if axes else [((), table)]:
        chosen = dict(zip(axes, map(str, levels), strict=True))
        digital = rows.drop_duplicates("metric").dropna(subset="digital").to_dict("records")
        scored = [
            Row("digital", None, row["metric"], row["digital"], row["digital"], row["digital"], 1, None)
            for row in digital
        ]
        scored += [
            Row(row["arm"], row["time"], row["metric"], row["mean"], row["low"], row["high"], row["n"], None)
            for row in rows.to_dict("records")
        ]
        parameters = {"study": study.title} | chosen
        plain = [finite(row._asdict()) for row in scored]
        name = ", ".join(parameters.values())
        found.append(Run(name, parameters, scores_of(scored), {**parameters, "table": plain}))
    return found
