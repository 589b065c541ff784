"""The numbers of `crossbar.random` in plain numpy, word by word as it says: slow, and no code of the others."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

F = np.float32
Floats = NDArray[np.float32]
Words = NDArray[np.uint32]


def stream(key: tuple[Any, ...]) -> tuple[int, int]:
    """``start`` and ``word_key`` of a key."""
    hashed = hashlib.blake2b(repr(key).encode("utf-8"), digest_size=16).digest()
    return int.from_bytes(hashed[:4], "little"), int.from_bytes(hashed[4:8], "little")


def words(key: tuple[Any, ...], first: int, count: int) -> Words:
    """Words ``first`` … ``first + count - 1`` of a stream."""
    start, word_key = stream(key)
    return mixed(np.array([(start + first + i) % 2**32 for i in range(count)], np.uint32), word_key)


def mixed(x: Words, word_key: int) -> Words:
    """Words from counters."""
    x = (x ^ x >> np.uint32(17)) * np.uint32(0xED5AD4BB)
    x = (x ^ x >> np.uint32(11) ^ np.uint32(word_key)) * np.uint32(0xAC4C1B51)
    x = (x ^ x >> np.uint32(15)) * np.uint32(0x31848BAB)
    return x ^ x >> np.uint32(14)


def fma(a: Any, b: Any, c: Any) -> Floats:
    """``a b + c`` of float32 numbers, rounded once.

    float64 has the product exactly. The sum is rounded to odd there, that is to the neighbour with an odd last bit
    unless it is exact, after which rounding it again, to 29 bits less, is what rounding once would have been (Boldo
    and Melquiond, IEEE Trans. Comput. 57, 462, 2008).
    """
    product, added = np.float64(a) * np.float64(b), np.float64(c)
    total = product + added
    part = total - product
    error = (product - (total - part)) + (added - part)  # of the sum, exactly (Knuth)
    even = total.view(np.int64) & 1 == 0
    beyond = np.nextafter(total, np.where(error > 0, np.inf, -np.inf))
    found: Floats = np.where((error != 0) & even, beyond, total).astype(F)
    return found


def radius(u: Words) -> Floats:
    """Distance of a pair from the origin."""
    c = (u >> np.uint32(9)).astype(F) + F(0.5)
    fraction, exponent = np.frexp(c)  # c = fraction 2^exponent, 1/2 <= fraction < 1
    lower = fraction >= np.array(0x3F3504F3, np.uint32).view(F)  # just above the root of 1/2
    y = np.where(lower, fraction - F(1), fraction * F(2) - F(1))
    e = np.where(lower, exponent, exponent - 1)
    p = np.full(y.shape, F(-0.23862109))
    for coefficient in (0.37361503, -0.40983519, 0.49816578, -0.66629348, 1.0000229, -2.00000193):
        p = fma(p, y, F(coefficient))
    square = fma((23 - e).astype(F), F(2 * math.log(2)), p * y)
    return np.sqrt(square)


def direction(v: Words) -> tuple[Floats, Floats]:
    """Cosine and sine of a pair's angle, quadrants included: what the radius is multiplied with."""
    s = (v & np.uint32(0x3FFF)).astype(np.int32)
    a = np.where(s < 2**13, s, s - 2**14).astype(F) * F(math.pi / 2**15)
    q = a * a
    sine = a * fma(q, fma(q, F(8.3321609e-3), F(-0.16666655)), F(1))
    cosine = fma(q, fma(q, fma(q, F(-1.3600e-3), F(4.16630e-2)), F(-0.49999994)), F(1))
    bit14, bit15 = v >> np.uint32(14) & np.uint32(1) == 1, v >> np.uint32(15) & np.uint32(1) == 1
    first, second = np.where(bit14, sine, cosine), np.where(bit14, cosine, sine)
    return np.where(bit15, -first, first), np.where(bit14 != bit15, -second, second)


def row(key: tuple[Any, ...], first: int, width: int) -> Floats:
    """A row of normal numbers that begins at word ``first``."""
    half = math.ceil(width / 2)
    taken = words(key, first, 2 * half)
    distance, (x, y) = radius(taken[0::2]), direction(taken[1::2])
    found: Floats = np.concatenate((distance * x, distance * y))[:width]
    return found


