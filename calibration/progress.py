"""How slow work says how far it is."""

from collections.abc import Callable

Progress = Callable[[int, int, str], None]
"""Called before each part with how many are done, how many there are, and what comes."""
