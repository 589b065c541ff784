"""The command ``ohmformer``."""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from calibration import console
from calibration.commands import energy as energy_command
from calibration.commands import fit as fit_command
from calibration.commands import study as study_commands
from calibration.commands.options import MODEL_OPTIONS, make_parser
from calibration.printable import printable
from crossbar import InputError
from crossbar.storage.files import require_writable, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from calibration.progress import Progress
    from calibration.results.emulation import Emulation
    from calibration.runs.estimating import Estimate
    from calibration.runs.request import Request


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it worked, 2 for a user's mistake, which is printed as one sentence."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models come from a hub only where the user says so
    # For people, without our own code.
    warnings.formatwarning = lambda message, *_of: f"ohmformer: {printable(str(message))}\n"
    parser = make_parser()
    options = parser.read(sys.argv[1:] if arguments is None else arguments)
    try:
        code = _COMMANDS[options.command](options[options.command])
        sys.stdout.flush()
        return code
    except InputError as error:
        console.say(str(error))
        return 2
    except BrokenPipeError:  # whoever read what is printed has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # where no sentence of its own is made
        where = f"{str(error.filename)!r}: " if error.filename else ""
        console.say(f"{where}{error.strerror or error}: look after that, and try again")
        return 2
    except KeyboardInterrupt:
        console.say("stopped")
        return 130


def _emulate(options: Namespace) -> int:
    from calibration.emulate import estimate_emulation, run_emulation

    request = _request(options)
    if options.dry_run:
        return _tell("emulate", options, lambda progress: estimate_emulation(request, progress))
    return _run("emulate", options, lambda progress: run_emulation(request, progress))


def _calibrate(options: Namespace) -> int:
    from calibration.bundles.writer import require_cells
    from calibration.calibrate import estimate_calibration, require_place, run_calibration

    bundle = options.out is not None and Path(options.out).suffix != ".json"
    out, options.out = (options.out, None) if bundle else (None, options.out)  # what _run writes the JSON to
    request = _request(options, **{name: options[name] for name in ("recipe", "wait", "population")})
    _require_writable(options.plot_shares, _PICTURES)
    require_cells(options.cells)
    if out is not None:
        require_place(Path(out), request)
    if options.dry_run:
        staircase = options.staircase
        return _tell(
            "calibrate",
            options,
            lambda progress: estimate_calibration(request, staircase=staircase, progress=progress),
        )
    try:
        return _run(
            "calibrate",
            options,
            lambda progress: run_calibration(
                request,
                staircase=options.staircase,
                progress=progress,
                out=out,
                cells=options.cells,
                notify=console.say if bundle else None,
            ),
        )
    except KeyboardInterrupt:
        console.say("stopped" + ("; the same command goes on from here" if bundle else ""))
        return 130


def _energy(options: Namespace) -> int:
    from calibration.energy import chip_plots
    from calibration.energy import plots as energy_plots
    from calibration.energy import results as energy_results

    _require_writable(options.out)
    pictures = (
        (options.plot, energy_plots.breakdown),
        (options.pareto, energy_plots.pareto),
        (options.floor, chip_plots.floor),
        (options.gantt, chip_plots.gantt),
    )
    for path, _ in pictures:
        _require_writable(path, _PICTURES)
    study = energy_command.study_of(options)
    text = json.dumps(study.to_dict(), indent=2, allow_nan=False)
    if options.json:
        print(text)
    else:
        console.terminal().print(*energy_results.tables(study), sep="\n")
    _write(options.out, text, [(path, partial(draw, study)) for path, draw in pictures])
    return 0


def _inspect(options: Namespace) -> int:
    if options.bundle is not None:
        given = [name for name in MODEL_OPTIONS if options[name] != MODEL_OPTIONS[name]]
        if given:
            raise InputError(
                f"a bundle has its own model and hardware: leave --{given[0].replace('_', '-')} out, or the bundle"
            )
        return _inspect_bundle(options)

    from calibration.models import load_model
    from calibration.results import tables
    from crossbar import convert, presets

    hardware = presets.get(options.hardware)
    with console.progress_bar("inspect") as progress:
        model = load_model(options.model, progress).model
    report = convert(model, hardware, options.include, options.exclude, tied_heads=options.tied_heads)
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        console.terminal().print(tables.conversion_table(report, layers=True))
    return 0


def _inspect_bundle(options: Namespace) -> int:
    from calibration.bundles import inspection

    values = inspection.inspect_bundle(options.bundle)
    if options.json:
        print(json.dumps(values, indent=2))
    else:
        console.terminal().print(console.pairs_table(inspection.rows(values)))
    return 0


