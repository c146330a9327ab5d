"""The functions of one vector that the CPU kernels are made of, against mpmath."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import numba
import numpy as np
import pytest
from exact import SLOPE_ULPS, SOFTCAP_ULPS, assert_same, mp, mpf, ulp

import numba_ce
from numba_ce.cpu.compile.fast import KernelCompiler
from numba_ce.cpu.compile.jit import OPTIONS, inner
from numba_ce.cpu.rows.tile import reduction_of
from numba_ce.cpu.simd.element import KINDS
from numba_ce.cpu.simd.exp import (
    EXPONENT_BIAS,
    LN2,
    exp_scaled,
    mantissa_and_exponent,
    power_of_two,
    reduction,
    soft_cap_and_slope,
    times_two_to,
)
from numba_ce.cpu.simd.log import log1p, log1p64
from numba_ce.cpu.simd.memory import load, store
from numba_ce.cpu.simd.vector import VECTOR_BYTES

FLOATS = (np.float32, np.float64)
# What links the parts of a kernel: plain njit does not
compiled = numba.njit(**{**OPTIONS, "pipeline_class": KernelCompiler})
both_floats = pytest.mark.parametrize("real", FLOATS)


def over_vectors(function, real):
    """A function of an array from a function of one vector; the length must be whole vectors."""
    zero = real(0)

    @compiled
    def run(source, target, constants, n_bytes):
        for i in range(0, n_bytes, VECTOR_BYTES):
            store(target + i, function(load(source + i, zero), constants))

    def call(x, constants=(0.0, 0.0, 0.0, 0.0)):
        x = np.ascontiguousarray(x, real)
        result = np.empty_like(x)
        assert x.nbytes % VECTOR_BYTES == 0
        constants = tuple(real(c) for c in constants)
        run(x.ctypes.data, result.ctypes.data, constants, x.nbytes)
        return result

    return call


def errors(actual, exact, real):
    """In ulps of the exact values (mpf)."""
    return [
        float(abs(mpf(float(a)) - e)) / float(ulp(float(e), real))
        for a, e in zip(actual, exact, strict=True)
    ]


@both_floats
def test_exp_is_within_one_ulp(rng, real):
    bias = EXPONENT_BIAS[KINDS[np.dtype(real).name][1]]
    lowest = real(-(bias - 1) * float(LN2))
    exp = over_vectors(inner(lambda x, _: exp_scaled(x, real(0), bias, lowest, None)), real)
    x = np.concatenate([rng.uniform(lowest, 0, 3000), rng.uniform(-2, 0, 1000), np.zeros(96)])
    x = x.astype(real)
    exact = [mp.exp(mpf(float(v))) for v in x]
    assert max(errors(exp(x), exact, real)) <= 1.0


@both_floats
def test_exp_of_special_values(real):
    bias = EXPONENT_BIAS[KINDS[np.dtype(real).name][1]]
    lowest = real(-(bias - 1) * float(LN2))
    exp = over_vectors(inner(lambda x, _: exp_scaled(x, real(0), bias, lowest, None)), real)
    result = exp([-np.inf, np.nan, 0.0, -0.0, 2 * lowest, -1e30, np.inf, 1.0] * 2)
    assert_same(result[:6], [0, np.nan, 1, 1, 0, 0])
    assert np.isnan(result[6])


@both_floats
@pytest.mark.parametrize("temperature", [0.1, 0.7, 3.0, 1e3])
def test_exp_at_a_temperature(rng, real, temperature):
    dtype = KINDS[np.dtype(real).name][1]
    bias = EXPONENT_BIAS[dtype]
    lowest = real(-(bias - 1) * float(LN2) * temperature)
    exp = over_vectors(
        inner(lambda x, c: exp_scaled(x, real(0), bias, lowest, reduction_of(c, real))),
        real,
    )
    x = rng.uniform(lowest, 0, 2048).astype(real)
    exact = [mp.exp(mpf(float(v)) / temperature) for v in x]
    assert max(errors(exp(x, reduction(dtype, temperature)), exact, real)) <= 1.5


@both_floats
@pytest.mark.parametrize("cap", [0.5, 3.0, 50.0])
def test_soft_cap_and_its_derivative(rng, real, cap):
    dtype = KINDS[np.dtype(real).name][1]
    half = reduction(dtype, cap / 2)
    both = inner(lambda x, c: soft_cap_and_slope(x, real(cap), reduction_of(c, real)))
    capped = over_vectors(inner(lambda x, c: both(x, c)[0]), real)
    slope = over_vectors(inner(lambda x, c: both(x, c)[1]), real)
    x = (cap * np.concatenate([rng.uniform(-3, 3, 800), rng.uniform(-20, 20, 192)])).astype(real)
    x[:32] = real(cap) * real(10.0) ** np.arange(-32, 0).astype(real)
    z = [mpf(float(v)) / cap for v in x]
    exact = [cap * mp.tanh(v) for v in z]
    relative = [
        float(abs(mpf(float(a)) / e - 1)) for a, e in zip(capped(x, half), exact, strict=True)
    ]
    assert max(relative) <= SOFTCAP_ULPS * np.finfo(real).eps
    exact = [mp.sech(v) ** 2 for v in z]
    depth = np.array([float(abs(2 * v)) for v in z])  # the rounding of 2 |z| / cap
    assert (np.array(errors(slope(x, half), exact, real)) <= SLOPE_ULPS + depth).all()
    infinite = capped([-np.inf, np.inf, np.nan, 0.0] * 4, half)
    assert_same(infinite[:4], [-np.inf, np.inf, np.nan, 0])
    infinite = slope([-np.inf, np.inf, 0.0, 1e9] * 4, half)
    assert_same(infinite[:4], [0, 0, 1, 0])


def test_log1p_is_exact_enough_for_float32(rng):
    vector_log1p = over_vectors(inner(lambda u, _: log1p(u, 1.0 + u)), np.float64)
    u = np.concatenate(
        [
            rng.uniform(-0.5, 0, 2000),
            10.0 ** rng.uniform(-320, 2, 2000),
            rng.uniform(0, 70, 2000),
            2.0 ** np.arange(-60, 68) - 1.0 * (np.arange(-60, 68) >= 0),
            [0.0, np.sqrt(2) - 1, np.sqrt(0.5), 1.0, 0.5, 3.0, 7.0, 1e-300],
        ]
    )
    exact = [mp.log1p(mpf(v)) for v in u]
    normal = np.abs(u) > 1e-300
    pairs = zip(vector_log1p(u)[normal], np.array(exact)[normal], strict=True)
    assert max(abs(float(a) / e - 1) for a, e in pairs if e) < 2**-37.5
    result = vector_log1p([-0.0, np.nan, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert_same(result[:3], [0.0, np.nan, 0.0])


def test_log1p_of_float64_is_within_an_ulp(rng):
    vector_log1p = over_vectors(inner(lambda u, _: log1p64(u)), np.float64)
    u = np.concatenate([10.0 ** rng.uniform(-300, 300, 4000), rng.uniform(0, 3, 4000)])
    exact = [mp.log1p(mpf(v)) for v in u]
    assert max(errors(vector_log1p(u), exact, np.float64)) <= 1
    result = vector_log1p([np.inf, np.nan, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    assert_same(result[:3], [np.inf, np.nan, 0.0])


def test_powers_of_two():
    @compiled
    def run(value, n):
        f, k = mantissa_and_exponent(value)
        return power_of_two(n), times_two_to(value, n), f, k

    for value in (1.0, -3.7, 5e-324, 1e-310, 1.7e308, 0.0, 0.1):
        for n in (-1022, -60, 0, 1, 700, 1023):
            power, product, f, k = run(value, n)
            assert power == 2.0**n
            with np.errstate(over="ignore"):
                assert product == np.ldexp(value, n)
            assert f * 2.0 ** max(k, -1000) * 2.0 ** (k - max(k, -1000)) == value
            assert 1 <= abs(f) < 2 or value == 0


@pytest.mark.parametrize("n", [-5000, -2100, -1100, 1100, 2100, 5000])
def test_far_powers_of_two(n):
    run = compiled(lambda value, n: times_two_to(value, n))
    assert run(1.5, n) == (0.0 if n < -1075 else np.inf)
    assert run(2.0**-600, n) == (0.0 if n < 0 else np.ldexp(1.0, n - 600) if n < 1624 else np.inf)


def test_every_float16_as_a_weight():
    """All 65536 of them, for which no conversion of the processor is used."""
    weights = np.arange(65536, dtype=np.uint16).view(np.float16)
    logits, targets = np.zeros((65536, 2)), np.zeros(65536, np.int64)
    for order in ("<", ">"):
        weight = weights.astype(weights.dtype.newbyteorder(order))
        with np.errstate(invalid="ignore"):
            expected = np.where(weights == 0, 0.0, weights.astype(float) * np.log(2))
        loss = numba_ce.cross_entropy(logits, targets, sample_weight=weight, reduction="none")
        np.testing.assert_allclose(loss, expected, rtol=1e-15)


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="a matter of x86")
def test_a_processor_without_float16():
    """Everything else works there, and float16 is an error that can be caught."""
    code = """
import numpy as np, numba_ce
logits, targets = np.zeros((20, 300), np.float32), np.zeros(20, np.int64)
weight = np.full(20, 0.5, np.float16)
assert abs(numba_ce.cross_entropy(logits, targets, sample_weight=weight) - np.log(300)) < 1e-6
try:
    numba_ce.cross_entropy(logits.astype(np.float16), targets)
except NotImplementedError as error:
    assert "F16C" in str(error)
else:
    raise SystemExit("no error")
"""
    environment = os.environ | {"NUMBA_CPU_NAME": "generic"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert run.returncode == 0, run.stderr.decode()
