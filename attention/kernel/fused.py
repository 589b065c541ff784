"""Analog attention on a GPU in fused kernels (`attention.kernel.triton_kernels`): lists of chunks, and launches.

Conversions, their noise and their order are those of `attention.kernel.analog`; float32 sums are in another order,
which a conversion at a tie makes a step. Cells are read as two float16 numbers each, to 2^-24. The backward pass makes
scores and drives again; it keeps three numbers a query, and while it runs a bit for each conversion of values and parts
of the gradients of keys and values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from attention.activation import Softmax
from attention.kernel.analog import Problem
from attention.kernel.blocks import Options, exact_dtype
from attention.patterns.base import Pattern
from crossbar.backends import dispatch
from crossbar.features import NOISES, missing
from crossbar.hardware import Hardware
from crossbar.native import gpu
from crossbar.random.streams import Stream

QUERIES = 64
"""Queries of a program."""

_HONOURED = (NOISES - {"read_noise.form:cheap"}) | {
    "tile.encoding:balanced", "tile.pairs", "tile.scale:tile", "tile.scale:layer", "verify", "device:redrawn",
    "adc:ideal", "dac.range:per_token", "adc.range:active_rows",
}  # fmt: skip
_LARGEST_HEAD = 256
_WHOLE_BITS = 12  # codes up to 2,047 are exact in float16
_CHUNK = 64  # lines of a chunk at most
_WIDE = 64  # dimensions of heads above which blocks are smaller, so that threads have the registers
_FEW = 16  # queries of a program where there are no more, as in decoding: the least that tensor cores take
_TOGETHER = 32  # blocks of queries that a program adds up for a chunk's keys: a sink is read by all of them
_MOST_PARTS = 31  # of a head across tiles: a bit each of a word


class Chunks(NamedTuple):
    """Which chunks of a memory's tiles each block of queries reads.

    Attributes:
        bounds: block m has the entries ``bounds[m]`` to ``bounds[m + 1]``, int32 [blocks + 1].
        entries: twice a chunk's number, and 1 more for the last one of a tile, rising, int32.
        numbers: its mask, or -1 where all pairs are attended, int32.
        masks: the different masks, uint8 [M, queries, chunk], lines of a chunk as the kernel takes them.
        size: lines of a chunk.
        per_tile: chunks of a tile.
        tokens: of each entry the rows that its lines are in, int32 [entries, chunk], -1 for none, where these do not
            fill tiles in order; None: they do.
    """

    bounds: Tensor
    entries: Tensor
    numbers: Tensor
    masks: Tensor
    size: int
    per_tile: int
    tokens: Tensor | None = None


class Readers(NamedTuple):
    """Which blocks of queries read each chunk: `Chunks` the other way round, int32 all.

    Attributes:
        tiles: of all blocks.
        blocks: of each entry, whose it is.
        runs: of each entry, which of all tiles of all blocks it belongs to; these in their order.
        order: entries, chunk after chunk.
        items: item i are ``order[items[i]]`` to ``order[items[i + 1] - 1]``, all of one chunk.
        chunk_of: of each item, its chunk.
        items_of: chunk c has the items ``items_of[c]`` to ``items_of[c + 1] - 1``.
    """

    tiles: int
    blocks: Tensor
    runs: Tensor
    order: Tensor
    items: Tensor
    chunk_of: Tensor
    items_of: Tensor


def asked_for(backend: str | None, device: torch.device) -> bool:
    """Whether the kernels are asked before the backends: by name, or where none is named and they run by themselves.

    Args:
        backend: by name, as a call of attention gives it; None: it gives none.
        device: of the queries.
    """
    backend = backend or dispatch.named()
    return backend == "triton" or (backend is None and gpu.serves(device))


def lacks(hardware: Hardware) -> str | None:
    """What of hardware the kernels do not have; None: nothing."""
    dac, feature = hardware.dac, missing(hardware, _HONOURED)
    if feature is not None:
        return f"hardware with {feature}"
    return f"input codes of more than {_WHOLE_BITS} bits" if dac is not None and dac.bits > _WHOLE_BITS else None


def why_not(q: Tensor, n_keys: int, hardware: Hardware, options: Options, value_size: int | None = None) -> str | None:
    """Why the kernels cannot have a call, in a few words; None: they can. ``value_size``: D of values, unless q's."""
    if gpu.why_not() is not None:
        return gpu.why_not()
    if q.device.type != ("cpu" if gpu.interpreted() else "cuda"):
        return f"tensors on {q.device.type}"
    if q.dtype == torch.float64:
        return "numbers in float64"
    if lacks(hardware) is not None:
        return lacks(hardware)
    if value_size not in (None, q.shape[3]):
        return "keys and values of different widths"
    if q.shape[3] * n_keys >= 2**31:
        return "more than 2^31 numbers of a head"
    if q.shape[3] > _LARGEST_HEAD:
        return f"heads of more than {_LARGEST_HEAD} dimensions"
    if -(-q.shape[3] // hardware.tile.cols) > _MOST_PARTS:
        return f"heads across more than {_MOST_PARTS} tiles"
    if options.dropout:
        return "dropout"
    if not options.plain:
        return "soft caps or biases of scores"
    return None if options.activation == Softmax() else "another activation than an exact softmax"


@lru_cache(maxsize=64)
def chunks(
    pattern: Pattern,
    n_queries: int,
    n_keys: int,
    offset: int,
    rows: int,
    device: torch.device,
    queries: int = QUERIES,
    largest: int = _CHUNK,
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
        largest: lines of a chunk at most.
    """
    size, per_tile = _cut(rows, largest)
    half = (rows + 1) // 2
    with torch.inference_mode(False), torch.no_grad():
        column = torch.arange(size, device="cpu")
        low = torch.arange(per_tile, device="cpu")[:, None] * (size // 2) + column // 2
        line = low + column % 2 * half  # of each place in a tile's chunks, [chunks, size]; ``rows`` where there is none
        line = torch.where((low < half) & (line < rows), line, rows)
        found = _Lists(size, per_tile, queries)
        for first in range(0, n_queries, queries):
            query = torch.arange(first, min(first + queries, n_queries), device="cpu") + offset
            spans = pattern.spans(query, n_keys)
            start, stop = spans.start.clamp(0, n_keys), spans.stop.clamp(0, n_keys)
            tiles = _touched(start, stop, rows, n_keys)
            attended = _attended(start, stop, tiles * rows, rows, queries)[:, :, line].transpose(1, 2)
            there = (line < rows) & (tiles[:, None, None] * rows + line < n_keys)
            numbers = tiles[:, None] * per_tile + torch.arange(per_tile, device="cpu")
            found.add(numbers.flatten(), attended.flatten(0, 1), there.flatten(0, 1), len(query))
        return found.on(device)


def placed_chunks(
    pattern: Pattern,
    n_queries: int,
    n_keys: int,
    places: tuple[Tensor, Tensor, Tensor],
    rows: int,
    device: torch.device,
    block: tuple[int, int],
) -> Chunks:
    """The chunks of rows that do not fill tiles in order, as a memory has them.

    Args:
        pattern: static and causal, the same for all heads.
        n_queries: the last tokens, which read.
        n_keys: tokens.
        places: positions of the L tokens that have rows here, their tiles, and their lines there, int64 [L],
            on the CPU.
        rows: lines of a tile.
        device: where the lists go.
        block: queries of a block, and lines of a chunk at most.
    """
    (queries, largest), half = block, (rows + 1) // 2
    size, per_tile = _cut(rows, largest)
    positions, tile, line = places
    with torch.inference_mode(False), torch.no_grad():
        second = (line >= half).long()
        low = line - half * second
        # Queries of many tokens also read rows that the later ones of these take: such a line is in several chunks.
        place = tile * rows + line
        order = place.argsort(stable=True)
        rank = torch.arange(len(place), device="cpu") - torch.searchsorted(place[order], place[order])
        turn = torch.empty_like(rank).index_copy_(0, order, rank)
        turns = int(turn.max()) + 1
        numbers, own = ((tile * per_tile + low // (size // 2)) * turns + turn).unique(return_inverse=True)
        numbers = numbers // turns
        column = 2 * (low % (size // 2)) + second
        tokens = torch.full((len(numbers), size), -1, device="cpu")
        tokens[own, column] = torch.arange(len(positions), device="cpu")
        found, (rising, order) = _Lists(size, per_tile, queries), positions.sort()
        for first in range(0, n_queries, queries):
            query = torch.arange(first, min(first + queries, n_queries), device="cpu") + n_keys - n_queries
            start, stop = (torch.searchsorted(rising, x.contiguous()) for x in pattern.spans(query, n_keys))
            attended = _attended(start, stop, positions.new_zeros(1), len(positions), queries)[0]
            attended = attended[:, order.argsort()]
            pairs = torch.zeros(len(numbers), queries, size, dtype=torch.bool, device="cpu")
            pairs[own, :, column] = attended.t()
            found.add(numbers, pairs, tokens >= 0, len(query), tokens)
        return found.on(device)


def block_for(n_queries: int, size: int, noisy: bool) -> tuple[int, int]:
    """Queries of a block and lines of a chunk at most: what threads have registers for.

    Args:
        n_queries: of a call.
        size: dimensions of a head.
        noisy: whether cells have noise of their own, whose sums of squares take as much room again.
    """
    if noisy:
        return _FEW, _CHUNK // 2
    queries = QUERIES // 2 if size > _WIDE else QUERIES
    return _FEW if n_queries <= _FEW else queries, _CHUNK


def back_for(noisy: bool) -> tuple[int, int]:
    """`block_for` of the backward pass."""
    return QUERIES // (4 if noisy else 2), _CHUNK // 2


def warps_for(size: int) -> int:
    """Of 32 threads each, for a program that works on heads of so many dimensions."""
    return 8 if size > _WIDE else 4


def _cut(rows: int, largest: int) -> tuple[int, int]:
    """Lines of a chunk, at most so many, and chunks of a tile of so many rows."""
    half = (rows + 1) // 2
    size = min(largest, max(16, 2 * (1 << (half - 1).bit_length())))
    return size, -(-half // (size // 2))


class _Lists:
    """`Chunks` as they grow, block of queries after block, on the CPU."""

    def __init__(self, size: int, per_tile: int, queries: int) -> None:
        self.size, self.per_tile, self.queries = size, per_tile, queries
        self.bounds, self.entries, self.numbers = [0], list[int](), list[int]()
        self.masks, self.tokens = list[Tensor](), list[Tensor]()
        self._known: dict[bytes, int] = {}

    def add(self, chunks: Tensor, pairs: Tensor, there: Tensor, queries: int, tokens: Tensor | None = None) -> None:
        """The next block.

        Args:
            chunks: numbers of chunks, rising, int64 [C].
            pairs: attended ones, bool [C, queries, size]; chunks without any are left out.
            there: which lines of each exist, bool [C, size].
            queries: of the block that are real.
            tokens: rows of each, [C, size].
        """
        chosen = pairs.flatten(1).any(1).nonzero()[:, 0]
        whole = (pairs | ~there[:, None]).flatten(1).all(1) if queries == self.queries else pairs.new_zeros(len(pairs))
        tiles = (chunks[chosen] // self.per_tile).tolist()
        for place, tile, after in zip(chosen.tolist(), tiles, [*tiles, None][1:], strict=True):
            number = -1
            if not whole[place]:
                mask = pairs[place]
                number = self._known.setdefault(mask.numpy().tobytes(), len(self.masks))
                if number == len(self.masks):
                    self.masks.append(mask.to(torch.uint8))
            self.entries.append(2 * int(chunks[place]) + int(tile != after))
            self.numbers.append(number)
            if tokens is not None:
                self.tokens.append(tokens[place])
        self.bounds.append(len(self.entries))

    def on(self, device: torch.device) -> Chunks:
        """All of them on a device."""
        masks = self.masks or [torch.zeros(self.queries, self.size, dtype=torch.uint8, device="cpu")]
        numbers = (torch.tensor(x, dtype=torch.int32, device="cpu") for x in (self.bounds, self.entries, self.numbers))
        tokens = torch.stack(self.tokens).int() if self.tokens else None
        bounds, entries, which = (gpu.sent(x, device) for x in numbers)
        return Chunks(
            bounds, entries, which, gpu.sent(torch.stack(masks), device), self.size, self.per_tile,
            None if tokens is None else gpu.sent(tokens, device),
        )  # fmt: skip


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


@lru_cache(maxsize=64)
def readers(
    pattern: Pattern,
    n_queries: int,
    n_keys: int,
    offset: int,
    rows: int,
    device: torch.device,
    queries: int,
    largest: int,
) -> tuple[Chunks, Readers]:
    """The chunks of a backward pass and who reads them; arguments as those of `chunks`; kept."""
    given = pattern, n_queries, n_keys, offset, rows
    lists = chunks(*given, torch.device("cpu"), queries, largest)
    with torch.inference_mode(False), torch.no_grad():
        of, last = lists.entries // 2, lists.entries % 2
        order = of.argsort(stable=True)
        blocks = torch.arange(len(lists.bounds) - 1, device="cpu").repeat_interleave(lists.bounds.diff())
        counts = torch.bincount(of, minlength=-(-n_keys // rows) * lists.per_tile)
        pieces = -(-counts // _TOGETHER)
        first, items_of = counts.cumsum(0) - counts, F.pad(pieces.cumsum(0), (1, 0))
        chunk_of = torch.arange(len(counts), device="cpu").repeat_interleave(pieces)
        within = torch.arange(len(chunk_of), device="cpu") - items_of[chunk_of]
        items = F.pad(first[chunk_of] + within * _TOGETHER, (0, 1), value=len(of))
        runs = last.cumsum(0) - last
        sent = (gpu.sent(x.int(), device) for x in (blocks, runs, order, items, chunk_of, items_of))
        read_by = Readers(int(last.sum()), *sent)
    return chunks(*given, device, queries, largest), read_by


class Kernels:
    """What computes a call: `attention.kernel.analog.Fused`.

    Args:
        lists: its chunks.
        back: gives those of the backward pass, and who reads them; None: there is none.
    """

    def __init__(self, lists: Chunks, back: Callable[[], tuple[Chunks, Readers]] | None = None) -> None:
        self.lists, self.back = lists, back

    @classmethod
    def of(cls, q: Tensor, pattern: Pattern, n_keys: int, offset: int, hardware: Hardware) -> Kernels:
        """Those of queries [B, H, N_queries, D] and a static pattern that is the same for all heads and sequences."""
        given = pattern, q.shape[2], n_keys, offset, hardware.tile.rows, q.device
        noisy = hardware.read_noise is not None
        forwards, backwards = block_for(q.shape[2], q.shape[3], noisy), back_for(noisy)
        return cls(chunks(*given, *forwards), partial(readers, *given, *backwards))

    def forward(
        self, q: Tensor, keys: Tensor, values: Tensor, problem: Problem, trained: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """See `attention.kernel.analog.Fused.forward`."""
        from attention.kernel import triton_kernels as kernels

        batch, heads, n_queries, size = q.shape
        output = q.new_empty(batch, n_queries, heads, size).transpose(1, 2)
        lse = q.new_empty(batch, heads, n_queries, dtype=exact_dtype(q.dtype))
        state = lse.new_empty(3, *lse.shape) if trained else None
        launch, lists = _Launch.of(q, keys, values, problem, self.lists), self.lists
        tokens = lists.tokens if lists.tokens is not None else lists.entries
        with gpu.on(q.device):
            kernels.attend[(len(lists.bounds) - 1, batch * heads)](
                *launch.cells, launch.real, launch.streams, lists.bounds, lists.entries, lists.numbers, lists.masks,
                tokens, output, lse, lse if state is None else state,
                *launch.sizes, *output.stride()[:3], *launch.words, *launch.scalars,
                PLACED=lists.tokens is not None, TRAINED=trained, **launch.constants,
            )  # fmt: skip
        return output, lse, state

    def backward(
        self, saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], problem: Problem,
        grad_output: Tensor | None, grad_lse: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
        """See `attention.kernel.analog.Fused.backward`."""
        from attention.kernel import triton_kernels as kernels

        q, keys, values, output, state = saved
        (batch, heads, _, size), kv_heads = q.shape, keys.shape[1]
        assert self.back is not None  # memories take no gradients
        lists, read_by = self.back()
        launch = _Launch.of(q, keys, values, problem, lists)
        grad = torch.zeros_like(output) if grad_output is None else grad_output
        if grad.stride() != output.stride():
            grad = torch.empty_like(output).copy_(grad)
        of_lse = torch.zeros_like(state[0]) if grad_lse is None else grad_lse.contiguous()
        block, chunk, padded = lists.masks.shape[1], lists.size, launch.constants["DP"]
        grad_q, common = state.new_empty(q.shape), torch.empty_like(state[0])
        inside = q.new_empty(read_by.tiles, batch * heads, block, padded // 8, dtype=torch.uint8)
        parts = [state.new_empty(len(read_by.chunk_of), batch * heads, chunk, padded) for _ in range(2)]
        grads = [torch.zeros_like(x) for x in (keys, values)]
        # 16 bits of a mantissa are more than gradients of 16-bit models have.
        constants = {**launch.constants, "PRECISION": "tf32x3" if q.dtype == torch.float32 else "tf32"}
        given = *launch.cells, launch.real, launch.streams
        with gpu.on(q.device):
            kernels.attend_queries[(len(lists.bounds) - 1, batch * heads)](
                *given, lists.bounds, lists.entries, lists.numbers, lists.masks, read_by.runs, output, state, grad,
                of_lse, grad_q, common, inside,
                *launch.sizes, *output.stride()[:3], *launch.words, *launch.scalars, **constants,
            )  # fmt: skip
            if len(read_by.chunk_of):
                kernels.attend_keys[(len(read_by.chunk_of), batch * heads)](
                    *launch.cells[:8], launch.real, launch.streams, lists.entries, lists.numbers, lists.masks,
                    read_by.runs, read_by.blocks, read_by.order, read_by.items, read_by.chunk_of, state, grad, common,
                    inside, *parts,
                    *launch.sizes, *output.stride()[:3], *launch.words[:2], *launch.scalars, **constants,
                )  # fmt: skip
                kernels.collect[(len(read_by.items_of) - 1, batch * kv_heads)](
                    *parts, read_by.items_of, *grads, keys.shape[2], heads, heads // kv_heads,
                    problem.hardware.tile.rows, size, BN=chunk, DP=padded, CHUNKS=lists.per_tile, **gpu.OPTIONS,
                )  # fmt: skip
        return grad_q.to(q.dtype), grads[0], grads[1]


class _Launch(NamedTuple):
    """Arguments that the kernels have in common.

    Attributes:
        cells: queries, digits and their scales and variances.
        real: padding; any tensor where there is none.
        streams: of noise, int32 [B, H].
        sizes: numbers of everything, and the strides of queries.
        words: where the streams of scores and of values begin.
        scalars: of converters and noise.
        constants: what kernels are compiled for.
    """

    cells: tuple[Tensor, ...]
    real: Tensor
    streams: Tensor
    sizes: tuple[int, ...]
    words: tuple[int, ...]
    scalars: tuple[float, ...]
    constants: dict[str, Any]

    @classmethod
    def of(cls, q: Tensor, keys: Tensor, values: Tensor, problem: Problem, lists: Chunks) -> _Launch:
        hardware, options, given = problem.hardware, problem.options, problem.noise
        dac, adc, rows, columns = hardware.dac, hardware.adc, hardware.tile.rows, hardware.tile.cols
        (batch, heads, n_queries, size), n_keys = q.shape, keys.shape[2]
        scores, read = (Stream((*given.key, stage), q.device) for stage in ("scores", "values"))
        streams = given.streams(batch, heads, q.device).int().contiguous()
        q = q if q.stride(3) == 1 else q.contiguous()
        of_cells = problem.key_variance is not None and problem.value_variance is not None
        variances = [
            x.contiguous() if x is not None and of_cells else keys
            for x in (problem.key_variance, problem.value_variance)
        ]
        key_scale = (problem.key_scale * (options.scale * math.log2(math.e))).contiguous()
        real = streams if options.mask is None else options.mask.to(torch.uint8).contiguous()
        tiles = -(-n_keys // rows) if given.places is None else given.places.tiles
        step = 1.0 if adc is None else float(adc.full_scale / adc.levels)
        assert dac is not None  # or `why_not` had refused it
        padded = max(16, 1 << (size - 1).bit_length())
        return cls(
            cells=(
                q, *_halves(keys), key_scale, *_halves(values), problem.value_scale.contiguous(), *variances,
            ),
            real=real,
            streams=streams,
            sizes=(
                n_queries, n_keys, heads, heads // keys.shape[1], tiles, rows, size, columns, *q.stride()[:3],
            ),
            words=tuple(gpu.word(bits) for bits in (scores.start, scores.word_key, read.start, read.word_key)),
            scalars=(
                float(dac.levels), float(dac.full_scale), 1.0 if adc is None else float(adc.levels), step,
                float(hardware.output_noise),
            ),
            constants={
                "BM": lists.masks.shape[1], "BN": lists.size, "DP": padded, "CHUNKS": lists.per_tile,
                "PARTS": -(-size // columns), "STATIC": dac.range != "per_token",
                "NOISE": hardware.output_noise > 0 or of_cells, "CELLS": of_cells, "ADC": adc is not None,
                "SPAN": adc is not None and adc.range == "active_rows", "PADDING": options.mask is not None,
                "num_warps": warps_for(size), **gpu.OPTIONS,
            },
        )  # fmt: skip


def _halves(digits: Tensor) -> tuple[Tensor, Tensor]:
    """Two float16 numbers whose sum is each digit, to 2^-24."""
    high = digits.half()
    return high.contiguous(), (digits - high).half().contiguous()
