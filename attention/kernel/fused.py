"""Analog attention on a GPU in one kernel (`attention.kernel.triton_kernels`): its lists of chunks, and its launch.

Conversions, their noise and their order are those of `attention.kernel.analog`; float32 sums are in another order,
which a conversion at a tie makes a step. Cells are read as two float16 numbers each, to 2^-24.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from attention.activation import Softmax
from attention.kernel.analog import Problem
from attention.kernel.blocks import Options, exact_dtype
from attention.patterns.base import Pattern
from crossbar.features import NOISES, missing
from crossbar.hardware import Hardware
from crossbar.native import gpu
from crossbar.random.streams import Stream

QUERIES = 64
"""Queries of a program."""

_HONOURED = (NOISES - {"read_noise", "read_noise.form:exact", "read_noise.form:cheap"}) | {
    "tile.encoding:balanced", "tile.pairs", "tile.scale:tile", "tile.scale:layer", "verify", "device:redrawn",
    "adc:ideal", "dac.range:per_token", "adc.range:active_rows",
}  # fmt: skip
_LARGEST_HEAD = 256
_WHOLE_BITS = 12  # codes up to 2,047 are exact in float16
_CHUNK = 64  # lines of a chunk at most


class Chunks(NamedTuple):
    """Which chunks of a memory's tiles each block of queries reads.

    Attributes:
        bounds: block m has the entries ``bounds[m]`` to ``bounds[m + 1]``, int32 [blocks + 1].
        entries: twice a chunk's number, and 1 more for the last one of a tile, rising, int32.
        numbers: its mask, or -1 where all pairs are attended, int32.
        masks: the different masks, uint8 [M, queries, chunk], lines of a chunk as the kernel takes them.
        size: lines of a chunk.
        per_tile: chunks of a tile.
    """

    bounds: Tensor
    entries: Tensor
    numbers: Tensor
    masks: Tensor
    size: int
    per_tile: int


def why_not(q: Tensor, n_keys: int, hardware: Hardware, options: Options, value_size: int | None = None) -> str | None:
    """Why the kernel cannot have a call, in a few words; None: it can. ``value_size``: D of values, unless q's."""
    dac, feature = hardware.dac, missing(hardware, _HONOURED)
    if gpu.why_not() is not None:
        return gpu.why_not()
    if q.device.type != ("cpu" if gpu.interpreted() else "cuda"):
        return f"tensors on {q.device.type}"
    if q.dtype == torch.float64:
        return "numbers in float64"
    if feature is not None:
        return f"hardware with {feature}"
    if dac is not None and dac.bits > _WHOLE_BITS:
        return f"input codes of more than {_WHOLE_BITS} bits"
    if value_size not in (None, q.shape[3]):
        return "keys and values of different widths"
    if q.shape[3] * n_keys >= 2**31:
        return "more than 2^31 numbers of a head"
    if q.shape[3] > _LARGEST_HEAD:
        return f"heads of more than {_LARGEST_HEAD} dimensions"
    if options.dropout:
        return "dropout"
    if not options.plain:
        return "soft caps or biases of scores"
    return None if options.activation == Softmax() else "another activation than an exact softmax"


