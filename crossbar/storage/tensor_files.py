"""Safetensors files: what is wrong with one is a sentence, and what the disk refuses is an `OSError`."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from crossbar.errors import InputError

_LONGEST = 300


@contextmanager
def opened(where: str, path: str | Path, remedy: str = "write it again") -> Iterator[Any]:
    """A safetensors file to read from, as `safetensors.safe_open` gives it: look at its shapes before its tensors.

    Args:
        where: names the file in errors.
        path: of the file.
        remedy: what the user can do, for errors.

    Raises:
        InputError: for a file that is not safetensors or cannot be read.
    """
    try:
        with ExitStack() as stack:
            try:
                file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
            except (OSError, RuntimeError) as error:  # RuntimeError: one that does not fit the address space
                reason = getattr(error, "strerror", None) or error
                raise InputError(f"{where} cannot be read ({_line(reason)}): give a file that can be") from None
            yield file
    except SafetensorError as error:
        raise InputError(f"{where} is not a safetensors file ({_line(error)}): {remedy}") from None


def shapes(file: Any) -> dict[str, list[int]]:
    """The shape of each tensor of an opened file, by name; none of them is read."""
    return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 - not a dict


def write(tensors: dict[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors, as `safetensors.torch.save_file` does.

    Raises:
        OSError: where that gives a `SafetensorError`, such as for a full disk.
    """
    try:
        save_file(tensors, path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        raise (as_os_error(error) or error) from None


def as_os_error(error: BaseException) -> OSError | None:
    """What the disk refused, where an error is about that: libraries in Rust tell it as a text, and so may a cause."""
    if isinstance(error, OSError):
        return error
    number = re.search(r"\(os error (\d+)\)", str(error))
    if number is not None:
        return OSError(int(number[1]), os.strerror(int(number[1])))
    return None if error.__cause__ is None else as_os_error(error.__cause__)


def _line(reason: object) -> str:
    """A reason in one line of a bearable length: it may quote the file."""
    return " ".join(str(reason)[:_LONGEST].split())
