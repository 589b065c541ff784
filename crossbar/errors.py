"""The one error class for bad input."""

import math
from numbers import Real

_LONGEST = 200  # characters of a value in a message


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


def require_number(what: str, value: object, *, above: float | None = None) -> None:
    """Refuse what is not a finite number of 0 or more, or, with ``above``, not greater than that."""
    number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not number or value < 0 or (above is not None and value <= above):  # type: ignore[operator]  # a number by now
        allowed = "of 0 or more" if above is None else f"above {above:g}"
        raise InputError(f"{what} = {value!r} is not allowed: give a finite number {allowed}")


def require_whole(what: str, value: object, *, least: int, most: int | None = None) -> None:
    """Refuse what is not a whole number from ``least`` to ``most``."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        allowed = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise InputError(f"{what} = {value!r} is not allowed: give a whole number {allowed}")
