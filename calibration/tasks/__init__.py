"""Tasks: what a model is scored on, with text to calibrate on beside it."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING

from calibration.embedding import Batch
from calibration.models import load_model
from calibration.tasks.code_search import CodeSearch
from calibration.tasks.lee import Lee
from calibration.tasks.protocol import Split, Task
from calibration.tasks.wordsim import WordSim
from crossbar.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["Batch", "CodeSearch", "Lee", "Split", "Task", "WordSim", "get", "require"]

_CONSTRUCTORS: dict[str, Callable[..., Task]] = {"code-search": CodeSearch, "lee": Lee, "wordsim": WordSim}


def get(name: str, tokenizer: PreTrainedTokenizerBase | None = None, **options: int) -> Task:
    """The task of this name, tokenised for a model.

    Args:
        name: ``"code-search"``, ``"lee"`` or ``"wordsim"``.
        tokenizer: that of the model which will be scored; None: MiniLM's.
        **options: keyword arguments of the task's class, such as ``pairs`` of `CodeSearch`.

    Raises:
        InputError: for an unknown task, an unknown option or an impossible value, and when the package that carries the
            data is not installed.
    """
    require(name)
    constructor = _CONSTRUCTORS[name]
    known = [option for option in inspect.signature(constructor).parameters if option != "tokenizer"]
    unknown = [option for option in options if option not in known]
    if unknown:
        raise InputError(f"task {name!r} has no option {unknown[0]!r}: choose from {', '.join(known) or 'none'}")
    if tokenizer is None:
        tokenizer = load_model("minilm").tokenizer
    return constructor(tokenizer, **options)


def require(name: str) -> None:
    """Refuse an unknown task before anything slow happens.

    Raises:
        InputError: naming the tasks that exist.
    """
    if name not in _CONSTRUCTORS:
        raise InputError(f"task {name!r} does not exist: choose one of {', '.join(_CONSTRUCTORS)}")
