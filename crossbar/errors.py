"""The one error class for bad input."""

import sys
from numbers import Real
from typing import Any

MOST_SEED = 2**63 - 1
"""Of seeds, which stores keep in 8 bytes."""
_LONGEST = 200  # characters of a value in a message
_LARGEST = sys.float_info.max


class InputError(ValueError):
    """A value given by the user is not usable.

    The message is one sentence that names the value, what is allowed, and what to do. Commands print it and exit with
    code 2; anything else that escapes is a defect of ours and keeps its traceback.
    """


def shown(value: object, most: int = _LONGEST) -> str:
    """A value for a message: its `repr`, cut after ``most`` characters; a number of 5,000 digits has none."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} too large to print"
    return text if len(text) <= most else f"{text[:most]}…"


def require_number(
    what: str, value: object, *, above: float | None = None, least: float = 0.0, most: float | None = None
) -> None:
    """Refuse what is not a finite number from ``least`` to ``most`` or, with ``above``, not greater than that."""
    if isinstance(value, Real) and not isinstance(value, bool):
        number: Any = value  # compared as it is: 10^400 has no float
        enough = number >= least if above is None else number > above
        if enough and number <= (_LARGEST if most is None else most):
            return
    low = f"from {least:g}" if above is None else f"above {above:g}"
    if most is not None:
        low += f" to {most:g}" if above is None else f", at most {most:g}"
    elif above is None:
        low = f"of {least:g} or more"
    raise InputError(f"{what} = {shown(value)} is not allowed: give a finite number {low}")


def require_whole(what: str, value: object, *, least: int, most: int | None = None) -> None:
    """Refuse what is not a whole number from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        allowed = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise InputError(f"{what} = {shown(value)} is not allowed: give a whole number {allowed}")
