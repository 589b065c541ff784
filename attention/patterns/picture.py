"""The picture of a pattern."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from attention.patterns.intervals import repeat
from attention.patterns.rows import LARGEST, Rows
from crossbar.errors import require_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CELLS = 512  # a side; longer sequences are drawn by the share of each cell's pairs


def draw(rows: Rows, title: str, n: int, axes: Axes | None) -> Axes:
    """See `Pattern.plot`: dark where attended, in O(pairs of a chunk) memory for any n."""
    require_whole("n", n, least=1, most=LARGEST)
    cells = min(n, _CELLS)
    counts = torch.zeros(cells * cells, dtype=torch.int64, device="cpu")
    for first in range(0, n, 1024):
        indptr, indices = rows(min(1024, n - first), n, first)
        query = repeat(torch.arange(first, first + len(indptr) - 1, device="cpu"), indptr.diff())
        counts += torch.bincount(query * cells // n * cells + indices * cells // n, minlength=cells * cells)
    tokens = torch.bincount(torch.arange(n, device="cpu") * cells // n)
    share = counts.view(cells, cells) / (tokens[:, None] * tokens)
    if axes is None:
        from matplotlib.figure import Figure

        axes = Figure(figsize=(4.8, 4.8), layout="constrained").add_subplot()
    # Roots make single pairs in a cell of many visible.
    axes.imshow(share.sqrt().numpy(), cmap="Blues", vmin=0, vmax=1, extent=(-0.5, n - 0.5, n - 0.5, -0.5))
    axes.set_xlabel("key")
    axes.set_ylabel("query")
    axes.set_title(title)
    return axes
