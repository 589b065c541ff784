"""Every score of a study with its axes, for other programs."""

from __future__ import annotations

from pathlib import Path

from calibration.studies.results import Study
from crossbar import InputError
from crossbar.files import write_whole


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
    write = frame.to_csv if path.suffix == ".csv" else frame.to_parquet
    try:
        write_whole(path, lambda partial: write(partial, index=False))
    except ImportError:
        raise InputError("Parquet needs pyarrow: pip install 'ohmformer[parquet]', or write .csv") from None
