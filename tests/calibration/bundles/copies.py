"""Bundles to break: copies, and copies whose manifest agrees with what was changed."""

import shutil
from pathlib import Path

from calibration.bundles.files import MANIFEST, SEAL, seal


def copy_of(bundle, place):
    return Path(shutil.copytree(bundle, place / "bundle", symlinks=True))


def resealed(folder):
    """Write the manifest anew, as someone would who means to deceive."""
    (folder / MANIFEST).unlink()
    (folder / SEAL).unlink()
    seal(folder)
    return folder


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
