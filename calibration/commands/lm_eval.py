"""The command ``ohmformer-lm-eval``: lm-eval's own, with the model ``ohmformer``."""

from __future__ import annotations

import sys

from calibration import console
from crossbar import InputError


def main() -> None:
    """Run lm-eval; a user's mistake about the chip is one sentence and exit code 2."""
    try:
        from lm_eval.__main__ import cli_evaluate

        import calibration.hf.harness  # noqa: F401 - registers the model
    except ImportError as error:
        console.say(f"lm-eval cannot be imported ({error}): pip install 'ohmformer[lm-eval]'")
        sys.exit(2)
    try:
        cli_evaluate()
    except InputError as error:
        console.say(str(error))
        sys.exit(2)
