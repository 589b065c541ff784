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

from attention.activation import Saturating, Softmax
from attention.controller import platforms
from attention.controller.capacity import Excess
from attention.controller.controller import Controller
from attention.controller.delivery import EventsDropped
from attention.controller.event_arithmetic import accumulate, score
from attention.controller.events import Axis, Events, Placement
from attention.controller.platforms import Limits, Platform
from attention.controller.routing_tables import RoutingTables
from attention.controller.tally import count, tally
from attention.controller.timing import Timing
from attention.counts import Counts
from attention.gated import gated_attention
from attention.hf.attach import attach, attached_pattern, detach, memory_cache, renew_memory
from attention.kernel.reference import attention_reference
from attention.learned.router import Router, commitment, place_centroids, routers
from attention.learned.strengths import LearnedStrengths, place_strengths
from attention.memory.description import Memory, Protected
from attention.memory.memory import AnalogMemory
from attention.memory.report import MemoryReport
from attention.neuromorphic.strength_cores import CoreStrengths, fitted_to_cores
from attention.patterns import conventions
from attention.patterns.base import Pattern, Piece
from attention.patterns.block_patterns import BigBird, BlockSparse, RandomBlocks
from attention.patterns.documents import Documents, Padding
from attention.patterns.heads import PerHead, PerSequence
from attention.patterns.hierarchical import Hierarchical
from attention.patterns.routing import Routing
from attention.patterns.rows import CSR
from attention.patterns.screening import Screened, Spiking, recall
from attention.patterns.selection import BlockTopK, TopK
from attention.patterns.statistics import Statistics
from attention.patterns.strides import Fixed, Strided
from attention.patterns.text import parse
from attention.patterns.tokens import Dense, GlobalTokens, Sinks
from attention.patterns.windows import Dilated, LocalWindow, Neighborhood

__all__ = [
    "CSR",
    "AnalogMemory",
    "Axis",
    "BigBird",
    "BlockSparse",
    "BlockTopK",
    "Controller",
    "CoreStrengths",
    "Counts",
    "Dense",
    "Dilated",
    "Documents",
    "Events",
    "EventsDropped",
    "Excess",
    "Fixed",
    "GlobalTokens",
    "Hierarchical",
    "LearnedStrengths",
    "Limits",
    "LocalWindow",
    "Memory",
    "MemoryReport",
    "Neighborhood",
    "Padding",
    "Pattern",
    "PerHead",
    "PerSequence",
    "Piece",
    "Placement",
    "Platform",
    "Protected",
    "RandomBlocks",
    "Router",
    "Routing",
    "RoutingTables",
    "Saturating",
    "Screened",
    "Sinks",
    "Softmax",
    "Spiking",
    "Statistics",
    "Strided",
    "Timing",
    "TopK",
    "accumulate",
    "attach",
    "attached_pattern",
    "attention_reference",
    "commitment",
    "conventions",
    "count",
    "detach",
    "fitted_to_cores",
    "gated_attention",
    "memory_cache",
    "parse",
    "place_centroids",
    "place_strengths",
    "platforms",
    "recall",
    "renew_memory",
    "routers",
    "score",
    "tally",
]
