"""Statistics of batch norms, measured anew on a chip."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calibration.models.embedding import Batch
from calibration.steps.affine import require_instants
from calibration.steps.norms import BATCH_NORMS, batch_norms, set_statistics
from calibration.steps.observe import Instants, run, visiting
from calibration.steps.protocol import Fitted, Stage, mean


@dataclass(frozen=True)
class BatchNormStatistics:
    """The running mean and variance of each batch norm as they are on the chip: AdaBS.

    Adaptive batch normalization statistics (Joshi et al., Nat. Commun. 11, 2473, 2020, "Adaptive batch normalization
    statistics update"): drift shrinks what a layer gives and noise widens it, and the statistics that a batch norm
    divides by are those of the digital model. They are taken from calibration data that run through the analog model,
    each norm in turn with the statistics of its batch, so that layers behind it see normalised values. It needs no
    digital reference and costs nothing when the model runs.

    Batches are read at several instants before the model's age (`calibration.steps.observe.Instants`), and each counts
    the same, as in torch's cumulative average: give batches of one size.

    Attributes:
        instants: how many.
        spacing: seconds between them.
    """

    stage: ClassVar[Stage] = Stage.IN_USE
    instants: int = 8
    spacing: float = 60.0

    def __post_init__(self) -> None:
        require_instants("BatchNormStatistics", self.instants, self.spacing)

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """``<norm>.running_mean`` and ``<norm>.running_var``, each ``[C]``; nothing of a model without batch norms."""
        norms = batch_norms(model)
        if not norms:
            return {}
        with visiting(model, Instants(self.instants, self.spacing)) as visit, _measuring(norms):
            for index, batch in enumerate(batches):
                visit(index)
                run(model, batch, {}, _nothing)
            return {
                f"{name}.{part}": getattr(norm, part).clone()
                for name, norm in norms.items()
                for part in BATCH_NORMS
                if norm.num_batches_tracked
            }

    def combine(self, fits: Sequence[Fitted]) -> Fitted:
        """The mean over chips."""
        return mean(fits)

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Give the norms their statistics (`calibration.steps.norms.restore_norms` takes them away)."""
        for name, norm in batch_norms(model).items():
            set_statistics(norm, {part: fitted[f"{name}.{part}"] for part in BATCH_NORMS if f"{name}.{part}" in fitted})


def _nothing(name: str, x: Tensor, y: Tensor) -> None:
    pass


@contextmanager
def _measuring(norms: dict[str, _BatchNorm]) -> Iterator[None]:
    """Batch norms that take their statistics from what they see; afterwards they are as they were."""
    names = (*BATCH_NORMS, "num_batches_tracked")
    before = [(norm, norm.momentum, [getattr(norm, name) for name in names]) for norm in norms.values()]
    try:
        for norm, _, (average, variance, count) in before:
            norm.running_mean, norm.running_var = torch.zeros_like(average), torch.ones_like(variance)
            norm.num_batches_tracked, norm.momentum, norm.training = torch.zeros_like(count), None, True
        yield
    finally:
        for norm, momentum, values in before:
            norm.momentum, norm.training = momentum, False
            for name, value in zip(names, values, strict=True):
                setattr(norm, name, value)
