"""Other libraries' windows, each in that library's way of counting.

The same number means different windows in different libraries. A function here takes the number as its library does,
and gives the pattern of ours that attends the same pairs.
"""

from __future__ import annotations

import torch

from attention.patterns.base import Pattern
from attention.patterns.block_patterns import BlockSparse
from attention.patterns.rows import LARGEST
from attention.patterns.windows import Dilated, LocalWindow, Neighborhood
from crossbar.errors import InputError, require_whole


def transformers_causal(sliding_window: int) -> LocalWindow:
    """Transformers' sliding window in a decoder: i − sliding_window < j <= i (``masking_utils``).

    >>> transformers_causal(4096)
    LocalWindow(is_causal=True, window=4096)
    """
    require_whole("sliding_window", sliding_window, least=1, most=LARGEST)
    return LocalWindow(sliding_window).causal()


def transformers_bidirectional(sliding_window: int) -> LocalWindow:
    """Transformers' sliding window in an encoder: |i − j| <= sliding_window, so 2 sliding_window + 1 keys."""
    require_whole("sliding_window", sliding_window, least=0, most=LARGEST // 2)
    return LocalWindow(2 * sliding_window + 1)


def attention_gym_causal(window_size: int) -> LocalWindow:
    """attention-gym's ``generate_sliding_window``: i − window_size <= j <= i, so window_size + 1 keys."""
    require_whole("window_size", window_size, least=0, most=LARGEST - 1)
    return LocalWindow(window_size + 1).causal()


def longformer(attention_window: int) -> LocalWindow:
    """Longformer's ``attention_window``, which counts both sides: |i − j| <= attention_window / 2.

    Raises:
        InputError: for an odd number, as Longformer does.
    """
    require_whole("attention_window", attention_window, least=2, most=LARGEST)
    if attention_window % 2:
        raise InputError(
            f"attention_window = {attention_window} is not allowed: give an even number, both sides counted"
        )
    return LocalWindow(attention_window)


def deepspeed_unidirectional(num_sliding_window_blocks: int, block: int, n: int) -> BlockSparse:
    """DeepSpeed's sliding window of blocks, unidirectional, for ``n`` tokens.

    A block of queries attends its own block and num_sliding_window_blocks // 2 blocks before it: nb // 2 + 1 blocks.
    DeepSpeed leaves the own block whole unless it is also given a causal mask; here j <= i.
    """
    require_whole("num_sliding_window_blocks", num_sliding_window_blocks, least=1, most=LARGEST)
    require_whole("block", block, least=1, most=LARGEST)
    require_whole("n", n, least=1, most=LARGEST)
    row = torch.arange(-(-n // block), device="cpu")
    distance = row[:, None] - row
    layout = (distance >= 0) & (distance <= num_sliding_window_blocks // 2)
    return BlockSparse(layout, block).causal()


def natten(kernel_size: int, dilation: int = 1) -> Neighborhood:
    """NATTEN's ``na1d``: `Neighborhood`, whose rule is NATTEN's."""
    return Neighborhood(kernel_size, dilation)


def natten_causal(kernel_size: int, dilation: int = 1) -> Pattern:
    """NATTEN's ``na1d`` with ``is_causal``: the query and the kernel_size − 1 keys before it, ``dilation`` apart.

    Its kernel is not moved at the end of the sequence, so that, unlike `Neighborhood`, it can decode.
    """
    require_whole("kernel_size", kernel_size, least=1, most=LARGEST)
    require_whole("dilation", dilation, least=1, most=LARGEST)
    return Dilated(kernel_size * dilation, dilation).causal()
