"""Protection of the tokens that attention leans on most: the first ones and the last."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor, nn

from attention import Protected, renew_memory
from attention.hf.attach import memory_of
from calibration.models.embedding import Batch
from calibration.steps.protocol import Stage
from crossbar.errors import InputError


@dataclass(frozen=True)
class TokenProtection:
    """Keep sinks and recent tokens of an analog memory in digital, or in more cells.

    There is nothing to fit. A protected token is written into the ordinary rows too, from where it is read once it is
    no longer recent.

    Attributes:
        sinks: first tokens, for good.
        recent: last tokens, the query's own among them.
        by: ``digital``, a buffer without noise; or ``pairs``, analog rows of ``copies`` times as many pairs of cells.
        copies: of each pair, for ``pairs``.
    """

    stage: ClassVar[Stage] = Stage.BEFORE_PROGRAMMING
    sinks: int = 4
    recent: int = 16
    by: Literal["digital", "pairs"] = "digital"
    copies: int = 2

    def __post_init__(self) -> None:
        self._protected()

    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, Tensor]:
        """Nothing, for a model whose keys and values are in analog memory.

        Raises:
            InputError: for another model.
        """
        if memory_of(model) is None:
            raise InputError("TokenProtection needs keys and values in analog memory: give the job a memory")
        return {}

    def apply(self, model: nn.Module, fitted: dict[str, Tensor]) -> None:
        """Give the caches that the model makes from now on a second memory for these tokens."""
        renew_memory(model, protected=self._protected())

    def _protected(self) -> Protected:
        return Protected(self.sinks, self.recent, self.by, self.copies)
