"""What families of patterns have in common: parameters, a causal mode, and for some a length or constant tensors."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from attention.patterns.base import Pattern
from attention.patterns.rows import LARGEST
from crossbar.errors import InputError, require_whole


@dataclass(frozen=True)
class Family(Pattern):
    """A pattern with parameters of its own, as opposed to a composition."""

    name: ClassVar[str]
    """The family's name in the text form."""

    is_causal: bool = field(default=False, kw_only=True)

    def causal(self) -> Self:
        """The same family in its causal mode."""
        return replace(self, is_causal=True)

    def until(self, query: Tensor, n_keys: int) -> Tensor:
        """Where each query's keys end at the latest, int64 [N_queries, 1]: after itself if causal, else after all."""
        return (query + 1 if self.is_causal else torch.full_like(query, n_keys))[:, None]

    def past(self, pairs: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Of ``pairs`` (bool, as `allowed` gives), those that the mode permits: j <= i if causal, else all."""
        return pairs & (key <= query) if self.is_causal else pairs


@dataclass(frozen=True)
class SizedFamily(Family):
    """A family whose pairs depend on the length of the sequence: the number of keys, or ``n`` once bound by `at`."""

    n: int | None = field(default=None, kw_only=True)

    @property
    def length_invariant(self) -> bool:  # type: ignore[override]  # here it depends on the value
        """True once a length is bound."""
        return self.n is not None

    def at(self, n: int) -> Self:
        """The pattern of sequences of ``n`` tokens; a bound length stays."""
        require_whole("n", n, least=1, most=LARGEST)
        return self if self.n is not None else replace(self, n=n)

    def bound(self) -> int:
        """The bound length.

        Raises:
            InputError: if there is none.
        """
        if self.n is None:
            raise InputError(f"pattern {str(self)!r} depends on the length of the sequence: bind it with pattern.at(n)")
        return self.n

    def length(self, query: Tensor, n_keys: int) -> int:
        """The length of the sequence that holds these queries and keys.

        Raises:
            InputError: for a query or key after its end.
        """
        n = n_keys if self.n is None else self.n
        longest = max(n_keys, int(query.max()) + 1)
        if longest > n:
            raise InputError(
                f"pattern {str(self)!r} is that of {n} tokens and cannot have {longest}: "
                "give the final length as n_keys or by pattern.at(n)"
            )
        return n

    def described(self, text: str) -> str:
        """The text of a pattern without a bound length, a description of one that has it."""
        return text if self.n is None else f"<{text} at n = {self.n}>"


class Constant:
    """A copy of a tensor, on the CPU, that is compared and hashed by content: what a family keeps of a tensor."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach().cpu().clone().contiguous()

    @cached_property
    def _content(self) -> tuple[torch.dtype, torch.Size, bytes]:
        digest = hashlib.blake2b(self.tensor.numpy().tobytes(), digest_size=16).digest()
        return self.tensor.dtype, self.tensor.shape, digest

    def __eq__(self, other: object) -> bool:
        return self._content == other._content if isinstance(other, Constant) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._content)


def as_tensor(what: str, values: object) -> Tensor:
    """What a user gave as a tensor: a tensor, an array or nested lists.

    Raises:
        InputError: for anything else, such as lists of unequal length.
    """
    try:
        return values if isinstance(values, Tensor) else torch.as_tensor(values, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"{what} cannot be made of {str(values)[:80]!r}: give a tensor, an array or lists of equal length"
        ) from error
