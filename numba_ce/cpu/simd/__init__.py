"""Vectors: arithmetic, memory, elements of any dtype, transposition, exp and log."""
