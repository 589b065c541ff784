"""Patterns from FlexAttention's mask functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from attention.patterns.base import MaskMod, Pattern
from attention.patterns.family import Family
from attention.patterns.heads import PerHead, PerSequence
from attention.patterns.intervals import Spans, padded, runs
from crossbar.errors import InputError, require_whole

_PAIRS = 2**20  # pairs asked for at a time: bounds memory


@dataclass(frozen=True)
class FromMaskMod(Family):
    """Pairs for which a ``mask_mod(b, h, q_idx, kv_idx)`` gives True at one ``b`` and ``h``; causal: and j <= i.

    It has no text.

    Raises:
        InputError: for a function that gives anything but bool.
    """

    function: MaskMod
    b: int = 0
    h: int = 0
    name: ClassVar[str] = "mask_mod"
    cost: ClassVar[str] = "unknown, rows O(n²)"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InputError(f"mask_mod {self.function!r} is not a function: give one of (b, h, q_idx, kv_idx)")
        first = torch.zeros((), dtype=torch.int64, device="cpu")
        self.allowed(first, first)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """What the function gives, asked pair by pair."""
        if query.dim() == 0:  # FlexAttention asks
            b, h = (torch.tensor(index, device=query.device) for index in (self.b, self.h))
            return self.past(self._bool(b, h, query, key), query, key)
        query, key = query.contiguous(), key.contiguous()
        pairs = self._asked(query.view(-1), key.view(-1), paired=True)
        return self.past(pairs.view(query.shape), query, key)

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """An interval for each run of keys; every pair is asked for, a chunk at a time."""
        row, start, stop = [], [], []
        key = torch.arange(n_keys, device=query.device)
        chunk = max(1, _PAIRS // n_keys)
        for first in range(0, len(query), chunk):
            some = query[first : first + chunk]
            found = runs(self.past(self._asked(some, key), some[:, None], key))
            nonempty = found.start < found.stop
            row.append(nonempty.nonzero()[:, 0] + first)
            start.append(found.start[nonempty])
            stop.append(found.stop[nonempty])
        return padded(torch.cat(row), torch.cat(start), torch.cat(stop), len(query), n_keys)

    def bare_text(self) -> str:
        """For example ``<mask_mod my_mask>``."""
        return f"<mask_mod {getattr(self.function, '__name__', type(self.function).__name__)}>"

    def _asked(self, query: Tensor, key: Tensor, paired: bool = False) -> Tensor:
        """Every query with every key, or with the key of its own place, asked as FlexAttention asks."""
        from torch.nn.attention.flex_attention import create_mask

        def asked(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return self._bool(b + self.b, h + self.h, query[q], key[q if paired else k])

        return create_mask(asked, 1, 1, len(query), 1 if paired else len(key), device=str(query.device))[0, 0]

    def _bool(self, b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        pair = self.function(b, h, query, key)
        if not isinstance(pair, Tensor) or pair.dtype != torch.bool or pair.dim():
            given = f"{pair.dtype} {list(pair.shape)}" if isinstance(pair, Tensor) else repr(pair)
            raise InputError(f"{self.bare_text()} gives {given}: return one bool tensor for a pair, as by a comparison")
        return pair


def from_mask_mod(mask_mod: MaskMod, heads: int | None, sequences: int | None) -> Pattern:
    """See `Pattern.from_mask_mod`."""
    for what, number in (("heads", heads), ("sequences", sequences)):
        if number is not None:
            require_whole(what, number, least=1)

    def of_sequence(b: int) -> Pattern:
        if heads is None:
            return FromMaskMod(mask_mod, b)
        return PerHead([FromMaskMod(mask_mod, b, h) for h in range(heads)])

    return of_sequence(0) if sequences is None else PerSequence([of_sequence(b) for b in range(sequences)])


Pattern._made_from_mask_mod = from_mask_mod
