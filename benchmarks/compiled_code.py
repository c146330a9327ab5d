"""`python -m benchmarks.compiled_code`: what calls cost inside functions that Numba compiles.

A call against its rows alone, the compile time of a caller, a training loop that is one function,
and a mixed logit whose draws are a `prange`; half a minute.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time

import numpy as np
from numba import njit, prange

import numba_ce
import numba_ce.cpu as cpu
import numba_ce.integrations.numba
from numba_ce.cpu.compile.jit import call_address
from numba_ce.cpu.plan import PLAN_BYTES, address_of, pack_plan
from numba_ce.cpu.simd.element import put
from numba_ce.data import load_digits

COMPILE = """
import time
import numpy as np, numba_ce
import numba_ce.integrations.numba
from numba import njit


@njit
def user(z, y):
    return numba_ce.cross_entropy_and_grad(z, y)


njit(lambda x: x + 1)(1)
logits, targets = np.zeros((4, 10), np.float32), np.zeros(4, np.int64)
begin = time.perf_counter()
user(logits, targets)
print(time.perf_counter() - begin)
"""


def best(function, *arguments, repeat=7):
    function(*arguments)
    seconds = []
    for _ in range(repeat):
        begin = time.perf_counter()
        function(*arguments)
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


# ---------------------------------------------------------------- one call


@njit
def rows_alone(kernel, plan, tickets, n):
    for _ in range(n):
        put(tickets, np.int64(0))
        call_address(kernel, plan, 0)


@njit
def calls(z, y, out, n):
    total = 0.0
    for _ in range(n):
        total += numba_ce.cross_entropy_and_grad(z, y, out=out)[0]
    return total


def from_python(z, y, out, n):
    for _ in range(n):
        numba_ce.cross_entropy_and_grad(z, y, out=out)


def plan_of_a_call(z, y, out):
    """The kernel that a call from Python runs, and a plan for it that stays."""
    seen, run_job = [], cpu.run_job

    def spy(job, fields):
        seen[:] = [(job, dict(fields))]
        return run_job(job, fields)

    cpu.run_job = spy
    try:
        numba_ce.cross_entropy_and_grad(z, y, out=out)
    finally:
        cpu.run_job = run_job
    job, fields = seen[0]
    results, memory = np.zeros(4), np.empty(PLAN_BYTES + job.workspace_bytes, np.uint8)
    at = address_of(results)
    fields.update(n_blocks=1, tickets=at, weight=at + 8, block_sum=at + 16, block_bad=at + 24)
    fields["workspace"] = address_of(memory) + PLAN_BYTES
    pack_plan(memory, job.fixed, fields)
    return job.kernel.function.address, memory, results


def one_call():
    rng, n = np.random.default_rng(0), 200_000
    for dtype in (np.float32, np.float64):
        for n_rows, n_classes in ((4, 10), (50, 4)):
            z = rng.standard_normal((n_rows, n_classes)).astype(dtype)
            y, out = rng.integers(0, n_classes, n_rows), np.empty_like(z)
            kernel, memory, results = plan_of_a_call(z, y, out)
            alone = best(rows_alone, kernel, address_of(memory), address_of(results), n) / n
            inside, outside = best(calls, z, y, out, n) / n, best(from_python, z, y, out, 2000)
            print(
                f"{n_rows} x {n_classes} {z.dtype}: rows alone {alone * 1e9:.0f} ns, in compiled "
                f"code {inside * 1e9:.0f} ns, from Python {outside / 2000 * 1e9:.0f} ns"
            )


def compile_time():
    with tempfile.TemporaryDirectory() as folder:
        for name in ("no kernel on disk", "kernels on disk"):
            result = subprocess.run(
                [sys.executable, "-c", COMPILE],
                env={**os.environ, "NUMBA_CE_CACHE_DIR": folder},
                capture_output=True,
                text=True,
                check=True,
            )
            print(f"first call of a function with one call, {name}: {float(result.stdout):.2f} s")


# ---------------------------------------------------------------- a training loop


def train(images, digits, weight, bias, rate, momentum, batch, n_epochs):
    """Gradient descent with momentum on batches; as Python or compiled, the same text."""
    loss = np.float32(0.0)
    speed_weight, speed_bias = np.zeros_like(weight), np.zeros_like(bias)
    for _ in range(n_epochs):
        for start in range(0, len(images) - batch + 1, batch):
            x, y = images[start : start + batch], digits[start : start + batch]
            logits = np.dot(x, weight) + bias
            loss, grad = numba_ce.cross_entropy_and_grad(logits, y, out=logits)
            speed_weight = momentum * speed_weight - rate * np.dot(x.T, grad)
            speed_bias = momentum * speed_bias - rate * grad.sum(axis=0)
            weight += speed_weight
            bias += speed_bias
    return loss


def training_loop():
    images, digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits))
    images, digits = images[order], digits[order]
    compiled = njit(train)
    for batch in (32, 256):
        results = []
        for function in (train, compiled):
            weight, bias = np.zeros((64, 10), np.float32), np.zeros(10, np.float32)
            arguments = (weight, bias, np.float32(0.05), np.float32(0.9), batch)
            function(images, digits, *arguments, 1)
            weight[:], bias[:] = 0, 0
            begin = time.perf_counter()
            loss = function(images, digits, *arguments, 20)
            seconds = time.perf_counter() - begin
            accuracy = ((images @ weight + bias).argmax(axis=1) == digits).mean()
            results.append((seconds, float(loss), accuracy))
        (python, *_), (inside, loss, accuracy) = results
        steps = 20 * (len(images) // batch)
        print(
            f"digits, batches of {batch}, {steps} steps: from Python {python:.3f} s, one function "
            f"{inside:.3f} s, {python / inside:.1f} times faster (loss {loss:.3f}, accuracy "
            f"{accuracy:.3f})"
        )


# ---------------------------------------------------------------- a mixed logit


@njit
def utilities(features, beta, out):
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            total = 0.0
            for k in range(beta.shape[0]):
                total += features[i, j, k] * beta[k]
            out[i, j] = total


@njit
def slope(features, grad, out):
    out[:] = 0.0
    for i in range(grad.shape[0]):
        for j in range(grad.shape[1]):
            for k in range(out.shape[0]):
                out[k] += grad[i, j] * features[i, j, k]


@njit(parallel=True)
def fused_draws(features, choices, betas):
    losses, slopes = np.empty(len(betas)), np.empty(betas.shape)
    for r in prange(len(betas)):
        v = np.empty(features.shape[:2])
        utilities(features, betas[r], v)
        losses[r] = numba_ce.cross_entropy_and_grad(v, choices, out=v, reduction="sum")[0]
        slope(features, v, slopes[r])
    return losses, slopes


@njit
def hand_written(v, choices):
    """The loss of the rows by loops, and the gradient over the logits."""
    total = 0.0
    for i in range(v.shape[0]):
        peak = v[i, 0]
        for j in range(1, v.shape[1]):
            peak = max(peak, v[i, j])
        sum_exp, target = 0.0, v[i, choices[i]]
        for j in range(v.shape[1]):
            v[i, j] = np.exp(v[i, j] - peak)
            sum_exp += v[i, j]
        total += np.log(sum_exp) + peak - target
        for j in range(v.shape[1]):
            v[i, j] /= sum_exp
        v[i, choices[i]] -= 1.0
    return total


@njit(parallel=True)
def loop_draws(features, choices, betas):
    losses, slopes = np.empty(len(betas)), np.empty(betas.shape)
    for r in prange(len(betas)):
        v = np.empty(features.shape[:2])
        utilities(features, betas[r], v)
        losses[r] = hand_written(v, choices)
        slope(features, v, slopes[r])
    return losses, slopes


def python_draws(features, choices, betas):
    losses, slopes = np.empty(len(betas)), np.empty(betas.shape)
    for r, beta in enumerate(betas):
        v = features @ beta
        losses[r], grad = numba_ce.cross_entropy_and_grad(v, choices, out=v, reduction="sum")
        slopes[r] = grad.ravel() @ features.reshape(-1, len(beta))
    return losses, slopes


def batched_draws(features, choices, betas):
    """All draws in one call, an array of draws x rows x classes."""
    v = np.ascontiguousarray(np.moveaxis(features @ betas.T, -1, 0))
    targets = np.broadcast_to(choices, v.shape[:-1])
    losses, grad = numba_ce.cross_entropy_and_grad(v, targets, out=v, reduction="none")
    return losses.sum(axis=1), grad.reshape(len(betas), -1) @ features.reshape(-1, betas.shape[1])


@njit(parallel=True)
def fused_alone(logits, choices, grads):
    losses = np.empty(len(logits))
    for r in prange(len(logits)):
        losses[r] = numba_ce.cross_entropy_and_grad(logits[r], choices, out=grads[r])[0]
    return losses


@njit(parallel=True)
def loops_alone(logits, choices, grads):
    losses = np.empty(len(logits))
    for r in prange(len(logits)):
        grads[r] = logits[r]
        losses[r] = hand_written(grads[r], choices)
    return losses


def mixed_logit():
    rng = np.random.default_rng(0)
    features, betas = rng.standard_normal((50, 4, 3)), rng.standard_normal((5000, 3))
    choices, exact = rng.integers(0, 4, 50), None
    draws = (fused_draws, loop_draws, batched_draws, python_draws)
    seconds = {}
    for function in draws:
        losses, slopes = function(features, choices, betas)
        exact = exact or (losses, slopes)
        np.testing.assert_allclose(losses, exact[0], rtol=1e-12)
        np.testing.assert_allclose(slopes, exact[1], rtol=1e-9, atol=1e-9)
        seconds[function.__name__] = best(function, features, choices, betas, repeat=3)
    print(
        "mixed logit, 5000 draws of 50 x 4:",
        ", ".join(f"{name} {s * 1e3:.1f} ms" for name, s in seconds.items()),
    )
    logits = rng.standard_normal((5000, 50, 4))
    grads = np.empty_like(logits)
    for function in (fused_alone, loops_alone):
        s = best(function, logits, choices, grads)
        print(f"  the models alone, {function.__name__}: {s * 1e3:.2f} ms")


if __name__ == "__main__":
    one_call()
    compile_time()
    training_loop()
    mixed_logit()
