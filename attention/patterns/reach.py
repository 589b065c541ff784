"""How far back a causal pattern looks: what a memory must keep for it."""

from __future__ import annotations

from attention.patterns.base import Intersection, Pattern, Union
from attention.patterns.tokens import Sinks
from attention.patterns.windows import Dilated, LocalWindow


def causal_reach(pattern: Pattern) -> tuple[int, int] | None:
    """How many of the last keys, and of the first, a causal query attends at most; None if it may attend any."""
    if isinstance(pattern, LocalWindow | Dilated):
        return pattern.window, 0
    if isinstance(pattern, Sinks):
        return 1, pattern.n
    if isinstance(pattern, Union):
        parts = [causal_reach(part) for part in pattern.parts]
        known = [part for part in parts if part is not None]
        return None if len(known) < len(parts) else (max(r for r, _ in known), max(s for _, s in known))
    if isinstance(pattern, Intersection):  # within each of its parts, so within the one that reaches least
        known = [part for part in map(causal_reach, pattern.parts) if part is not None]
        return min(known, key=sum, default=None)
    return None
