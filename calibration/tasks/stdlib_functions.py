"""Described functions of the running interpreter's standard library, for code search."""

from __future__ import annotations

import ast
import functools
import os
import sysconfig
import textwrap
import tokenize
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

_SKIPPED = frozenset(
    [
        "test",
        "tests",
        "idlelib",
        "lib2to3",
        "turtledemo",
        "ensurepip",
        "pydoc_data",
        "site-packages",
        "dist-packages",
        "__pycache__",
    ]
)
_MIN_WORDS = 5
_MIN_LINES = 3
_BODY_CHARACTERS = range(100, 1001)


class DescribedFunction(NamedTuple):
    """The first line of a docstring, and the source that follows the docstring, dedented."""

    description: str
    body: str


@functools.cache
def described_functions() -> tuple[DescribedFunction, ...]:
    """All usable functions, in order of file path and line; two seconds the first time.

    Taken are functions of modules and methods of classes, not functions inside functions, whose source would be part of
    another body. A body has neither the ``def`` line nor the docstring, so that the name gives nothing away. Filters,
    each against a pair that no search could be judged by:

    - the description has 5 words or more (``"Return the name."`` fits hundreds of bodies);
    - the body has 3 lines or more and 100 to 1,000 characters, so that there is something to find and little is cut;
    - no other described function has the same description or body, apart from case and white space.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    found = [function for path in _source_files(root) for function in _functions_in(path)]
    found = [function for function in found if _is_meaningful(function)]
    descriptions = Counter(_normalised(function.description) for function in found)
    bodies = Counter(_normalised(function.body) for function in found)
    return tuple(
        function
        for function in found
        if descriptions[_normalised(function.description)] == 1 and bodies[_normalised(function.body)] == 1
    )


def _source_files(root: Path) -> list[Path]:
    files = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if name not in _SKIPPED]  # not entered: site-packages is large
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files, key=lambda path: path.relative_to(root).parts)


def _functions_in(path: Path) -> Iterator[DescribedFunction]:
    with tokenize.open(path) as file:  # honours the file's coding line
        source = file.read()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an invalid escape in someone else's source is not our user's concern
        tree = ast.parse(source)
    lines = source.split("\n")
    for node in _definitions(tree):
        docstring = ast.get_docstring(node)
        if docstring and docstring.strip():
            body = textwrap.dedent("\n".join(lines[node.body[0].end_lineno : node.end_lineno])).strip()
            yield DescribedFunction(docstring.strip().splitlines()[0].strip(), body)


def _definitions(scope: ast.Module | ast.ClassDef) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in scope.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        elif isinstance(node, ast.ClassDef):
            yield from _definitions(node)


def _is_meaningful(function: DescribedFunction) -> bool:
    return (
        len(function.description.split()) >= _MIN_WORDS
        and function.body.count("\n") + 1 >= _MIN_LINES
        and len(function.body) in _BODY_CHARACTERS
    )


def _normalised(text: str) -> str:
    return " ".join(text.lower().split())
