"""The options of the command ``ohmformer``, and what is said about those that cannot be."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import Any, NoReturn, get_args

from jsonargparse import Namespace

from calibration.commands import energy as energy_command
from calibration.commands import fit as fit_command
from calibration.commands import study as study_commands
from calibration.commands.configuration import BoundedParser
from calibration.printable import printable

_EPILOG = "Options can also come from a YAML file with the same names: --config file.yaml"
MODEL_OPTIONS = {"model": "minilm", "hardware": "pcm", "include": None, "exclude": None, "tied_heads": False}
"""Options that choose what becomes analog, and their defaults."""
_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "list": "a list such as [a, b]",
}
"""What to give for a type of Python's."""


class Parser(BoundedParser):
    """A parser whose errors are one sentence, and which takes options by their whole names alone."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self.commands: dict[str, Parser] = {}
        self.chosen: Parser | None = None

    def read(self, arguments: Sequence[str]) -> Namespace:
        """The options of a command line, of which errors then know the command."""
        self.chosen = next((self.commands[word] for word in arguments if word in self.commands), None)
        options = self.parse_args(list(arguments))
        self._require_values(options.command, options[options.command])
        return options

    def _require_values(self, command: str, options: Namespace) -> None:
        """Refuse null, which YAML files can give, for an option of a command that has to have a value."""
        for action in self.commands[command]._actions:
            hint = getattr(action, "_typehint", action.type)
            if hint is not None and type(None) not in get_args(hint) and options.get(action.dest, "") is None:
                self.error(f"{action.dest} = null is not allowed: give a value, or leave it out")

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say it and exit with 2."""
        line = plainly(" ".join(str(message).split()), [*(self.chosen or self)._option_string_actions])
        sys.stderr.write(f"ohmformer: {printable(line)} (ohmformer --help says what is allowed)\n")
        sys.exit(2)


def plainly(message: str, known: Sequence[str] = ()) -> str:
    """What jsonargparse says about an option in plain words; ``known``: the options that there are."""
    key = re.match(r'Parser key "([^"]*)": (.*)', message)
    if key is None:
        unknown = re.match(r"unrecognized arguments: (\S+)", message)
        if unknown is not None:
            name = unknown[1].partition("=")[0]
            if not name.startswith("-"):
                return f"{name!r} is not expected: leave it out, or give it to an option"
            near = difflib.get_close_matches(name, known, 1, 0.75)
            return f"option {name} is unknown" + (f": did you mean {near[0]}?" if near else "")
        required = re.match(r"the following arguments are required: (.*)", message)
        if required is not None:
            names = [name.rpartition(".")[2].replace("_", "-") for name in required[1].split(", ")]
            return f"{', '.join(f'--{n}' if f'--{n}' in known else n for n in names)} must be given"
        return message
    option = f"--{key[1].rpartition('.')[2].replace('_', '-')}"
    option = option if option in known else option.removeprefix("--")
    value = re.search(r"(?:Given value|Got value): (.*)$", key[2])
    wanted = re.search(r"Subtypes: \[(.*?)\] Errors:", key[2]) or re.search(r"Expected (?:a|an) (.*?)\. Got", key[2])
    if value is None or wanted is None:
        return f"{option}: {key[2]}"
    kinds = [_KINDS.get(kind) for kind in re.findall(r"\b(int|float|bool|str|list)\b", wanted[1])]
    give = " or ".join(dict.fromkeys(kind for kind in kinds if kind is not None)) or "another value"
    return f"{option} = {value[1]} is not allowed: give {give}"


