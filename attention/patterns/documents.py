"""Documents packed into one sequence, and padding: patterns to intersect others with by ``&``."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from attention.patterns.base import Pattern
from attention.patterns.family import Constant, Family, as_tensor
from attention.patterns.heads import per_sequence
from attention.patterns.intervals import Spans, padded, runs
from crossbar.errors import InputError


@dataclass(frozen=True)
class _OfTokens(Family):
    """A family that keeps a value for each token, [N]; it refuses positions after the last."""

    values: Tensor = field(compare=False)
    _content: Constant = field(init=False, repr=False)
    shift_invariant: ClassVar[bool] = False

    def _keep(self, values: Tensor) -> None:
        object.__setattr__(self, "_content", Constant(values))
        object.__setattr__(self, "values", self._content.tensor)

    def _require(self, query: Tensor, n_keys: int) -> None:
        needed = max(n_keys, int(query.max()) + 1)
        if needed > len(self.values):
            raise InputError(f"{self.bare_text()} do not fit {needed} tokens: give a value for each token")

    def bare_text(self) -> str:
        """For example ``<documents of 128 tokens>``."""
        return f"<{self.name} of {len(self.values)} tokens>"


@dataclass(frozen=True)
class Documents(_OfTokens):
    """Pairs inside one document: ``ids[i] = ids[j] >= 0``; causal: and j <= i. No text.

    ``LocalWindow(64) & Documents(ids)`` keeps packed documents apart. A token of negative id is padding: it attends
    nothing and nothing attends it. Positions count from the start of the sequence, so patterns that name positions
    (`Pattern.shift_invariant` is False), such as sinks, do not begin again in each document.

    Args:
        values: the ids, integers [N], in any order; a copy is kept. For a batch of [B, N], `of_batch`.

    Raises:
        InputError: for ids that are not integers [N].
    """

    name: ClassVar[str] = "documents"
    cost: ClassVar[str] = "O(Σ document²)"

    def __post_init__(self) -> None:
        ids = as_tensor(self.name, self.values)
        if ids.dim() != 1 or not len(ids) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
            raise InputError(
                f"document ids {ids.dtype} {list(ids.shape)} do not fit: give an integer for each token [N]"
            )
        self._keep(ids.long())

    @classmethod
    def of_batch(cls, ids: Tensor) -> Pattern:
        """The pattern of a batch, ids [B, N]."""
        _require_batch("document ids", ids)
        return per_sequence(len(ids), lambda b: cls(ids[b]))

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """ids[i] = ids[j] >= 0; causal: and j <= i."""
        ids = self.values.to(query.device)
        return self.past((ids[query] == ids[key]) & (ids[query] >= 0), query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """An interval for each run of the query's document."""
        self._require(query, n_keys)
        document, table = self._runs
        row = document.index_select(0, query)
        start, stop = (x.index_select(0, row) for x in table)
        return Spans(start, torch.minimum(stop, self.until(query, n_keys)))

    @cached_property
    def _runs(self) -> tuple[Tensor, Spans]:
        """The number of each token's document, [N], and the runs of each document."""
        ids = self.values
        change = (ids[1:] != ids[:-1]).nonzero()[:, 0] + 1
        start = torch.cat([change.new_zeros(1), change])
        stop = torch.cat([change, change.new_full((1,), len(ids))])
        names, document = ids.unique(return_inverse=True)
        run_document, order = document[start].sort(stable=True)
        start, stop = start[order], stop[order]
        stop = torch.where(names[run_document] < 0, start, stop)  # padding attends nothing
        return document, padded(run_document, start, stop, len(names), len(ids))


@dataclass(frozen=True)
class Padding(_OfTokens):
    """Keys that are real: ``real[j]``; causal: and j <= i. No text.

    `gated_attention` takes padding as ``mask``, which costs less where every sequence of a batch has its own.

    Args:
        values: bool [N], True for a real token; a copy is kept. For a batch of [B, N], `of_batch`.

    Raises:
        InputError: for values that are not bool [N].
    """

    name: ClassVar[str] = "padding"
    cost: ClassVar[str] = "O(n²)"

    def __post_init__(self) -> None:
        real = as_tensor(self.name, self.values)
        if real.dim() != 1 or not len(real) or real.dtype != torch.bool:
            raise InputError(f"padding {real.dtype} {list(real.shape)} does not fit: give a bool for each token [N]")
        self._keep(real)

    @classmethod
    def of_batch(cls, real: Tensor) -> Pattern:
        """The pattern of a batch, bool [B, N]."""
        _require_batch("padding", real)
        return per_sequence(len(real), lambda b: cls(real[b]))

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """real[j]; causal: and j <= i."""
        return self.past(self.values.to(query.device)[key] & (query == query), query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """An interval for each run of real tokens."""
        self._require(query, n_keys)
        start, stop = (x.expand(len(query), -1) for x in self._runs)
        return Spans(start, torch.minimum(stop, self.until(query, n_keys)))

    @cached_property
    def _runs(self) -> Spans:
        return runs(self.values[None])


def _require_batch(what: str, values: Tensor) -> None:
    if values.dim() != 2 or not len(values):
        raise InputError(f"{what} {list(values.shape)} do not fit a batch: give [B, N]")
