"""Tasks: what a model is scored on, with text to calibrate on beside it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Protocol

from calibration.models import Loaded, load_model
from calibration.models.embedding import Batch
from calibration.models.outputs import Output
from calibration.tasks.code_search import CodeSearch
from calibration.tasks.lee import Lee
from calibration.tasks.lm_eval_task import PREFIX, LmEval
from calibration.tasks.perplexity import Perplexity
from calibration.tasks.protocol import Split, Task, TrainingTask
from calibration.tasks.wordsim import WordSim
from crossbar.errors import InputError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "Batch",
    "CodeSearch",
    "Lee",
    "LmEval",
    "Perplexity",
    "Split",
    "Task",
    "TrainingTask",
    "WordSim",
    "get",
    "require",
]


class _Constructor(Protocol):
    """A class of tasks, which says what it reads from a model."""

    @property
    def reads(self) -> Output: ...

    def __call__(self, *args: Any, **options: Any) -> Task: ...


_CONSTRUCTORS: dict[str, _Constructor] = {
    "code-search": CodeSearch,
    "lee": Lee,
    "wordsim": WordSim,
    "perplexity": Perplexity,
}
_SAVE_TOKENIZER = "save the tokenizer that belongs to it into its folder"
_USUAL: Any = object()  # stands for the tokenizer of the model in `_MODELS`, which is loaded where it is needed
_MODELS: dict[Output, str] = {"embeddings": "minilm", "next tokens": "smollm2"}


def get(name: str, tokenizer: PreTrainedTokenizerBase | None = _USUAL, **options: Any) -> Task:
    """The task of this name, tokenised for a model.

    Args:
        name: ``"code-search"``, ``"lee"``, ``"wordsim"``, ``"perplexity"``, or ``"lm_eval:NAME"`` for a task of
            lm-eval, by its name or the path of its YAML file.
        tokenizer: that of the model which will be scored; left out: MiniLM's, or for perplexity SmolLM2's. None, which
            is that of a model without one, is refused.
        **options: keyword arguments of the task's class, such as ``pairs`` of `CodeSearch`.

    Raises:
        InputError: for an unknown task, an unknown option or an impossible value, for a model without a tokenizer, and
            when the package that carries the data is not installed.
    """
    require(name)
    constructor = LmEval if name.startswith(PREFIX) else _CONSTRUCTORS[name]
    known = [option for option in inspect.signature(constructor).parameters if option not in ("name", "tokenizer")]
    unknown = [option for option in options if option not in known]
    if unknown:
        remedy = f"choose from {', '.join(known)}" if known else "leave it out, it takes none"
        raise InputError(f"task {name!r} has no option {unknown[0]!r}: {remedy}")
    if tokenizer is _USUAL:
        tokenizer = load_model(_MODELS[constructor.reads]).tokenizer
    if tokenizer is None:
        raise InputError(f"task {name!r} reads text, and the model has no tokenizer: {_SAVE_TOKENIZER}")
    if name.startswith(PREFIX):
        return LmEval(name.removeprefix(PREFIX), tokenizer, **options)
    return _CONSTRUCTORS[name](tokenizer, **options)


def require(name: str, model: Loaded | None = None) -> None:
    """Refuse an unknown task, or one that does not fit the model, before anything slow happens.

    Raises:
        InputError: naming the tasks that there are.
    """
    own = name.startswith(PREFIX) and len(name) > len(PREFIX)
    if name not in _CONSTRUCTORS and not own:
        raise InputError(
            f"task {shown(name)} does not exist: choose one of {', '.join(_CONSTRUCTORS)}, or {PREFIX}NAME for one of "
            "lm-eval"
        )
    if model is None:
        return
    reads = LmEval.reads if own else _CONSTRUCTORS[name].reads
    if model.unfit:
        raise InputError(
            f"task {name!r} reads {reads}, and model {model.name!r} gives none, because {model.unfit}: choose another "
            f"model, such as {_MODELS[reads]}, or a task of your own"
        )
    if model.tokenizer is None:
        raise InputError(f"task {name!r} reads text, and model {model.name!r} has no tokenizer: {_SAVE_TOKENIZER}")
    if model.gives != reads:
        fitting = ", ".join(other for other, task in _CONSTRUCTORS.items() if task.reads == model.gives)
        raise InputError(
            f"task {name!r} reads {reads}, and model {model.name!r} gives {model.gives}: choose a task that fits it "
            f"({fitting}), or a model such as {_MODELS[reads]}"
        )