def make_parser() -> Parser:
    """The parser of the command and its subcommands."""
    parser = Parser(
        prog="ohmformer",
        version=metadata.version("ohmformer"),
        description="What a transformer's accuracy becomes on analog in-memory hardware, and how to get it back.",
    )
    subcommands = parser.add_subcommands(dest="command", metavar="command")

    def add(name: str, command: Parser, what: str) -> None:
        parser.commands[name] = command
        subcommands.add_subcommand(name, command, help=what)

    emulate = _subcommand("Score a model in digital and on programmed analog chips, over time.")
    _add_job_options(emulate)
    emulate.add_argument("--out", type=str | None, default=None, help="write the JSON to this file")
    add("emulate", emulate, "accuracy on analog hardware over time")

    calibrate = _subcommand("Score a model on analog chips before and after each step of a calibration recipe.")
    _add_job_options(calibrate)
    calibrate.add_argument(
        "--recipe", type=str, default="fast", help="steps to fit: quick, fast, thorough, foundation, or a YAML file"
    )
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
    calibrate.add_argument(
        "--cells",
        type=str,
        default="conductances",
        help="what the bundle holds of cells: conductances, or seeds that make them again (smaller)",
    )
    calibrate.add_argument(
        "--plot-shares",
        type=str | None,
        default=None,
        help="write a picture of the accuracy against the share of operations that became digital",
    )
    add("calibrate", calibrate, "accuracy before and after calibration")

    study_commands.add_study_commands(add, _subcommand)

    refit = _subcommand("Compensate a bundle's drift anew at a later time, from read-outs of the chip, without data.")
    refit.add_argument("bundle", type=str, help="folder that calibrate wrote")
    refit.add_argument("--time", type=str, required=True, help="age of the chip since programming, such as 30d")
    refit.add_argument("--out", type=str, required=True, help="folder to write the refit bundle to")
    _add_device(refit)
    add("refit", refit, "compensate a bundle's drift at a later time")

    energy = _subcommand("Price what a model takes on analog hardware under attention patterns, beside its accuracy.")
    _add_model_options(energy)
    energy.set_defaults({"model": "smollm2", "tied_heads": True})
    energy_command.add_options(energy)
    _add_device(energy)
    add("energy", energy, "where the picojoules go")
    export = _subcommand("Write a bundle's model as a plain transformers folder, or every score of a study as a table.")
    export.add_argument("source", type=str, help="folder that calibrate wrote, or a store that study wrote")
    export.add_argument("--out", type=str, required=True, help="folder to write; of a store, a .csv or .parquet file")
    export.add_argument(
        "--weights",
        type=str,
        default="effective",
        help="effective: what the tiles stand for at the bundle's age; digital: the original weights",
    )
    add("export", export, "a bundle's model, or a study's scores")

    fit_command.add_fit_command(add, _subcommand)

    inspect = _subcommand(
        "List what becomes analog, on how many tiles, and what stays digital and why; or verify and describe a bundle."
    )
    inspect.add_argument("bundle", type=str | None, nargs="?", default=None, help="folder that calibrate wrote")
    _add_model_options(inspect)
    add("inspect", inspect, "what converts, tiles, utilisation")

    doctor = _subcommand("Check versions, compiled tiles, package names and threads, and say what to do.")
    doctor.add_argument("--json", action="store_true", help="print JSON instead of a table")
    add("doctor", doctor, "what works on this machine")
    return parser


def _subcommand(description: str) -> Parser:
    parser = Parser(description=description, epilog=_EPILOG)
    parser.add_argument("--config", action="config", help="YAML file with these options")
    return parser


def _add_model_options(parser: Parser) -> None:
    model, hardware = MODEL_OPTIONS["model"], MODEL_OPTIONS["hardware"]
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
        help="pcm, hermes, reram, gain_cell, ideal, a YAML file of hardware fields, or a CSV table of a device",
    )
    for name, what in (("include", "make analog, such as '*.query' or a list"), ("exclude", "keep digital")):
        parser.add_argument(f"--{name}", type=list[str] | str | None, default=None, help=f"layers to {what}")
    parser.add_argument(
        "--tied-heads", type=bool, default=False, help="make output heads tied to embeddings analog too: true or false"
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _add_device(parser: Parser) -> None:
    """The option that says where a command computes."""
    parser.add_argument("--device", type=str, default="cpu", help="where it is computed: cpu, cuda, or a GPU by number")


def _add_job_options(parser: Parser) -> None:
    _add_model_options(parser)
    names = "code-search, lee, wordsim, perplexity, or lm_eval:NAME for one of lm-eval"
    parser.add_argument("--task", type=str, default="code-search", help=names)
    parser.add_argument("--pairs", type=int | None, default=None, help="code-search: how many pairs (default 500)")
    parser.add_argument("--windows", type=int | None, default=None, help="perplexity: how many windows (default 16)")
    parser.add_argument(
        "--window-length", type=int | None, default=None, help="perplexity: tokens in a window (default 512)"
    )
    parser.add_argument("--pattern", type=str | None, default=None, help='attention, such as "window(64) | sinks(4)"')
    parser.add_argument(
        "--memory",
        type=str | None,
        default=None,
        help="keys and values: gain_cell, pcm, another of --hardware, or a YAML file of hardware",
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
    parser.add_argument("--chips", type=int, default=3, help="how many programmed chips")
    parser.add_argument("--seed", type=int, default=0, help="of the first chip; the others have the next ones")
    _add_device(parser)
    parser.add_argument(
        "--stream",
        type=bool | None,
        default=None,
        help="take a language model block by block: true or false (default: where memory does not hold it)",
    )
    parser.add_argument(
        "--engine", type=str, default="local", help="what computes the blocks of a stream: local, or ray for a cluster"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it would take, measured on one block of the model, and stop"
    )
    parser.add_argument(
        "--plot", type=str | None, default=None, help="write a picture of the accuracy: over time, or by step"
    )
    parser.add_argument("--report-to", type=str | None, default=None, help=study_commands.REPORT_TO)
