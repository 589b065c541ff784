"""Sparse attention: who attends to whom, the attention itself, and the memory lines that it opens.

>>> import torch
>>> from attention import count, Dense, gated_attention, parse
>>> pattern = parse("window(64) | sinks(4)")
>>> x = torch.ones(1, 2, 100, 8)
>>> gated_attention(x, x, x, pattern).shape
torch.Size([1, 2, 100, 8])
>>> sparse, dense = (count(p, 256, head_dim=32) for p in (pattern, Dense()))
>>> f"{sparse.score_conversions / dense.score_conversions:.0%} of the conversions"
'25% of the conversions'
"""

from attention import platforms
from attention.controller import Controller, Timing
from attention.counts import Counts, count, tally
from attention.delivered import accumulate, score
from attention.events import Axis, Events, Placement
from attention.gated import gated_attention
from attention.hf import attach, attached_pattern, detach
from attention.patterns import CSR, Dense, GlobalTokens, LocalWindow, Pattern, Sinks
from attention.platforms import Platform
from attention.reference import attention_reference
from attention.text import parse

__all__ = [
    "CSR",
    "Axis",
    "Controller",
    "Counts",
    "Dense",
    "Events",
    "GlobalTokens",
    "LocalWindow",
    "Pattern",
    "Placement",
    "Platform",
    "Sinks",
    "Timing",
    "accumulate",
    "attach",
    "attached_pattern",
    "attention_reference",
    "count",
    "detach",
    "gated_attention",
    "parse",
    "platforms",
    "score",
    "tally",
]
