"""What becomes of scores on their way to the value stage: softmax in digital, or an analog circuit that saturates."""

from __future__ import annotations

from dataclasses import dataclass

from crossbar.errors import InputError, require_number, require_whole


@dataclass(frozen=True)
class Softmax:
    """Softmax in digital logic.

    Attributes:
        bits: of the exponentials, as unsigned fixed point below the row's largest; None: float32 (float64 for float64).
            What is smaller than half a step is 0.

    Raises:
        InputError: for fewer than 2 or more than 24 bits.
    """

    bits: int | None = None

    def __post_init__(self) -> None:
        if self.bits is not None:
            require_whole("softmax bits", self.bits, least=2, most=24)


@dataclass(frozen=True)
class Saturating:
    """An analog line in the place of softmax: 0 up to ``low``, 1 from ``high`` on, between them linear on ``levels``.

    That of charge-to-pulse circuits in sliding-window attention on gain cells (Leroux et al., Nat. Comput. Sci. 5,
    2025), where queries have 16 levels, keys and values 8, outputs 32. Nothing is normalised, so a model has to be
    trained with it; ``gain`` is the digital factor on the output, such as one over the number of keys that are on.

    Attributes:
        low, high: scores, after their scale, within ± 1e4, apart by a millionth of the larger or more.
        levels: of the pulse, 2 to 65,536, 0 and the full one among them; None: continuous.
        gain: on the output, 1e-6 to 1e6.

    Raises:
        InputError: for numbers that do not fit together.
    """

    low: float = 0.0
    high: float = 4.0
    levels: int | None = 16
    gain: float = 1.0

    def __post_init__(self) -> None:
        require_number("saturating gain", self.gain, least=1e-6, most=1e6)
        if self.levels is not None:
            require_whole("saturating levels", self.levels, least=2, most=2**16)
        for name in ("low", "high"):
            require_number(f"saturating {name}", getattr(self, name), least=-1e4, most=1e4)
        if self.high - self.low < 1e-6 * max(abs(self.low), abs(self.high), 1e-3):
            raise InputError(f"saturating low = {self.low!r} is not below high = {self.high!r}: give a range of scores")


Activation = Softmax | Saturating
