"""Times as people write them, in seconds."""

import re

from crossbar.errors import InputError, shown

_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "y": 365 * 86400.0}
_LONGEST = 1e12
_TIME = re.compile(r"\s*(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)\s*([a-z]*)\s*")


def to_seconds(time: str | float) -> float:
    """Seconds in a time such as ``"20s"``, ``"5min"``, ``"1h"``, ``"30d"``, ``"1y"`` (365 days), or a number.

    Raises:
        InputError: for a time that is negative or above 1e12 s (30,000 years), and for a text that is not a number with
            one of these units.

    >>> to_seconds("1.5h"), to_seconds(20), to_seconds("1y")
    (5400.0, 20.0, 31536000.0)
    """
    if isinstance(time, str):
        match = _TIME.fullmatch(time)
        if match is None or (match[2] or "s") not in _SECONDS:
            raise InputError(
                f"time {shown(time)} is not understood: write a number and one of {', '.join(_SECONDS)}, such as '1h'"
            )
        seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    else:
        if not isinstance(time, int | float) or isinstance(time, bool):
            raise InputError(f"time {shown(time)} is not understood: give a number of seconds or a text such as '1h'")
        seconds = time
    if not 0 <= seconds <= _LONGEST:
        raise InputError(f"time {shown(time)} is not usable: give a time from 0 s to {_LONGEST:g} s since programming")
    return float(seconds)


def format_seconds(seconds: float) -> str:
    """The shortest exact text for a time in seconds, in the largest unit that gives a whole number.

    >>> format_seconds(86400), format_seconds(90000), format_seconds(0.5)
    ('1 d', '25 h', '0.5 s')
    """
    for unit, size in sorted(_SECONDS.items(), key=lambda item: -item[1]):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:g} s" if float(f"{seconds:g}") == seconds else f"{seconds!r} s"
