"""Associative recall: pairs of a key and a value, then keys whose values are asked for, at known distances."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from attention import Pattern
from calibration.models.embedding import Batch
from calibration.models.outputs import Output, device_of, next_token_scores
from calibration.tasks.protocol import Split
from crossbar.errors import InputError, require_whole
from crossbar.random.streams import Key, uniform

BLANK = 0
"""The token where nothing stands."""

_BATCH = 32


class Sequences(NamedTuple):
    """Sequences and what is asked of them; int64 [B, N] both.

    Attributes:
        tokens: `BLANK`, keys and values.
        answers: the value that is asked for at a position; −1 where none is.
    """

    tokens: Tensor
    answers: Tensor


class Reach(NamedTuple):
    """Parts of a task's questions, each 0 … 1.

    Attributes:
        direct: whose token attends the value, which attends its key.
        relayed: that are direct, or have a token between that attends key and value and is attended.
    """

    direct: float
    relayed: float


@dataclass(frozen=True)
class Recall:
    """Recall in context (multi-query associative recall: Arora et al., 2023), for any two-layer causal model.

    A sequence is blank but for an episode that begins at a random slot: ``pairs`` slots, in each of which a key and its
    value stand side by side (at a random place, the same in all slots of a sequence), ``gap`` blank tokens,
    ``questions`` tokens. A question is one of the sequence's keys, and its answer the key's value. Keys of a sequence
    differ; values are drawn evenly.

    So a value is `nearest` to `farthest` tokens before its questions, and two layers answer in two steps: a token takes
    up a pair, its key and its value, and a question finds that token by the key. The token may be the value itself.
    Guessing evenly scores 1 / values.

    Args:
        n: tokens of a sequence.
        pairs: keys with values in a sequence.
        slot: tokens to each pair.
        gap: blank tokens between the last slot and the first question.
        questions: tokens that ask.
        keys: different keys that there are.
        values: different values that there are.
        sequences: sequences of each split.
        seed: key of all draws.

    Raises:
        InputError: for numbers that do not fit together.
    """

    n: int = 512
    pairs: int = 8
    slot: int = 16
    gap: int = 64
    questions: int = 64
    keys: int = 16
    values: int = 16
    sequences: int = 128
    seed: int = 0
    name: ClassVar[str] = "associative-recall"
    primary: ClassVar[str] = "accuracy"
    reads: ClassVar[Output] = "next tokens"

    def __post_init__(self) -> None:
        for field, least in (("pairs", 1), ("slot", 2), ("gap", 0), ("questions", 1), ("values", 2), ("sequences", 1)):
            require_whole(field, getattr(self, field), least=least)
        require_whole("keys", self.keys, least=self.pairs)
        require_whole("seed", self.seed, least=0)
        require_whole("n", self.n, least=1)
        if self.episode > self.n:
            raise InputError(
                f"n = {self.n} tokens do not hold {self.pairs} slots of {self.slot}, a gap of {self.gap} and "
                f"{self.questions} questions: give {self.episode} or more"
            )

    @property
    def vocabulary(self) -> int:
        """Different tokens: blank, keys, values, in this order."""
        return 1 + self.keys + self.values

    @property
    def episode(self) -> int:
        """Tokens from the first slot to the last question."""
        return self.pairs * self.slot + self.gap + self.questions

    @property
    def nearest(self) -> int:
        """Tokens from a question back to the nearest place where its value can stand."""
        return self.gap + 1

    @property
    def farthest(self) -> int:
        """Tokens from a question back to the farthest place where its value can stand."""
        return self.episode - 2

    def draw(self, count: int, key: Key) -> Sequences:
        """``count`` sequences, the same for the same key."""
        places = self._places(count, key)

        def draw(columns: int, below: int, purpose: str) -> Tensor:
            drawn = uniform((count, columns), (self.seed, self.name, *key, purpose))
            return (drawn * below).long().clamp(max=below - 1)

        order = uniform((count, self.keys), (self.seed, self.name, *key, "keys")).argsort(1)
        keys = 1 + order[:, : self.pairs]
        values = 1 + self.keys + draw(self.pairs, self.values, "values")
        asked = draw(self.questions, self.pairs, "questions")
        tokens = torch.full((count, self.n), BLANK, device="cpu")
        tokens.scatter_(1, places.keys, keys).scatter_(1, places.keys + 1, values)
        tokens.scatter_(1, places.questions, keys.gather(1, asked))
        answers = torch.full_like(tokens, -1).scatter_(1, places.questions, values.gather(1, asked))
        return Sequences(tokens, answers)

    def batches(self, split: Split) -> Iterable[Batch]:
        """The sequences of a split, as ``input_ids``; for an ``attention_mask``, what is not blank."""
        for first in range(0, self.sequences, _BATCH):
            tokens = self._batch(split, first).tokens
            yield {"input_ids": tokens, "attention_mask": (tokens != BLANK).long()}

    @torch.no_grad()
    def metrics(self, model: nn.Module) -> dict[str, float]:
        """``accuracy``: part of the questions whose answer has the highest score of all tokens."""
        right = asked = 0
        for first in range(0, self.sequences, _BATCH):
            tokens, answers = (x.to(device_of(model)) for x in self._batch("evaluation", first))
            guess = next_token_scores(model, {"input_ids": tokens}).argmax(-1)
            right += int((guess == answers).sum())
            asked += int((answers >= 0).sum())
        return {"accuracy": right / asked}

    def reach(self, pattern: Pattern, *, count: int = 64) -> Reach:
        """How much of the task a static pattern can answer in two layers, measured over ``count`` sequences.

        A token is taken to keep what it holds from layer to layer. Heads are taken together.
        """
        pattern = pattern.at(self.n)
        dense = torch.stack([pattern.head(h).to_dense(self.n) for h in range(pattern.n_heads or 1)]).any(0)
        held = dense | torch.eye(self.n, dtype=torch.bool, device=dense.device)
        direct = relayed = 0
        places = self._places(count, ("reach",))
        for key, question in zip(places.keys, places.questions, strict=True):
            binds = held[:, key] & held[:, key + 1]  # tokens that can take up a pair [N, pairs]
            direct += int((dense[question][:, key + 1] & binds[key + 1].diagonal()).sum())
            relayed += int((held[question].float() @ binds.float() > 0).sum())
        total = count * self.questions * self.pairs
        return Reach(direct / total, relayed / total)

    def _batch(self, split: Split, first: int) -> Sequences:
        return self.draw(min(_BATCH, self.sequences - first), (split, first))

    def _places(self, count: int, key: Key) -> _Places:
        starts = (self.n - self.episode) // self.slot + 1
        start, inside = (
            uniform((count, columns), (self.seed, self.name, *key, purpose))
            for columns, purpose in ((1, "start"), (1, "place"))
        )
        first = (start * starts).long() * self.slot
        pairs, questions = (torch.arange(many, device="cpu") for many in (self.pairs, self.questions))
        keys = first + pairs * self.slot + (inside * (self.slot - 1)).long()
        return _Places(keys, first + self.episode - self.questions + questions)


class _Places(NamedTuple):
    """Positions of an episode: of keys [B, pairs], each before its value, and of questions [B, questions]."""

    keys: Tensor
    questions: Tensor
