"""Random numbers addressed by key and element, the same bits on any thread, device or shard: their specification.

A number has a place (key, element) and depends on nothing else: not on what was drawn before, not on how a tensor is
cut into pieces, not on who makes it. `streams` is what the packages use; `kernels` makes the numbers on the CPU and
`tensors` on any other device; `reference` makes them in plain numpy and shares no code with either.

Integers are of 32 bits and wrap around; ``>>`` brings in zeros unless a shift is called arithmetic; ``r(...)`` is one
float32 operation, rounded to nearest, ties to even; ``fma(a, b, c)`` is ``a b + c`` with a single rounding, and used
nowhere else than where it stands. Roots are correctly rounded. Decimal numbers are the float32 nearest to them.

**Key.** A tuple of strings and numbers. The UTF-8 bytes of its ``repr`` are hashed (BLAKE2b, 16 bytes), and read as a
little-endian number ``d``. ``start = d mod 2^32`` and ``word_key = (d >> 32) mod 2^32`` make a *stream*; ``d >> 64`` is
the seed for foreign generators (`streams.seed`). A key is for one purpose: draws of two kinds with one key share words.

**Streams of a stream.** Where each of many has a stream of its own, such as a head of attention, they share a key:
stream ``n`` has word ``2 n`` of the key's stream as its ``start``, and word ``2 n + 1`` as its ``word_key``.

**Word** ``i`` of a stream: the finaliser "triple32" of C. Wellons' hash search, the key put in after a product::

    x = start + i
    x = (x ^ x >> 17) * 0xED5AD4BB
    x = (x ^ x >> 11 ^ word_key) * 0xAC4C1B51
    x = (x ^ x >> 15) * 0x31848BAB
    x = x ^ x >> 14

**A pair of normal numbers** comes from two words ``u``, ``v`` (Box and Muller, Ann. Math. Stat. 29, 610, 1958).

- *Radius*, from the 23 upper bits of ``u``: ``c = (u >> 9) + 1/2``, exact in float32, stands for a uniform number
  ``c / 2^23``. With ``b`` the bits of ``c``, ``e = (b - 0x3F3504F3) >> 23`` (arithmetic), and ``y`` is the float32 with
  bits ``b - (e << 23)``, less 1: so ``c = (1 + y) 2^e``, exactly. ``-2 ln(1 + y) = y p``, with ``p`` by Horner's rule,
  six times ``p = fma(p, y, coefficient)``: -0.23862109, 0.37361503, -0.40983519, 0.49816578, -0.66629348, 1.0000229,
  -2.00000193. At last ``radius = sqrt(fma(23 - e, 2 ln 2, r(p y)))``.
- *Angle*, from the 16 lower bits of ``v``: ``a = r(s π / 2^15)``, with ``s`` the 14 lowest bits as a signed number, is
  within ± π/4. ``q = r(a a)``; ``sine = r(a fma(q, fma(q, 8.3321609e-3, -0.16666655), 1))``; ``cosine = fma(q, fma(q,
  fma(q, -1.3600e-3, 4.16630e-2), -0.49999994), 1)``. Bit 14 of ``v`` swaps sine and cosine.
- The first number is ``r(radius cosine)``, with the sign changed if bit 15 of ``v`` is set; the second is
  ``r(radius sine)``, with the sign changed if bits 14 and 15 differ.

**A row** of ``w`` normal numbers takes ``2 h`` words, ``h = ceil(w / 2)``. Numbers ``j`` and ``j + h`` are the pair of
words ``2 j`` and ``2 j + 1`` of the row; an odd row leaves the last second number.

**Elements.** Normal numbers of a tensor are in rows of 1,024 elements, as they follow each other in memory, each row
1,024 words after the one before; the last row has what is left, ``n mod 1024``. Normal numbers of columns ``[T, B, O]``
are in rows of ``O``, and row ``b T + t`` has those of vector ``b`` and conversion ``t``: a piece of a batch has the
numbers that it has in the whole. Numbers of other kinds are addressed one by one:

- *Uniform* ``i``: the 24 upper bits of word ``i`` over 2^24; so in [0, 1), and exact in float32.
- *Byte* ``i``: byte ``i mod 4`` of word ``i div 4``, the lowest first.
- *Binomial* ``i``, of ``n`` trials with chance ``k / n``: with ``f = min(k, n - k)``, how many thresholds
  ``floor(2^32 P(X <= j) + 1/2)`` of ``f / n`` are not above word ``i``; ``n`` less that if ``k > f``. `binomial` states
  the order of the float64 operations; a count has its probability to about 2^-32.

**Limits.** Normal numbers reach to ± 5.77 (``sqrt(-2 ln 2^-24)``); a true one passes that with probability 8e-9. There
are 2^23 radii and 2^16 angles. A stream repeats after 2^32 words, and has each word once. Two streams share a stretch
if their keys of 32 bits are equal and their starts near: of N streams of L words, N² L / 2^64 pairs do on average
(10,000 streams of 2^24 words: 1e-4).
"""
