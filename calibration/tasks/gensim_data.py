"""Texts and human ratings that gensim's wheel carries, read in place."""

from pathlib import Path

from calibration.models.packages import package_folder
from crossbar.errors import InputError


def data_file(name: str) -> Path:
    """A file of gensim's ``test_data``.

    Raises:
        InputError: when gensim is not installed, or lacks the file.
    """
    path = package_folder("gensim", "gensim") / "test" / "test_data" / name
    if not path.is_file():
        raise InputError(
            f"the installed gensim has no test_data/{name}: install the version that `pip install "
            '"ohmformer[demo]"` names'
        )
    return path


def read_lines(name: str, encoding: str = "utf-8") -> list[str]:
    """The lines of a file of gensim's ``test_data``, without empty lines and ``#`` comments.

    Raises:
        InputError: when gensim is not installed, or lacks the file.
    """
    # Split at newlines only: str.splitlines would also split at control characters inside a text.
    lines = (line.strip() for line in data_file(name).read_text(encoding=encoding).split("\n"))
    return [line for line in lines if line and not line.startswith("#")]
