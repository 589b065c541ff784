"""Every score of a study with its axes, for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calibration.studies.stored import StoredStudy
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
