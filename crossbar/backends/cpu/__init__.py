"""The CPU: whole numbers on its 8-bit units, by kernels that numba compiles."""
