"""Streams of events on disk: safetensors, read back bit for bit; a stream in parts is a file for each."""

from __future__ import annotations

from pathlib import Path

from attention.controller.events import MOST_TILES, Axis, Events
from crossbar.errors import InputError, shown
from crossbar.storage.files import write_whole

_SCHEMA = "ohmformer events 1"
_TYPES = {"time": "I64", "tile": "I32", "line": "I32", "axis": "I8", "payload": "I32", "query": "I32"}
_MOST = {"time": 2**53, "tile": MOST_TILES - 1, "line": 2**31 - 1, "axis": max(Axis), "query": 2**31 - 1}


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
        InputError: for a missing file, one that holds something else, and events that no stream has: of other types,
            shapes and numbers than `Events` says, not in the order of time, or on tile 4,194,304 and above.
    """
    from safetensors import SafetensorError, safe_open

    name = f"event file {shown(str(path), 1000)}"
    try:
        if not Path(path).is_file():
            raise InputError(f"{name} does not exist: give the path of a file from save_events")
        with safe_open(path, "pt") as file:
            if (file.metadata() or {}).get("schema") != _SCHEMA:
                raise InputError(f"{name} holds no events: give the path of a file from save_events")
            if set(file.keys()) != set(Events._fields):
                raise InputError(f"{name} has {', '.join(sorted(file.keys()))}: write it again by save_events")
            length = file.get_slice("time").get_shape()
            for field, kind in _TYPES.items():
                found = file.get_slice(field)
                if found.get_dtype() != kind or found.get_shape() != length or len(length) != 1:
                    raise InputError(
                        f"{name} has {field} {found.get_dtype()} {found.get_shape()} where time is {length}: give "
                        f"{kind} of one length for all"
                    )
            events = Events(*(file.get_tensor(field) for field in Events._fields))
    except (SafetensorError, OSError) as error:
        raise InputError(f"{name} cannot be read ({error}): write it again") from error
    _require_stream(name, events)
    return events


def _require_stream(name: str, events: Events) -> None:
    """Refuse numbers that no stream has."""
    from attention.controller import event_kernels

    for field, most in _MOST.items():
        values = getattr(events, field)
        for found in (int(values.min()), int(values.max())) if len(values) else ():
            if not 0 <= found <= most:
                raise InputError(f"{name} has events of {field} {found}: write it again, with 0 to {most:,}")
    if not event_kernels.rises(events.time.numpy()):
        raise InputError(f"{name} has events that are not in order of time: sort them by it and write it again")
