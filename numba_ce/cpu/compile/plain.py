"""Numba's own pipeline: slower to compile, without Numba's private parts."""

PART_OPTIONS: dict = {}
KERNEL_OPTIONS: dict = {}


def try_out():
    """Nothing can be missing here."""
