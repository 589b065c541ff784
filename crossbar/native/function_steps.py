"""Logarithm and exponential of float32 in stated steps: the same bits on any processor, with any number of threads.

Processors' and libraries' own differ in the last bit, from one another and, in torch, between the end of a thread's
share and its middle. Here each product and each sum is rounded for itself, in this order, nothing is fused, and what
is left are whole numbers.

- ``log(x)``, x normal and above 0: ``x = 2^e m``, m from sqrt(1/2) to sqrt(2), ``y = m - 1``, ``z = y y``;
  ``r = (y z) P(y)``, P by Horner's rule; then ``r = r + e LN2_LOW``, ``r = r - z / 2``, ``r = y + r``,
  ``r = r + e LN2_HIGH``.
- ``exp(x)``, x kept within -87 … 88: ``n = rint(x / ln 2)``, ``r = (x - n LN2_HIGH) - n LN2_LOW``;
  ``((Q(r) (r r)) + r + 1) 2^n``.

Both are within 1.5 units of the last place where logarithms are not near 0 (P and Q are fitted to 6e-9 and 5e-11).
"""

from __future__ import annotations

LOG = (
    -0.07634343951940536, 0.12761515378952026, -0.13160210847854614, 0.1420176774263382, -0.16623355448246002,
    0.20001226663589478, -0.250008225440979, 0.3333333134651184,
)  # fmt: skip
"""P, highest power first: ``(ln(1 + y) - y + y² / 2) / y³``."""
EXP = (0.0001979032385861501, 0.0013944690581411123, 0.008333497680723667, 0.04166629537940025, 0.1666666567325592, 0.5)
"""Q, highest power first: ``(e^r - 1 - r) / r²``."""
LN2_HIGH = 0.693359375  # 9 bits, so that products with whole numbers to 2^15 are exact
LN2_LOW = -0.00021219444170128554
PER_LN2 = 1.4426950216293335
LEAST, MOST = -87.0, 88.0
SQRT_HALF_BITS = 0x3F3504F3
