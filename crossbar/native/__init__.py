"""Compiled loops: how numba's C functions run on torch's own threads."""