@lru_cache(maxsize=64)
def chunks(
    pattern: Pattern, n_queries: int, n_keys: int, offset: int, rows: int, device: torch.device, queries: int = QUERIES
) -> Chunks:
    """The chunks of a static pattern that is the same for all heads and sequences; kept.

    Args:
        pattern: who attends to whom.
        n_queries: number of queries, at positions ``offset`` on.
        n_keys: number of keys.
        offset: position of the first query.
        rows: lines of a tile.
        device: where the lists go.
        queries: queries of a block.
    """
    half = (rows + 1) // 2
    size = min(_CHUNK, max(16, 2 * (1 << (half - 1).bit_length())))
    per_tile = -(-half // (size // 2))
    with torch.inference_mode(False), torch.no_grad():
        column = torch.arange(size, device="cpu")
        low = torch.arange(per_tile, device="cpu")[:, None] * (size // 2) + column // 2
        line = low + column % 2 * half  # of each place in a tile's chunks, [chunks, size]; ``rows`` where there is none
        line = torch.where((low < half) & (line < rows), line, rows)
        bounds, entries, numbers = [0], [], []
        masks: list[Tensor] = []
        found: dict[bytes, int] = {}
        for first in range(0, n_queries, queries):
            query = torch.arange(first, min(first + queries, n_queries), device="cpu") + offset
            spans = pattern.spans(query, n_keys)
            start, stop = spans.start.clamp(0, n_keys), spans.stop.clamp(0, n_keys)
            tiles = _touched(start, stop, rows, n_keys)
            attended = _attended(start, stop, tiles * rows, rows, queries)[:, :, line].transpose(1, 2)
            for tile, pairs in zip(tiles.tolist(), attended, strict=True):
                exists = (line < rows) & (tile * rows + line < n_keys)
                for chunk in pairs.flatten(1).any(1).nonzero()[:, 0].tolist():
                    mask, number = pairs[chunk], -1
                    if len(query) < queries or not bool(mask[:, exists[chunk]].all()):
                        number = found.setdefault(mask.numpy().tobytes(), len(masks))
                        if number == len(masks):
                            masks.append(mask.to(torch.uint8))
                    entries.append(2 * (tile * per_tile + chunk))
                    numbers.append(number)
                entries[-1] += 1
            bounds.append(len(entries))
        masks = masks or [torch.zeros(queries, size, dtype=torch.uint8, device="cpu")]
        lists = [torch.tensor(x, dtype=torch.int32, device="cpu").to(device) for x in (bounds, entries, numbers)]
        return Chunks(lists[0], lists[1], lists[2], torch.stack(masks).to(device), size, per_tile)


def _touched(start: Tensor, stop: Tensor, rows: int, n_keys: int) -> Tensor:
    """The tiles that some interval [N, S] reaches into, rising."""
    change = torch.zeros(-(-n_keys // rows) + 1, dtype=torch.int64, device="cpu")
    start, stop = (x[stop > start] for x in (start, stop))
    one = torch.ones((), dtype=torch.int64, device="cpu").expand_as(start)
    change.index_add_(0, start // rows, one).index_add_(0, (stop - 1) // rows + 1, -one)
    return change.cumsum(0)[:-1].gt(0).nonzero()[:, 0]


def _attended(start: Tensor, stop: Tensor, first: Tensor, rows: int, queries: int) -> Tensor:
    """Whether intervals [N, S] hold each of ``rows`` keys from the ``first`` [T] on: bool [T, queries, rows + 1].

    The last key and queries after the last one are no real ones.
    """
    start, stop = ((x - first[:, None, None]).clamp_(0, rows) for x in (start, stop))
    there = (stop > start).to(torch.int16)
    change = torch.zeros(len(first), queries, rows + 1, dtype=torch.int16, device="cpu")
    change[:, : start.shape[1]].scatter_add_(2, start, there).scatter_add_(2, stop, -there)
    return change.cumsum(2, dtype=torch.int16) > 0


def attend(q: Tensor, keys: Tensor, values: Tensor, problem: Problem, lists: Chunks) -> tuple[Tensor, Tensor]:
    """Output [B, H, N_queries, D] and log-sum-exp [B, H, N_queries]; ``keys`` and ``values`` are the rows' digits."""
    from attention.kernel import triton_kernels as kernels

    hardware, options, given = problem.hardware, problem.options, problem.noise
    dac, adc, rows, columns = hardware.dac, hardware.adc, hardware.tile.rows, hardware.tile.cols
    (batch, heads, n_queries, size), n_keys = q.shape, keys.shape[2]
    output = q.new_empty(batch, n_queries, heads, size).transpose(1, 2)
    lse = q.new_empty(batch, heads, n_queries, dtype=exact_dtype(q.dtype))
    scores, read = (Stream((*given.key, stage), q.device) for stage in ("scores", "values"))
    streams = given.streams(batch, heads, q.device).int().contiguous()
    q = q if q.stride(3) == 1 else q.contiguous()
    halves = [half for digits in (keys, values) for half in _halves(digits)]
    key_scale = (problem.key_scale * (options.scale * math.log2(math.e))).contiguous()
    real = lse if options.mask is None else options.mask.to(torch.uint8).contiguous()
    step = 1.0 if adc is None else float(adc.full_scale / adc.levels)
    assert dac is not None  # or `why_not` had refused it
    with gpu.on(q.device):
        kernels.attend[(len(lists.bounds) - 1, batch * heads)](
            q, halves[0], halves[1], key_scale, halves[2], halves[3], problem.value_scale.contiguous(), real, streams,
            lists.bounds, lists.entries, lists.numbers, lists.masks, output, lse,
            n_queries, n_keys, heads, heads // keys.shape[1], -(-n_keys // rows), rows, size, columns,
            *q.stride()[:3], *output.stride()[:3],
            *(gpu.word(bits) for bits in (scores.start, scores.word_key, read.start, read.word_key)),
            float(dac.levels), float(dac.full_scale),
            1.0 if adc is None else float(adc.levels), step, float(hardware.output_noise),
            BM=lists.masks.shape[1], BN=lists.size, DP=max(16, 1 << (size - 1).bit_length()), CHUNKS=lists.per_tile,
            PARTS=-(-size // columns), STATIC=dac.range != "per_token",
            NOISE=hardware.output_noise > 0, ADC=adc is not None,
            SPAN=adc is not None and adc.range == "active_rows", PADDING=options.mask is not None,
            num_warps=8 if size > 64 else 4, **gpu.OPTIONS,
        )  # fmt: skip
    return output, lse


def _halves(digits: Tensor) -> tuple[Tensor, Tensor]:
    """Two float16 numbers whose sum is each digit, to 2^-24."""
    high = digits.half()
    return high.contiguous(), (digits - high).half().contiguous()
