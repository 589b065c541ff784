"""The report of a study: one HTML file with everything in it."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.metrics import CONFIDENCE, metric
from calibration.studies import figures, tradeoffs
from calibration.studies.results import StoredAxis, Study, level
from crossbar import InputError, format_seconds
from crossbar.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

_HALF_WIDTHS = (0.02, 0.01, 0.005)


def write_report(study: Study, path: Path) -> None:
    """`calibration.studies.results.Study.report`."""
    if not path.resolve().parent.is_dir():
        raise InputError(f"folder {str(path.parent)!r} does not exist: make it first, or give another path")
    if study.scores.empty:
        raise InputError(f"store {str(study.store)!r} holds no finished chip yet: run the study first")
    text = render(study)
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def render(study: Study) -> str:
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
        summary=_summary(study, table),
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


def _summary(study: Study, table: pd.DataFrame) -> list[str]:
    """What was run, and the reference setting in numbers."""
    state = study.progress
    sentences = [
        f"{state.done:,} of {state.total:,} cells are done"
        + (f", {state.failed:,} failed" if state.failed else "")
        + (f", {state.pending:,} were not run yet" if state.pending else "")
        + "."
    ]
    rows = figures.at_reference(study, table[table["metric"] == study.primary])
    if rows.empty:
        return sentences
    time = tradeoffs.reference_time(study, rows)
    held = [f"{axis.label} {axis.level(axis.reference)}" for axis in figures.held(study)]
    final = rows[(rows["time"] == time) & rows["arm"].isin(("analog", "calibrated"))]
    scores = [f"{row['arm']} {_with_interval(row)} over {row['n']} chips" for row in final.to_dict("records")]
    digital = final["digital"].dropna()
    if len(digital):
        scores.insert(0, f"digital {digital.iloc[0]:.3f}")
    where = f" with {', '.join(held)}" if held else ""
    stated = f"{study.primary} at {format_seconds(time)}{where}: {'; '.join(scores)}"
    sentences.append(f"{stated}. In brackets: {CONFIDENCE:.0%} Student-t intervals over chips.")
    gain = _gain(study, time)
    if gain is not None:
        sentences.append(gain)
    costs = study.sensitivity()
    if len(costs):
        worst = costs.iloc[0]
        name = next(axis.label for axis in study.axes if axis.name == worst["axis"])
        best, least = level(worst["axis"], worst["best"]), level(worst["axis"], worst["worst"])
        sentences.append(f"What costs the most is {name}: {worst['cost']:.3f} from {best} to {least}.")
    return sentences


def _gain(study: Study, time: float) -> str | None:
    """What the recipe gains over none on the same chips, at the reference."""
    axis = study.recipe
    if axis is None or axis.reference is None or None not in axis.values:
        return None
    rows = study.differences(axis.name, None, axis.reference)
    rows = figures.at_reference(study, rows[(rows["metric"] == study.primary) & (rows["time"] == time)], axis)
    if len(rows) != 1:
        return None
    row, name = rows.to_dict("records")[0], axis.level(axis.reference)
    if metric(study.primary).logarithmic:
        return f"Recipe {name} divides it by {math.exp(row['mean']):.3f} on the same {row['n']} chips."
    return f"Recipe {name} gains {_with_interval(row)} on the same {row['n']} chips."


def _with_interval(row: Mapping[Any, Any]) -> str:
    """A mean and its interval."""
    mean, low, high = row["mean"], row["low"], row["high"]
    return f"{mean:.3f}" if math.isnan(low) else f"{mean:.3f} ({low:.3f} to {high:.3f})"


def _table_note(study: Study) -> str:
    kind = "geometric mean" if metric(study.primary).logarithmic else "mean"
    return (
        f"low and high: {CONFIDENCE:.0%} Student-t interval of the {kind} over chips; digital: the digital model with "
        "the same pattern; time: since programming, with a recipe when it was fitted. Headings sort."
    )


def _chips(study: Study) -> list[tuple[str, str, str]]:
    rows = []
    for half in _HALF_WIDTHS:
        table = study.seeds_needed(half)
        needed = table[table["metric"] == study.primary]["needed"].dropna()
        middle, most = ("unknown", "unknown") if needed.empty else (f"{needed.median():.0f}", f"{needed.max():.0f}")
        rows.append((f"{half:g}", middle, most))
    return rows


def _data(study: Study, table: pd.DataFrame) -> Any:
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


def _runs(study: Study) -> list[dict[str, Any]]:
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
