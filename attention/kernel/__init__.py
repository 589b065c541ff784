"""Attention over a pattern: work laid out in blocks, computed in digital or on analog rows, and the slow oracles."""
