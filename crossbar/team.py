"""Compiled kernels, run by torch's own threads.

Between two operations torch's OpenMP threads wait by spinning, so threads of another pool would have to share the cores
with them. A kernel is therefore handed to the OpenMP runtime that torch itself is linked with: the same threads go on.
"""

from __future__ import annotations

import ctypes
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor


def run(kernel: Any, tasks: int, *arguments: Tensor | int | float | None) -> None:
    """Call a kernel of `crossbar.kernels` on as many threads as torch uses, until ``tasks`` tasks are done.

    Args:
        kernel: a compiled C function of one pointer to 64-bit words: the next task (threads count it up), the number of
            tasks, then the arguments.
        tasks: independent pieces of work; which thread does which is left open.
        arguments: contiguous CPU tensors (as addresses; None as 0), whole numbers, floats (as the bits of a double).
    """
    words = np.array([0, tasks, *map(_word, arguments)], dtype=np.int64)
    threads = min(torch.get_num_threads(), tasks)
    parallel = _parallel() if threads > 1 else None
    if parallel is None:
        kernel.ctypes(words.ctypes.data_as(ctypes.POINTER(ctypes.c_int64)))
    else:
        parallel(kernel.address, words.ctypes.data, threads, 0)


def _word(argument: Tensor | int | float | None) -> int:
    if isinstance(argument, Tensor):
        assert argument.is_contiguous(), "kernels take contiguous tensors"
        return argument.data_ptr()
    if isinstance(argument, float):
        bits: int = struct.unpack("<q", struct.pack("<d", argument))[0]
        return bits
    return 0 if argument is None else argument


@cache
def _parallel() -> Any:
    """``GOMP_parallel(function, data, threads, flags)`` of torch's OpenMP runtime; None where it has no such call."""
    for library in ("libtorch_cpu.so", "libtorch_cpu.dylib"):
        path = Path(torch.__file__).parent / "lib" / library
        if path.exists():
            # Symbols are looked for in the library and in all that it is linked with.
            parallel = getattr(ctypes.CDLL(str(path)), "GOMP_parallel", None)
            if parallel is not None:
                parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
                parallel.restype = None
            return parallel
    return None
