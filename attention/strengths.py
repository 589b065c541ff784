"""Learned attention strengths: numbers of token pairs, or of offsets, trained in digital and kept in tiles."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from torch import Tensor, nn

from attention.patterns.base import Pattern
from attention.strength_tiles import StrengthTiles
from crossbar.convert import ConversionReport, LayerReport
from crossbar.errors import InputError, require_whole
from crossbar.hardware import Hardware
from crossbar.mapping import tile_grid

By = Literal["offset", "pair"]


class LearnedStrengths(nn.Module):
    """A strength ``s_ij`` of each attended pair and head, in one of two uses.

    *With content* (`forward` with queries and keys) strengths are added to the scores before the softmax: a learned
    relative position. *Content-free* (`forward` with values alone) they are the weights themselves,
    ``out_i = Σ_j s_ij v_j``, so that nothing is computed from queries and keys.

    They are trained in digital. `place` puts them in tiles, token j on row j, token i on column i, with no device
    outside the pattern; from then on they are programmed, aged and calibrated with the model's other analog layers
    (`crossbar.program`, `crossbar.age`, `calibration.DriftCompensation`). With content each attended strength is read
    on its own, an activation and a conversion a pair. Content-free, the values of token j drive row j in the tiles
    where some attending token has a column, and the columns sum.

    Args:
        heads: attention heads.
        n: tokens of the longest sequence.
        pattern: which pairs there are; static and the same for all heads.
        by: ``offset``: one strength for each i − j that the pattern has; ``pair``: one for each pair.
        content_free: which of the two uses, and so how strengths start: at 0, or at the mean of the attended values.

    Attributes:
        strength: the parameter, [H, offsets] or [H, pairs].
        tiles: the heads' tiles once placed, else None.

    Raises:
        InputError: for impossible numbers and a pattern that is not static or differs by head.
    """

    def __init__(self, heads: int, n: int, pattern: Pattern, *, by: By = "offset", content_free: bool = False) -> None:
        super().__init__()
        require_whole("strengths heads", heads, least=1)
        require_whole("strengths n", n, least=1)
        if by not in ("offset", "pair"):
            raise InputError(f"strengths by = {by!r} is not allowed: choose offset or pair")
        pattern = pattern.at(n)
        if not pattern.is_static or pattern.n_heads is not None or pattern.n_sequences is not None:
            raise InputError(
                f"pattern {str(pattern)!r} does not fit strengths: give a static one, the same for all heads"
            )
        self.heads, self.n, self.pattern, self.by, self.content_free = heads, n, pattern, by, content_free
        allowed = pattern.to_dense(n)
        i, j = allowed.nonzero(as_tuple=True)
        place = torch.arange(len(i), device="cpu")
        if by == "offset":
            place = (i - j).unique(return_inverse=True)[1]
        self.register_buffer("allowed", allowed, persistent=False)
        self.register_buffer("_pairs", i * n + j, persistent=False)
        self.register_buffer("_place", place, persistent=False)
        start = 1 / float(allowed.sum(1).clamp(min=1).float().mean()) if content_free else 0.0
        self.strength = nn.Parameter(torch.full((heads, int(place.max()) + 1 if len(place) else 0), start))
        self.tiles: nn.ModuleList | None = None

    allowed: Tensor
    _pairs: Tensor
    _place: Tensor

    def matrix(self) -> Tensor:
        """Digital strengths of all pairs [H, n, n], 0 where the pattern has none; differentiable."""
        flat = self.strength.new_zeros(self.heads, self.n * self.n)
        return flat.index_copy(1, self._pairs, self.strength[:, self._place]).view(self.heads, self.n, self.n)

    def forward(
        self, v: Tensor, q: Tensor | None = None, k: Tensor | None = None, *, scale: float | None = None
    ) -> Tensor:
        """Attention with these strengths.

        Args:
            v: values [B, H, N, D], N at most ``n``.
            q, k: queries and keys, shaped like ``v``, where strengths are added to content scores.
            scale: factor on content scores; 1/√D unless given.

        Returns:
            [B, H, N, D].

        Raises:
            InputError: for shapes that do not fit, and for queries and keys where strengths are content-free (or none
                where they are not).
        """
        if v.dim() != 4 or v.shape[1] != self.heads or v.shape[2] > self.n:
            raise InputError(f"strengths cannot take v {list(v.shape)}: give [B, {self.heads}, at most {self.n}, D]")
        if self.content_free:
            if q is not None or k is not None:
                raise InputError("content-free strengths take values alone: give no q and k")
            return self._mixed(v)
        if q is None or k is None or q.shape != v.shape or k.shape != v.shape:
            raise InputError(f"strengths are added to content scores: give q and k shaped like v {list(v.shape)}")
        count = v.shape[2]
        allowed = self.allowed[:count, :count]
        scores = (1 / math.sqrt(v.shape[3]) if scale is None else scale) * q @ k.transpose(-1, -2) + self._read(v)
        weights = scores.masked_fill(~allowed, -torch.inf).softmax(-1)
        return weights.masked_fill(~allowed.any(1)[:, None], 0.0) @ v  # a token that attends none gets 0

    def place(self, hardware: Hardware, name: str = "strengths") -> None:
        """Put the strengths, as they are now, in tiles that are not programmed yet.

        Args:
            hardware: cells, tiles and converters.
            name: keys the random streams and the counts: unique in a model.

        Raises:
            InputError: for hardware that strengths cannot have.
        """
        self.tiles = nn.ModuleList(
            StrengthTiles(weight, self.allowed, hardware, f"{name}.tiles.{head}")
            for head, weight in enumerate(self.matrix().detach())
        )

    def lift(self) -> None:
        """Compute in digital again."""
        self.tiles = None

    def quantised(self, bits: int) -> LearnedStrengths:
        """A copy whose strengths are whole numbers of ``bits``, the sign among them, times one scale of each head.

        Loihi keeps 1 to 9 bits a synapse (Davies 2018).

        Raises:
            InputError: for less than 2 or more than 16 bits.
        """
        whole, scale = self.whole(bits)
        other = copy.deepcopy(self)
        other.lift()
        other.strength.data = whole * scale[:, None]
        return other

    def whole(self, bits: int) -> tuple[Tensor, Tensor]:
        """Strengths as whole numbers [H, offsets or pairs] of ``bits``, and what 1 of them stands for, [H]."""
        require_whole("strengths bits", bits, least=2, most=16)
        most = 2 ** (bits - 1) - 1
        values = self.strength.detach()
        scale = values.abs().amax(1).clamp(min=1e-30) / most
        return (values / scale[:, None]).round(), scale

    def _mixed(self, v: Tensor) -> Tensor:
        count = v.shape[2]
        if self.tiles is None:
            return self.matrix()[:, :count, :count] @ v
        lines = v.transpose(-1, -2)  # a row carries its token's numbers, one dimension after another
        lines = torch.nn.functional.pad(lines, (0, self.n - count))
        out = torch.stack([tiles(lines[:, head]) for head, tiles in enumerate(self.tiles)], 1)
        return out[..., :count].transpose(-1, -2)

    def _read(self, v: Tensor) -> Tensor:
        """Strengths as scores have them, [B or 1, H, N, N]."""
        count = v.shape[2]
        if self.tiles is None:
            return self.matrix()[None, :, :count, :count]
        read = [tiles.read_pairs(len(v), count) for tiles in self.tiles if isinstance(tiles, StrengthTiles)]
        return torch.stack(read, 1).to(v.dtype)


def place_strengths(model: nn.Module, hardware: Hardware) -> ConversionReport:
    """Put the learned strengths of a model in tiles, beside what `crossbar.convert` did, and report them.

    Raises:
        InputError: for a model that has none, and hardware that strengths cannot have.
    """
    found = {name: module for name, module in model.named_modules() if isinstance(module, LearnedStrengths)}
    if not found:
        raise InputError(f"{type(model).__name__} has no LearnedStrengths to place")
    reports = []
    for name, strengths in found.items():
        strengths.place(hardware, name or "strengths")
        n = strengths.n
        t_out, t_in = tile_grid(n, n, hardware.tile)
        share = float(strengths.allowed.sum()) / (t_out * t_in * hardware.tile.rows * hardware.tile.cols)
        for head in range(strengths.heads):
            own = strengths.strength.shape[1]
            label = f"{name}.tiles.{head}".removeprefix(".")
            reports.append(LayerReport(label, "LearnedStrengths", own, n, n, t_out * t_in, share))
    return ConversionReport(tuple(reports))
