"""The command ``fit``: a device's description from measurements."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

if TYPE_CHECKING:
    from crossbar.devices import Fit

_PICTURES = (".png", ".svg", ".pdf")


def add_fit_command(add: Callable[[str, Any, str], None], subcommand: Callable[[str], Any]) -> None:
    """Have ``add`` add it: a name, a parser, and what it is for."""
    parser = subcommand("Find a device's parameters in measurements of it, with intervals, and write its description.")
    parser.add_argument(
        "readings", type=str, help="CSV with a line a reading: target_us, seconds, conductance_us, device, read"
    )
    parser.add_argument("--law", type=str, required=True, help="pcm, hermes, power_law, reram or measured")
    parser.add_argument("--g-max", type=float | None, default=None, help="µS of the largest weight (largest target)")
    parser.add_argument("--t-0", type=float | None, default=None, help="s from programming to the first read")
    parser.add_argument("--out", type=str | None, default=None, help="write hardware with the device as YAML")
    parser.add_argument("--plot", type=str | None, default=None, help="write a picture of readings and device")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add("fit", parser, "a device from measurements")


def run_fit(options: Namespace) -> int:
    """``ohmformer fit``."""
    from calibration import console
    from crossbar import Hardware, devices, plots
    from crossbar.storage.files import require_writable, write_whole

    for path, kinds in ((options.out, (".yaml", ".yml")), (options.plot, _PICTURES)):
        if path is not None:
            require_writable(path, kinds)
    found = devices.fit(options.readings, options.law, options.g_max, options.t_0)
    if options.json:
        print(json.dumps(_values(found), indent=2, allow_nan=False))
    else:
        console.terminal().print(_table(found, options.law))
    if options.out is not None:
        Hardware(device=found.device).to_yaml(options.out)
    if options.plot is not None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(7.2, 4.6), layout="constrained")
        plots.fitted(found, axes=figure.add_subplot())
        write_whole(Path(options.plot), partial(figure.savefig, dpi=150, format=Path(options.plot).suffix[1:]))
    return 0


def _values(found: Fit) -> dict[str, Any]:
    return {
        "device": found.device.kind,
        "readings": len(found.readings.target),
        "used": found.used,
        "parameters": [each._asdict() for each in found.parameters],
    }


def _table(found: Fit, law: str) -> Any:
    from rich.table import Table

    devices = len(found.readings.device.unique())
    view = Table(
        title=f"{law}: {found.used:,} of {len(found.readings.target):,} readings of {devices:,} devices",
        title_justify="left",
    )
    for name in ("parameter", "fitted", "95% interval"):
        view.add_column(name, justify="left" if name == "parameter" else "right")
    for name, value, low, high in found.parameters:
        view.add_row(name, f"{value:.4g}", f"{low:.4g} to {high:.4g}")
    return view