def normal(key: tuple[Any, ...], shape: tuple[int, ...]) -> Floats:
    """Normal numbers of a tensor."""
    count = math.prod(shape)
    rows = [row(key, first, min(1024, count - first)) for first in range(0, count, 1024)]
    return np.concatenate([np.zeros(0, F), *rows]).reshape(shape)


def scattered(key: tuple[Any, ...], number: int, place: int, element: int, width: int) -> float:
    """An ``element`` of row ``place`` of rows of ``width`` normal numbers, of stream ``number`` of a key's streams."""
    (start,), (word_key,) = words(key, 2 * number, 1), words(key, 2 * number + 1, 1)
    half = math.ceil(width / 2)
    first = int(start) + 2 * half * place + 2 * (element % half)
    u, v = mixed(np.array([first % 2**32, (first + 1) % 2**32], np.uint32), int(word_key))
    return float((radius(u[None]) * direction(v[None])[element // half])[0])


def columns(key: tuple[Any, ...], tiles: int, vectors: int, outputs: int) -> Floats:
    """Normal numbers of columns ``[T, B, O]``."""
    numbers = np.zeros((tiles, vectors, outputs), F)
    for b in range(vectors):
        for t in range(tiles):
            numbers[t, b] = row(key, (b * tiles + t) * 2 * math.ceil(outputs / 2), outputs)
    return numbers


def uniform(key: tuple[Any, ...], shape: tuple[int, ...]) -> Floats:
    """Uniform numbers of a tensor."""
    return ((words(key, 0, math.prod(shape)) >> np.uint32(8)).astype(F) / F(2**24)).reshape(shape)


def bytes_of(key: tuple[Any, ...], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Bytes of a tensor."""
    taken = words(key, 0, math.ceil(math.prod(shape) / 4))
    each = [int(taken[i // 4]) >> 8 * (i % 4) & 255 for i in range(math.prod(shape))]
    return np.array(each, np.uint8).reshape(shape)


def binomial(key: tuple[Any, ...], codes: NDArray[Any], trials: int) -> NDArray[np.int64]:
    """Successes of ``trials`` with the chances ``codes / trials``."""
    found = []
    for word, code in zip(words(key, 0, codes.size), codes.reshape(-1), strict=True):
        few = min(int(code), trials - int(code))
        least, limits = thresholds(trials, few)
        number = least + sum(limit <= int(word) for limit in limits)
        found.append(number if few == int(code) else trials - number)
    return np.array(found, np.int64).reshape(codes.shape)


def thresholds(trials: int, k: int) -> tuple[int, list[int]]:
    """A row of thresholds: the count with which it begins, and the words at which the next counts begin.

    The probability of ``k`` stands for 1. Going up, that of ``j + 1`` is that of ``j`` times ``((n - j) k) / ((j + 1)
    (n - k))``; going down, that of ``j - 1`` is that of ``j`` times ``(j (n - k)) / ((n - j + 1) k)``; both end where
    ``|j - k| = ceil(t / 3 + sqrt((t / 3)^2 + 2 t v))``, with ``t = 23.6`` and ``v`` the variance (Bernstein's bound).
    """
    if k == 0:
        return 0, []
    reach = math.ceil(23.6 / 3 + math.sqrt((23.6 / 3) ** 2 + 2 * 23.6 * (k * (1 - k / trials))))
    likely = {k: 1.0}
    for j in range(k, min(k + reach, trials)):
        likely[j + 1] = likely[j] * (((trials - j) * k) / ((j + 1) * (trials - k)))
    for j in range(k, max(k - reach, 0), -1):
        likely[j - 1] = likely[j] * ((j * (trials - k)) / ((trials - j + 1) * k))
    sums, total = [], 0.0
    for j in sorted(likely):
        total += likely[j]
        sums.append(total)
    return min(likely), [math.floor(part / total * 2**32 + 0.5) for part in sums[:-1]]
