"""Options from command line and ``--config`` files, read within the bounds of `crossbar.storage.yaml_values`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_loader

from crossbar import InputError
from crossbar.storage.plain_values import read_yaml
from crossbar.storage.yaml_values import NotYamlError, load_yaml

_MODE = "plain_yaml"


def _load(text: str) -> Any:
    """A value: what is no YAML is a text, as `set_loader` is told below, and too much of it is refused."""
    return load_yaml("the value", text)


set_loader(_MODE, _load, exceptions=(NotYamlError,))


class BoundedParser(ArgumentParser):  # type: ignore[misc]  # jsonargparse is not typed for mypy here
    """A parser that reads YAML, of files and of values, by `crossbar.storage.yaml_values.load_yaml`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, parser_mode=_MODE, **kwargs)

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Namespace:
        """As jsonargparse's, of a file that is a mapping of options."""
        try:
            values = read_yaml("configuration", Path(path))
        except InputError as error:
            self.error(str(error), error)
        if not isinstance(values, dict):
            self.error(f"configuration file {str(path)!r} has no options: give a mapping of their names to values")
        return super().parse_path(path, *args, **kwargs)
