"""The compiled kernels of GPUs for analog keys and values: both stages with converters and noise, no score in memory.

They do what `attention.kernel.analog` does, a block of queries a program. Keys go by in chunks of a tile's lines,
twice: first for the softmax's maximum and sum and the range of the drives, then for the drives themselves. A tile's
columns are converted when its last chunk has been added up.

Backwards, scores and drives are made again, with the noise that they had. `attend_queries` goes through the tiles of a
block of queries: when it knows which of a tile's conversions were within the ADC's range, through its chunks again, for
the gradient of the queries. `attend_keys` goes through the blocks of queries that read a chunk, for that of its keys
and values, some of them a program, whose sums `collect` adds up in their order.

Lines of a chunk, and columns of values, are taken in pairs ``j``, ``j + half`` that stand side by side, since a pair of
normal numbers is for these two (`crossbar.random`).
"""

import triton
import triton.language as tl

from crossbar.backends.triton.triton_kernels import clipped, nearest
from crossbar.random.triton_kernels import pair, random_word

_LOWEST = tl.constexpr(-3.4028234663852886e38)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _converted(number, levels):
    """The nearest whole number within ± ``levels``, ties to even; NaN stays NaN."""
    return nearest(clipped(number, levels))


@triton.jit
def _stream(number, start, key):
    """Where stream ``number`` of a key's streams begins, and its key: uint32 both."""
    own = start.to(tl.uint32, bitcast=True) + 2 * number.to(tl.uint32)
    key = key.to(tl.uint32, bitcast=True)
    return random_word(own, key), random_word(own + 1, key)


@triton.jit
def _normals(row, first, start, key, half, COUNT: tl.constexpr, HALF: tl.constexpr):
    """Numbers ``first`` to ``first + COUNT / 2`` of rows ``row`` [R], each with its other one beside it: [R, COUNT]."""
    own = 2 * (first + tl.arange(0, HALF))
    at = (start + row * (2 * half).to(tl.uint32))[:, None] + own.to(tl.uint32)[None, :]
    one, other = pair(at, key)
    return tl.interleave(one, other)


@triton.jit
def _product(codes, high, low):
    """``codes @ (high + low)``: codes are whole numbers that float16 has."""
    codes = codes.to(tl.float16)
    return tl.dot(codes, high) + tl.dot(codes, low)


@triton.jit
def _sums_of_squares(codes, variance):
    """``codes² @ variance``, in float32."""
    return tl.dot(codes * codes, variance, input_precision="tf32x3")


