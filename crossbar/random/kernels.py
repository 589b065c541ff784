"""Compiled random numbers of the CPU, as `crossbar.random` specifies them.

Any thread can make any number, in any order: `random_word` and `pair` are compiled into whichever kernel needs numbers.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, cfunc, njit, types
from numba.extending import intrinsic

from crossbar.native.compiled import SIGNATURE, as_bits, as_float, done, fma, pointer, share

_F, _U = np.float32, np.uint32

# -2 ln(1 + y) / y from sqrt(1/2) - 1 to sqrt(2) - 1, highest power first: least squares at Chebyshev points, error of
# the logarithm 8e-7.
_LOG = (-0.23862109, 0.37361503, -0.40983519, 0.49816578, -0.66629348, 1.0000229, -2.00000193)
_SQRT_HALF_BITS = 0x3F3504F3

_VECTOR = 8
"""Pairs that processors make at once, or a multiple of it."""

ROW = 1024
"""Normal numbers of a tensor that are made together, with words of their own."""


@intrinsic  # type: ignore[untyped-decorator]  # numba's own
def random_word(context: Any, start: Any, index: Any, key: Any) -> Any:
    """32 random bits: word ``start + index`` of the stream; in 32-bit arithmetic, which numba's operators leave."""

    def generate(_: Any, builder: Any, __: Any, given: Any) -> Any:
        start, index, key = given
        width = ir.IntType(32)

        def folded(x: Any, shift: int) -> Any:
            return builder.xor(x, builder.lshr(x, ir.Constant(width, shift)))

        def times(x: Any, factor: int) -> Any:
            return builder.mul(x, ir.Constant(width, factor))

        x = times(folded(builder.add(start, builder.trunc(index, width)), 17), 0xED5AD4BB)
        x = times(builder.xor(folded(x, 11), key), 0xAC4C1B51)
        return folded(times(folded(x, 15), 0x31848BAB), 14)

    return types.uint32(types.uint32, types.int64, types.uint32), generate


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def pair(start: Any, index: int, key: Any) -> Any:
    """Pair ``index`` of normal numbers of a row that begins at word ``start``."""
    return normals(random_word(start, 2 * index, key), random_word(start, 2 * index + 1, key))


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def normals(one_word: Any, word: Any) -> Any:
    """Two normal numbers from two words: 23 bits for their radius, so that tails reach to 5.77, 16 for the angle."""
    code = as_bits(_F(np.int32(_U(one_word >> _U(9)))) + _F(0.5))
    exponent = np.int32(np.int32(_U(code - _U(_SQRT_HALF_BITS))) >> np.int32(23))
    y = as_float(_U(code - _U(exponent << np.int32(23)))) - _F(1.0)
    log = _F(_LOG[0])
    for coefficient in _LOG[1:]:
        log = fma(log, y, _F(coefficient))
    radius = np.sqrt(fma(_F(23.0) - _F(exponent), _F(2 * math.log(2)), log * y))
    # Two of the angle's 16 bits choose the quadrant, the others an angle within ± π/4 of its middle.
    angle = _F(np.int32(_U(word << _U(18)))) * _F(math.pi / 2**33)
    square = angle * angle
    sine = angle * fma(square, fma(square, _F(8.3321609e-3), _F(-0.16666655)), _F(1.0))
    cosine = fma(square, _F(-1.3600e-3), _F(4.16630e-2))
    cosine = fma(square, fma(square, cosine, _F(-0.49999994)), _F(1.0))
    top, second = _U(word << _U(16)), _U(word << _U(17))
    swapped = np.int32(second) < np.int32(0)
    first = sine if swapped else cosine
    other = cosine if swapped else sine
    sign = _U(0x80000000)
    one = radius * as_float(_U(as_bits(first) ^ _U(top & sign)))
    return one, radius * as_float(_U(as_bits(other) ^ _U(_U(top ^ second) & sign)))


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _fill_row(numbers: Any, start: Any, key: Any) -> None:
    """A row of normal numbers that begins at word ``start``."""
    width = len(numbers)
    half = (width + 1) // 2
    first, second = numbers[:half], numbers[half:]
    for i in range(width - half):
        first[i], second[i] = pair(start, i, key)
    for i in range(width - half, half):
        first[i] = pair(start, i, key)[0]


