"""The compiled kernel of GPUs for analog keys and values: both stages with converters and noise, no score in memory.

It does what `attention.kernel.analog` does, a block of queries a program. Keys go by in chunks of a tile's lines,
twice: first for the softmax's maximum and sum and the range of the drives, then for the drives themselves. A tile's
columns are converted when its last chunk has been added up.

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
def _sensed(
    sums, normals, alpha, beta, step, levels, span,
    NOISE: tl.constexpr, ADC: tl.constexpr, SPAN: tl.constexpr,
):  # fmt: skip
    """What the ADC delivers, unit outputs: sums times ``alpha`` and normal numbers times ``beta`` are in its steps."""
    y = sums * alpha
    if NOISE:
        y = tl.fma(sums, alpha, normals * beta)
    if ADC:
        y = _converted(tl.div_rn(y, span), levels) * span if SPAN else _converted(y, levels)
    return y * step


@triton.jit
def _scores(
    entry, number, codes, span_of_codes, key_high, key_low, key_scale, masks, real, row, start, key,
    n_keys, tiles, rows, size, alpha, beta, step, levels, columns,
    BM: tl.constexpr, BN: tl.constexpr, DP: tl.constexpr, CHUNKS: tl.constexpr, PARTS: tl.constexpr,
    NOISE: tl.constexpr, ADC: tl.constexpr, SPAN: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """Scores [BM, BN] times log2 e over a query's range, which pairs are attended, the keys, and which there are."""
    tile, first = entry // CHUNKS, (entry % CHUNKS) * (BN // 2)
    half = (rows + 1) // 2
    column = tl.arange(0, BN)
    low = first + column // 2
    line = low + (column % 2) * half
    token = tile * rows + line
    there = (low < half) & (line < rows) & (token < n_keys)
    dim = tl.arange(0, DP)
    at = token[None, :] * size + dim[:, None]
    known = there[None, :] & (dim < size)[:, None]
    high = tl.load(key_high + at, mask=known, other=0.0)
    lower = tl.load(key_low + at, mask=known, other=0.0)
    total = tl.zeros((BM, BN), tl.float32)
    for part in tl.static_range(PARTS):
        own, span = codes, span_of_codes
        if PARTS > 1:
            here = (dim // columns == part)[None, :]
            own = tl.where(here, codes, 0.0)
        if SPAN:
            lines = tl.minimum(size - part * columns, columns).to(tl.float32)
            active = tl.sum((own != 0.0).to(tl.float32), 1)
            span = tl.sqrt_rn(tl.div_rn(tl.maximum(active, 1.0), lines))
        normals = total
        if NOISE:
            place = row * (tiles * PARTS).to(tl.uint32) + (tile * PARTS + part).to(tl.uint32)
            normals = _normals(place, first, start, key, half, BN, BN // 2)
        sums = _product(own, high, lower)
        total += _sensed(sums, normals, alpha, beta, step, levels, span[:, None], NOISE, ADC, SPAN)
    scale = tl.load(key_scale + token, mask=there, other=0.0)
    pairs = (masks + number.to(tl.int64) * BM * BN) + (tl.arange(0, BM)[:, None] * BN + column[None, :])
    attended = there[None, :] & (tl.load(pairs, mask=number >= 0, other=1) != 0)
    if PADDING:
        attended = attended & (tl.load(real + token, mask=there, other=0) != 0)[None, :]
    return total * scale[None, :], attended, token, there


@triton.jit(do_not_specialize=["score_start", "score_key", "value_start", "value_key"])
def attend(
    q, key_high, key_low, key_scale, value_high, value_low, value_scale, real, streams,
    bounds, entries, numbers, masks, output, lse,
    n_queries, n_keys, heads, group, tiles, rows, size, columns,
    sq_b, sq_h, sq_n, so_b, so_h, so_n,
    score_start, score_key, value_start, value_key,
    dac_levels, dac_range, adc_levels, step, noise,
    BM: tl.constexpr, BN: tl.constexpr, DP: tl.constexpr, CHUNKS: tl.constexpr, PARTS: tl.constexpr,
    STATIC: tl.constexpr, NOISE: tl.constexpr, ADC: tl.constexpr, SPAN: tl.constexpr, PADDING: tl.constexpr,
):  # fmt: skip
    """Output and log-sum-exp of ``BM`` queries of a head, without softmax weights or scores in memory.

    Keys and values are digits ``[B, H_kv, N, D]`` as two float16 numbers each; scales are float32 ``[B, H_kv, N]``,
    those of keys times the softmax's scale and log2 e; ``streams`` are int32 ``[B, H]``. Lists are those of
    `attention.kernel.fused.Chunks`. ``STATIC``: the DAC's range is ``dac_range``, and not each query's own.
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
    key_scale += shared * n_keys
    value_scale += shared * n_keys
    real += batch.to(tl.int64) * n_keys
    place = batch.to(tl.int64) * sq_b + own_head.to(tl.int64) * sq_h + query.to(tl.int64)[:, None] * sq_n + dim[None, :]
    x = tl.load(q + place, mask=asked[:, None] & (dim < size)[None, :], other=0.0).to(tl.float32)
    full_scale = tl.full((BM,), 0.0, tl.float32) + dac_range
    if not STATIC:
        full_scale = tl.maximum(tl.max(tl.abs(x), 1), 1e-30)
    codes = _converted(x * tl.div_rn(dac_levels, full_scale)[:, None], dac_levels)
    number = tl.load(streams + head)
    score_start, score_key = _stream(number, score_start, score_key)
    value_start, value_key = _stream(number, value_start, value_key)
    row = query.to(tl.uint32)
    alpha, beta = tl.div_rn(1.0, dac_levels * step), tl.div_rn(noise, step)
    begin, end = tl.load(bounds + block), tl.load(bounds + block + 1)

    most = tl.full((BM,), _LOWEST, tl.float32)
    total, largest = tl.zeros((BM,), tl.float32), tl.zeros((BM,), tl.float32)
    for n in range(begin, end):
        entry = tl.load(entries + n)
        scores, attended, token, there = _scores(
            entry // 2, tl.load(numbers + n), codes, full_scale, key_high, key_low, key_scale, masks, real, row,
            score_start, score_key, n_keys, tiles, rows, size, alpha, beta, step, adc_levels, columns,
            BM, BN, DP, CHUNKS, PARTS, NOISE, ADC, SPAN, PADDING,
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
    tl.store(lse + head.to(tl.int64) * n_queries + query, tl.where(empty, float("-inf"), found), mask=asked)

    if STATIC:
        factor, worth = tl.div_rn(dac_levels, dac_range * total), full_scale
    else:
        largest = tl.maximum(largest, 1e-30)
        factor, worth = tl.div_rn(dac_levels, largest), tl.div_rn(largest, total)
    half = (size + 1) // 2
    pair_of = tl.arange(0, DP)
    column = pair_of // 2 + (pair_of % 2) * half
    within = (pair_of // 2 < half) & (column < size)
    sums, result = tl.zeros((BM, DP), tl.float32), tl.zeros((BM, DP), tl.float32)
    opened = tl.zeros((BM,), tl.float32)
    for n in range(begin, end):
        entry = tl.load(entries + n)
        scores, attended, token, there = _scores(
            entry // 2, tl.load(numbers + n), codes, full_scale, key_high, key_low, key_scale, masks, real, row,
            score_start, score_key, n_keys, tiles, rows, size, alpha, beta, step, adc_levels, columns,
            BM, BN, DP, CHUNKS, PARTS, NOISE, ADC, SPAN, PADDING,
        )  # fmt: skip
        scores = tl.where(attended, scores * full_scale[:, None], float("-inf"))
        drives = tl.exp2(scores - most[:, None]) * tl.load(value_scale + token, mask=there, other=0.0)[None, :]
        drives = _converted(drives * factor[:, None], dac_levels)
        at = token[:, None] * size + column[None, :]
        known = there[:, None] & within[None, :]
        high = tl.load(value_high + at, mask=known, other=0.0)
        lower = tl.load(value_low + at, mask=known, other=0.0)
        sums += _product(drives, high, lower)
        opened += tl.sum(attended.to(tl.float32), 1)
        if entry % 2 == 1:
            normals = sums
            if NOISE:
                conversion = row * tiles.to(tl.uint32) + (entry // 2 // CHUNKS).to(tl.uint32)
                normals = _normals(conversion, 0, value_start, value_key, half, DP, DP // 2)
            span = tl.sqrt_rn(tl.div_rn(tl.maximum(opened, 1.0), tl.zeros((BM,), tl.float32) + rows))
            sensed = _sensed(sums, normals, alpha, beta, step, adc_levels, span[:, None], NOISE, ADC, SPAN)
            result += tl.where((opened > 0.0)[:, None], sensed, 0.0)
            sums = tl.zeros((BM, DP), tl.float32)
            opened = tl.zeros((BM,), tl.float32)
    result = result * worth[:, None]
    place = batch.to(tl.int64) * so_b + own_head.to(tl.int64) * so_h
    place = place + query.to(tl.int64)[:, None] * so_n + column[None, :]
    tl.store(output + place, result.to(output.dtype.element_ty), mask=asked[:, None] & within[None, :])
