"""Learned attention strengths: numbers of token pairs, or of offsets, trained in digital and kept in tiles."""

from __future__ import annotations

import copy
import math
from functools import lru_cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.kernel.chunks import Chunk, chunks
from attention.kernel.schedule import schedule
from attention.learned.strength_tiles import HONOURED, StrengthTiles
from attention.patterns.base import Pattern
from attention.patterns.intervals import repeat
from crossbar.errors import InputError, require_whole
from crossbar.features import require_honoured
from crossbar.hardware import Hardware
from crossbar.nn.convert import ConversionReport, LayerReport

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
        query, key: tokens of each attended pair, int64 [P], query after query.
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
        indptr, key = pattern.rows(n)
        if len(key) == 0:
            raise InputError(f"pattern {str(pattern)!r} attends no pair of {n} tokens: give one that does")
        query = repeat(torch.arange(n, device="cpu"), indptr.diff())
        place = torch.arange(len(key), device="cpu")
        if by == "offset":
            place = (query - key).unique(return_inverse=True)[1]
        for name, value in (("query", query), ("key", key), ("_place", place)):
            self.register_buffer(name, value, persistent=False)
        start = n / len(key) if content_free else 0.0
        self.strength = nn.Parameter(torch.full((heads, int(place.max()) + 1), start))
        self.tiles: StrengthTiles | None = None

    query: Tensor
    key: Tensor
    _place: Tensor

    def of_pairs(self) -> Tensor:
        """Digital strengths of all pairs [H, P], query after query; differentiable."""
        return self.strength.index_select(1, self._place)

    def matrix(self) -> Tensor:
        """Digital strengths as dense [H, n, n], to look at: 0 where the pattern has none."""
        flat = self.strength.new_zeros(self.heads, self.n * self.n)
        return flat.index_copy(1, self.query * self.n + self.key, self.of_pairs()).view(self.heads, self.n, self.n)

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
            return self._mixed(v) if self.tiles is None else self.tiles.mix(v)
        if q is None or k is None or q.shape != v.shape or k.shape != v.shape:
            raise InputError(f"strengths are added to content scores: give q and k shaped like v {list(v.shape)}")
        return self._attended(q * (1 / math.sqrt(v.shape[3]) if scale is None else scale), k, v)

    def place(self, hardware: Hardware, name: str = "strengths") -> None:
        """Put the strengths, as they are now, in tiles that are not programmed yet.

        Args:
            hardware: cells, tiles and converters.
            name: keys the random streams and the counts: unique in a model.

        Raises:
            InputError: for hardware that strengths cannot have.
        """
        if not self.content_free:
            require_honoured(hardware, HONOURED - {"dac.offset_std"}, "strengths read one by one")
        alone = not self.content_free
        self.tiles = StrengthTiles(self.of_pairs(), self.query, self.key, self.n, hardware, f"{name}.tiles", alone)

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
        padded = F.pad(self.of_pairs(), (0, 1))
        output = torch.zeros_like(v)
        for chunk, places in self._blocks(v):
            weights = padded[:, places].to(v.dtype)  # [H, G, R, L]
            chunk.put_queries(output, weights @ chunk.take_keys(v))
        return output

    def _attended(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Content scores of scaled queries and the strengths together, through a softmax."""
        count = v.shape[2]
        if self.tiles is None:
            read = self.of_pairs()[None]
        else:
            here = ((self.query < count) & (self.key < count)).nonzero()[:, 0]
            found = self.tiles.read_pairs(len(v), here)
            read = found.new_zeros(len(v), self.heads, len(self.key)).index_copy(2, here, found)
        padded = F.pad(read, (0, 1), value=-torch.inf).to(v.dtype)
        output = torch.zeros_like(v)  # a token that attends none gets 0
        for chunk, places in self._blocks(v):
            scores = chunk.take_queries(q) @ chunk.take_keys(k).transpose(-1, -2) + padded[:, :, places]
            weights = (scores - scores.detach().amax(-1, keepdim=True).clamp_(min=torch.finfo(scores.dtype).min)).exp()
            total = weights.sum(-1, keepdim=True)
            chunk.put_queries(output, weights / torch.where(total > 0, total, 1.0) @ chunk.take_keys(v))
        return output

    def _blocks(self, v: Tensor) -> tuple[tuple[Chunk, Tensor], ...]:
        return _blocks(self.pattern, self.n, v.shape[2], v.shape[0] * v.shape[1], v.device)


@lru_cache(maxsize=16)
def _blocks(pattern: Pattern, n: int, count: int, heads: int, device: torch.device) -> tuple[tuple[Chunk, Tensor], ...]:
    """Chunks of work for ``count`` of ``n`` tokens, each with the pairs of its blocks, int64 [G, R, L].

    A query's keys are all in one chunk. What is not attended has the place behind the last pair.
    """
    with torch.inference_mode(False):
        indptr, key = pattern.rows(n)
        known = repeat(torch.arange(n, device="cpu"), indptr.diff()) * n + key  # rising
        found = []
        for chunk in chunks(schedule(pattern, count, count, 0, device, count), heads):
            wanted = (chunk.queries[:, :, None] * n + chunk.keys[:, None, :]).cpu()
            place = torch.searchsorted(known, wanted).clamp_(max=len(known) - 1)
            mask = chunk.mask()
            attended = known[place] == wanted if mask is None else (known[place] == wanted) & mask.cpu()
            found.append((chunk, torch.where(attended, place, len(known)).to(device)))
        return tuple(found)


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
        tiles = strengths.tiles
        assert tiles is not None
        share = float(tiles.devices.sum()) / (tiles.tiles * hardware.tile.rows * hardware.tile.cols)
        own, count = strengths.strength.numel(), tiles.tiles * strengths.heads
        label = f"{name}.tiles".removeprefix(".")
        reports.append(LayerReport(label, "LearnedStrengths", own, strengths.n, strengths.n, count, share))
    return ConversionReport(tuple(reports))
