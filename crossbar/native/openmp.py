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

import torch
from torch import Tensor


def run(kernel: Any, work: int, *arguments: Tensor | int | float | None) -> None:
    """Call a kernel on as many threads as torch uses; returns when all are done.

    Args:
        kernel: a compiled C function of one pointer to 64-bit words: the address of what the threads share, how many
            of them are asked for, then the arguments. They share the addresses of ``omp_get_thread_num`` and
            ``omp_get_num_threads`` (0: called on one thread), and a word for each thread, in which one that comes to
            the end leaves how many there were.
        work: parts into which the work can be shared, at least; no more threads are used.
        arguments: contiguous CPU tensors (as addresses; None as 0), whole numbers, floats (as the bits of a double).

    Raises:
        RuntimeError: if a thread did not come to the end, so that results would be what was in memory before.
    """
    threads = max(min(torch.get_num_threads(), work), 1)
    parallel, number, count = (_openmp() if threads > 1 else None) or (None, 0, 0)
    given = [0, threads, *map(_word, arguments)]
    place = len(given)  # of what the threads share, in the same words
    words = (ctypes.c_int64 * (place + 2 + threads))(*given, number, count)
    words[0] = ctypes.addressof(words) + ctypes.sizeof(ctypes.c_int64) * place
    if parallel is None:
        kernel.ctypes(words)
    else:
        parallel(kernel.address, ctypes.addressof(words), threads, 0)
    ended = words[place + 2 :]
    if not ended[0] or ended[: ended[0]] != [ended[0]] * ended[0]:
        raise RuntimeError("a compiled kernel failed, maybe for want of memory")


def _word(argument: Tensor | int | float | None) -> int:
    if isinstance(argument, Tensor):
        assert argument.is_contiguous(), "kernels take contiguous tensors"
        return argument.data_ptr()
    if isinstance(argument, float):
        bits: int = struct.unpack("<q", struct.pack("<d", argument))[0]
        return bits
    return 0 if argument is None else argument


@cache
def _openmp() -> tuple[Any, int, int] | None:
    """``GOMP_parallel(function, data, threads, flags)`` of the OpenMP runtime that torch is linked with.

    With the addresses of its ``omp_get_thread_num`` and ``omp_get_num_threads``; None where it has no such calls.
    """
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if not path.exists():
        return None
    library = ctypes.CDLL(str(path))  # symbols are looked for in it and in all that it is linked with
    names = ("GOMP_parallel", "omp_get_thread_num", "omp_get_num_threads")
    parallel, number, count = (getattr(library, name, None) for name in names)
    if parallel is None or number is None or count is None:
        return None
    parallel.argtypes, parallel.restype = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint], None
    addresses = (ctypes.cast(function, ctypes.c_void_p).value or 0 for function in (number, count))
    return parallel, *addresses
