"""What every test shares."""

import os

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is first imported: waiting threads do not spin
# Read when Triton is first imported: its kernels are then interpreted on the CPU, where backends are picked by name.
# `make test-gpu` sets 0, so that they are compiled for the GPU that is there.
os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # read when transformers is first imported: no test may reach a model hub


@pytest.fixture
def registries(monkeypatch):
    """Backends and adapters that a test registers are gone after it."""
    from crossbar.adapters import registry
    from crossbar.backends import dispatch

    monkeypatch.setattr(dispatch, "_backends", dict(dispatch._backends))
    monkeypatch.setattr(registry, "_adapters", dict(registry._adapters))
