"""CUDA GPUs: whole numbers on their 8-bit units, by kernels that Triton compiles."""
