"""Processes, threads and signals under each threading layer: short runs of `stress`."""

from __future__ import annotations

import ctypes.util
import importlib.metadata

import pytest
from stress import LAYERS, run_programs


def has_layer(name):
    if name == "tbb":
        return any(importlib.metadata.distributions(name="tbb"))
    return name == "workqueue" or ctypes.util.find_library("gomp") is not None


@pytest.fixture(params=LAYERS)
def layer(request):
    if not has_layer(request.param):
        pytest.skip(f"Numba's layer {request.param} is not installed here")
    return request.param


def test_programs_under_each_layer(layer):
    run_programs(
        "threads",
        "executors",
        "prange",
        "fork",
        "alarms",
        *(() if layer == "omp" else ("interrupt",)),
        layer=layer,
        few=True,
        seconds=0.4,
        forks=2,
    )


def test_limits_memory_and_bits():
    run_programs("limits", "memory", "bits", few=True, repetitions=10, threads=7)


def test_forks_while_others_import():
    """In a process of its own: in the others everything is imported already."""
    run_programs("imports")


def test_workers_of_a_server():
    """The long run asks for 0.7."""
    run_programs("workers", few=True, seconds=1.5, at_least=0.5)
