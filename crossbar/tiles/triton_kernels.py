"""Passes over cells on a GPU: phase-change memory programmed and read again, cells for training drawn anew.

The sums and products are those of `crossbar.tiles.kernels` and `crossbar.tiles.injection`, in the same order: so the
bits are the CPU's.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossbar.devices import PCM
from crossbar.native import functions, gpu
from crossbar.native.triton_kernels import exp, log
from crossbar.random.streams import Key, Stream
from crossbar.random.triton_kernels import element, random_word

_ROUNDING = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it is rounded to a whole number, to even
_BLOCK = 512  # cells that a program works on


@triton.jit
def _pcm_plane(
    goal, logs, none, index, count, programming, programming_key, drift, drift_key, band_start, band_key,
    g_max, size, prog_scale, drift_scale, decades, band,
):  # fmt: skip
    """Conductances at a time of cells that aim at ``goal`` (µS), ``logs`` being that of its relative size."""
    own = tl.where(goal > 0.0, logs, none)
    mean = tl.minimum(tl.maximum(own * -0.0155 + 0.0244, 0.049), 0.1)
    spread = tl.minimum(tl.maximum(own * -0.0125 - 0.0059, 0.008), 0.045)
    number = element(index, count, drift, drift_key)
    left = exp(tl.abs(tl.fma(spread, number, mean)) * drift_scale * decades)
    wanted = tl.minimum(tl.maximum(goal, 0.0), g_max)
    g = tl.div_rn(wanted, g_max)
    deviation = (((g * -1.1731 + 1.9650) * g + 0.26348) * size) * prog_scale
    number = element(index, count, programming, programming_key)
    programmed = tl.maximum(tl.fma(deviation, number, wanted), 0.0)
    amplitude = exp(log(tl.maximum(tl.div_rn(programmed, g_max), 1e-3)) * -0.65)
    drifted = left * programmed
    relative = tl.minimum(amplitude * 0.0088, 0.2)
    number = element(index, count, band_start, band_key)
    return tl.maximum(tl.fma((relative * drifted) * band, number, drifted), 0.0)


@triton.jit(
    do_not_specialize=[
        "n", "count", "first", "second", "programming", "programming_key", "drift", "drift_key", "band_start",
        "band_key",
    ]
)  # fmt: skip
def pcm(
    targets, found, n, count, first, second, programming, programming_key, drift, drift_key, band_start, band_key,
    none, g_max, size, prog_scale, drift_scale, decades, band, PAIR: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Phase-change cells that are programmed and read at a time, in one pass.

    Targets [n] (µS) are those of a plane of cells, whose conductances are found; or with ``PAIR`` of either sign: those
    of two planes, and the digits that these stand for are found. ``first`` and ``second`` are the places of the planes'
    first cells among the ``count`` of the array, by which cells have their numbers.
    """
    own = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = own < n
    goal = tl.load(targets + own, mask=there, other=0.0)
    logs = log(tl.maximum(tl.div_rn(tl.minimum(tl.abs(goal), g_max), g_max), 1e-7))
    programming, programming_key = programming.to(tl.uint32), programming_key.to(tl.uint32)
    drift, drift_key = drift.to(tl.uint32), drift_key.to(tl.uint32)
    band_start, band_key = band_start.to(tl.uint32), band_key.to(tl.uint32)
    cells = _pcm_plane(
        goal, logs, none, own + first, count, programming, programming_key, drift, drift_key, band_start, band_key,
        g_max, size, prog_scale, drift_scale, decades, band,
    )  # fmt: skip
    if PAIR:
        minus = _pcm_plane(
            -goal, logs, none, own + second, count, programming, programming_key, drift, drift_key, band_start,
            band_key, g_max, size, prog_scale, drift_scale, decades, band,
        )  # fmt: skip
        cells = tl.div_rn(cells - minus, g_max)
    tl.store(found + own, cells, mask=there)


@triton.jit(do_not_specialize=["n", "start", "key"])
def fresh(cells, table, n, start, key, g_min, steps, low, high, BLOCK: tl.constexpr):
    """Add to targets [n] (µS) the errors that 8 random bits choose from a row of ``table``, within ± window.

    Rows are those of targets ``steps`` a µS from ``g_min`` on, each with 256 errors.
    """
    own = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = own < n
    goal = tl.load(cells + own, mask=there, other=0.0) + 0.0
    word = random_word((start.to(tl.int64) + own // 4).to(tl.uint32), key.to(tl.uint32))
    byte = (word >> (8 * (own % 4)).to(tl.uint32)) & 255
    row = ((goal - g_min) * steps + _ROUNDING) - _ROUNDING
    error = tl.load(table + row.to(tl.int32) * 256 + byte.to(tl.int32), mask=there, other=0.0)
    tl.store(cells + own, tl.minimum(tl.maximum(goal + error, low), high), mask=there)


def read_again(
    device: PCM,
    targets: list[Tensor],
    seconds: float,
    key: Key,
    shape: tuple[int, int, int],
    lines: slice,
    digits: Tensor | None = None,
) -> Tensor:
    """`crossbar.tiles.ageing.read_again`: one launch, or one for each plane of targets."""
    planes, rows, outputs = shape
    n, pair = targets[0].numel(), len(targets) < planes
    growth = (seconds + device.t_0 + device.t_read) / (2 * device.t_read)
    streams = [Stream((*key, *purpose)) for purpose in (("programming",), ("drift",), ("1/f", seconds))]
    words = [gpu.word(word) for stream in streams for word in (stream.start, stream.word_key)]
    none = float(functions.log(torch.tensor(1e-7, device="cpu")))  # what cells without a target drift like
    scalars = (
        none, float(device.g_max), device.g_max / 25.0, float(device.prog_noise_scale),
        float(device.drift_scale), -math.log1p(seconds / device.t_0),
        math.sqrt(math.log(growth)) * device.read_noise_scale,
    )  # fmt: skip
    found = digits if digits is not None else targets[0].new_empty(1 if pair else planes, n)
    grid, begin = (triton.cdiv(n, _BLOCK),), (lines.start or 0) * outputs
    for plane, target in enumerate(targets):
        first, second = begin + plane * rows * outputs, begin + rows * outputs
        into = found if pair else found[plane]
        given = (n, planes * rows * outputs, first, second, *words, *scalars)
        with gpu.on(target.device):
            pcm[grid](target.contiguous(), into, *given, PAIR=pair, BLOCK=_BLOCK, **gpu.OPTIONS)
    return found.view(-1, targets[0].shape[0], outputs) if not pair else found


def written(
    cells: Tensor, table: Tensor, window: tuple[float, float], span: tuple[float, float], draws: Stream
) -> None:
    """Errors of a table added to targets (µS) in place, as `crossbar.tiles.injection.written` does."""
    g_min, width, low, high, n = *map(float, (*span, *window)), cells.numel()
    given = (gpu.word(draws.start), gpu.word(draws.word_key), g_min, (len(table) // 256 - 1) / width, low, high)
    with gpu.on(cells.device):
        fresh[(triton.cdiv(n, _BLOCK),)](cells, table, n, *given, BLOCK=_BLOCK, **gpu.OPTIONS)
