"""Thresholds with which one word makes a binomial number (`crossbar.random`).

The chance of a trial is ``k / n`` for whole ``k``, as with the codes of a converter that become trains of pulses. A row
``k`` begins at the least count that 32 bits can tell from impossible, and ends at the greatest: for 16 bits that are
1,260 counts at most, not 32,768.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_TAIL = 23.6  # 34 ln 2: what is less likely than 2^-34 on either side is left out


class Table(NamedTuple):
    """Thresholds of all rows ``k <= n / 2``.

    Attributes:
        keys: ``2^32 k + threshold``, ascending, int64: of all rows, so that one search finds a threshold of any row.
        first: place in ``keys`` where row ``k`` begins, int64 [n // 2 + 2].
        least: count with which row ``k`` begins, less that place, int64 [n // 2 + 1].
    """

    keys: Tensor
    first: Tensor
    least: Tensor


@lru_cache(maxsize=8)
@torch.inference_mode(False)
def table(trials: int, device: torch.device) -> Table:
    """The table of ``trials`` (1 to 32,767) on a device: made on the CPU, and copied there once."""
    rows, first, least = [], [0], []
    for k in range(trials // 2 + 1):
        low, thresholds = row(trials, k)
        rows.append(thresholds + (k << 32))
        least.append(low - first[k])
        first.append(first[k] + len(thresholds))
    parts = (np.concatenate(rows), np.array(first, dtype=np.int64), np.array(least, dtype=np.int64))
    return Table(*(torch.from_numpy(part).to(device) for part in parts))


def row(trials: int, k: int) -> tuple[int, np.ndarray]:
    """The least count of a row, and ``floor(2^32 P(X <= j) + 1/2)`` of each ``j`` from it on but the last, int64.

    ``P(X = j)`` is found from that of ``j = k``, the most likely, by one factor after another away from it, and
    ``P(X <= j)`` by adding from the least count up; each operation is one of float64, so all processors have the same.
    """
    if k == 0:
        return 0, np.zeros(0, np.int64)
    least, most = window(trials, k)
    up = np.arange(k, most, dtype=np.float64)
    down = np.arange(k, least, -1, dtype=np.float64)
    above = np.cumprod((trials - up) * k / ((up + 1) * (trials - k)))
    below = np.cumprod(down * (trials - k) / ((trials - down + 1) * k))
    sums = np.cumsum(np.concatenate((below[::-1], [1.0], above)))
    return least, np.floor(sums[:-1] / sums[-1] * 2.0**32 + 0.5).astype(np.int64)


def window(trials: int, k: int) -> tuple[int, int]:
    """The least and the greatest count that are kept, by Bernstein's bound on both tails."""
    variance = k * (1 - k / trials)
    furthest = math.ceil(_TAIL / 3 + math.sqrt((_TAIL / 3) ** 2 + 2 * _TAIL * variance))
    return max(k - furthest, 0), min(k + furthest, trials)


def counts(words: Tensor, codes: Tensor, trials: int) -> Tensor:
    """Numbers from words (int64, below 2^32), chances being ``codes / trials``, int64; shapes alike."""
    found = table(trials, words.device)
    few = torch.minimum(codes, trials - codes).clamp_(min=0)
    number = torch.searchsorted(found.keys, (few << 32) + words, right=True).add_(found.least[few])
    return torch.where(few == codes, number, trials - number)
