"""Numba told how to compile the kernels, and kernels kept on disk."""
