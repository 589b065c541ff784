"""The report of a study: one HTML file with everything in it."""

from __future__ import annotations

import base64
import io
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.metrics import CONFIDENCE, metric
from calibration.studies import figures, statistics
from calibration.studies.sentences import summary
from calibration.studies.stored import StoredAxis, StoredStudy
from crossbar import InputError
from crossbar.storage.files import require_writable, write_whole

if TYPE_CHECKING:
    import pandas as pd

_HALF_WIDTHS = (0.02, 0.01, 0.005)


def write_report(study: StoredStudy, path: Path) -> None:
    """`calibration.studies.results.Study.report`."""
    require_writable(path)
    if study.scores.empty:
        raise InputError(f"store {str(study.store)!r} holds no finished chip yet: run the study first")
    text = render(study)
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"), "report")


def render(study: StoredStudy) -> str:
    """The page's text."""
    import yaml
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("calibration.studies", "."), autoescape=True, undefined=StrictUndefined
    )
    table = study.table()
    logarithmic = metric(study.primary).logarithmic
    return environment.get_template("report.html.j2").render(
        title=study.title,
        summary=summary(study, table),
        failures=[(reason, count) for reason, count, _, _ in study.failures()],
        figures=[
            {"name": drawn.name, "title": drawn.title, "note": drawn.note, "svg": _svg(drawn)}
            for drawn in figures.draw_all(study)
        ],
        chips=_chips(study),
        chips_scale=" (of logarithms: ± 0.01 is 1%)" if logarithmic else "",
        table_note=_table_note(study),
        data=_data(study, table),
        command="ohmformer study study.yaml --store results.sqlite\nohmformer report results.sqlite --out report.html",
        configuration=yaml.safe_dump(study.config, sort_keys=False, allow_unicode=True, width=100),
        runs=_runs(study),
    )


def _table_note(study: StoredStudy) -> str:
    kind = "geometric mean" if metric(study.primary).logarithmic else "mean"
    return (
        f"low and high: {CONFIDENCE:.0%} Student-t interval of the {kind} over chips; digital: the digital model with "
        "the same pattern; time: since programming, with a recipe when it was fitted. Headings sort."
    )


def _chips(study: StoredStudy) -> list[tuple[str, str, str]]:
    rows = []
    for half in _HALF_WIDTHS:
        table = statistics.seeds_needed(study, half)
        needed = table[table["metric"] == study.primary]["needed"].dropna()
        middle, most = ("unknown", "unknown") if needed.empty else (f"{needed.median():.0f}", f"{needed.max():.0f}")
        rows.append((f"{half:g}", middle, most))
    return rows


def _data(study: StoredStudy, table: pd.DataFrame) -> Any:
    """The table for the page's script, each column as numbers or as codes of its levels."""
    from markupsafe import Markup

    several = table["metric"].nunique() > 1
    axes = {axis.name: axis for axis in study.axes}
    time = StoredAxis("time", ("time",), (), None, False)
    coded = [(name, axes.get(name, time)) for name in (*study.varying, "time")]
    columns: list[dict[str, Any]] = []
    for name, axis in coded:
        levels = sorted(table[name].unique(), key=lambda value: (isinstance(value, str), value))
        places = {value: place for place, value in enumerate(levels)}
        codes = [places[value] for value in table[name]]
        columns.append({"label": axis.label, "levels": [axis.level(value) for value in levels], "codes": codes})
    for name in ("arm", *(("metric",) if several else ())):
        levels = list(dict.fromkeys(table[name]))
        places = {value: place for place, value in enumerate(levels)}
        columns.append({"label": name, "levels": levels, "codes": [places[value] for value in table[name]]})
    for name in ("mean", "low", "high", "digital", "n"):
        columns.append({"label": name, "values": [_number(value) for value in table[name].tolist()]})
    text = json.dumps({"rows": len(table), "columns": columns}, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))


def _number(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _runs(study: StoredStudy) -> list[dict[str, Any]]:
    runs = []
    for began, ended, provenance in study.runs():
        versions = ", ".join(f"{name} {version}" for name, version in provenance["versions"].items() if version)
        machine = ", ".join(str(value) for value in provenance["machine"].values())
        models = ", ".join(f"{name} (SHA-256 {key})" for key, name in provenance["models"].items())
        entries = [
            ("command", provenance["command"]),
            ("engine", f"{provenance['engine']}, {provenance['workers']} workers of one thread"),
            ("versions", versions),
            ("code", f"SHA-256 {provenance['code']}"),
            ("machine", machine),
            ("models", models),
        ]
        runs.append({"title": f"Run of {began} to {ended or 'an interruption'}", "entries": entries})
    return runs


def _svg(drawn: figures.Drawn) -> str:
    buffer = io.BytesIO()
    drawn.figure.savefig(buffer, format="svg", metadata={"Date": None})
    return base64.b64encode(buffer.getvalue()).decode()
