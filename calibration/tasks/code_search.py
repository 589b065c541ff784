"""Code search: from what a docstring says to the function that does it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from calibration.models.embedding import Batch, TokenisedTexts, embed, tokenise
from calibration.models.outputs import Output
from calibration.tasks import scores
from calibration.tasks.marks import all_marks, marks
from calibration.tasks.protocol import Split
from calibration.tasks.stdlib_functions import DescribedFunction, described_functions
from crossbar.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_QUERY_LENGTH = 64
"""Tokens; one line of a docstring."""


class CodeSearch:
    """Find a function's body by the first line of its docstring, among all bodies, by cosine similarity.

    Real text that every Python installation has: functions of the standard library without their ``def`` line and
    docstring (`described_functions` states the filters), in an order drawn from ``seed``. The first ``pairs`` are
    scored, and the last ``calibration_pairs`` that share no text with them calibrate (`calibration.tasks.marks`);
    steps that train may have more of these. Another Python version has other functions, so numbers compare within one
    interpreter. MiniLM, digital, Python 3.11.7: recall@1 0.440 at 500 pairs, 0.660 at 150.

    Args:
        tokenizer: the model's own.
        pairs: descriptions to search with, and bodies to search among. Fewer make the task easier.
        calibration_pairs: described functions to calibrate on.
        training_pairs: functions that steps train on, such as `calibration.Finetune`; None: those that calibrate.
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
        training_pairs: int | None = None,
        seed: int = 0,
        max_length: int = 128,
    ) -> None:
        if training_pairs is None:
            training_pairs = calibration_pairs
        wanted = {"calibration_pairs": calibration_pairs, "training_pairs": training_pairs}
        pool = list(described_functions())
        if pairs < 2 or min(wanted.values()) < 1 or pairs + max(wanted.values()) > len(pool):
            raise InputError(
                f"{pairs} pairs with {calibration_pairs} calibration pairs and {training_pairs} training pairs are not "
                "usable: give 2 or more pairs, 1 or more of the others, and pairs with either of these together at "
                f"most the {len(pool)} described functions of this Python's standard library"
            )
        random.Random(seed).shuffle(pool)
        evaluation, rest = pool[:pairs], pool[pairs:]
        lengths = (_QUERY_LENGTH, max_length)
        self._queries, self._bodies = _tokenised(evaluation, lengths, tokenizer)
        scored = all_marks([*self._queries.batches, *self._bodies.batches])
        apart = (f for f in reversed(rest) if scored.isdisjoint(_marks((f.description, f.body), lengths, tokenizer)))
        fitted = list(islice(apart, max(wanted.values())))
        for option, count in wanted.items():
            if len(fitted) < count:
                raise InputError(
                    f"{option} = {count} is not usable: give at most the {len(fitted)} functions that share no text "
                    f"with the {pairs} that are scored"
                )
        self._calibration = _tokenised(fitted[:calibration_pairs][::-1], lengths, tokenizer)
        self._training = _tokenised(fitted[:training_pairs][::-1], lengths, tokenizer)

    def batches(self, split: Split) -> Iterable[Batch]:
        """Descriptions, then bodies, of the functions to calibrate on or of those that are scored."""
        parts = self._calibration if split == "calibration" else (self._queries, self._bodies)
        return [batch for part in parts for batch in part.batches]

    def training_batches(self) -> Iterable[Batch]:
        """Descriptions, then bodies, of the functions that calibrate and of more of them."""
        return [batch for part in self._training for batch in part.batches]

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """``recall@1`` and ``mrr@10``, both in [0, 1]; ties and NaN count against the model."""
        ranks = scores.ranks(embed(model, self._queries) @ embed(model, self._bodies).T)
        return {"recall@1": scores.recall_at_1(ranks), "mrr@10": scores.mrr_at_10(ranks)}


def _tokenised(
    functions: Sequence[DescribedFunction], lengths: Sequence[int], tokenizer: PreTrainedTokenizerBase
) -> tuple[TokenisedTexts, TokenisedTexts]:
    """Descriptions and bodies, each cut after so many tokens."""
    queries, bodies = lengths
    return (
        tokenise([f.description for f in functions], tokenizer, max_length=queries),
        tokenise([f.body for f in functions], tokenizer, max_length=bodies),
    )


def _marks(texts: Sequence[str], lengths: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> set[bytes]:
    """Marks of texts that are cut after so many tokens."""
    return {
        mark
        for text, length in zip(texts, lengths, strict=True)
        for mark in marks(torch.tensor(tokenizer(text, truncation=True, max_length=length)["input_ids"], device="cpu"))
    }
