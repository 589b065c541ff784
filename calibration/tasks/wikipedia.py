"""English Wikipedia articles of 2016 that gensim's wheel carries, as plain text."""

import bz2
import re
from functools import lru_cache
from pathlib import Path

from calibration.tasks.gensim_data import data_file
from crossbar.errors import InputError

_FILE = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_BODY = re.compile(r"<text[^>]*>(.*?)</text>", re.DOTALL)

# Applied in this order; templates twice, since they stand inside each other.
_CLEANING = (
    (re.compile(r"\{\{[^{}]*\}\}"), ""),
    (re.compile(r"\{\{[^{}]*\}\}"), ""),
    (re.compile(r"&lt;ref.*?(?:/&gt;|&lt;/ref&gt;)", re.DOTALL), ""),
    (re.compile(r"\[\[(?:[^\]|]*\|)?([^\]]*)\]\]"), r"\1"),
    (re.compile(r"''+"), ""),
)


def articles() -> list[str]:
    """The bodies of the 106 articles in the order of the file, in wiki markup and with XML's entities; no redirects.

    Raises:
        InputError: when gensim is not installed, or its file is damaged.
    """
    path = data_file(_FILE)
    try:
        return list(_bodies(path))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{str(path)!r} is damaged ({error}): install gensim again") from error


@lru_cache(maxsize=1)
def _bodies(path: Path) -> tuple[str, ...]:
    """Of a file; unpacking it takes a second."""
    pages = bz2.decompress(path.read_bytes()).decode("utf-8")
    return tuple(body for body in _BODY.findall(pages) if not body.lower().startswith("#redirect"))


def plain(body: str) -> str:
    """An article's body with less markup.

    ``{{…}}`` is removed, twice; then each note from ``&lt;ref`` to the first ``/&gt;`` or ``&lt;/ref&gt;``; a link
    ``[[a|b]]`` becomes ``b`` and ``[[a]]`` ``a``; the quotes ``''`` and ``'''`` are removed. What else there is stays:
    headings, entities, tables.
    """
    for markup, replacement in _CLEANING:
        body = markup.sub(replacement, body)
    return body
