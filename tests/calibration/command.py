"""The command run in this process, and what every refusal of it looks like."""

import json
import sys
from pathlib import Path

from calibration import cli, console

SCRIPT = Path(sys.executable).with_name("ohmformer")


def run(capsys, *arguments):
    """Exit code, standard output, standard error of a command in this process."""
    capsys.readouterr()
    console.EVERY = 3600.0  # on a busy machine a job may take long enough to tell how far it is
    try:
        code = cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        code = stop.code or 0
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def assert_one_sentence(code, out, err, *words):
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1, err
    assert err.startswith("ohmformer: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err


def timeless(out):
    """What ``--json`` printed, without the minutes that fitting took, which no two runs share."""
    printed = json.loads(out)
    printed.pop("minutes", None)
    return printed
