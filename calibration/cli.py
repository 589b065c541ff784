"""The command ``ohmformer``."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from calibration import console
from calibration.commands import energy as energy_command
from calibration.commands import study as study_commands
from calibration.commands.options import MODEL_OPTIONS, make_parser
from calibration.printable import printable
from crossbar import InputError
from crossbar.storage.files import require_room, require_writable, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from calibration.progress import Progress
    from calibration.results.emulation import Emulation


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
    from calibration.emulate import emulate

    return _run("emulate", options, lambda progress: emulate(**_job(options, progress), progress=progress))


def _calibrate(options: Namespace) -> int:
    from calibration import recipe as recipes
    from calibration.bundles.files import require_new
    from calibration.calibrate import calibrate, require_wait
    from calibration.runs import chips, populations

    recipe, seeds = recipes.get(options.recipe), chips.require_chips(options.chips, options.seed)
    require_wait(options.wait)
    populations.require(recipe, options.population, seeds)
    extra: dict[str, Any] = {"recipe": recipe, **{name: options[name] for name in ("wait", "staircase", "population")}}
    bundle = options.out is not None and Path(options.out).suffix != ".json"
    if bundle:
        extra |= {"out": options.out, "notify": console.say}
        require_new(Path(options.out))
        require_room(Path(options.out))
        options.out = None  # what _run would write the JSON to
    try:
        return _run(
            "calibrate", options, lambda progress: calibrate(**_job(options, progress), **extra, progress=progress)
        )
    except KeyboardInterrupt:
        console.say("stopped" + ("; the same command goes on from here" if bundle else ""))
        return 130


def _energy(options: Namespace) -> int:
    from calibration.energy import plots as energy_plots
    from calibration.energy import results as energy_results

    _require_writable(options.out)
    pictures = ((options.plot, energy_plots.breakdown), (options.pareto, energy_plots.pareto))
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
            raise InputError(f"a bundle has its own model and hardware: leave --{given[0]} out, or the bundle")
        return _inspect_bundle(options)

    from calibration.models import load_model
    from calibration.results import tables
    from crossbar import convert, presets

    hardware = presets.get(options.hardware)
    with console.progress_bar("inspect") as progress:
        model = load_model(options.model, progress).model
    report = convert(model, hardware, options.include, options.exclude)
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
    from calibration import models, tasks
    from calibration.runs import chips, experiment
    from crossbar import presets

    # What costs nothing to check comes before what takes seconds to load.
    _require_writable(options.out)
    _require_writable(options.plot, _PICTURES)
    tasks.require(options.task)
    chips.require_chips(options.chips, options.seed)
    chips.require_device(options.device)
    job = {
        "hardware": presets.get(options.hardware),
        "pattern": None if options.pattern is None else parse(options.pattern),
        "memory": None if options.memory is None else Memory(presets.get(options.memory), **_memory_options(options)),
        "times": experiment.parse_times(options.times),
        "chips": options.chips,
        "seed": options.seed,
        "device": options.device,
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
    from calibration.results import tables

    with console.progress_bar(title) as progress:
        result: Emulation = job(progress)
    text = json.dumps(result.to_dict(), indent=2, allow_nan=False)
    if options.json:
        print(text)
    else:
        terminal = console.terminal()
        terminal.print(*tables.tables(result), sep="\n")
        terminal.print(tables.conversion_table(result.conversion, memory=result.setup["memory"] is not None))
        terminal.print(tables.counts_table(result))
        if told := tables.hint(result):
            console.terminal(soft_wrap=True).print(told)
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


if __name__ == "__main__":
    sys.exit(main())
