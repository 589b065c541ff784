"""Peers that tests compare with, where they are installed."""

import importlib.util

import pytest

_MISSING, _REASON = importlib.util.find_spec("aihwkit") is None, "aihwkit is not installed: it comes with its extra"
needs_aihwkit = pytest.mark.skipif(_MISSING, reason=_REASON)


def module_needs_aihwkit():
    """Skip the module that calls this before it imports aihwkit."""
    if _MISSING:
        pytest.skip(_REASON, allow_module_level=True)
