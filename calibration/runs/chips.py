"""Which chips a job is about, and where they are computed: refused before anything runs."""

from __future__ import annotations

import re

import torch

from crossbar.errors import MOST_SEED, InputError, require_whole, shown

MOST_CHIPS = 10_000
"""More than anyone waits for: the smallest models take a second a chip."""


def require_chips(chips: int, seed: int = 0) -> range:
    """Seeds of so many chips from ``seed``.

    Raises:
        InputError: for a number of chips that is not 1 to `MOST_CHIPS`, and a seed that is no whole number of 0 or more
            or so large that the last one would not be a 64-bit number.
    """
    require_whole("chips", chips, least=1, most=MOST_CHIPS)
    require_whole("seed", seed, least=0, most=MOST_SEED - chips)
    return range(seed, seed + chips)


def require_kind(device: str | None) -> None:
    """Refuse a device of a kind that there is not; whether one is on this machine is not looked at.

    Raises:
        InputError: for anything but None, ``cpu``, ``cuda`` and a GPU by number.
    """
    if device is not None and not (isinstance(device, str) and re.fullmatch(r"cpu|cuda(:[0-9]{1,3})?", device)):
        raise InputError(f"device {shown(device)} is not known: choose cpu, cuda, or a GPU by number such as cuda:0")


def require_device(device: str | None) -> torch.device | None:
    """Torch's device of this name; None stays None: where the model is.

    Raises:
        InputError: for another kind than ``cpu`` and ``cuda``, and a GPU that torch does not find.
    """
    require_kind(device)
    if device is None or device == "cpu":
        return None if device is None else torch.device("cpu")
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if int(device.partition(":")[2] or 0) >= found:
        raise InputError(
            f"device {device!r} is not there, torch finds {found or 'no'} GPU{'s' * (found > 1)}: give cpu"
        )
    return torch.device(device)
