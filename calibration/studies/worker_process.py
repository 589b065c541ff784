"""What a worker of the engine ``local`` runs, as a script: ``python -P worker_process.py PIPE PARENT SOURCES``.

By its path and not as a module, since importing the package around it takes seconds in which the parent may end.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import signal
import sys
import threading
from multiprocessing.connection import Connection

_PR_SET_PDEATHSIG = 1  # of Linux's prctl


def tether(pipe: int, parent: int) -> None:
    """End this process once process ``parent``, which has the other end of a pipe, is gone, however it ended.

    On Linux the kernel kills it, whatever it computes. Elsewhere a thread does, which may wait for a computation that
    holds Python's lock.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before this line
        os._exit(1)
    threading.Thread(target=_end_with, args=(pipe,), daemon=True).start()


def _end_with(pipe: int) -> None:
    """Wait for the other end of a pipe to be closed, which is told whatever else is asked for."""
    ends = select.poll()
    ends.register(pipe, 0)
    ends.poll()
    os._exit(1)


def main(pipe: int, parent: int, sources: str) -> None:
    """Compute what comes through a pipe until its other end is closed."""
    tether(pipe, parent)

    from calibration.studies.local import serve

    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the study has ended
        serve(Connection(pipe), json.loads(sources))


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
