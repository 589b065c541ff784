"""What can compute a job: processes of this machine, or a Ray cluster."""

from __future__ import annotations

from importlib import util
from typing import Literal, get_args

from crossbar.errors import InputError, shown

Name = Literal["local", "ray"]


def require(name: str) -> None:
    """Refuse an engine that is not there.

    Raises:
        InputError: for an unknown name, and Ray that is not installed.
    """
    if name not in get_args(Name):
        raise InputError(f"engine {shown(name)} is unknown: choose one of {', '.join(get_args(Name))}")
    if name == "ray" and util.find_spec("ray") is None:
        raise InputError("the engine 'ray' needs Ray: pip install 'ohmformer[ray]', or use the engine 'local'")
