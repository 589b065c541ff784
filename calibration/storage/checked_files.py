"""Files that a stopped job goes on from: written through to the disk, with a checksum that shows damage."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from calibration.storage import hashes
from crossbar.storage import tensor_files
from crossbar.storage.files import write_whole

_SUM = "sha256"


def sync(path: Path) -> None:
    """Have the disk take a file or the names in a folder, so that they are there after a power failure too."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_values(path: Path, values: Any, *, through: bool = True) -> None:
    """Write plain values; the file appears whole or not at all.

    ``through``: to the disk, so that it is there after a power failure too.

    Raises:
        OSError, InputError: where it cannot be written.
    """
    text = json.dumps({_SUM: hashes.of_values(values), "values": values})
    _keep(path, lambda partial: partial.write_text(text, encoding="utf-8"), through)


def read_values(path: Path) -> Any:
    """What `write_values` wrote.

    Raises:
        ValueError: for a file that is not what was written.
    """
    try:
        kept = json.loads(path.read_bytes())
        values, same = kept["values"], kept[_SUM] == hashes.of_values(kept["values"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged") from error
    if not same:
        raise ValueError(f"{path} is damaged")
    return values


def write_tensors(path: Path, tensors: Mapping[str, Tensor], told: Mapping[str, str], *, through: bool = True) -> None:
    """Write tensors and what is told of them, as `write_values` does.

    Raises:
        OSError, InputError: where it cannot be written.
    """
    # Copies, because safetensors refuses tensors that share memory.
    own = {name: tensor.detach().clone().contiguous() for name, tensor in tensors.items()}
    metadata = {**told, _SUM: _sum(own, told)}
    _keep(path, lambda partial: tensor_files.write(own, partial, metadata), through)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `write_tensors` wrote.

    Raises:
        ValueError: for a file that is not what was written.
    """
    with tensor_files.opened(f"{path}", path) as file:
        told = dict(file.metadata() or {})
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    if told.pop(_SUM, None) != _sum(tensors, told):
        raise ValueError(f"{path} is damaged")
    return tensors, told


def _sum(tensors: dict[str, Tensor], told: Mapping[str, str]) -> str:
    return hashes.of_values([hashes.of_tensors(tensors), dict(told)])


def _keep(path: Path, write: Any, through: bool) -> None:
    def synced(partial: Path) -> None:
        write(partial)
        sync(partial)

    write_whole(path, synced if through else write)
    if through:
        sync(path.parent)
