"""The hot path in integers: cells in fixed point, and exact products of whole numbers.

A DAC of up to 8 bits drives whole numbers within ±127. With the cells of a column in fixed point of 16 bits, its sum is
an integer: 256 times the product with the cells' high bytes and once that with their low bytes. Integer sums are the
same in any order and with any number of threads, on the processor's 8-bit units, in products of 16 bits
(`crossbar.backends.cpu.kernels.product`), or in float32, which is exact up to 2^24. What the fixed point costs is an
error of each cell evenly spread over ± 1/65,276 of its column's largest cell, or 0.4 nS of 25 µS.

Noise, ADC, digital scale and the sum over tiles then take one pass over these sums (`crossbar.backends.cpu.kernels`).
`crossbar.backends.eager` does the same in floating point, for gradients, for devices other than the CPU, and for the
converters left out here.
"""

from __future__ import annotations

import math
from functools import cache, partial
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from crossbar.backends import bounds
from crossbar.backends.converters import TINY, found_range
from crossbar.backends.protocol import Read

_MOST_WHOLE = 512  # sums of more word lines could leave 32 bits: 127 times 32,638 times 518
_SUMS = 2**21  # column sums worked on at once, so that they stay in cache ...
_VECTORS = 128  # ... but as many input vectors as products are efficient with
_SUMS_OF = {torch.int8: torch.int32, torch.float32: torch.float32, torch.int16: torch.int32}
_FORM_OF_SUMS = {torch.float32: 0, torch.int8: 1}
"""How sums are handed to `crossbar.backends.cpu.kernels.convert`."""

CURVES = {"cell", "cell.iv:linear", "cell.iv:sinh", "cell.iv:table"}  # pulses of one height meet one conductance
HONOURED = bounds.HONOURED | CURVES
"""Features of hardware that products in integers have here."""


class FixedPoint(NamedTuple):
    """Cells as integers, two bytes each.

    Attributes:
        bytes: ``[S, 2 O I]`` int8, row tile after row tile: all high bytes ``[O, R]`` of a tile, then all low ones; or
            int16, row tile after row tile ``[O / 16, W / 2, 16, 2]``: two word lines of 16 columns after one another,
            and zeros where there are no more of them.
        steps: what 1 stands for, ``[T, O]``, unit outputs.
    """

    bytes: Tensor
    steps: Tensor


def refuses(read: Read) -> str | None:
    """What of converters, tiles and cells products cannot be computed here with; None: nothing."""
    reason = bounds.refuses(read, HONOURED)
    return "cells that are used once" if reason is None and read.cells.forms is None else reason


@cache
def _kind() -> torch.dtype:
    """What products are computed in here, with the same result: int8, int16 or float32, whichever is exact and fastest.

    Some processors' instructions for 8 bits saturate sums of two products, and without any they take up to 30 times as
    long.
    """
    codes = torch.tensor([[127], [-127]], dtype=torch.int8, device="cpu").expand(-1, 256).repeat(32, 1)
    cells = torch.tensor([[127], [-128]], dtype=torch.int8, device="cpu").expand(-1, 256).repeat(64, 1)
    exact, seconds = codes.double() @ cells.double().t(), {}
    for kind in (torch.int8, torch.float32, torch.int16):
        # of whole cells there are half as many columns
        parts, wanted = (cells[::2], exact[:, ::2]) if kind == torch.int16 else (cells, exact)
        parts = _in_pairs(parts.short()) if kind == torch.int16 else parts.to(kind).contiguous()
        given = codes.to(kind).contiguous(), parts
        sums = torch.empty(wanted.shape, dtype=_SUMS_OF[kind], device="cpu")
        try:
            _product(*given, sums)
        except RuntimeError:  # not on this platform
            continue
        if torch.equal(sums.double(), wanted):
            seconds[kind] = min(_seconds(*given, sums) for _ in range(5))
    return min(seconds, key=seconds.__getitem__)


def _seconds(codes: Tensor, cells: Tensor, sums: Tensor) -> float:
    start = perf_counter()
    _product(codes, cells, sums)
    return perf_counter() - start


