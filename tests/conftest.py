"""What every test shares."""

import importlib
import os
import signal
from pathlib import Path

import pytest
from filelock import FileLock

ROOT = Path(__file__).parents[1]
WORKER = "PYTEST_XDIST_WORKER" in os.environ
if WORKER:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is first imported: workers share the cores
    os.environ.pop("COLUMNS", None)  # of xdist: what is printed is as wide as without workers

# A shell has its background jobs ignore Ctrl-C, and so would the processes that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

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


def pytest_configure(config):
    """Compiled kernels are in numba's cache before workers meet them: each module is compiled by one, others load it.

    Every other worker begins with the last module, so that two compile at once.
    """
    if WORKER:
        files = [path for path in sorted(ROOT.glob("crossbar/**/*kernels.py")) if path.name != "triton_kernels.py"]
        if int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % 2:
            files.reverse()
        for path in files:
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            with FileLock(config.cache.mkdir("kernels") / name):
                importlib.import_module(name)
