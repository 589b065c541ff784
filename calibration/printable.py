"""Text of users and files as it is shown: nothing in it is a command to a terminal or a picture."""

from __future__ import annotations

import re

# Control characters but tab and newline, separators of lines, changes of direction, and halves of surrogate pairs.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with what a terminal would obey instead of show written as an escape.

    >>> printable("a\x1b[31mb")
    'a\\x1b[31mb'
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)


def drawable(text: str) -> str:
    r"""The text for a picture, where a pair of dollar signs would begin and end mathematics.

    >>> drawable("$x$")
    '\\$x\\$'
    """
    return printable(text).replace("$", r"\$")
