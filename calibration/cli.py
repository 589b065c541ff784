"""The command ``ohmformer``."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from jsonargparse import Namespace

from calibration.configuration import BoundedParser
from calibration.energy import command as energy_command
from calibration.studies import commands as study_commands
from crossbar import InputError
from crossbar.files import require_writable, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from calibration.progress import Progress
    from calibration.results import Emulation

_EPILOG = "Options can also come from a YAML file with the same names: --config file.yaml"


class _Parser(BoundedParser):
    """A parser whose errors are one sentence."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        line = " ".join(str(message).split())
        print(f"ohmformer: {line} (ohmformer --help says what is allowed)", file=sys.stderr)
        sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; 0 if it worked, 2 for a user's mistake, which is printed as one sentence."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # models come from a hub only where the user says so
    warnings.formatwarning = lambda message, *_of: f"ohmformer: {message}\n"  # for people, without our own code
    parser = _parser()
    options = parser.parse_args(None if arguments is None else list(arguments))
    try:
        code = _COMMANDS[options.command](options[options.command])
        sys.stdout.flush()
        return code
    except InputError as error:
        print(f"ohmformer: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read what is printed has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:  # where no sentence of its own is made
        where = f"{str(error.filename)!r}: " if error.filename else ""
        print(f"ohmformer: {where}{error.strerror or error}: look after that, and try again", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ohmformer: stopped", file=sys.stderr)
        return 130


def _emulate(options: Namespace) -> int:
    from calibration.emulate import emulate

    return _run("emulate", options, lambda progress: emulate(**_job(options, progress), progress=progress))


def _calibrate(options: Namespace) -> int:
    from calibration.bundles.files import require_new
    from calibration.calibrate import calibrate

    names = ("recipe", "wait", "staircase", "population")
    extra: dict[str, Any] = {name: options[name] for name in names}
    bundle = options.out is not None and Path(options.out).suffix != ".json"
    if bundle:
        extra |= {"out": options.out, "notify": lambda told: print(f"ohmformer: {told}", file=sys.stderr)}
        require_new(Path(options.out))
        options.out = None  # what _run would write the JSON to
    try:
        return _run(
            "calibrate", options, lambda progress: calibrate(**_job(options, progress), **extra, progress=progress)
        )
    except KeyboardInterrupt:
        print("ohmformer: stopped" + ("; the same command goes on from here" if bundle else ""), file=sys.stderr)
        return 130


def _energy(options: Namespace) -> int:
    from rich.console import Console

    from calibration.energy import plots as energy_plots

    _require_writable(options.out)
    pictures = ((options.plot, energy_plots.breakdown), (options.pareto, energy_plots.pareto))
    for path, _ in pictures:
        _require_writable(path, _PICTURES)
    study = energy_command.study_of(options)
    text = json.dumps(study.to_dict(), indent=2, allow_nan=False)
    if options.json:
        print(text)
    else:
        Console().print(*energy_command.tables(study), sep="\n")
    _write(options.out, text, [(path, partial(draw, study)) for path, draw in pictures])
    return 0


def _inspect(options: Namespace) -> int:
    from rich.console import Console

    if options.bundle is not None:
        given = [name for name in _MODEL_OPTIONS if options[name] != _MODEL_OPTIONS[name]]
        if given:
            raise InputError(f"a bundle has its own model and hardware: leave --{given[0]} out, or the bundle")
        return _inspect_bundle(options)

    from calibration.console import conversion_table, progress_bar
    from calibration.models import load_model
    from crossbar import convert, presets

    hardware = presets.get(options.hardware)
    with progress_bar("inspect") as progress:
        model = load_model(options.model, progress).model
    report = convert(model, hardware, options.include, options.exclude)
    if options.json:
        print(json.dumps(report.to_dict(), indent=2))
    else:
        Console().print(conversion_table(report, layers=True))
    return 0


def _inspect_bundle(options: Namespace) -> int:
    from rich.console import Console

    from calibration import console
    from calibration.bundles import inspection

    values = inspection.inspect_bundle(options.bundle)
    if options.json:
        print(json.dumps(values, indent=2))
    else:
        Console().print(console.bundle_table(inspection.rows(values)))
    return 0


def _refit(options: Namespace) -> int:
    from calibration.bundles.bundle import load_bundle
    from calibration.bundles.files import require_new

    require_new(Path(options.out))
    load_bundle(options.bundle).refit(options.time).save(options.out)
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
        print(f"not exported: {missed}")
    return 0


def _doctor(options: Namespace) -> int:
    from rich.console import Console

    from calibration import doctor
    from calibration.console import doctor_table

    checks = doctor.examine()
    if options.json:
        print(json.dumps([vars(check) for check in checks], indent=2))
    else:
        Console().print(doctor_table(checks))
    return int(any(check.remedy and check.needed for check in checks))


_MODEL_OPTIONS = {"model": "minilm", "hardware": "pcm", "include": None, "exclude": None}
"""Options that choose what becomes analog, and their defaults."""
_SIZES = ("pairs", "windows", "window_length", "training_pairs", "training_windows")
"""Options that the task gets."""
_PICTURES = (".png", ".svg", ".pdf")
_COMMANDS = {
    "emulate": _emulate,
    "calibrate": _calibrate,
    "energy": _energy,
    "inspect": _inspect,
    "refit": _refit,
    "export": _export,
    "study": study_commands.run_study,
    "report": study_commands.run_report,
    "doctor": _doctor,
}


def _job(options: Namespace, progress: Progress) -> dict[str, Any]:
    """Arguments that `emulate` and `calibrate` share."""
    from attention import Memory, parse
    from calibration import experiment, models, tasks
    from crossbar import presets

    # What costs nothing to check comes before what takes seconds to load.
    _require_writable(options.out)
    _require_writable(options.plot, _PICTURES)
    tasks.require(options.task)
    experiment.require_chips(options.chips)
    times = options.times.split(",") if isinstance(options.times, str) else options.times
    job = {
        "hardware": presets.get(options.hardware),
        "pattern": None if options.pattern is None else parse(options.pattern),
        "memory": None if options.memory is None else Memory(presets.get(options.memory), **_memory_options(options)),
        "times": experiment.parse_times(times),
        "chips": options.chips,
        "include": options.include,
        "exclude": options.exclude,
    }
    model = models.load_model(options.model, progress)
    tasks.require(options.task, model)
    sizes = {name: options[name] for name in _SIZES if options.get(name) is not None}
    return {"model": model, "task": tasks.get(options.task, model.tokenizer, **sizes), **job}


def _memory_options(options: Namespace) -> dict[str, Any]:
    """Fields of `attention.Memory` that were given."""
    given = {"capacity": options.memory_capacity, "token_seconds": options.token_seconds}
    return {name: value for name, value in given.items() if value is not None}


def _run(title: str, options: Namespace, job: Any) -> int:
    from rich.console import Console

    from calibration import console
    from calibration.results import Calibration

    with console.progress_bar(title) as progress:
        result: Emulation = job(progress)
    text = json.dumps(result.to_dict(), indent=2, allow_nan=False)
    if options.json:
        print(text)
    else:
        terminal = Console()
        terminal.print(console.accuracy_table(result))
        if isinstance(result, Calibration):
            terminal.print(console.staircase_table(result))
        terminal.print(console.conversion_table(result.conversion, memory=result.setup["memory"] is not None))
        terminal.print(console.counts_table(result))
    _write(options.out, text, [(options.plot, result.plot)])
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


def _parser() -> _Parser:
    parser = _Parser(
        prog="ohmformer",
        description="What a transformer's accuracy becomes on analog in-memory hardware, and how to get it back.",
    )
    commands = parser.add_subcommands(dest="command", metavar="command")
    emulate = _subcommand("Score a model in digital and on programmed analog chips, over time.")
    _add_job_options(emulate)
    emulate.add_argument("--out", type=str | None, default=None, help="write the JSON to this file")
    commands.add_subcommand("emulate", emulate, help="accuracy on analog hardware over time")

    calibrate = _subcommand("Score a model on analog chips before and after each step of a calibration recipe.")
    _add_job_options(calibrate)
    calibrate.add_argument("--recipe", type=str, default="fast", help="steps to fit: fast, thorough, or a YAML file")
    calibrate.add_argument(
        "--training-pairs",
        type=int | None,
        default=None,
        help="code-search: functions that steps train on (default 128)",
    )
    calibrate.add_argument(
        "--training-windows",
        type=int | None,
        default=None,
        help="perplexity: windows that steps train on (default: those that calibrate)",
    )
    calibrate.add_argument("--wait", type=str, default="1h", help="time between fitting and scoring")
    calibrate.add_argument(
        "--population", type=int | None, default=None, help="fit on this many other chips, not on each chip itself"
    )
    calibrate.add_argument("--staircase", type=bool, default=True, help="score after each step, not only the last")
    calibrate.add_argument(
        "--out",
        type=str | None,
        default=None,
        help="folder to write a deployment bundle to, or a .json file for the result alone",
    )
    commands.add_subcommand("calibrate", calibrate, help="accuracy before and after calibration")

    study_commands.add_study_commands(commands, _subcommand)

    refit = _subcommand("Compensate a bundle's drift anew at a later time, from read-outs of the chip, without data.")
    refit.add_argument("bundle", type=str, help="folder that calibrate wrote")
    refit.add_argument("--time", type=str, required=True, help="age of the chip since programming, such as 30d")
    refit.add_argument("--out", type=str, required=True, help="folder to write the refit bundle to")
    commands.add_subcommand("refit", refit, help="compensate a bundle's drift at a later time")

    energy = _subcommand("Price what a model takes on analog hardware under attention patterns, beside its accuracy.")
    _add_model_options(energy)
    energy.set_defaults({"model": "smollm2"})
    energy_command.add_options(energy)
    commands.add_subcommand("energy", energy, help="where the picojoules go")
    export = _subcommand("Write a bundle's model as a plain transformers folder, or every score of a study as a table.")
    export.add_argument("source", type=str, help="folder that calibrate wrote, or a store that study wrote")
    export.add_argument("--out", type=str, required=True, help="folder to write; of a store, a .csv or .parquet file")
    export.add_argument(
        "--weights",
        type=str,
        default="effective",
        help="effective: what the tiles stand for at the bundle's age; digital: the original weights",
    )
    commands.add_subcommand("export", export, help="a bundle's model, or a study's scores")

    inspect = _subcommand(
        "List what becomes analog, on how many tiles, and what stays digital and why; or verify and describe a bundle."
    )
    inspect.add_argument("bundle", type=str | None, nargs="?", default=None, help="folder that calibrate wrote")
    _add_model_options(inspect)
    commands.add_subcommand("inspect", inspect, help="what converts, tiles, utilisation")

    doctor = _subcommand("Check versions, compiled tiles, package names and threads, and say what to do.")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of a table")
    commands.add_subcommand("doctor", doctor, help="what works on this machine")
    return parser


def _subcommand(description: str) -> _Parser:
    parser = _Parser(description=description, epilog=_EPILOG)
    parser.add_argument("--config", action="config", help="YAML file with these options")
    return parser


def _add_model_options(parser: _Parser) -> None:
    model, hardware = _MODEL_OPTIONS["model"], _MODEL_OPTIONS["hardware"]
    parser.add_argument(
        "--model",
        type=str,
        default=model,
        help="minilm, smollm2, a transformers folder, or with HF_HUB_OFFLINE=0 a name on the Hub",
    )
    parser.add_argument(
        "--hardware",
        type=str,
        default=hardware,
        help="pcm, hermes, ideal, or a YAML file of hardware fields",
    )
    parser.add_argument("--include", type=list[str] | None, default=None, help="layers to make analog: ['*.query']")
    parser.add_argument("--exclude", type=list[str] | None, default=None, help="layers to keep digital: ['pooler*']")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_job_options(parser: _Parser) -> None:
    _add_model_options(parser)
    parser.add_argument("--task", type=str, default="code-search", help="code-search, lee, wordsim or perplexity")
    parser.add_argument("--pairs", type=int | None, default=None, help="code-search: how many pairs (default 500)")
    parser.add_argument("--windows", type=int | None, default=None, help="perplexity: how many windows (default 16)")
    parser.add_argument(
        "--window-length", type=int | None, default=None, help="perplexity: tokens in a window (default 512)"
    )
    parser.add_argument("--pattern", type=str | None, default=None, help='attention, such as "window(64) | sinks(4)"')
    parser.add_argument(
        "--memory", type=str | None, default=None, help="keys and values: gain_cell, pcm, or a YAML file of hardware"
    )
    parser.add_argument("--memory-capacity", type=int | None, default=None, help="token rows of each head")
    parser.add_argument(
        "--token-seconds",
        type=float | None,
        default=None,
        help="from token to token, by which rows age (default 0)",
    )
    parser.add_argument(
        "--times",
        type=list[str] | str,
        default=["0s", "1h", "1d", "30d", "1y"],
        help="times since programming, such as 0s,1h,1d",
    )
    parser.add_argument("--chips", type=int, default=3, help="programmed chips, seeds 0, 1, ...")
    parser.add_argument(
        "--plot", type=str | None, default=None, help="write a picture of the accuracy: over time, or by step"
    )


if __name__ == "__main__":
    sys.exit(main())
