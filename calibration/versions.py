"""Versions of installed packages, some of which need not be there."""

from __future__ import annotations

from importlib import metadata


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution, with its local part such as ``+cpu``; None where it is not there."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