def _refit(options: Namespace) -> int:
    from calibration.bundles.bundle import load_bundle
    from calibration.bundles.files import require_new

    require_new(Path(options.out))
    load_bundle(options.bundle, device=options.device).refit(options.time).save(options.out)
    return 0


def _export(options: Namespace) -> int:
    from calibration.bundles.bundle import load_bundle
    from calibration.bundles.files import require_new
    from calibration.studies.results import Study

    if Path(options.source).is_file():
        Study(options.source).export(options.out)
        return 0
    require_new(Path(options.out))
    for missed in load_bundle(options.source).export(options.out, options.weights):
        console.terminal(soft_wrap=True).print(f"not exported: {missed}")
    return 0


def _doctor(options: Namespace) -> int:
    from calibration import doctor

    checks = doctor.examine()
    if options.json:
        print(json.dumps([vars(check) for check in checks], indent=2))
    else:
        console.terminal().print(doctor.doctor_table(checks))
    return int(any(check.remedy and check.needed for check in checks))


_SIZES = ("pairs", "windows", "window_length", "training_pairs", "training_windows")
"""Options that the task gets."""
_PICTURES = (".png", ".svg", ".pdf")
_COMMANDS = {
    "emulate": _emulate,
    "calibrate": _calibrate,
    "energy": _energy,
    "fit": fit_command.run_fit,
    "inspect": _inspect,
    "refit": _refit,
    "export": _export,
    "study": study_commands.run_study,
    "report": study_commands.run_report,
    "doctor": _doctor,
}


def _request(options: Namespace, **others: Any) -> Request:
    """What `emulate` and `calibrate` are asked for; what costs nothing to check comes before what takes seconds."""
    from calibration.results.trackers import Tracker
    from calibration.runs.request import Request

    _require_writable(options.out)
    _require_writable(options.plot, _PICTURES)
    if options.report_to is not None:
        Tracker.of(options.report_to)
    shared = ("pattern", "memory", "times", "chips", "seed", "device", "include", "exclude", "tied_heads")
    return Request.of(
        options.model,
        options.task,
        options.hardware,
        memory_options=energy_command.memory_options(options),
        options={name: options[name] for name in _SIZES if options.get(name) is not None},
        **{name: options[name] for name in (*shared, "stream", "engine")},
        **others,
    )


def _run(title: str, options: Namespace, job: Any) -> int:
    from calibration.results import tables
    from calibration.results.emulation import Calibration

    with console.progress_bar(title) as progress:
        result: Emulation = job(progress)
    text = json.dumps({**result.to_dict(), **result.clock()}, indent=2, allow_nan=False)
    if options.json:
        print(text)
    else:
        terminal = console.terminal()
        terminal.print(*tables.tables(result), sep="\n")
        terminal.print(tables.conversion_table(result.conversion, memory=result.setup["memory"] is not None))
        terminal.print(tables.counts_table(result))
        if told := tables.hint(result):
            console.terminal(soft_wrap=True).print(told)
    pictures = [(options.plot, result.plot)]
    if isinstance(result, Calibration):
        pictures.append((options.plot_shares, result.plot_shares))
    _write(options.out, text, pictures)
    if options.report_to is not None:
        result.report_to(options.report_to)
    return 0


def _tell(title: str, options: Namespace, measure: Callable[[Progress], Estimate]) -> int:
    """Print what a job would take, the start of the program included."""
    started = time.process_time()
    with console.progress_bar(title) as progress:
        found = measure(progress)
    found = found.after(started)
    if options.json:
        print(json.dumps(found.to_dict(), indent=2))
    else:
        console.terminal().print(console.pairs_table(found.rows()))
    return 0


def _require_writable(path: str | None, kinds: tuple[str, ...] = ()) -> None:
    """Refuse a path that nothing could be written to, before anything runs."""
    if path is not None:
        require_writable(path, kinds)


def _write(out: str | None, text: str, pictures: Sequence[tuple[str | None, Callable[[], Figure]]]) -> None:
    """Write the files that were asked for, after what was found stands on the terminal."""
    sys.stdout.flush()
    if out is not None:
        write_whole(Path(out), lambda path: path.write_text(text, encoding="utf-8"))
    for name, draw in pictures:
        if name is not None:
            kind = Path(name).suffix.removeprefix(".")
            write_whole(Path(name), partial(draw().savefig, dpi=150, format=kind))


if __name__ == "__main__":
    sys.exit(main())
