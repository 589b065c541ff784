"""Products of tiles with input vectors on a GPU, in integers: two launches a product, and one more for new cells.

A DAC of up to 8 bits drives whole numbers, and cells are two bytes, as on the CPU (`crossbar.backends.cpu.integers`):
the sums are exact, and what follows them is rounded in the same order, so the results are the CPU's bit for bit.
Inputs of 16 bits are widened where they are loaded, which is exact: the results are those of the same numbers in
float32.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from crossbar.backends import bounds
from crossbar.backends.converters import TINY
from crossbar.backends.protocol import Read
from crossbar.native import gpu

_MOST_SHIFTED = 512  # word lines whose sums fit 32 bits, both bytes together
_VECTORS = 32  # that the interpreter makes codes of at once, since it takes as long for one
_ROOM = 150 * 1024  # bytes that blocks take where tiles are loaded ahead; cards for graphics have 99 KiB
_BLOCK = 1024  # inputs of a vector, and columns' constants, that a program works on at once


class FixedPoint(NamedTuple):
    """Cells as integers, two bytes each.

    Attributes:
        cells: ``[T, 2, 2 ceil(O / 2), R]`` int8: high bytes, then low ones, of the columns in pairs j, j + ceil(O / 2),
            each with the word lines of its tile, and zeros up to R, a multiple of a block.
        steps: what 1 stands for, ``[T, O]``, unit outputs.
    """

    cells: Tensor
    steps: Tensor


class Blocks(NamedTuple):
    """Sizes of what a program of the product works on, which decide how fast it is and no bit of it.

    Attributes:
        vectors, columns: of the result; powers of 2 from 16 on.
        group: blocks of vectors that programs with the same cells follow each other for.
        warps, stages: of 32 threads each; tiles whose cells are being loaded.
    """

    vectors: int
    columns: int
    group: int
    warps: int
    stages: int


def refuses_gradient(read: Read) -> str | None:
    """Of what gradients cannot be had here; None: of nothing that asks for one."""
    return "gradients of scales" if read.cells.scales.requires_grad else None


@torch.inference_mode(False)
@torch.no_grad()
def fixed_point(weight: Tensor, rows: int) -> FixedPoint:
    """Digits ``[S, I, O]``, float32, as integers."""
    from crossbar.backends.triton import triton_kernels as kernels

    slices, lines, outputs = weight.shape
    tiles, padded = slices * -(-lines // rows), _padded(rows)
    pairs = (outputs + 1) // 2
    cells = weight.new_empty(tiles, 2, 2 * pairs, padded, dtype=torch.int8)
    steps = weight.new_empty(tiles, outputs)
    block = min(32, 1 << (pairs - 1).bit_length())
    kernels.fix[(tiles, -(-pairs // block))](
        weight.contiguous(), cells, steps, lines, outputs, float(bounds.LARGEST), TINY,
        ROWS=rows, PADDED=padded, BR=min(padded, 64), BC=block, **gpu.OPTIONS,
    )  # fmt: skip
    return FixedPoint(cells, steps)


def multiply(read: Read, blocks: Blocks | None = None) -> Tensor:
    """`crossbar.backends.protocol.Backend.multiply`, float32."""
    asked = (read.x, _of_gradient(read), read.input_range, read.cells.adc_range)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in asked):
        product: Tensor = _Product.apply(read.x, read.cells.weight, *asked[2:], read)  # type: ignore[no-untyped-call]  # torch's own
        return product
    out = read.x.new_empty(len(read.x), read.cells.scales.shape[1], dtype=torch.float32)
    _sensed(read, out, columns=False, blocks=blocks)
    return out


def read_columns(read: Read, blocks: Blocks | None = None) -> Tensor:
    """`crossbar.backends.protocol.Backend.read_columns`, float32."""
    tiles, outputs = read.cells.scales.shape
    out = read.x.new_empty(tiles, len(read.x), outputs, dtype=torch.float32)
    _sensed(read, out, columns=True, blocks=blocks)
    return out


def _of_gradient(read: Read) -> Tensor | None:
    """The digits, if they have a gradient."""
    digits = read.cells.digits
    return digits if isinstance(digits, Tensor) and digits.requires_grad else None


class _Product(torch.autograd.Function):
    """`multiply` with the gradients of `crossbar.backends.eager`: 1 inside the converters' ranges, 0 outside.

    A learned range has the gradient of what it scales, and of what its codes leave of the numbers before them.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, digits: Tensor, input_range: Tensor | None, adc_range: Tensor | None, read: Read
    ) -> Tensor:
        tiles, outputs = read.cells.scales.shape
        out = x.new_empty(len(x), outputs, dtype=torch.float32)
        left = ctx.needs_input_grad[3]
        inside = x.new_zeros(tiles, len(x), outputs, dtype=torch.float16 if left else torch.int8)
        codes, full_scale = _sensed(read, out, columns=False, blocks=None, inside=inside)
        ctx.read = read._replace(x=read.x.detach())
        ctx.save_for_backward(x, digits, inside, codes, full_scale, out if ctx.needs_input_grad[2] else None)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, digits, inside, codes, full_scale, out = ctx.saved_tensors
        read: Read = ctx.read
        dac, adc, rows, scales = read.hardware.dac, read.hardware.adc, read.hardware.tile.rows, read.cells.scales
        assert dac is not None
        assert adc is not None
        (slices, lines, outputs), (vectors, row_tiles) = digits.shape, (len(x), -(-digits.shape[1] // rows))
        of_x = of_digits = of_input = of_adc = None
        if ctx.needs_input_grad[3]:
            assert read.cells.adc_range is not None
            each = torch.einsum("tbo,bo->to", inside.float(), grad * full_scale.unsqueeze(1))
            each = each.mul_(scales).div_(adc.levels)
            of_adc = each if read.cells.adc_range.dim() else each.sum()
            inside = inside.abs() <= 0.5  # of a clipped number its code is left, 1 or more
        through = (inside * scales.unsqueeze(1)).mul_(grad).view(slices, row_tiles, vectors, outputs)
        padding = (0, 0, 0, row_tiles * rows - lines)
        if ctx.needs_input_grad[0] or ctx.needs_input_grad[2]:
            cells = F.pad(digits, padding).view(slices, row_tiles, rows, outputs)
            of_tiles = (through @ cells.transpose(2, 3)).sum(0) if slices > 1 else through[0] @ cells[0].transpose(1, 2)
            of_x = of_tiles.transpose(0, 1).reshape(vectors, -1)[:, :lines]
            clips = read.input_range is not None or dac.range == "static"
            if clips:  # no input is outside of a range that was found among them
                of_x = of_x * ((x * (dac.levels / full_scale).unsqueeze(1)).abs() <= dac.levels + 0.5)
            if ctx.needs_input_grad[2]:  # it scales the outputs, and the codes by its inverse
                assert read.input_range is not None
                of_input = ((grad * out).sum() - (of_x * x).sum()) / read.input_range.detach()
            of_x = of_x.to(x.dtype)
        if ctx.needs_input_grad[1]:
            drives = codes.view(vectors, row_tiles, -1)[:, :, :rows].permute(1, 2, 0).float()
            drives.mul_(full_scale / dac.levels)
            of_digits = (drives @ through).view(slices, -1, outputs)[:, :lines]
        return of_x if ctx.needs_input_grad[0] else None, of_digits, of_input, of_adc, None


class Driven(NamedTuple):
    """What drove the word lines.

    Attributes:
        codes: ``[B, T_in R]`` int8, R word lines a tile, as the cells have them.
        full_scale: ``[B]``, activation units.
    """

    codes: Tensor
    full_scale: Tensor


def _sensed(read: Read, out: Tensor, columns: bool, blocks: Blocks | None, inside: Tensor | None = None) -> Driven:
    """What the ADCs deliver, scaled and added up in ``out``, or column by column.

    ``inside``: filled with 1 where a conversion is within its ADC's range, ``[T, B, O]`` int8; or in float16 with what
    codes have more than the numbers before them, and outside of the range with the codes.
    """
    from crossbar.backends.triton import triton_kernels as kernels

    x, cells, hardware, input_range, noise, _ = read
    dac, adc, rows = hardware.dac, hardware.adc, hardware.tile.rows
    assert dac is not None
    assert adc is not None
    make = partial(fixed_point, rows=rows)
    fixed: FixedPoint = make(cells.weight) if cells.forms is None else cells.forms("fixed point of a GPU", make)
    (vectors, lines), (tiles, outputs) = x.shape, cells.scales.shape
    row_tiles, padded = -(-lines // rows), fixed.cells.shape[3]
    if not out.numel():
        return Driven(x.new_empty(vectors, row_tiles * padded, dtype=torch.int8), fixed.steps.new_empty(vectors))
    found, ranges, given = _range(x, dac.range, dac.full_scale, input_range)
    noisy = noise is not None and (hardware.output_noise > 0 or cells.variance is not None)
    own_range = cells.adc_range
    of_range = 0 if own_range is None else 1 if own_range.dim() == 0 else 2
    of_cells = noisy and cells.variance is not None
    codes = x.new_empty(vectors, row_tiles * padded, dtype=torch.int8)
    full_scale, constants = fixed.steps.new_empty(vectors), fixed.steps.new_empty(5, tiles, outputs)
    power = fixed.steps.new_empty(vectors, row_tiles) if of_cells else full_scale
    x = x if x.stride(1) == 1 else x.contiguous()
    flags: dict[str, Any] = {"COLUMNS": columns, "NOISE": noisy, "OFFSET": cells.offset is not None, "CELLS": of_cells}
    together = _VECTORS if gpu.interpreted() else 1
    kernels.prepare[(-(-vectors // together) + -(-tiles * outputs // _BLOCK),)](
        x, x.stride(0), ranges, 1 if ranges is None else ranges.numel(), codes, full_scale, power,
        vectors, lines, row_tiles, given, float(dac.levels), TINY,
        fixed.steps, cells.scales.contiguous(), None if own_range is None else own_range.contiguous(),
        None if cells.offset is None else cells.offset.contiguous(),
        cells.variance.contiguous() if of_cells and cells.variance is not None else None,
        constants, tiles, outputs, adc.full_scale / adc.levels, float(adc.levels), float(hardware.output_noise),
        ROWS=rows, PADDED=padded, FOUND=found, RANGE=of_range, BV=together, BLOCK=_BLOCK, BR=min(padded, 256), **flags,
        **gpu.OPTIONS,
    )  # fmt: skip
    start, key = (noise.start, noise.word_key) if noise is not None else (0, 0)
    blocks = blocks or (
        _SMALL
        if gpu.interpreted()
        else blocks_for(vectors, padded, of_cells + (inside is not None), gpu.shared_memory(x.device))
    )
    grid = -(-vectors // blocks.vectors) * -(-outputs // blocks.columns)
    kernels.multiply[(grid,)](
        codes, fixed.cells, constants, power, full_scale, out, inside, vectors, outputs, tiles, row_tiles,
        gpu.word(start), gpu.word(key), float(adc.levels),
        PADDED=padded, SHIFT=rows <= _MOST_SHIFTED, EVEN=of_range < 2,
        INSIDE=inside is not None, LEFT=inside is not None and inside.dtype == torch.float16,
        BB=blocks.vectors, BO=blocks.columns, BK=min(padded, 256), GROUP=blocks.group, STAGES=blocks.stages,
        num_warps=blocks.warps, **flags, **gpu.OPTIONS,
    )  # fmt: skip
    return Driven(codes, full_scale)


def _range(x: Tensor, kind: str, full_scale: float, given: Tensor | None) -> tuple[int, Tensor | None, float]:
    """How a kernel has the DAC's range: each vector's own, a number, or of a tensor; with that tensor and number."""
    if given is not None:
        return 2, given.detach().reshape(-1), 0.0
    if kind == "per_token":
        return 0, None, 0.0
    if kind == "static":
        return 1, None, max(float(full_scale), TINY)
    if not x.numel():
        return 1, None, TINY
    low, high = x.aminmax()
    return 2, torch.maximum(high, -low).float().clamp_(min=TINY).reshape(1), 0.0


def _padded(rows: int) -> int:
    """Word lines of a tile with those that are added to fill blocks: the tensor cores take 32 and more at once."""
    power = max(32, 1 << (rows - 1).bit_length())
    return power if power <= 256 else -(-rows // 256) * 256


def blocks_for(vectors: int, padded: int = 256, kept: int = 0, room: int = _ROOM) -> Blocks:
    """Blocks for a product: large ones where there are many vectors, and for few as many programs as columns allow.

    Args:
        vectors: of the product.
        padded: word lines of a tile with those that fill blocks.
        kept: what threads keep beside sums: 1 for deviations of cells' noise, and 1 for which conversions gradients go
            through. They then have half the conversions, and half of these for both.
        room: bytes of shared memory that a program may have. Tiles are loaded ahead where there is enough of it.
    """
    ahead = padded <= 256 and room >= _ROOM
    if vectors <= 16:
        return Blocks(16, 32, 1, 4, 4 if ahead else 1)
    stages, group = 2 if ahead else 1, 1 if vectors <= 64 else 8
    if kept:
        return Blocks(64 if kept == 1 else 32, 64, group, 8, stages)
    return Blocks(64, 64, group, 4, stages) if vectors <= 64 else Blocks(128, 64, group, 8, stages)


_SMALL = Blocks(32, 64, 1, 4, 1)  # what the interpreter takes the least time for
