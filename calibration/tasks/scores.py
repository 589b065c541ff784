"""Metrics of retrieval and of agreement with human ratings; what a broken model returns scores badly, never well."""

from typing import Literal

import numpy as np
import torch
from torch import Tensor


def ranks(similarity: Tensor) -> Tensor:
    """The rank of the right answer for each query, 1 the best, ``[n]`` int64.

    Args:
        similarity: ``[n, n]``, query by answer; the right answer of query ``k`` is ``k``.

    Ties count against the model, and so does every comparison with NaN: the rank is one more than the number of other
    answers that are not strictly less similar. A model that gives all texts one embedding ranks everything last.
    """
    own = similarity.diagonal().unsqueeze(1)
    beaten = (similarity < own).sum(dim=1)  # never counts the answer itself
    return similarity.shape[1] - beaten


def recall_at_1(ranks: Tensor) -> float:
    """The fraction of queries whose right answer has rank 1."""
    return float((ranks == 1).double().mean())


def mrr_at_10(ranks: Tensor) -> float:
    """The mean over queries of 1 / rank, taken as 0 beyond rank 10."""
    return float(torch.where(ranks <= 10, 1.0 / ranks.double(), 0.0).mean())


def correlation(predicted: Tensor, human: Tensor, kind: Literal["pearson", "spearman"]) -> float:
    """Correlation of two ``[n]`` series; 0 when the predicted one is constant or holds a value that is not finite."""
    from scipy import stats  # here, because scipy.stats takes a second to import

    x, y = predicted.double().numpy(), human.double().numpy()
    if not np.isfinite(x).all() or x.min() == x.max():
        return 0.0
    method = stats.pearsonr if kind == "pearson" else stats.spearmanr
    return float(method(x, y).statistic)
