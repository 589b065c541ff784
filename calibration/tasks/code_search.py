"""Code search: from what a docstring says to the function that does it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from calibration.models.embedding import Batch, embed, tokenise
from calibration.models.outputs import Output
from calibration.overlap import all_marks, marks
from calibration.tasks import scores
from calibration.tasks.protocol import Split
from calibration.tasks.stdlib_functions import described_functions
from crossbar.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUERY_LENGTH = 64
"""Tokens; one line of a docstring."""


class CodeSearch:
    """Find a function's body by the first line of its docstring, among all bodies, by cosine similarity.

    Real text that every Python installation has: functions of the standard library without their ``def`` line and
    docstring (`described_functions` states the filters), in an order drawn from ``seed``. The first ``pairs`` are
    scored, and the last ``calibration_pairs`` that share no text with them calibrate (`calibration.overlap`). Another
    Python version has other functions, so numbers compare within one interpreter. MiniLM, digital, Python 3.11.7:
    recall@1 0.440 at 500 pairs, 0.660 at 150.

    Args:
        tokenizer: the model's own.
        pairs: descriptions to search with, and bodies to search among. Fewer make the task easier.
        calibration_pairs: described functions to calibrate on.
        seed: of the order that selects both.
        max_length: longest body in tokens. MiniLM scores no better with 256, at 40% more time.

    Raises:
        InputError: for impossible values, such as more pairs than the library has.
    """

    name = "code-search"
    primary = "recall@1"
    reads: ClassVar[Output] = "embeddings"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        pairs: int = 500,
        calibration_pairs: int = 128,
        seed: int = 0,
        max_length: int = 128,
    ) -> None:
        pool = list(described_functions())
        if pairs < 2 or calibration_pairs < 1 or pairs + calibration_pairs > len(pool):
            raise InputError(
                f"{pairs} pairs with {calibration_pairs} calibration pairs are not usable: give 2 or more and "
                f"1 or more, together at most the {len(pool)} described functions of this Python's standard library"
            )
        random.Random(seed).shuffle(pool)
        evaluation, rest = pool[:pairs], pool[pairs:]
        self._queries = tokenise([f.description for f in evaluation], tokenizer, max_length=_QUERY_LENGTH)
        self._bodies = tokenise([f.body for f in evaluation], tokenizer, max_length=max_length)
        lengths = (_QUERY_LENGTH, max_length)
        scored = all_marks([*self._queries.batches, *self._bodies.batches])
        apart = (f for f in reversed(rest) if scored.isdisjoint(_marks((f.description, f.body), lengths, tokenizer)))
        calibration = list(islice(apart, calibration_pairs))[::-1]
        if len(calibration) < calibration_pairs:
            raise InputError(
                f"calibration_pairs = {calibration_pairs} is not usable: give at most the {len(calibration)} functions "
                f"that share no text with the {pairs} that are scored"
            )
        self._calibration = tuple(
            tokenise(texts, tokenizer, max_length=length)
            for texts, length in zip(
                ([f.description for f in calibration], [f.body for f in calibration]), lengths, strict=True
            )
        )

    def batches(self, split: Split) -> Iterable[Batch]:
        """Descriptions, then bodies, of the functions to calibrate on or of those that are scored."""
        parts = self._calibration if split == "calibration" else (self._queries, self._bodies)
        return [batch for part in parts for batch in part.batches]

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """``recall@1`` and ``mrr@10``, both in [0, 1]; ties and NaN count against the model."""
        ranks = scores.ranks(embed(model, self._queries) @ embed(model, self._bodies).T)
        return {"recall@1": scores.recall_at_1(ranks), "mrr@10": scores.mrr_at_10(ranks)}


def _marks(texts: Sequence[str], lengths: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> set[bytes]:
    """Marks of texts that are cut after so many tokens."""
    return {
        mark
        for text, length in zip(texts, lengths, strict=True)
        for mark in marks(torch.tensor(tokenizer(text, truncation=True, max_length=length)["input_ids"]))
    }
