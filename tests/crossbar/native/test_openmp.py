"""Kernels on torch's threads: all of the work is done, once, with any number of them."""

import numpy as np
import pytest
import torch
from numba import carray, cfunc

from crossbar.native import openmp
from crossbar.native.compiled import SIGNATURE, as_double, done, pointer, share


@cfunc(SIGNATURE)
def counted(words):
    """Arguments: a float64 for each part of the work, how many, what to add to each."""
    given = carray(words, 5)
    parts = carray(pointer(given[2]), given[3], np.float64)
    for part in range(*share(given, given[3])):
        parts[part] += as_double(given[4])
    done(given)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("work", [0, 1, 2, 7, 100])
def test_each_part_is_done_once(threads, work):
    before = torch.get_num_threads()
    parts = torch.zeros(work, dtype=torch.float64)
    try:
        torch.set_num_threads(threads)
        openmp.run(counted, work, parts, work, 0.25)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(parts, torch.full((work,), 0.25, dtype=torch.float64))


def test_tensors_that_do_not_lie_in_one_piece_are_refused():
    with pytest.raises(AssertionError, match="contiguous"):
        openmp.run(counted, 2, torch.zeros(2, 2, dtype=torch.float64).t(), 2, 1.0)