@njit(error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def part(numbers: Any, first: int, count: int, start: Any, key: Any, spare: Any, held: Any) -> None:
    """Standard normal numbers from ``first`` on of a tensor of ``count``, in rows of `ROW`, as many as there is room.

    Of a row that is asked for in part all is made, in ``spare`` [ROW]. ``held`` [1] is the row that is there, -1 for
    none, so that who goes on where this ends makes no row twice.
    """
    last = first + len(numbers)
    for row in range(first // ROW, (last + ROW - 1) // ROW):
        base = row * ROW
        width = min(ROW, count - base)
        if first <= base and base + width <= last:
            _fill_row(numbers[base - first : base - first + width], _U(start + _U(base)), key)
            continue
        if held[0] != row:
            _fill_row(spare[:width], _U(start + _U(base)), key)
            held[0] = row
        for i in range(max(first - base, 0), min(last - base, width)):
            numbers[base + i - first] = spare[i]


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def fill(words: Any) -> None:
    """Standard normal numbers ``[groups, rows, width]``, made row by row, of each row all groups.

    Arguments: numbers, groups, rows, width, start, key. A row of ``width`` takes ``2 ceil(width / 2)`` words.
    """
    given = carray(words, 8)
    groups, rows, width = given[3], given[4], given[5]
    numbers = carray(pointer(given[2]), (groups, rows, width), np.float32)
    start, key = _U(given[6]), _U(given[7])
    half = (width + 1) // 2
    for line in range(*share(given, groups * rows)):
        row, group = line // groups, line % groups
        _fill_row(numbers[group, row], _U(start + _U(2 * line * half)), key)
    done(given)


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def fill_part(words: Any) -> None:
    """Standard normal numbers ``first`` to ``last`` (excluded) of a tensor of ``count``, in rows of `ROW`.

    Arguments: numbers [last - first], first, last, count, start, key.
    """
    given = carray(words, 8)
    first, last, count, start, key = given[3], given[4], given[5], _U(given[6]), _U(given[7])
    numbers = carray(pointer(given[2]), last - first, np.float32)
    begin = first // ROW
    low, high = share(given, (last + ROW - 1) // ROW - begin)
    own, end = max((begin + low) * ROW, first), min((begin + high) * ROW, last)
    part(numbers[own - first : end - first], own, count, start, key, np.empty(ROW, np.float32), np.full(1, -1))
    done(given)


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _fill_pairs(ones: Any, others: Any, word: Any, start: Any, key: Any) -> None:
    """Pairs whose words are ``start + word`` and the next; LLVM makes vectors of loops from 0."""
    for i in range(len(ones)):
        at = np.int64(word[i])
        ones[i], others[i] = normals(random_word(start, at, key), random_word(start, at + 1, key))


@njit(inline="always")  # type: ignore[untyped-decorator]  # numba's own
def _put(numbers: Any, place: int, given: Any) -> None:
    """Overwrite the numbers from a place on; place -1: nowhere."""
    if place >= 0:
        own = numbers[place : place + len(given)]
        for i in range(len(given)):
            own[i] = given[i]


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def fill_scattered(words: Any) -> None:
    """Standard normal numbers ``[Q G, R, L]`` of places in many streams of a key: `Stream.scattered`.

    Arguments: numbers, Q, G, R, L, number [Q, R], row [G, R], shift [G, L], element [G, L] (int64 all four), width,
    start, key.

    The rows of a g have their numbers in the same elements. So what pairs these take is found once for all of them, and
    pairs whose numbers stand side by side are put there together. Pairs are made in whole vectors: those behind the
    last one go nowhere.
    """
    given = carray(words, 14)
    groups, blocks, rows, count, width = given[3], given[4], given[5], given[6], given[11]
    numbers = carray(pointer(given[2]), (groups * blocks, rows, count), np.float32)
    number = carray(pointer(given[7]), (groups, rows), np.int64)
    row = carray(pointer(given[8]), (blocks, rows), np.int64)
    shift = carray(pointer(given[9]), (blocks, count), np.int64)
    element = carray(pointer(given[10]), (blocks, count), np.int64)
    start, key = _U(given[12]), _U(given[13])
    half = (width + 1) // 2
    at = np.full(width, -1, np.int64)  # where a run of numbers of one row has each element of the row
    # Pairs that are made: their word, and where their numbers go (-1: nowhere).
    most = count + _VECTOR
    word, first, second = np.zeros(most, np.uint32), np.empty(count, np.int64), np.empty(count, np.int64)
    ones, others = np.empty(most, np.float32), np.empty(most, np.float32)
    begins = np.zeros(count + 1, np.int64)  # of pairs whose numbers stand side by side; behind the last, their end
    pairs, runs, known, whole = 0, 0, -1, False
    for line in range(*share(given, groups * blocks * rows)):
        g, q, r = line // (groups * rows), line // rows % groups, line % rows
        if g != known:
            known, pairs, begin = g, 0, 0
            while begin < count:
                end = begin
                while end < count and shift[g, end] == shift[g, begin]:
                    at[element[g, end]] = end
                    end += 1
                for place in range(begin, end):
                    one = element[g, place]
                    low = one if one < half else one - half
                    partner = one + half if one < half else low
                    other = at[partner] if partner < width and at[one] == place else -1
                    if one >= half and other >= 0:
                        continue  # the pair was made with its first number
                    word[pairs] = _U(shift[g, begin] * 2 * half + 2 * low)
                    first[pairs] = place if one < half else -1
                    second[pairs] = other if one < half else place
                    pairs += 1
                for place in range(begin, end):
                    at[element[g, place]] = -1
                begin = end
            runs = 0
            for i in range(pairs):
                beside = i > 0
                for places in (first, second):
                    if beside and places[i] != (places[i - 1] + 1 if places[i - 1] >= 0 else -1):
                        beside = False
                if not beside:
                    begins[runs] = i
                    runs += 1
            begins[runs] = pairs
            whole = runs == 1 and count == width and first[0] == 0 and second[0] == half
        own = number[q, r]
        origin = _U(random_word(start, 2 * own, key) + _U(row[g, r] * 2 * half))
        own_key = random_word(start, 2 * own + 1, key)
        line_numbers = numbers[q * blocks + g, r]
        if whole:
            _fill_row(line_numbers, _U(origin + word[0]), own_key)
            continue
        made = (pairs + _VECTOR - 1) // _VECTOR * _VECTOR
        _fill_pairs(ones[:made], others[:made], word[:made], origin, own_key)
        for run in range(runs):
            low, end = begins[run], begins[run + 1]
            _put(line_numbers, first[low], ones[low:end])
            _put(line_numbers, second[low], others[low:end])
    done(given)


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def fill_words(words: Any) -> None:
    """Words of a stream. Arguments: numbers [n] (32 bits each), n, start (of the first), key."""
    given = carray(words, 6)
    count, start, key = given[3], _U(given[4]), _U(given[5])
    first, last = share(given, count)
    numbers, start = carray(pointer(given[2]), count, np.uint32)[first:last], _U(start + _U(first))
    for i in range(len(numbers)):  # LLVM makes vectors of loops from 0
        numbers[i] = random_word(start, i, key)
    done(given)


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def fill_uniform(words: Any) -> None:
    """Uniform numbers in [0, 1). Arguments: numbers [n] float32, n, start (the word of the first), key."""
    given = carray(words, 6)
    count, start, key = given[3], _U(given[4]), _U(given[5])
    first, last = share(given, count)
    numbers, start = carray(pointer(given[2]), count, np.float32)[first:last], _U(start + _U(first))
    for i in range(len(numbers)):
        numbers[i] = _F(np.int32(_U(random_word(start, i, key) >> _U(8)))) * _F(2.0**-24)
    done(given)


@cfunc(SIGNATURE, cache=True, error_model="numpy")  # type: ignore[untyped-decorator]  # numba's own
def fill_binomial(words: Any) -> None:
    """Binomial numbers, as `crossbar.random.binomial.counts`.

    Arguments: codes [n] int32, overwritten by the numbers, n, start (the word of the first), key, trials, keys, first
    and least of a `crossbar.random.binomial.Table`, rows of it.
    """
    given = carray(words, 11)
    count, start, key, trials, rows = given[3], _U(given[4]), _U(given[5]), given[6], given[10]
    codes = carray(pointer(given[2]), count, np.int32)
    first = carray(pointer(given[8]), rows + 1, np.int64)
    least = carray(pointer(given[9]), rows, np.int64)
    keys = carray(pointer(given[7]), first[rows], np.int64)
    for i in range(*share(given, count)):
        code = np.int64(codes[i])
        few = max(min(code, trials - code), 0)
        place = (few << 32) + np.int64(random_word(start, i, key))
        low, high = first[few], first[few + 1]
        while low < high:
            middle = (low + high) >> 1
            if keys[middle] <= place:
                low = middle + 1
            else:
                high = middle
        number = low + least[few]
        codes[i] = np.int32(number if few == code else trials - number)
    done(given)
