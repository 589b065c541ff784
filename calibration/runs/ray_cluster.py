"""The Ray cluster that jobs and studies compute on: the one that runs, or one of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray


def join() -> bool:
    """Connect to the cluster of ``RAY_ADDRESS`` or of this machine, or start one; whether it was started."""
    if ray.is_initialized():
        return False
    # With no address Ray takes the one of RAY_ADDRESS or of a cluster on this machine, else starts one.
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    return True


@contextmanager
def joined() -> Iterator[None]:
    """Be connected for a while; a cluster that was started for it ends with it, one that ran before goes on."""
    started = join()
    try:
        yield
    finally:
        if started:
            ray.shutdown()
