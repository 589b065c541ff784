"""Word similarity: pairs of single words against human ratings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from calibration.models.embedding import Batch, embed, tokenise
from calibration.models.outputs import Output
from calibration.tasks.gensim_data import read_lines
from calibration.tasks.protocol import Split
from calibration.tasks.scores import correlation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MAX_LENGTH = 32
"""Tokens; far more than any word of the two lists takes."""


class WordSim:
    """Agreement with people on how related two words are, on WordSim-353 (Finkelstein et al., 2002).

    Spearman correlation, over 353 pairs, of the embeddings' cosine with the mean human rating. MiniLM, digital: 0.729.
    Calibration text is the words of SimLex-999 (Hill, Reichart and Korhonen, 2015) that WordSim-353 does not use.

    Args:
        tokenizer: the model's own.

    Raises:
        InputError: when gensim, which carries the lists, is not installed.
    """

    name = "wordsim"
    primary = "spearman"
    reads: ClassVar[Output] = "embeddings"

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        rows = [line.split("\t") for line in read_lines("wordsim353.tsv")]
        words = sorted({word for row in rows for word in row[:2]})
        position = {word: k for k, word in enumerate(words)}
        seen = {word.lower() for word in words}
        others = {word.lower() for line in read_lines("simlex999.txt") for word in line.split("\t")[:2]}
        self._first = torch.tensor([position[row[0]] for row in rows], device="cpu")
        self._second = torch.tensor([position[row[1]] for row in rows], device="cpu")
        self._human = torch.tensor([float(row[2]) for row in rows], dtype=torch.float64, device="cpu")
        self._words = tokenise(words, tokenizer, max_length=_MAX_LENGTH)
        self._calibration = tokenise(sorted(others - seen), tokenizer, max_length=_MAX_LENGTH)

    def batches(self, split: Split) -> Iterable[Batch]:
        """Words to calibrate on, or the rated words, each once."""
        return self._calibration.batches if split == "calibration" else self._words.batches

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """``spearman``, in [−1, 1]; 0 for embeddings that are constant or not finite."""
        embeddings = embed(model, self._words)
        cosine = (embeddings[self._first] * embeddings[self._second]).sum(dim=1)
        return {"spearman": correlation(cosine, self._human, "spearman")}