@torch.inference_mode(False)
@torch.no_grad()
def fixed_point(weight: Tensor, rows: int, whole: bool = False) -> FixedPoint:
    """Digits ``[S, I, O]``, float32, as integers; ``whole``: of 16 bits, otherwise in bytes."""
    from crossbar.backends.cpu import kernels
    from crossbar.native import openmp  # numba takes half a second to load

    slices, lines, outputs = weight.shape
    weight, steps = weight.contiguous(), []
    if whole:
        pairs = sum(-(-min(rows, lines - line) // 2) for line in range(0, lines, rows))
        cells = weight.new_zeros(slices, _columns(outputs) * 2 * pairs, dtype=torch.int16)
    else:
        cells = weight.new_empty(slices, 2 * outputs * lines, dtype=torch.int8)
    for digits, parts in zip(weight, cells, strict=True):
        for line in range(0, lines, rows):
            tile, step = digits[line : line + rows], weight.new_empty(outputs)
            if whole:
                own = _whole_tile(parts, outputs, line, len(tile), rows)
            else:
                own = _of_tile(parts, outputs, line, len(tile))
            openmp.run(
                kernels.fix, outputs // kernels.COLUMNS, *(tile, own, step, len(tile), outputs, bounds.LARGEST, TINY),
                2 * own.shape[1] if whole else 0,
            )  # fmt: skip
            steps.append(step)
    return FixedPoint(cells, torch.stack(steps))


def _product(codes: Tensor, cells: Tensor, out: Tensor) -> None:
    """Codes ``[B, R]`` times cells ``[2 O, R]`` transposed, of int8 in int32 or of float32 in float32.

    Or of int16 in int32: codes ``[B, W]`` times whole cells as `FixedPoint` has them, O being a multiple of 16.
    """
    if codes.dtype == torch.int16:
        from crossbar.backends.cpu import kernels
        from crossbar.native import openmp  # numba takes half a second to load

        openmp.run(kernels.product, len(codes), codes, cells, out, *out.shape, codes.shape[1])
    elif out.dtype == torch.float32:
        torch.mm(codes, cells.t(), out=out)
    elif codes.shape[1] == 1:  # torch 2.10 leaves ``out`` as it is then
        torch.mul(codes.int(), cells.t().int(), out=out)
    else:
        torch._int_mm(codes, cells.t(), out=out)


def _of_tile(parts: Tensor, outputs: int, line: int, lines: int) -> Tensor:
    """Both bytes of a tile's cells, ``[2 O, R]``, that start at a word line."""
    return parts[2 * outputs * line :][: 2 * outputs * lines].view(2 * outputs, lines)


def _whole_tile(cells: Tensor, outputs: int, line: int, lines: int, rows: int) -> Tensor:
    """A tile's whole cells, ``[O / 16, W / 2, 16, 2]``, that start at a word line, behind tiles of ``rows`` ones."""
    columns, before = _columns(outputs), line // rows * (rows + rows % 2)
    return cells[columns * before :][: columns * (lines + lines % 2)].view(columns // 16, -1, 16, 2)


def _in_pairs(cells: Tensor) -> Tensor:
    """Cells ``[O, W]`` as products of 16 bits take them, ``[O / 16, W / 2, 16, 2]``."""
    return cells.view(len(cells) // 16, 16, -1, 2).transpose(1, 2).contiguous()


def _columns(outputs: int) -> int:
    """Columns with zeros behind, up to a multiple of 16."""
    return -(-outputs // 16) * 16


def multiply(read: Read) -> Tensor:
    """`crossbar.backends.protocol.Backend.multiply`."""
    scales = read.cells.scales.detach()
    out = read.x.new_empty(_vectors(read), scales.shape[1])
    sense(read, scales, out)
    return out


def read_columns(read: Read) -> Tensor:
    """`crossbar.backends.protocol.Backend.read_columns`: the same bits with any number of threads."""
    tiles, outputs = read.cells.scales.shape
    columns = read.x.new_zeros(tiles, _vectors(read), outputs)
    sense(read, torch.ones_like(read.cells.scales), columns)
    return columns


def sense(read: Read, scales: Tensor, out: Tensor) -> None:
    """Add up what the ADCs of the tiles deliver, times ``scales [T, O]``, in ``[B, O]``, or apart in ``[T, B, O]``.

    The latter is given as zeros.
    """
    from crossbar.backends.cpu import kernels
    from crossbar.native import openmp  # numba takes half a second to load

    x, cells, hardware, input_range, noise, _ = read
    dac, adc, rows = hardware.dac, hardware.adc, hardware.tile.rows
    assert dac is not None
    assert adc is not None
    assert cells.forms is not None
    kind = _kind()
    if kind == torch.int16 and rows > _MOST_WHOLE:
        kind = torch.float32
    whole = kind == torch.int16
    form = "fixed point, whole" if whole else "fixed point"
    fixed: FixedPoint = cells.forms(form, partial(fixed_point, rows=rows, whole=whole))
    vectors, (tiles, outputs) = _vectors(read), cells.scales.shape
    if not vectors:
        return
    lines = x.numel() // vectors
    row_tiles = -(-lines // rows)
    span = adc.full_scale if cells.adc_range is None else cells.adc_range.detach()
    step = torch.as_tensor(span / adc.levels, dtype=x.dtype, device=x.device)  # unit outputs a code stands for
    factors = fixed.steps / (step * dac.levels)
    scales = (scales * step).contiguous()
    offsets = None if cells.offset is None else (cells.offset / step).contiguous()
    deviations = variances = None
    if noise is not None and (hardware.output_noise > 0 or cells.variance is not None):
        deviations = torch.full_like(factors, hardware.output_noise) / step
    if deviations is not None and cells.variance is not None:
        variances = (cells.variance / step.square()).contiguous()
    if input_range is None and dac.range != "per_token":
        input_range = found_range(x, dac)
    known = None if input_range is None else input_range.detach().to(x.dtype).reshape(-1)
    start, key = 0, 0
    if noise is not None and deviations is not None:
        start, key = noise.start, noise.word_key
    places, runs, run = _runs(x, read.taken)
    inputs = (x.data_ptr(), places, runs, len(runs), run, known, 1 if known is None else len(known))
    apart = 0 if out.dim() == 2 else out.stride(0)
    if whole:
        openmp.run(
            kernels.read,
            vectors,
            *(*inputs, fixed.bytes, fixed.bytes.shape[1], factors, offsets, deviations, variances, scales, out, apart),
            *(vectors, lines, outputs, rows, row_tiles, tiles, dac.levels, adc.levels, TINY, start, key),
        )
        return
    codes, full_scale = x.new_empty(vectors, lines, dtype=torch.int8), x.new_empty(vectors)
    power = None if variances is None else x.new_empty(vectors, row_tiles)
    openmp.run(kernels.encode, vectors, *inputs, codes, full_scale, power, vectors, lines, rows, dac.levels, TINY)
    size = -(-vectors // -(-vectors // max(_VECTORS, _SUMS // (2 * outputs))))  # even pieces
    sums = x.new_empty(size, 2 * outputs, dtype=_SUMS_OF[kind])
    copy = x.new_empty(2 * outputs, min(rows, lines)) if kind == torch.float32 else None
    for first in range(0, vectors, size):
        piece = slice(first, min(first + size, vectors))
        count = piece.stop - first
        for tile in range(tiles):
            row_tile = tile % row_tiles
            line = row_tile * rows
            driven, own = min(rows, lines - line), fixed.bytes[tile // row_tiles]
            parts = _of_tile(own, outputs, line, driven)
            if copy is not None:
                parts = copy[:, :driven].copy_(parts)
            _product(codes[piece, line : line + rows].to(kind), parts, sums[:count])
            openmp.run(
                kernels.convert,
                count,
                *(sums, _FORM_OF_SUMS[kind], factors[tile], None if offsets is None else offsets[tile]),
                *(None if deviations is None else deviations[tile], None if variances is None else variances[tile]),
                *(None if power is None else power[piece], scales[tile], full_scale[piece]),
                *((out[tile] if apart else out)[piece], count, outputs, row_tiles, row_tile, adc.levels, tiles, tile),
                *(first, start, key),
            )


def _vectors(read: Read) -> int:
    """B of a read, whose inputs may be cut from others."""
    return math.prod(read.x.shape[: -read.taken])


def _runs(x: Tensor, taken: int) -> tuple[Tensor | None, Tensor, int]:
    """Where vectors are in memory, beyond the first number of ``x``, whose last dimensions are their word lines.

    The place of each vector (None: one after another), those of its runs of neighbours beyond it, and their length.
    """
    sizes, steps, run = list(x.shape[-taken:]), list(x.stride()[-taken:]), 1
    while sizes and (steps[-1] == run or sizes[-1] == 1):
        run *= sizes.pop()
        steps.pop()
    runs = _offsets(sizes, steps)
    if x.is_contiguous():
        return None, runs, run
    return _offsets(list(x.shape[:-taken]), list(x.stride()[:-taken])), runs, run


def _offsets(sizes: list[int], steps: list[int]) -> Tensor:
    """Places of all numbers of a tensor of these sizes and strides, in their order, int64."""
    places = torch.zeros(1, dtype=torch.int64, device="cpu")
    for size, step in zip(sizes, steps, strict=True):
        places = (places.unsqueeze(1) + torch.arange(size, device="cpu") * step).flatten()
    return places