@triton.jit
def _own_noise(
    x_rows, asked, full_scale, dac_levels, variance, token, there, size, part, columns,
    BM: tl.constexpr, BN: tl.constexpr, DP: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """``codes² @ variance`` of keys [BM, BN], a few dimensions after others.

    Queries are coded again for each few of them: squares of all codes, in the two parts that the tensor cores take of a
    float32 number, would stay in registers that a thread does not have.
    """
    PIECE: tl.constexpr = DP if DP < 32 else 32
    power = tl.zeros((BM, BN), tl.float32)
    factor = tl.div_rn(dac_levels, full_scale)[:, None]
    for first in tl.range(0, DP, PIECE, num_stages=1):
        dim = first + tl.arange(0, PIECE)
        within = dim < size
        x = tl.load(x_rows[:, None] + dim[None, :], mask=asked[:, None] & within[None, :], other=0.0).to(tl.float32)
        codes = _converted(x * factor, dac_levels)
        if PARTS > 1:
            codes = tl.where((dim // columns == part)[None, :], codes, 0.0)
        at = variance + token[None, :] * size + dim[:, None]
        power += _sums_of_squares(codes, tl.load(at, mask=there[None, :] & within[:, None], other=0.0))
    return power


@triton.jit
def _steps(sums, normals, power, alpha, beta, noise, step, unit, NOISE: tl.constexpr, CELLS: tl.constexpr):
    """Sums times ``alpha`` with their noise, in the ADC's steps; ``power`` is the cells' own, in codes squared."""
    if CELLS:
        spread = tl.sqrt_rn(tl.fma(power, unit * unit, noise * noise))
        return tl.fma(sums, alpha, normals * tl.div_rn(spread, step))
    elif NOISE:
        return tl.fma(sums, alpha, normals * beta)
    else:
        return sums * alpha


@triton.jit
def _delivered(y, step, levels, span, ADC: tl.constexpr, SPAN: tl.constexpr):
    """What the ADC makes of sums in its steps, unit outputs, and whether they are within its range."""
    within = y == y
    if ADC:
        if SPAN:
            y = tl.div_rn(y, span)
        within = tl.abs(y) <= levels + 0.5
        y = _converted(y, levels)
        if SPAN:
            y = y * span
    return y * step, within


@triton.jit
def _driven(x, dac_levels, dac_range, BM: tl.constexpr, STATIC: tl.constexpr):
    """Codes of queries [BM, DP], their ranges [BM], and whether a query's numbers are within them."""
    full_scale = tl.full((BM,), 0.0, tl.float32) + dac_range
    if not STATIC:
        full_scale = tl.maximum(tl.max(tl.abs(x), 1), 1e-30)
    codes = x * tl.div_rn(dac_levels, full_scale)[:, None]
    return _converted(codes, dac_levels), full_scale, tl.abs(codes) <= dac_levels + 0.5


@triton.jit
def _values(value_high, value_low, token, there, column, within, size):
    """Two parts of a chunk's values [BN, DP], columns in pairs."""
    at = token[:, None] * size + column[None, :]
    known = there[:, None] & within[None, :]
    return tl.load(value_high + at, mask=known, other=0.0), tl.load(value_low + at, mask=known, other=0.0)


@triton.jit
def _scores(
    n, entry, number, x_rows, asked, codes, span_of_codes, key_high, key_low, key_scale, key_variance, tokens, masks,
    real, row, start, key, n_keys, tiles, rows, size, alpha, beta, noise, step, unit, dac_levels, levels, columns,
    BM: tl.constexpr, BN: tl.constexpr, DP: tl.constexpr, CHUNKS: tl.constexpr, PARTS: tl.constexpr,
    NOISE: tl.constexpr, CELLS: tl.constexpr, ADC: tl.constexpr, SPAN: tl.constexpr, PADDING: tl.constexpr,
    PLACED: tl.constexpr,
):  # fmt: skip
    """Scores [BM, BN] times log2 e over a query's range, and what goes with them.

    Returns:
        Scores; which pairs are attended; a bit for each part of a head whether its conversion was within the ADC's
        range; the keys' numbers [BN] and which there are; two parts of the keys [DP, BN]; their scales [BN].
    """
    tile, first = entry // CHUNKS, (entry % CHUNKS) * (BN // 2)
    half = (rows + 1) // 2
    column = tl.arange(0, BN)
    low = first + column // 2
    line = low + (column % 2) * half
    if PLACED:
        token = tl.load(tokens + n * BN + column)
        there = token >= 0
    else:
        token = tile * rows + line
        there = (low < half) & (line < rows) & (token < n_keys)
    dim = tl.arange(0, DP)
    at = token[None, :] * size + dim[:, None]
    known = there[None, :] & (dim < size)[:, None]
    high = tl.load(key_high + at, mask=known, other=0.0)
    lower = tl.load(key_low + at, mask=known, other=0.0)
    total = tl.zeros((BM, BN), tl.float32)
    inside = tl.zeros((BM, BN), tl.int32)
    for part in tl.static_range(PARTS):
        own, span = codes, span_of_codes
        if PARTS > 1:
            here = (dim // columns == part)[None, :]
            own = tl.where(here, codes, 0.0)
        if SPAN:
            lines = tl.minimum(size - part * columns, columns).to(tl.float32)
            active = tl.sum((own != 0.0).to(tl.float32), 1)
            span = tl.sqrt_rn(tl.div_rn(tl.maximum(active, 1.0), lines))
        normals, power = total, total
        if NOISE:
            place = row * (tiles * PARTS).to(tl.uint32) + (tile * PARTS + part).to(tl.uint32)
            normals = _normals(place, first, start, key, half, BN, BN // 2)
        if CELLS:
            power = _own_noise(
                x_rows, asked, span_of_codes, dac_levels, key_variance, token, there, size, part, columns,
                BM, BN, DP, PARTS,
            )  # fmt: skip
        y = _steps(_product(own, high, lower), normals, power, alpha, beta, noise, step, unit, NOISE, CELLS)
        found, within = _delivered(y, step, levels, span[:, None], ADC, SPAN)
        total += found
        inside += within.to(tl.int32) << part
    scale = tl.load(key_scale + token, mask=there, other=0.0)
    pairs = (masks + number.to(tl.int64) * BM * BN) + (tl.arange(0, BM)[:, None] * BN + column[None, :])
    attended = there[None, :] & (tl.load(pairs, mask=number >= 0, other=1) != 0)
    if PADDING:
        attended = attended & (tl.load(real + token, mask=there, other=0) != 0)[None, :]
    return total * scale[None, :], attended, inside, token, there, high, lower, scale


@triton.jit(do_not_specialize=["score_start", "score_key", "value_start", "value_key"])
def attend(
    q, key_high, key_low, key_scale, value_high, value_low, value_scale, key_variance, value_variance, real, streams,
    bounds, entries, numbers, masks, tokens, output, lse, state,
    n_queries, n_keys, heads, group, tiles, rows, size, columns,
    sq_b, sq_h, sq_n, so_b, so_h, so_n,
    score_start, score_key, value_start, value_key,
    dac_levels, dac_range, adc_levels, step, noise,
    BM: tl.constexpr, BN: tl.constexpr, DP: tl.constexpr, CHUNKS: tl.constexpr, PARTS: tl.constexpr,
    STATIC: tl.constexpr, NOISE: tl.constexpr, CELLS: tl.constexpr, ADC: tl.constexpr, SPAN: tl.constexpr,
    PADDING: tl.constexpr, PLACED: tl.constexpr, TRAINED: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of ``BM`` queries of a head, without softmax weights or scores in memory.

    Keys and values are digits ``[B, H_kv, N, D]`` as two float16 numbers each; scales are float32 ``[B, H_kv, N]``,
    those of keys times the softmax's scale and log2 e; ``streams`` are int32 ``[B, H]``. Lists are those of
    `attention.kernel.fused.Chunks`. ``STATIC``: the DAC's range is ``dac_range``, and not each query's own.
    ``TRAINED``: what the backward pass needs goes to ``state``, float32 ``[3, B, H, N_queries]``: the largest score,
    the sum of weights and the largest drive.
    """
    block, head = tl.program_id(0), tl.program_id(1)
    batch, own_head = head // heads, head % heads
    shared = batch.to(tl.int64) * (heads // group) + own_head // group
    query = block * BM + tl.arange(0, BM)
    asked = query < n_queries
    dim = tl.arange(0, DP)
    key_high += shared * n_keys * size
    key_low += shared * n_keys * size
    value_high += shared * n_keys * size
    value_low += shared * n_keys * size
    if CELLS:
        key_variance += shared * n_keys * size
        value_variance += shared * n_keys * size
    key_scale += shared * n_keys
    value_scale += shared * n_keys
    real += batch.to(tl.int64) * n_keys
    x_rows = q + (batch.to(tl.int64) * sq_b + own_head.to(tl.int64) * sq_h + query.to(tl.int64) * sq_n)
    x = tl.load(x_rows[:, None] + dim[None, :], mask=asked[:, None] & (dim < size)[None, :], other=0.0).to(tl.float32)
    codes, full_scale, _unclipped = _driven(x, dac_levels, dac_range, BM, STATIC)
    number = tl.load(streams + head)
    score_start, score_key = _stream(number, score_start, score_key)
    value_start, value_key = _stream(number, value_start, value_key)
    row = query.to(tl.uint32)
    alpha, beta, unit = tl.div_rn(1.0, dac_levels * step), tl.div_rn(noise, step), tl.div_rn(1.0, dac_levels)
    begin, end = tl.load(bounds + block), tl.load(bounds + block + 1)

    most = tl.full((BM,), _LOWEST, tl.float32)
    total, largest = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    for n in range(begin, end):
        entry = tl.load(entries + n)
        scores, attended, _insides, token, there, _high, _lower, _scale = _scores(
            n, entry // 2, tl.load(numbers + n), x_rows, asked, codes, full_scale, key_high, key_low, key_scale,
            key_variance, tokens, masks, real, row, score_start, score_key, n_keys, tiles, rows, size, alpha, beta,
            noise, step, unit, dac_levels, adc_levels, columns, BM, BN, DP, CHUNKS, PARTS, NOISE, CELLS, ADC, SPAN,
            PADDING, PLACED,
        )  # fmt: skip
        scores = tl.where(attended, scores * full_scale[:, None], float("-inf"))
        higher = tl.maximum(most, tl.max(scores, 1))
        shrunk = tl.exp2(most - higher)
        weights = tl.exp2(scores - higher[:, None])
        drives = weights * tl.load(value_scale + token, mask=there, other=0.0)[None, :]
        total = total * shrunk + tl.sum(weights, 1)
        largest = tl.maximum(largest * shrunk, tl.max(drives, 1))
        most = higher
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    found = (most + tl.log2(total)) * _LN_2
    own = head.to(tl.int64) * n_queries + query
    tl.store(lse + own, tl.where(empty, float("-inf"), found), mask=asked)
    largest = tl.maximum(largest, 1e-30)
    if TRAINED:
        count = tl.num_programs(1).to(tl.int64) * n_queries
        tl.store(state + own, most, mask=asked)
        tl.store(state + count + own, total, mask=asked)
        tl.store(state + 2 * count + own, largest, mask=asked)

    if STATIC:
        factor, worth = tl.div_rn(dac_levels, dac_range * total), full_scale
    else:
        factor, worth = tl.div_rn(dac_levels, largest), tl.div_rn(largest, total)
    half = (size + 1) // 2
    pair_of = tl.arange(0, DP)
    column = pair_of // 2 + (pair_of % 2) * half
    within = (pair_of // 2 < half) & (column < size)
    sums, result = tl.zeros((BM, DP), tl.float32), tl.zeros((BM, DP), tl.float32)
    power = tl.zeros((BM, DP), tl.float32)
    opened = tl.zeros((BM,), tl.float32)
    for n in range(begin, end):
        entry = tl.load(entries + n)
        scores, attended, _insides, token, there, _high, _lower, _scale = _scores(
            n, entry // 2, tl.load(numbers + n), x_rows, asked, codes, full_scale, key_high, key_low, key_scale,
            key_variance, tokens, masks, real, row, score_start, score_key, n_keys, tiles, rows, size, alpha, beta,
            noise, step, unit, dac_levels, adc_levels, columns, BM, BN, DP, CHUNKS, PARTS, NOISE, CELLS, ADC, SPAN,
            PADDING, PLACED,
        )  # fmt: skip
        scores = tl.where(attended, scores * full_scale[:, None], float("-inf"))
        drives = tl.exp2(scores - most[:, None]) * tl.load(value_scale + token, mask=there, other=0.0)[None, :]
        drives = _converted(drives * factor[:, None], dac_levels)
        high, lower = _values(value_high, value_low, token, there, column, within, size)
        sums += _product(drives, high, lower)
        if CELLS:
            at = token[:, None] * size + column[None, :]
            spread = tl.load(value_variance + at, mask=there[:, None] & within[None, :], other=0.0)
            power += _sums_of_squares(drives, spread)
        opened += tl.sum(attended.to(tl.float32), 1)
        if entry % 2 == 1:
            normals = sums
            if NOISE:
                conversion = row * tiles.to(tl.uint32) + (entry // 2 // CHUNKS).to(tl.uint32)
                normals = _normals(conversion, 0, value_start, value_key, half, DP, DP // 2)
            span = tl.sqrt_rn(tl.div_rn(tl.maximum(opened, 1.0), tl.zeros((BM,), tl.float32) + rows))
            y = _steps(sums, normals, power, alpha, beta, noise, step, unit, NOISE, CELLS)
            sensed, _passed = _delivered(y, step, adc_levels, span[:, None], ADC, SPAN)
            result += tl.where((opened > 0.0)[:, None], sensed, 0.0)
            sums = tl.zeros((BM, DP), tl.float32)
            power = tl.zeros((BM, DP), tl.float32)
            opened = tl.zeros((BM,), tl.float32)
    result = result * worth[:, None]
    place = batch.to(tl.int64) * so_b + own_head.to(tl.int64) * so_h
    place = place + query.to(tl.int64)[:, None] * so_n + column[None, :]
    tl.store(output + place, result.to(output.dtype.element_ty), mask=asked[:, None] & within[None, :])


@triton.jit
def _of_scores(through, high, lower, weights, scale, clip, common, attended, PRECISION: tl.constexpr):
    """The gradient of scores (times log2 e) [BM, BN], but for what the softmax takes off all of a query's keys.

    Args: gradients of sums [BM, DP] within the ADC's range; a chunk's values in two parts; softmax weights; values'
    scales [BN]; whether drives are within the DAC's range; what is taken off, [BM]; attended pairs.
    """
    values = tl.trans(high.to(tl.float32) + lower.to(tl.float32))
    each = tl.dot(through, values, input_precision=PRECISION) * scale[None, :]
    each = tl.where(clip, each, 0.0)
    return tl.where(attended, weights * (each - common[:, None]) * _LN_2, 0.0), each


@triton.jit(do_not_specialize=["score_start", "score_key", "value_start", "value_key"])
def attend_queries(
    q, key_high, key_low, key_scale, value_high, value_low, value_scale, key_variance, value_variance, real, streams,
    bounds, entries, numbers, masks, runs, output, state, grad_output, grad_lse, grad_q, common, inside,
    n_queries, n_keys, heads, group, tiles, rows, size, columns,
    sq_b, sq_h, sq_n, so_b, so_h, so_n,
    score_start, score_key, value_start, value_key,
    dac_levels, dac_range, adc_levels, step, noise,
    BM: tl.constexpr, BN: tl.constexpr, DP: tl.constexpr, CHUNKS: tl.constexpr, PARTS: tl.constexpr,
    STATIC: tl.constexpr, NOISE: tl.constexpr, CELLS: tl.constexpr, ADC: tl.constexpr, SPAN: tl.constexpr,
    PADDING: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The gradient of ``BM`` queries of a head, float32 ``[B, H, N_queries, D]``, and what `attend_keys` wants to know.

    That is what the softmax takes off the gradient of all keys of a query, ``common`` float32 ``[B, H, N_queries]``,
    and which conversions of values were within their ADC's range, ``inside`` uint8 ``[runs, B H, BM, DP / 8]``, a bit
    each.
    Outputs and their gradients have the strides ``so``. ``runs``: of a chunk's entry, which of all tiles of all blocks.
    """
    block, head = tl.program_id(0), tl.program_id(1)
    batch, own_head = head // heads, head % heads
    shared = batch.to(tl.int64) * (heads // group) + own_head // group
    query = block * BM + tl.arange(0, BM)
    asked = query < n_queries
    dim = tl.arange(0, DP)
    key_high += shared * n_keys * size
    key_low += shared * n_keys * size
    value_high += shared * n_keys * size
    value_low += shared * n_keys * size
    if CELLS:
        key_variance += shared * n_keys * size
        value_variance += shared * n_keys * size
    key_scale += shared * n_keys
    value_scale += shared * n_keys
    real += batch.to(tl.int64) * n_keys
    x_rows = q + (batch.to(tl.int64) * sq_b + own_head.to(tl.int64) * sq_h + query.to(tl.int64) * sq_n)
    x = tl.load(x_rows[:, None] + dim[None, :], mask=asked[:, None] & (dim < size)[None, :], other=0.0).to(tl.float32)
    codes, full_scale, unclipped = _driven(x, dac_levels, dac_range, BM, STATIC)
    number = tl.load(streams + head)
    score_start, score_key = _stream(number, score_start, score_key)
    value_start, value_key = _stream(number, value_start, value_key)
    row = query.to(tl.uint32)
    alpha, beta, unit = tl.div_rn(1.0, dac_levels * step), tl.div_rn(noise, step), tl.div_rn(1.0, dac_levels)
    begin, end = tl.load(bounds + block), tl.load(bounds + block + 1)
    own, count = head.to(tl.int64) * n_queries + query, tl.num_programs(1).to(tl.int64) * n_queries
    most = tl.load(state + own, mask=asked, other=0.0)
    total = tl.load(state + count + own, mask=asked, other=1.0)
    largest = tl.load(state + 2 * count + own, mask=asked, other=1.0)
    factor = tl.div_rn(dac_levels, dac_range * total) if STATIC else tl.div_rn(dac_levels, largest)
    half = (size + 1) // 2
    pair_of = tl.arange(0, DP)
    column = pair_of // 2 + (pair_of % 2) * half
    within = (pair_of // 2 < half) & (column < size)
    place = batch.to(tl.int64) * so_b + own_head.to(tl.int64) * so_h
    place = place + query.to(tl.int64)[:, None] * so_n + column[None, :]
    known = asked[:, None] & within[None, :]
    grad = tl.load(grad_output + place, mask=known, other=0.0).to(tl.float32)
    taken = tl.load(grad_lse + own, mask=asked, other=0.0)
    if STATIC:  # a drive beyond the range has no gradient, so what the softmax takes off is known after a first pass
        taken = -taken
    else:
        taken = tl.sum(grad * tl.load(output + place, mask=known, other=0.0).to(tl.float32), 1) - taken
    found = tl.zeros((BM, DP), tl.float32)
    for turn in tl.static_range(2 if STATIC else 1):
        sums, power = tl.zeros((BM, DP), tl.float32), tl.zeros((BM, DP), tl.float32)
        opened = tl.zeros((BM,), tl.float32)
        more = tl.zeros((BM,), tl.float32)
        first = begin
        for n in range(begin, end):
            entry = tl.load(entries + n)
            scores, attended, _insides, token, there, _high, _lower, _scale = _scores(
                n, entry // 2, tl.load(numbers + n), x_rows, asked, codes, full_scale, key_high, key_low, key_scale,
                key_variance, entries, masks, real, row, score_start, score_key, n_keys, tiles, rows, size, alpha, beta,
                noise, step, unit, dac_levels, adc_levels, columns, BM, BN, DP, CHUNKS, PARTS, NOISE, CELLS, ADC, SPAN,
                PADDING, False,
            )  # fmt: skip
            scores = tl.where(attended, scores * full_scale[:, None], float("-inf"))
            drives = tl.exp2(scores - most[:, None]) * tl.load(value_scale + token, mask=there, other=0.0)[None, :]
            drives = _converted(drives * factor[:, None], dac_levels)
            high, lower = _values(value_high, value_low, token, there, column, within, size)
            sums += _product(drives, high, lower)
            if CELLS:
                at = token[:, None] * size + column[None, :]
                spread = tl.load(value_variance + at, mask=there[:, None] & within[None, :], other=0.0)
                power += _sums_of_squares(drives, spread)
            opened += tl.sum(attended.to(tl.float32), 1)
            if entry % 2 == 1:
                normals = sums
                if NOISE:
                    conversion = row * tiles.to(tl.uint32) + (entry // 2 // CHUNKS).to(tl.uint32)
                    normals = _normals(conversion, 0, value_start, value_key, half, DP, DP // 2)
                span = tl.sqrt_rn(tl.div_rn(tl.maximum(opened, 1.0), tl.zeros((BM,), tl.float32) + rows))
                y = _steps(sums, normals, power, alpha, beta, noise, step, unit, NOISE, CELLS)
                _sensed, passed = _delivered(y, step, adc_levels, span[:, None], ADC, SPAN)
                passed = passed & (opened > 0.0)[:, None]
                through = tl.where(passed, grad, 0.0)
                if turn == 1 or not STATIC:
                    bits = tl.reshape(passed.to(tl.int32), (BM, DP // 8, 8)) << tl.arange(0, 8)[None, None, :]
                    begin_of = tl.load(runs + n).to(tl.int64) * tl.num_programs(1) + head
                    into = inside + begin_of * (BM * (DP // 8)) + tl.arange(0, BM)[:, None] * (DP // 8)
                    tl.store(into + tl.arange(0, DP // 8)[None, :], tl.sum(bits, 2).to(tl.uint8))
                for m in range(first, n + 1):
                    scores, attended, insides, token, there, key_one, key_other, scale = _scores(
                        m, tl.load(entries + m) // 2, tl.load(numbers + m), x_rows, asked, codes, full_scale, key_high,
                        key_low, key_scale, key_variance, entries, masks, real, row, score_start, score_key, n_keys,
                        tiles, rows, size, alpha, beta, noise, step, unit, dac_levels, adc_levels, columns, BM, BN, DP,
                        CHUNKS, PARTS, NOISE, CELLS, ADC, SPAN, PADDING, False,
                    )  # fmt: skip
                    scores = tl.where(attended, scores * full_scale[:, None], float("-inf"))
                    weights = tl.div_rn(tl.exp2(scores - most[:, None]), total[:, None])
                    of_value = tl.load(value_scale + token, mask=there, other=0.0)
                    drives = weights * (total * factor)[:, None] * of_value[None, :]
                    high, lower = _values(value_high, value_low, token, there, column, within, size)
                    slopes, each = _of_scores(
                        through, high, lower, weights, of_value, drives <= dac_levels + 0.5, taken, attended, PRECISION
                    )
                    if turn == 1 or not STATIC:
                        keys = tl.trans(key_one.to(tl.float32) + key_other.to(tl.float32))
                        slopes = slopes * scale[None, :]
                        for part in tl.static_range(PARTS):
                            those = tl.where((insides >> part) & 1 != 0, slopes, 0.0)
                            lines = keys
                            if PARTS > 1:
                                lines = tl.where((dim // columns == part)[None, :], keys, 0.0)
                            found += tl.dot(those, lines, input_precision=PRECISION)
                    else:
                        more += tl.sum(weights * each, 1)
                first = n + 1
                sums, power = tl.zeros((BM, DP), tl.float32), tl.zeros((BM, DP), tl.float32)
                opened = tl.zeros((BM,), tl.float32)
        taken += more
    tl.store(common + own, taken, mask=asked)
    if STATIC:
        found = tl.where(unclipped, found, 0.0)
    into = grad_q + own[:, None] * size + dim[None, :]
    tl.store(into, found, mask=asked[:, None] & (dim < size)[None, :])


@triton.jit(do_not_specialize=["score_start", "score_key"])
def attend_keys(
    q, key_high, key_low, key_scale, value_high, value_low, value_scale, key_variance, real, streams,
    entries, numbers, masks, runs, blocks, order, items, chunk_of, state, grad_output, common, inside,
    part_of_keys, part_of_values,
    n_queries, n_keys, heads, group, tiles, rows, size, columns,
    sq_b, sq_h, sq_n, so_b, so_h, so_n,
    score_start, score_key,
    dac_levels, dac_range, adc_levels, step, noise,
    BM: tl.constexpr, BN: tl.constexpr, DP: tl.constexpr, CHUNKS: tl.constexpr, PARTS: tl.constexpr,
    STATIC: tl.constexpr, NOISE: tl.constexpr, CELLS: tl.constexpr, ADC: tl.constexpr, SPAN: tl.constexpr,
    PADDING: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """A part of the gradients of a chunk's keys and values, float32 ``[items, B H, BN, DP]`` both.

    An item is a chunk with some of the blocks that read it: entries ``order[items[i]]`` to ``order[items[i + 1] - 1]``.
    Dimensions of keys are in their order, those of values in pairs.
    """
    item, head = tl.program_id(0), tl.program_id(1)
    batch, own_head = head // heads, head % heads
    shared = batch.to(tl.int64) * (heads // group) + own_head // group
    dim = tl.arange(0, DP)
    key_high += shared * n_keys * size
    key_low += shared * n_keys * size
    value_high += shared * n_keys * size
    value_low += shared * n_keys * size
    if CELLS:
        key_variance += shared * n_keys * size
    key_scale += shared * n_keys
    value_scale += shared * n_keys
    real += batch.to(tl.int64) * n_keys
    number = tl.load(streams + head)
    score_start, score_key = _stream(number, score_start, score_key)
    alpha, beta, unit = tl.div_rn(1.0, dac_levels * step), tl.div_rn(noise, step), tl.div_rn(1.0, dac_levels)
    half = (size + 1) // 2
    column = dim // 2 + (dim % 2) * half
    within = (dim // 2 < half) & (column < size)
    chunk = tl.load(chunk_of + item)
    count = tl.num_programs(1).to(tl.int64) * n_queries
    of_keys, of_values = tl.zeros((BN, DP), tl.float32), tl.zeros((BN, DP), tl.float32)
    for i in range(tl.load(items + item), tl.load(items + item + 1)):
        n = tl.load(order + i)
        query = tl.load(blocks + n) * BM + tl.arange(0, BM)
        asked = query < n_queries
        x_rows = q + (batch.to(tl.int64) * sq_b + own_head.to(tl.int64) * sq_h + query.to(tl.int64) * sq_n)
        x = tl.load(x_rows[:, None] + dim[None, :], mask=asked[:, None] & (dim < size)[None, :], other=0.0)
        x = x.to(tl.float32)
        codes, full_scale, _unclipped = _driven(x, dac_levels, dac_range, BM, STATIC)
        own = head.to(tl.int64) * n_queries + query
        most = tl.load(state + own, mask=asked, other=0.0)
        total = tl.load(state + count + own, mask=asked, other=1.0)
        largest = tl.load(state + 2 * count + own, mask=asked, other=1.0)
        if STATIC:
            factor, worth = tl.div_rn(dac_levels, dac_range * total), full_scale
        else:
            factor, worth = tl.div_rn(dac_levels, largest), tl.div_rn(largest, total)
        place = batch.to(tl.int64) * so_b + own_head.to(tl.int64) * so_h
        place = place + query.to(tl.int64)[:, None] * so_n + column[None, :]
        grad = tl.load(grad_output + place, mask=asked[:, None] & within[None, :], other=0.0).to(tl.float32)
        begin_of = tl.load(runs + n).to(tl.int64) * tl.num_programs(1) + head
        bits = inside + begin_of * (BM * (DP // 8)) + tl.arange(0, BM)[:, None] * (DP // 8) + (dim // 8)[None, :]
        passed = (tl.load(bits).to(tl.int32) >> (dim % 8)[None, :]) & 1
        through = tl.where(passed != 0, grad, 0.0)
        scores, attended, insides, token, there, _high, _lower, scale = _scores(
            n, chunk, tl.load(numbers + n), x_rows, asked, codes, full_scale, key_high, key_low, key_scale,
            key_variance, entries, masks, real, query.to(tl.uint32), score_start, score_key, n_keys, tiles, rows, size,
            alpha, beta, noise, step, unit, dac_levels, adc_levels, columns, BM, BN, DP, CHUNKS, PARTS, NOISE, CELLS,
            ADC, SPAN, PADDING, False,
        )  # fmt: skip
        scores = tl.where(attended, scores * full_scale[:, None], float("-inf"))
        weights = tl.exp2(scores - most[:, None])
        of_value = tl.load(value_scale + token, mask=there, other=0.0)
        drives = weights * of_value[None, :] * factor[:, None]
        weights = tl.div_rn(weights, total[:, None])
        high, lower = _values(value_high, value_low, token, there, column, within, size)
        taken = tl.load(common + own, mask=asked, other=0.0)
        slopes, _each = _of_scores(
            through, high, lower, weights, of_value, drives <= dac_levels + 0.5, taken, attended, PRECISION
        )
        driven = tl.trans(_converted(drives, dac_levels))
        of_values += tl.dot(driven, through * (worth * unit)[:, None], input_precision=PRECISION)
        slopes = slopes * scale[None, :]
        x = codes * (full_scale * unit)[:, None]
        for part in tl.static_range(PARTS):
            those = tl.trans(tl.where((insides >> part) & 1 != 0, slopes, 0.0))
            lines = x
            if PARTS > 1:
                lines = tl.where((dim // columns == part)[None, :], x, 0.0)
            of_keys += tl.dot(those, lines, input_precision=PRECISION)
    into = (item.to(tl.int64) * tl.num_programs(1) + head) * BN * DP + tl.arange(0, BN)[:, None] * DP + dim[None, :]
    tl.store(part_of_keys + into, of_keys)
    tl.store(part_of_values + into, of_values)


@triton.jit
def collect(
    part_of_keys, part_of_values, items_of, grad_keys, grad_values, n_keys, heads, group, rows, size,
    BN: tl.constexpr, DP: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values, float32 ``[B, H_kv, N_keys, D]``: a chunk's parts, in the order of the heads.

    Items ``items_of[c]`` to ``items_of[c + 1] - 1`` are those of chunk c.
    """
    chunk, shared = tl.program_id(0), tl.program_id(1)
    kv_heads = heads // group
    batch, first_head = shared // kv_heads, (shared % kv_heads) * group
    programs = (tl.num_programs(1) * group).to(tl.int64)
    dim = tl.arange(0, DP)
    own = tl.arange(0, BN)[:, None] * DP + dim[None, :]
    of_keys, of_values = tl.zeros((BN, DP), tl.float32), tl.zeros((BN, DP), tl.float32)
    for item in range(tl.load(items_of + chunk), tl.load(items_of + chunk + 1)):
        for head in range(0, group):
            at = (item * programs + batch * heads + first_head + head) * BN * DP
            of_keys += tl.load(part_of_keys + at + own)
            of_values += tl.load(part_of_values + at + own)
    half_rows, half = (rows + 1) // 2, (size + 1) // 2
    place = tl.arange(0, BN)
    low = (chunk % CHUNKS) * (BN // 2) + place // 2
    line = low + (place % 2) * half_rows
    token = (chunk // CHUNKS) * rows + line
    there = (low < half_rows) & (line < rows) & (token < n_keys)
    into = (shared.to(tl.int64) * n_keys + token)[:, None] * size
    tl.store(grad_keys + into + dim[None, :], of_keys, mask=there[:, None] & (dim < size)[None, :])
    column = dim // 2 + (dim % 2) * half
    within = (dim // 2 < half) & (column < size)
    tl.store(grad_values + into + column[None, :], of_values, mask=there[:, None] & within[None, :])
