"""Streams of events on disk: safetensors, read back bit for bit; a stream in parts is a file for each."""

from __future__ import annotations

from pathlib import Path

from attention.events import Events
from crossbar.errors import InputError
from crossbar.files import write_whole

_SCHEMA = "ohmformer events 1"


def save_events(events: Events, path: str | Path) -> None:
    """Write a stream, or a part of one; the file appears whole or not at all.

    Raises:
        InputError: for a folder that does not exist.
    """
    from safetensors.torch import save_file

    path = Path(path)
    if not path.resolve().parent.is_dir():
        raise InputError(f"folder {str(path.parent)!r} does not exist: make it first, or give another path")
    tensors = {name: x.contiguous() for name, x in events._asdict().items()}
    write_whole(path, lambda partial: save_file(tensors, partial, metadata={"schema": _SCHEMA}))


def load_events(path: str | Path) -> Events:
    """A stream that `save_events` wrote.

    Raises:
        InputError: for a missing file and one that holds something else.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputError(f"event file {str(path)!r} does not exist: give the path of a file from save_events")
    try:
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("schema") != _SCHEMA:
                raise InputError(f"{str(path)!r} holds no events: give the path of a file from save_events")
            return Events(*(file.get_tensor(name) for name in Events._fields))
    except SafetensorError as error:
        raise InputError(f"event file {str(path)!r} cannot be read ({error}): write it again") from error
