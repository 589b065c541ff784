"""What a task is."""

from collections.abc import Iterable
from typing import Literal, Protocol, runtime_checkable

from torch import nn

from calibration.models.embedding import Batch

Split = Literal["calibration", "evaluation"]


class Task(Protocol):
    """Something that a model is scored on. A class of your own with these four members works everywhere a task does."""

    @property
    def name(self) -> str:
        """What reports call the task."""

    @property
    def primary(self) -> str:
        """The metric that is quoted: a key of what ``metrics`` returns.

        Higher is better, and means are taken of the values themselves, unless it is called ``perplexity`` or ends in
        ``_perplexity``: then lower is better, and means are taken of logarithms (`calibration.metrics`).
        """

    def batches(self, split: Split) -> Iterable[Batch]:
        """Keyword inputs for the model; the two splits do not overlap.

        An input called ``attention_mask`` says which positions are real, so that padding does not calibrate.
        """

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """Score ``model`` on the evaluation split."""


@runtime_checkable
class TrainingTask(Protocol):
    """A `Task` with more data for steps that train than for those that read all of it at each time of each chip."""

    def training_batches(self) -> Iterable[Batch]:
        """Keyword inputs for the model, as ``batches`` gives them; nothing of it is in the evaluation split."""


def fitted_on(task: Task) -> dict[str, Iterable[Batch]]:
    """``calibration`` data, and ``training`` data where the task has some."""
    fitted = {"calibration": task.batches("calibration")}
    if isinstance(task, TrainingTask):
        fitted["training"] = task.training_batches()
    return fitted
