"""Compiled kernels of GPUs: cells in fixed point, input codes, products of tiles with what converters make of them.

They do what `crossbar.backends.cpu.kernels` does, in the same order of the same roundings, so their bits are the same
(`crossbar.native.gpu` says what is rounded). Sizes called ``B...`` are those of blocks that a program works on: no bit
depends on them.

Columns are kept in pairs: column ``2 j`` in memory is output ``j``, column ``2 j + 1`` output ``j + half``, of
``half = ceil(O / 2)``, since a pair of normal numbers is for these two. A thread that sums neighbours in memory then
has both numbers' columns.
"""

import triton
import triton.language as tl

from crossbar.native import gpu
from crossbar.random.triton_kernels import pair

_INTERPRETED = tl.constexpr(gpu.interpreted())
_ROUNDING = tl.constexpr(12582912.0)  # 1.5 * 2^23: what is added to it is rounded to a whole number, to even


@triton.jit
def nearest(number):
    """The whole number nearest to one below 2^22, ties to even."""
    return (number + _ROUNDING) - _ROUNDING


@triton.jit
def clipped(number, most):
    """A number within ± ``most``; NaN stays NaN."""
    low = tl.maximum(number, -most, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(low, most, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _as(at, like):
    """``at``, held by the threads that hold ``like``: what is made of it needs no exchange between threads later."""
    if _INTERPRETED:
        return at
    return tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r,r", [at, like], dtype=tl.uint32, is_pure=True, pack=1)


@triton.jit(do_not_specialize=["lines", "outputs", "largest", "least"])
def fix(
    digits, cells, steps, lines, outputs, largest, least,
    ROWS: tl.constexpr, PADDED: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Digits ``[S, I, O]`` as integers of two bytes within ± ``largest`` of each column of a tile, and their steps.

    ``cells`` are ``[T, 2, 2 half, PADDED]`` int8, high bytes before low ones, 0 where there is no cell; ``steps``
    ``[T, O]`` float32: what 1 of the integers stands for. A program has ``BC`` pairs of columns of a tile.
    """
    tile = tl.program_id(0)
    row_tiles = tl.cdiv(lines, ROWS)
    half = (outputs + 1) // 2
    own = tl.program_id(1) * BC + tl.arange(0, BC)
    first = (tile % row_tiles) * ROWS
    count = tl.minimum(lines - first, ROWS)
    begin = digits + ((tile // row_tiles).to(tl.int64) * lines + first) * outputs
    for place in tl.static_range(2):
        column = own + place * half
        there = (own < half) & (column < outputs)
        span = tl.full((BC,), 0.0, tl.float32) + least * largest
        for row in range(0, PADDED, BR):
            line = row + tl.arange(0, BR)
            known = (line < count)[:, None] & there[None, :]
            each = tl.load(begin + line.to(tl.int64)[:, None] * outputs + column[None, :], mask=known, other=0.0)
            span = tl.maximum(span, tl.max(tl.abs(each), 0))
        tl.store(steps + tile.to(tl.int64) * outputs + column, tl.div_rn(span, largest), mask=there)
        factor = tl.div_rn(largest, span)
        into = cells + (tile.to(tl.int64) * 4 * half + 2 * own + place)[:, None] * PADDED
        for row in range(0, PADDED, BR):
            line = row + tl.arange(0, BR)
            known = (line < count)[:, None] & there[None, :]
            each = tl.load(begin + line.to(tl.int64)[:, None] * outputs + column[None, :], mask=known, other=0.0)
            whole = nearest(each * factor[None, :]).to(tl.int32)
            high = (whole + 128) >> 8
            low = whole - (high << 8)
            within = (own < half)[:, None] & (line < PADDED)[None, :]
            tl.store(into + line[None, :], tl.trans(high).to(tl.int8), mask=within)
            tl.store(into + 2 * half * PADDED + line[None, :], tl.trans(low).to(tl.int8), mask=within)


@triton.jit
def _constants(
    block, steps, scales, ranges, offset, variance, constants, tiles, outputs, step, dac_levels, adc_levels, noise,
    RANGE: tl.constexpr, COLUMNS: tl.constexpr, NOISE: tl.constexpr, OFFSET: tl.constexpr, CELLS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """What every conversion is with, ``[5, T, O]``: factor, scale, deviation, offset, variance; ADC steps."""
    count = tiles.to(tl.int64) * outputs
    own = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = own < count
    unit = tl.full((BLOCK,), 0.0, tl.float32) + step
    if RANGE == 1:
        unit = unit * 0.0 + tl.div_rn(tl.load(ranges).to(tl.float32), adc_levels)
    elif RANGE == 2:
        given = tl.load(ranges + own, mask=there, other=1.0).to(tl.float32)
        unit = tl.div_rn(given, adc_levels)
    factor = tl.div_rn(tl.load(steps + own, mask=there, other=0.0), unit * dac_levels)
    tl.store(constants + own, factor, mask=there)
    scale = unit
    if not COLUMNS:
        scale = tl.load(scales + own, mask=there, other=0.0) * unit
    tl.store(constants + count + own, scale, mask=there)
    if NOISE:
        tl.store(constants + 2 * count + own, tl.div_rn(noise, unit), mask=there)
    if OFFSET:
        moved = tl.load(offset + own, mask=there, other=0.0)
        tl.store(constants + 3 * count + own, tl.div_rn(moved, unit), mask=there)
    if CELLS:
        spread = tl.load(variance + own, mask=there, other=0.0)
        tl.store(constants + 4 * count + own, tl.div_rn(spread, unit * unit), mask=there)


@triton.jit
def _encode(
    block, x, stride, ranges, known, codes, full_scale, power, vectors, lines, tiles, given, levels, least,
    ROWS: tl.constexpr, PADDED: tl.constexpr, FOUND: tl.constexpr, CELLS: tl.constexpr, BV: tl.constexpr,
    BLOCK: tl.constexpr, BR: tl.constexpr,
):  # fmt: skip
    """Input codes of ``BV`` vectors, ``[T_in, PADDED]`` int8 each, their ranges, and sums of squared drives by tile.

    ``FOUND``: 0, its own largest input; 1, a number ``given``; 2, one of ``ranges``. NaN is the range where an input
    is NaN or the range no number above 0; codes are then 0.
    """
    row = block * BV + tl.arange(0, BV)
    there = row < vectors
    begin = (row.to(tl.int64) * stride)[:, None]
    largest = tl.full((BV, BLOCK), 0, tl.int32)  # as bits, which sort as magnitudes do, and NaN behind infinity
    for first in range(0, lines, BLOCK):
        line = (first + tl.arange(0, BLOCK))[None, :]
        each = tl.load(x + begin + line, mask=there[:, None] & (line < lines), other=0.0).to(tl.float32)
        largest = tl.maximum(largest, each.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    most = tl.max(largest, 1)
    if FOUND == 0:
        span = tl.maximum(most.to(tl.float32, bitcast=True), least)
        lost = most >= 0x7F800000
    else:
        span = tl.full((BV,), 0.0, tl.float32) + given
        if FOUND == 2:
            span = tl.load(ranges + row % known).to(tl.float32)
        lost = (most > 0x7F800000) | (span <= 0) | (span != span) | (span == float("inf"))
    tl.store(full_scale + row, tl.where(lost, float("nan"), span), mask=there)
    factor = tl.div_rn(levels, span)[:, None]
    lost = lost[:, None]
    into = (row.to(tl.int64) * tiles * PADDED)[:, None]
    for first in range(0, tiles * PADDED, BLOCK):
        place = (first + tl.arange(0, BLOCK))[None, :]
        own = place % PADDED
        line = (place // PADDED) * ROWS + own
        held = there[:, None] & (own < ROWS) & (line < lines)
        each = tl.load(x + begin + line, mask=held, other=0.0).to(tl.float32)
        code = nearest(clipped(tl.where(lost, 0.0, each * factor), levels))
        tl.store(codes + into + place, code.to(tl.int8), mask=there[:, None] & (place < tiles * PADDED))
    if CELLS:
        for tile in range(tiles):
            total = tl.full((BV, BR), 0, tl.int32)
            for first in range(0, ROWS, BR):
                own = (first + tl.arange(0, BR))[None, :]
                line = tile * ROWS + own
                held = there[:, None] & (own < ROWS) & (line < lines)
                each = tl.load(x + begin + line, mask=held, other=0.0).to(tl.float32)
                code = nearest(clipped(tl.where(lost, 0.0, each * factor), levels)).to(tl.int32)
                total += code * code
            driven = tl.div_rn(tl.sum(total, 1).to(tl.float32), levels * levels)
            tl.store(power + row * tiles + tile, driven, mask=there)


@triton.jit(do_not_specialize=["stride", "known", "vectors", "lines", "outputs", "row_tiles", "tiles"])
def prepare(
    x, stride, ranges, known, codes, full_scale, power, vectors, lines, row_tiles, given, levels, least,
    steps, scales, adc_range, offset, variance, constants, tiles, outputs, step, adc_levels, noise,
    ROWS: tl.constexpr, PADDED: tl.constexpr, FOUND: tl.constexpr, RANGE: tl.constexpr, COLUMNS: tl.constexpr,
    NOISE: tl.constexpr, OFFSET: tl.constexpr, CELLS: tl.constexpr, BV: tl.constexpr, BLOCK: tl.constexpr,
    BR: tl.constexpr,
):  # fmt: skip
    """What a product needs beside the cells: programs for ``BV`` input vectors each, then the columns' constants."""
    program = tl.program_id(0)
    blocks = (vectors + BV - 1) // BV
    if program < blocks:
        _encode(
            program, x, stride, ranges, known, codes, full_scale, power, vectors, lines, row_tiles, given, levels,
            least, ROWS, PADDED, FOUND, CELLS, BV, BLOCK, BR,
        )  # fmt: skip
    else:
        _constants(
            program - blocks, steps, scales, adc_range, offset, variance, constants, tiles, outputs, step, levels,
            adc_levels, noise, RANGE, COLUMNS, NOISE, OFFSET, CELLS, BLOCK,
        )  # fmt: skip


@triton.jit
def _of_tile(constants, which: tl.constexpr, count, first, second, outputs):
    """One constant of a tile's pairs of columns."""
    begin = constants + which * count
    return (
        tl.load(begin + first, mask=first < outputs, other=0.0),
        tl.load(begin + second, mask=second < outputs, other=0.0),
    )


@triton.jit
def _steps(sums, numbers, factor, deviation, offset, variance, power,
           NOISE: tl.constexpr, OFFSET: tl.constexpr, CELLS: tl.constexpr):  # fmt: skip
    """Column sums with noise and offset, in ADC steps: `crossbar.backends.cpu.kernels.convert`."""
    if NOISE:
        if CELLS:
            spread = tl.fma(deviation[None, :], deviation[None, :], power[:, None] * variance[None, :])
            added = numbers * tl.sqrt_rn(spread)
        else:
            added = numbers * deviation[None, :]
        if OFFSET:
            added = added + offset[None, :]
        return tl.fma(sums, factor[None, :], added)
    elif OFFSET:
        return tl.fma(sums, factor[None, :], offset[None, :])
    else:
        return sums * factor[None, :]


@triton.jit
def _codes(steps, levels):
    """What ADCs make of column sums in their steps."""
    return nearest(clipped(steps, levels))


@triton.jit
def _converted(steps, levels, scale, unit, total):
    """What ADCs deliver, scaled and added to ``total``."""
    return tl.fma(_codes(steps, levels), scale[None, :] * unit[:, None], total)


@triton.jit(do_not_specialize=["vectors", "outputs", "tiles", "row_tiles", "start", "key"])
def multiply(
    codes, cells, constants, power, full_scale, out, inside, vectors, outputs, tiles, row_tiles, start, key, levels,
    PADDED: tl.constexpr, SHIFT: tl.constexpr, NOISE: tl.constexpr, EVEN: tl.constexpr, OFFSET: tl.constexpr,
    CELLS: tl.constexpr, COLUMNS: tl.constexpr, INSIDE: tl.constexpr, LEFT: tl.constexpr, BB: tl.constexpr,
    BO: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Products of tiles with codes ``[B, T_in, PADDED]``, converted tile after tile, ``[B, O]``.

    Or with ``COLUMNS`` what each tile's ADCs deliver, ``[T, B, O]``. A program has ``BB`` vectors and ``BO`` columns;
    ``GROUP`` blocks of vectors are worked on with the same cells by programs that follow each other. ``SHIFT``: the
    sums of tiles fit 32 bits, as they do up to 512 word lines; else a multiply-add of floats puts both bytes together.
    ``EVEN``: all columns have the first one's deviation, so that no register is needed for each. ``INSIDE``: which
    conversions are within the range of their ADC, ``[T, B, O]`` int8, is written too: those that gradients go through.
    With ``LEFT`` it is float16: what codes have more than their numbers, and outside of the range the codes themselves.
    """
    HALF: tl.constexpr = BO // 2
    half = (outputs + 1) // 2
    program = tl.program_id(0)
    vector_blocks, column_blocks = (vectors + BB - 1) // BB, (2 * half + BO - 1) // BO
    group = program // (GROUP * column_blocks)
    size = tl.minimum(vector_blocks - group * GROUP, GROUP)
    rest = program - group * GROUP * column_blocks
    row = (group * GROUP + rest % size) * BB + tl.arange(0, BB)
    block = (rest // size) * BO
    column = tl.minimum(block + tl.arange(0, BO), 2 * half - 1)
    first = block // 2 + tl.arange(0, HALF)
    second = tl.where(first < half, first + half, outputs)
    lines = tl.arange(0, BK)
    known = tl.minimum(row, vectors - 1)
    unit = tl.load(full_scale + known)
    count = tiles.to(tl.int64) * outputs
    driven = known.to(tl.int64)[:, None] * (row_tiles * PADDED) + lines[None, :]
    plane = 2 * half * PADDED
    held = column[None, :] * PADDED + lines[:, None]
    one = tl.full((BB, HALF), 0.0, tl.float32)
    other = tl.full((BB, HALF), 0.0, tl.float32)
    words = (start.to(tl.int64) + row.to(tl.int64) * tiles * (2 * half)).to(tl.uint32)
    step = (2 * half).to(tl.uint32)
    key = key.to(tl.uint32)
    for tile in tl.range(tiles, num_stages=STAGES):
        row_tile = tile % row_tiles
        high = tl.full((BB, BO), 0, tl.int32)
        low = tl.full((BB, BO), 0, tl.int32)
        for part in tl.static_range(PADDED // BK):
            code = tl.load(codes + driven + (row_tile * PADDED + part * BK))
            high = tl.dot(code, tl.load(cells + held + part * BK), high, out_dtype=tl.int32)
            if not SHIFT:
                low = tl.dot(code, tl.load(cells + plane + held + part * BK), low, out_dtype=tl.int32)
        if SHIFT:
            high = high << 8
            for part in tl.static_range(PADDED // BK):
                code = tl.load(codes + driven + (row_tile * PADDED + part * BK))
                high = tl.dot(code, tl.load(cells + plane + held + part * BK), high, out_dtype=tl.int32)
            sums = high.to(tl.float32)
        else:
            sums = tl.fma(high.to(tl.float32), tl.full((BB, BO), 256.0, tl.float32), low.to(tl.float32))
        one_sum, other_sum = tl.split(tl.reshape(sums, (BB, HALF, 2)))
        factor, other_factor = _of_tile(constants, 0, count, first, second, outputs)
        scale, other_scale = _of_tile(constants, 1, count, first, second, outputs)
        deviation, other_deviation = factor, factor
        offset, other_offset = factor, factor
        variance, other_variance = factor, factor
        number, other_number = one_sum, other_sum
        squares = unit
        if NOISE:
            if EVEN:
                deviation = tl.full((HALF,), 1.0, tl.float32) * tl.load(constants + 2 * count)
                other_deviation = deviation
            else:
                deviation, other_deviation = _of_tile(constants, 2, count, first, second, outputs)
            at = words[:, None] + (2 * first).to(tl.uint32)[None, :]
            number, other_number = pair(_as(at, one_sum), key)
        if OFFSET:
            offset, other_offset = _of_tile(constants, 3, count, first, second, outputs)
        if CELLS:
            variance, other_variance = _of_tile(constants, 4, count, first, second, outputs)
            squares = tl.load(power + known * row_tiles + row_tile)
        if COLUMNS:
            one = tl.full((BB, HALF), 0.0, tl.float32)
            other = tl.full((BB, HALF), 0.0, tl.float32)
        one_steps = _steps(one_sum, number, factor, deviation, offset, variance, squares, NOISE, OFFSET, CELLS)
        other_steps = _steps(other_sum, other_number, other_factor, other_deviation, other_offset, other_variance,
                             squares, NOISE, OFFSET, CELLS)  # fmt: skip
        one = _converted(one_steps, levels, scale, unit, one)
        other = _converted(other_steps, levels, other_scale, unit, other)
        if INSIDE:
            within, other_within = tl.abs(one_steps) <= levels + 0.5, tl.abs(other_steps) <= levels + 0.5
            if LEFT:
                left = _codes(one_steps, levels) - tl.where(within, one_steps, 0.0)
                other_left = _codes(other_steps, levels) - tl.where(other_within, other_steps, 0.0)
                _stored(inside, row, first, second, left.to(tl.float16), other_left.to(tl.float16), vectors, outputs,
                        half)  # fmt: skip
            else:
                _stored(inside, row, first, second, within.to(tl.int8), other_within.to(tl.int8), vectors, outputs,
                        half)  # fmt: skip
            inside += vectors.to(tl.int64) * outputs
        if COLUMNS:
            _stored(out, row, first, second, one, other, vectors, outputs, half)
            out += vectors.to(tl.int64) * outputs
        cells += 2 * plane
        constants += outputs
        words += step
    if not COLUMNS:
        _stored(out, row, first, second, one, other, vectors, outputs, half)


@triton.jit
def _stored(out, row, first, second, one, other, vectors, outputs, half):
    """Write a block of results, ``[B, O]``."""
    place = out + row.to(tl.int64)[:, None] * outputs
    tl.store(place + first[None, :], one, mask=(row < vectors)[:, None] & (first < half)[None, :])
    tl.store(place + second[None, :], other, mask=(row < vectors)[:, None] & (second < outputs)[None, :])


@triton.jit
def _halved(times):
    """``2^-times`` for times >= 0; what is below the smallest normal number is that."""
    power = -tl.minimum(times, 126.0)
    whole = nearest(power)
    y = power - whole
    value = tl.fma(y, 1.32669704e-3, 9.67545975e-3)
    value = tl.fma(value, y, 5.55074262e-2)
    value = tl.fma(value, y, 0.240221218)
    value = tl.fma(value, y, 0.693146949)
    value = tl.fma(value, y, 1.00000007)
    return value * ((whole.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["pairs", "vectors", "slots", "opened", "size", "stride"])
def age_rows(
    programmed, exponent, amplitude, place, halvings, band, start, key, digits, variance, pairs, vectors, slots, opened,
    size, stride, unit, constant, relative,
    EXPONENT: tl.constexpr, AMPLITUDE: tl.constexpr, VARIANCE: tl.constexpr, BL: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Digits of opened rows, each at its own age: `crossbar.backends.cpu.kernels.age_rows`, ``BL`` rows a program."""
    line = tl.program_id(0).to(tl.int64) * BL + tl.arange(0, BL)
    known = line < vectors.to(tl.int64) * opened
    vector, row = line // opened, line % opened
    own = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    there = known[:, None] & (own < size)[None, :]
    slot = ((vector * slots + tl.load(place + row, mask=known, other=0)) * size)[:, None] + own[None, :]
    plane = vectors.to(tl.int64) * slots * size
    times = tl.load(halvings + row, mask=known, other=0.0)[:, None]
    width = tl.load(band + row, mask=known, other=0.0)[:, None]
    at = (tl.load(start + row, mask=known, other=0) + vector * stride).to(tl.uint32)[:, None]
    word_key = tl.load(key + row, mask=known, other=0).to(tl.uint32)[:, None]
    total = tl.full((BL, BLOCK), 0.0, tl.float32)
    spread = tl.full((BL, BLOCK), 0.0, tl.float32)
    for each in range(pairs):
        one, other = slot + each * plane, slot + (pairs + each) * plane
        up = tl.load(programmed + one, mask=there, other=0.0)
        down = tl.load(programmed + other, mask=there, other=0.0)
        if EXPONENT:
            up = up * _halved(tl.load(exponent + one, mask=there, other=0.0) * times)
            down = down * _halved(tl.load(exponent + other, mask=there, other=0.0) * times)
        else:
            up = up * _halved(times)
            down = down * _halved(times)
        if AMPLITUDE:
            above, below = pair(at + (2 * (each * size + own)).to(tl.uint32)[None, :], word_key)
            grown = tl.load(amplitude + one, mask=there, other=0.0) * width
            up = up * tl.maximum(tl.fma(grown, above, 1.0), 0.0)
            grown = tl.load(amplitude + other, mask=there, other=0.0) * width
            down = down * tl.maximum(tl.fma(grown, below, 1.0), 0.0)
        total = tl.fma(up - down, unit, total)
        if VARIANCE:
            spread += tl.fma(tl.fma(up, up, down * down), relative, 2.0 * constant)
    into = (line * size)[:, None] + own[None, :]
    tl.store(digits + into, total, mask=there)
    if VARIANCE:
        tl.store(variance + into, spread, mask=there)
