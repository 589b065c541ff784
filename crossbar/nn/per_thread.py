"""State of a layer that each thread has its own of, so that threads which run one model do not see each other."""

from __future__ import annotations

import threading
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class PerThread(Generic[T]):
    """A value that starts the same in every thread; what one thread sets, no other sees.

    A copy starts with what the copying thread has.
    """

    def __init__(self, value: T) -> None:
        self._first = value
        self._own = threading.local()

    def get(self) -> T:
        """The calling thread's value."""
        value: T = getattr(self._own, "value", self._first)
        return value

    def set(self, value: T) -> None:
        """Change the calling thread's value."""
        self._own.value = value

    def __deepcopy__(self, memo: Any) -> PerThread[T]:
        return PerThread(self.get())

    def __reduce__(self) -> tuple[type[PerThread[T]], tuple[T]]:
        return PerThread, (self.get(),)
