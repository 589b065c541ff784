"""Every score of a study with its axes, for other programs."""

from __future__ import annotations

import os
from pathlib import Path

from calibration.studies.results import Study
from crossbar import InputError


def write_scores(study: Study, path: Path) -> None:
    """`calibration.studies.results.Study.export`."""
    kinds = {".csv": "CSV", ".parquet": "Parquet"}
    if path.suffix not in kinds:
        raise InputError(f"export {str(path)!r} is of no known kind: end its name in {' or '.join(kinds)}")
    if not path.resolve().parent.is_dir():
        raise InputError(f"folder {str(path.parent)!r} does not exist: make it first, or give another path")
    settings = study.settings[["setting", *study.varying]]
    frame = settings.merge(study.scores, on="setting").drop(columns="setting").rename(columns={"seconds": "time"})
    frame = frame.astype({"arm": str, "metric": str}).infer_objects()
    for name in study.varying:  # one kind of values a column
        if frame[name].map(type).nunique() > 1:
            frame[name] = frame[name].astype(str)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        if path.suffix == ".csv":
            frame.to_csv(partial, index=False)
        else:
            frame.to_parquet(partial, index=False)
        partial.replace(path)
    except ImportError:
        raise InputError("Parquet needs pyarrow: pip install 'ohmformer[parquet]', or write .csv") from None
    finally:
        partial.unlink(missing_ok=True)
