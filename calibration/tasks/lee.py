"""Document similarity: 50 news texts against human ratings."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import nn

from calibration.models.embedding import Batch, embed, tokenise
from calibration.models.outputs import Output
from calibration.tasks.gensim_data import read_lines
from calibration.tasks.protocol import Split
from calibration.tasks.scores import correlation
from crossbar.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Lee:
    """Agreement with people on how similar news documents are (Lee, Pincombe and Welsh, 2005).

    Pearson correlation, over the 1,225 pairs of 50 documents, of the embeddings' cosine with the mean human rating.
    MiniLM, digital: 0.656. Calibration text is the first documents of the background corpus that was published with it.

    Args:
        tokenizer: the model's own.
        calibration_documents: how many background documents to calibrate on.
        max_length: longest document in tokens.

    Raises:
        InputError: when gensim, which carries the texts, is not installed, or for an impossible value.
    """

    name = "lee"
    primary = "pearson"
    reads: ClassVar[Output] = "embeddings"

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, *, calibration_documents: int = 64, max_length: int = 256
    ) -> None:
        documents = read_lines("lee.cor", encoding="latin-1")  # one pound sign is not UTF-8
        seen = set(documents)
        background = [text for text in dict.fromkeys(read_lines("lee_background.cor")) if text not in seen]
        if not 1 <= calibration_documents <= len(background):
            raise InputError(
                f"calibration_documents {calibration_documents} is not usable: give 1 to {len(background)}, "
                "which is what the background corpus holds"
            )
        ratings = np.array([line.split() for line in read_lines("similarities0-1.txt")], dtype=np.float64)
        self._pairs = torch.triu_indices(
            len(documents), len(documents), offset=1, device="cpu"
        )  # the half that is filled
        self._human = torch.from_numpy(ratings)[self._pairs[0], self._pairs[1]]
        self._documents = tokenise(documents, tokenizer, max_length=max_length)
        self._calibration = tokenise(background[:calibration_documents], tokenizer, max_length=max_length)

    def batches(self, split: Split) -> Iterable[Batch]:
        """Background documents to calibrate on, or the 50 rated documents."""
        return self._calibration.batches if split == "calibration" else self._documents.batches

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """``pearson``, in [−1, 1]; 0 for embeddings that are constant or not finite."""
        embeddings = embed(model, self._documents)
        cosine = (embeddings @ embeddings.T)[self._pairs[0], self._pairs[1]]
        return {"pearson": correlation(cosine, self._human, "pearson")}
