"""A full disk, for tests: no file can grow beyond a size."""

import contextlib
import resource
import signal


@contextlib.contextmanager
def files_of_at_most(size):
    """Writing a file beyond ``size`` bytes fails here, as it does on a full disk."""
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1][1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before[1])
        signal.signal(signal.SIGXFSZ, before[0])
