"""Random numbers of a GPU, as `crossbar.random` specifies them: the bits of `crossbar.random.kernels`.

`random_word`, `pair` and `element` are compiled into whichever kernel needs numbers. Whole numbers are turned into
floats and back by their bits where that saves slow conversions: 2^23 added to a number below it has the number in its
last bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from crossbar.native import gpu

_INTERPRETED = tl.constexpr(gpu.interpreted())
_ROW = tl.constexpr(1024)  # normal numbers of a tensor that have words of their own
_BLOCK = 512  # pairs, or words, that a program makes


@triton.jit
def random_word(at, key):
    """32 random bits: the word with the counter ``at`` (start and index), uint32, of the stream ``key``, uint32."""
    x = at ^ (at >> 17)
    x = x * 0xED5AD4BB
    x = x ^ (x >> 11) ^ key
    x = x * 0xAC4C1B51
    x = x ^ (x >> 15)
    x = x * 0x31848BAB
    return x ^ (x >> 14)


@triton.jit
def _root(a):
    """Correctly rounded root of a normal number that is neither tiny nor huge, in five instructions without a branch.

    From an approximation of ``1 / sqrt(a)``, which is what ``sqrt.rn`` itself does for such numbers (Markstein, IBM J.
    Res. Dev. 34, 111, 1990).
    """
    if _INTERPRETED:
        return tl.sqrt_rn(a)
    inverse = tl.inline_asm_elementwise(
        "rsqrt.approx.ftz.f32 $0, $1;", "=f,f", [a], dtype=tl.float32, is_pure=True, pack=1
    )
    near = a * inverse
    return tl.fma(tl.fma(-near, near, a), 0.5 * inverse, near)


@triton.jit
def radius(word):
    """Distance of a pair of normal numbers from the origin, by the 23 upper bits of a word."""
    middle = ((word >> 9) | 0x4B000000).to(tl.float32, bitcast=True) - 8388607.5  # upper bits + 1/2, exactly
    bits = middle.to(tl.int32, bitcast=True)
    exponent = (bits - 0x3F3504F3) >> 23
    y = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    log = tl.fma(y, -0.23862109, 0.37361503)
    log = tl.fma(log, y, -0.40983519)
    log = tl.fma(log, y, 0.49816578)
    log = tl.fma(log, y, -0.66629348)
    log = tl.fma(log, y, 1.0000229)
    log = tl.fma(log, y, -2.00000193)
    left = (0x4B000017 - exponent).to(tl.float32, bitcast=True) - 8388608.0  # 23 - exponent, 1 to 24
    return _root(tl.fma(left, 1.3862943611198906, log * y))


@triton.jit
def turned(distance, word):
    """The two normal numbers at a distance, in the direction of the 16 lower bits of a word."""
    angle = ((word & 0x3FFF) ^ 0x4B002000).to(tl.float32, bitcast=True) - 8396800.0  # 14 bits as a signed number
    angle = angle * 9.587379924285257e-05  # pi / 2^15
    square = angle * angle
    sine = angle * tl.fma(square, tl.fma(square, 8.3321609e-3, -0.16666655), 1.0)
    cosine = tl.fma(square, -1.3600e-3, 4.16630e-2)
    cosine = tl.fma(square, tl.fma(square, cosine, -0.49999994), 1.0)
    swapped = (word & 0x4000) != 0
    one = tl.where(swapped, sine, cosine)
    other = tl.where(swapped, cosine, sine)
    turn = distance.to(tl.uint32, bitcast=True) ^ ((word << 16) & 0x80000000)
    turn_other = turn ^ ((word << 17) & 0x80000000)
    return turn.to(tl.float32, bitcast=True) * one, turn_other.to(tl.float32, bitcast=True) * other


@triton.jit
def pair(at, key):
    """The pair of normal numbers of the words ``at`` and ``at + 1``, uint32."""
    return turned(radius(random_word(at, key)), random_word(at + 1, key))


@triton.jit
def element(index, count, start, key):
    """Normal numbers ``index`` (int64) of a tensor of ``count``, in rows of 1,024 that begin at the word ``start``."""
    row = index // _ROW
    half = (tl.minimum(count - row * _ROW, _ROW) + 1) // 2
    place = index - row * _ROW
    second = place >= half
    at = start + (row * _ROW + 2 * tl.where(second, place - half, place)).to(tl.uint32)
    first, other = pair(at, key)
    return tl.where(second, other, first)


@triton.jit(do_not_specialize=["groups", "rows", "width", "start", "key"])
def fill(numbers, groups, rows, width, start, key, BLOCK: tl.constexpr):
    """Normal numbers ``[groups, rows, width]`` made row by row, of each row all groups, as columns have them.

    A program makes ``BLOCK`` pairs of a row: its arguments are those of `crossbar.random.kernels.fill`.
    """
    line = tl.program_id(0).to(tl.int64)
    half = (width + 1) // 2
    own = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    at = (start.to(tl.int64) + line * 2 * half + 2 * own).to(tl.uint32)
    first, second = pair(at, key.to(tl.uint32))
    place = numbers + ((line % groups) * rows + line // groups) * width + own
    tl.store(place, first, mask=own < half)
    tl.store(place + half, second, mask=own < width - half)


@triton.jit(do_not_specialize=["first", "last", "count", "start", "key"])
def fill_part(numbers, first, last, count, start, key, BLOCK: tl.constexpr):
    """Normal numbers ``first`` to ``last`` (excluded) of a tensor of ``count``, ``BLOCK`` pairs of a row a program."""
    row = tl.program_id(0).to(tl.int64) + first.to(tl.int64) // _ROW
    base = row * _ROW
    width = tl.minimum(count - base, _ROW)
    half = (width + 1) // 2
    own = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    one, other = pair((start.to(tl.int64) + base + 2 * own).to(tl.uint32), key.to(tl.uint32))
    place = base + own
    tl.store(numbers + place - first, one, mask=(own < half) & (place >= first) & (place < last))
    place = place + half
    tl.store(numbers + place - first, other, mask=(own < width - half) & (place >= first) & (place < last))


@triton.jit(do_not_specialize=["count", "start", "key"])
def fill_words(numbers, count, start, key, UNIFORM: tl.constexpr, BLOCK: tl.constexpr):
    """Words of a stream from ``start`` on, as the bits of int32, or ``UNIFORM`` numbers of them, in [0, 1)."""
    own = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    word = random_word((start.to(tl.int64) + own).to(tl.uint32), key.to(tl.uint32))
    if UNIFORM:
        tl.store(numbers + own, (word >> 8).to(tl.int32).to(tl.float32) * 5.9604644775390625e-08, mask=own < count)
    else:
        tl.store(numbers + own, word.to(tl.int32, bitcast=True), mask=own < count)


def rows(start: int, key: int, groups: int, count: int, width: int, device: torch.device) -> Tensor:
    """`crossbar.random.tensors.rows`: normal numbers ``[groups, rows, width]`` that begin at a word."""
    numbers = torch.empty(groups, count, width, device=device)
    if numbers.numel():
        half = (width + 1) // 2
        block = min(_BLOCK, triton.next_power_of_2(half))
        grid = (groups * count, triton.cdiv(half, block))
        with gpu.on(device):
            fill[grid](numbers, groups, count, width, gpu.word(start), gpu.word(key), BLOCK=block, **gpu.OPTIONS)
    return numbers


def part(start: int, key: int, first: int, last: int, count: int, device: torch.device) -> Tensor:
    """`crossbar.random.tensors.part`: normal numbers ``first`` to ``last`` (excluded) of a tensor of ``count``."""
    numbers = torch.empty(last - first, device=device)
    if last > first:
        block, row = min(_BLOCK, triton.next_power_of_2((min(count, _ROW.value) + 1) // 2)), _ROW.value
        grid = (triton.cdiv(last, row) - first // row, triton.cdiv((min(count, row) + 1) // 2, block))
        given = (first, last, count, gpu.word(start), gpu.word(key))
        with gpu.on(device):
            fill_part[grid](numbers, *given, BLOCK=block, **gpu.OPTIONS)
    return numbers


def words(start: int, key: int, count: int, uniform: bool, device: torch.device) -> Tensor:
    """``count`` words from ``start`` on, as the bits of int32, or the uniform numbers of them, float32."""
    numbers = torch.empty(count, dtype=torch.float32 if uniform else torch.int32, device=device)
    if count:
        grid = (triton.cdiv(count, _BLOCK),)
        given = (count, gpu.word(start), gpu.word(key))
        with gpu.on(device):
            fill_words[grid](numbers, *given, UNIFORM=uniform, BLOCK=_BLOCK, **gpu.OPTIONS)
    return numbers
