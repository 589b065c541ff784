"""Tasks of lm-eval, the evaluation harness, called ``lm_eval:NAME``. It is an extra: ``ohmformer[lm-eval]``."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from calibration.metrics import metric
from calibration.models.embedding import Batch, evaluating
from calibration.models.folder_files import reason
from calibration.models.outputs import Output, is_generative
from calibration.models.quiet import quiet
from calibration.tasks.protocol import Split
from crossbar.errors import InputError, require_whole, shown

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFIX = "lm_eval:"
_LONGEST = 512  # tokens of a document that calibrates


class LmEval:
    """A task of lm-eval as lm-eval scores it, few-shot examples and all, on any causal language model.

    The model's documents are those of the test split, or else of the validation split. What calibrates are documents
    of the training split, or else of the validation split where that is not scored, each with its answer, cut at 512
    tokens. Metrics of which less is better are left out, but for perplexities.

    Args:
        name: of the task in lm-eval, or the path of its YAML file.
        tokenizer: the model's own.
        limit: how many documents are scored; None: all.
        calibration_documents: how many calibrate.
        batch_size: documents in a batch.

    Raises:
        InputError: when lm-eval is not installed, for a task that it does not have or whose data are not there, for
            one without a metric that is better higher, for a tokenizer without a first or last token, and for an
            impossible value.
    """

    reads: ClassVar[Output] = "next tokens"

    def __init__(
        self,
        name: str,
        tokenizer: PreTrainedTokenizerBase,
        *,
        limit: int | None = None,
        calibration_documents: int = 16,
        batch_size: int = 8,
    ) -> None:
        for option, value in (("calibration_documents", calibration_documents), ("batch_size", batch_size)):
            require_whole(option, value, least=1)
        if limit is not None:
            require_whole("limit", limit, least=1)
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise InputError(
                f"task {PREFIX + name!r} needs a tokenizer with a first or a last token, after which lm-eval has texts "
                "begin: set tokenizer.bos_token"
            )
        self._tokenizer, self._limit, self._size = tokenizer, limit, batch_size
        self._loaded = _load(name)
        (self._task,) = self._loaded["tasks"].values()
        if self._task.get_config("num_fewshot") is None:
            self._task.set_config(key="num_fewshot", value=0)
        self.name = f"{PREFIX}{self._task.task_name}"
        better = self._task.higher_is_better()
        names = [own for own in self._task.aggregation() if better.get(own, True) or metric(own).logarithmic]
        if not names:
            raise InputError(f"task {self.name!r} has no metric that is better higher, or a perplexity: choose another")
        self._metrics, self.primary = tuple(names), names[0]
        self._calibration = list(islice(self._fitted_on(), calibration_documents))

    def batches(self, split: Split) -> Iterable[Batch]:
        """Documents with their answers, one at a time.

        Raises:
            InputError: for calibration data of a task that has none.
        """
        if split == "calibration" and not self._calibration:
            raise InputError(
                f"task {self.name!r} has no documents beside those that it scores: give a task with a training_split "
                "to calibrate on"
            )
        documents = self._calibration if split == "calibration" else islice(self._task.eval_docs, self._limit)
        for document in documents:
            ids = self._tokenizer(self._text(document), truncation=True, max_length=_LONGEST, verbose=False)[
                "input_ids"
            ]
            if len(ids) > 1:
                yield {"input_ids": torch.tensor(ids, dtype=torch.int64, device="cpu").unsqueeze(0)}

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """What lm-eval finds.

        Raises:
            InputError: for a model that is no causal language model of transformers.
        """
        from lm_eval.evaluator import evaluate
        from lm_eval.models.huggingface import HFLM

        if not is_generative(model):
            raise InputError(
                f"{type(model).__name__} is no causal language model, which lm-eval's tasks read: give one"
            )
        with quiet(), _errors_alone(), evaluating(model), torch.no_grad():
            harness = HFLM(pretrained=model, tokenizer=self._tokenizer, batch_size=self._size)
            found = evaluate(
                lm=harness, task_dict=self._loaded, limit=self._limit, bootstrap_iters=0, log_samples=False
            )
        (results,) = found["results"].values()
        values = {key.partition(",")[0]: value for key, value in results.items()}
        return {own: float(values[own]) for own in self._metrics if isinstance(values.get(own), int | float)}

    def _fitted_on(self) -> Iterable[Any]:
        if self._task.has_training_docs():
            return self._task.training_docs() or ()
        return self._task.validation_docs() or () if self._task.has_test_docs() else ()

    def _text(self, document: Any) -> str:
        """A document as its model sees it, with the right answer."""
        task = self._task
        target = task.doc_to_target(document)
        if isinstance(target, int):
            target = task.doc_to_choice(document)[target]
        target = target[0] if isinstance(target, list) else str(target)
        text = task.doc_to_text(document)
        return f"{text}{task.get_config('target_delimiter')}{target}" if isinstance(text, str) and text else target


def _load(name: str) -> Any:
    """A single task, as lm-eval's own functions take it."""
    try:
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise InputError(
            f"task {PREFIX + name!r} needs lm-eval, which is not installed: pip install 'ohmformer[lm-eval]'"
        ) from None
    is_file = Path(name).suffix in (".yaml", ".yml")
    if is_file and not Path(name).is_file():
        raise InputError(f"task file {name!r} does not exist: give the path of a YAML file of lm-eval")
    try:
        with _errors_alone():
            loaded = TaskManager(include_defaults=not is_file).load([name])
    except KeyError:
        raise InputError(
            f"lm-eval has no task {shown(name)}: `lm-eval ls tasks` lists what it has, or give the path of a YAML file"
        ) from None
    except Exception as error:  # of the Hub, a data set, or a YAML file
        raise InputError(f"lm-eval cannot load task {shown(name)} ({reason(error)}): look at its data") from error
    if len(loaded["tasks"]) != 1:
        raise InputError(f"{shown(name)} is {len(loaded['tasks'])} tasks of lm-eval: choose one of them")
    return loaded


@contextmanager
def _errors_alone() -> Iterator[None]:
    """lm-eval's logger without its warnings, such as one at each scoring that a model was given and no name."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
