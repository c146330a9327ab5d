"""Every formula of docs/mathematics.md: the test of a number checks the formula of that number.

The left-hand sides come from the definition in mpmath (or from differences of it), the right-hand
sides are the formulas as the page prints them; where a formula is code, the code is checked too.
"""

from __future__ import annotations

import re
from pathlib import Path

import mpmath
import numpy as np
import pytest
from formulas import FORMULAS

import numba_ce as nc
from numba_ce import reference, row

PAGE = Path(__file__).resolve().parents[2] / "docs" / "mathematics.md"
mp = mpmath.mp.clone() if hasattr(mpmath.mp, "clone") else mpmath.mp
mp.dps = 60
mpf, exp, log = mp.mpf, mp.exp, mp.log
INF = mpf("inf")
TOLERANCE = mpf(10) ** -45


def close(a, b, tolerance=TOLERANCE):
    return abs(a - b) <= tolerance * max(1, abs(b))


def numbers(rng, n, scale=2.0):
    return [mpf(float(v)) for v in scale * rng.standard_normal(n)]


def lse_of(x):
    return log(mp.fsum(exp(v) for v in x))


def softmax_of(x):
    total = mp.fsum(exp(v) for v in x)
    return [exp(v) / total for v in x]


def loss_of(x, q, v=0, z_loss=0):
    """The definition, (2)."""
    lse = lse_of(x)
    return mp.fsum(qc * (lse - xc) for qc, xc in zip(q, x, strict=True)) + v * z_loss * lse**2


def derivative(function, x, j):
    """By central differences in 60 digits: good to some 30."""
    step = mpf(10) ** -16
    up, down = list(x), list(x)
    up[j], down[j] = x[j] + step, x[j] - step
    return (function(up) - function(down)) / (2 * step)


def same_derivative(a, b):
    return close(a, b, mpf(10) ** -28)


def record_of(x, k):
    """(7); k = -1: no class left out."""
    others = [v for c, v in enumerate(x) if c != k and v > -INF]
    m = max(others, default=-INF)
    total = mp.fsum(exp(v - m) for v in others)
    return m, total, x[k] if k >= 0 else -INF


def rests_of(x, q, k, m):
    """W and A of (15)."""
    others = [(q[c], x[c]) for c in range(len(x)) if c != k]
    return mp.fsum(w for w, _ in others), mp.fsum(w * (m - v) for w, v in others)


def both_branches(rng):
    """Rows whose class 2 is ahead of the others, behind them, and level."""
    x = numbers(rng, 7)
    ahead, behind, level = list(x), list(x), list(x)
    ahead[2], behind[2] = max(x) + 9, min(x) - 9
    level[2] = max(v for c, v in enumerate(x) if c != 2)
    return ahead, behind, level


def floats(x):
    return np.array([float(v) for v in x])


def test_every_formula_has_its_test_and_every_test_its_formula():
    blocks = re.findall(r"^```math\n(.*?)^```", PAGE.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    printed = [int(n) for b in blocks for n in re.findall(r"\((\d+)\)(?: \\\\)?$", b, re.MULTILINE)]
    assert printed == list(range(1, len(printed) + 1))
    tested = {int(n) for name in globals() for n in re.findall(r"^test_(\d\d)_", name)}
    assert tested == set(printed)


# ---------------------------------------------------------------- from the definition


def test_01_surprise(rng):
    x = numbers(rng, 5)
    assert close(mp.fsum(softmax_of(x)), 1)
    for p, v in zip(softmax_of(x), x, strict=True):
        assert close(-log(p), lse_of(x) - v)


def test_02_loss(rng):
    x, q = numbers(rng, 5), numbers(rng, 5)
    expected = float(loss_of(x, q, 1, mpf(0.25)))
    loss = nc.cross_entropy(floats(x), floats(q), z_loss=0.25)
    np.testing.assert_allclose(loss, expected, rtol=1e-13)


def test_03_derivative_of_lse(rng):
    x = numbers(rng, 5)
    for j, p in enumerate(softmax_of(x)):
        assert same_derivative(derivative(lse_of, x, j), p)


def test_04_gradient(rng):
    x, q, v, z_loss = numbers(rng, 5), numbers(rng, 5), mpf(0.7), mpf(0.3)
    total, lse = mp.fsum(q), lse_of(x)
    for j, p in enumerate(softmax_of(x)):
        g = total * p - q[j] + 2 * v * z_loss * lse * p
        assert same_derivative(derivative(lambda u: loss_of(u, q, v, z_loss), x, j), g)


@pytest.mark.parametrize("y", [0, 3])
def test_05_one_hot(rng, y):
    x = numbers(rng, 5)
    one_hot = [mpf(c == y) for c in range(5)]
    _, grad = nc.cross_entropy_and_grad(floats(x), y)
    for j, p in enumerate(softmax_of(x)):
        g = p - 1 if j == y else p
        assert same_derivative(derivative(lambda u: loss_of(u, one_hot), x, j), g)
        np.testing.assert_allclose(grad[j], float(g), rtol=1e-14)


def test_06_gradient_without_cancellation(rng):
    x, q, v, z_loss = numbers(rng, 5), numbers(rng, 5), mpf(0.7), mpf(0.3)
    x[1] += 40
    p, lse, total = softmax_of(x), lse_of(x), mp.fsum(q)
    for j in range(5):
        rest = mp.fsum(p[c] for c in range(5) if c != j)
        z_term = 2 * v * z_loss * lse * p[j]
        assert close(p[j] * (total - q[j]) - q[j] * rest + z_term, total * p[j] - q[j] + z_term)
    # What it is for: p - 1 has no digit left in float32 at a gap of 20
    assert np.float32(softmax_of([mpf(20), mpf(0)])[0]) - np.float32(1) == 0
    _, grad = nc.cross_entropy_and_grad(np.array([20.0, 0.0], np.float32), 0)
    np.testing.assert_allclose(grad[0], -float(exp(-20) / (1 + exp(-20))), rtol=1e-6)


# ---------------------------------------------------------------- the record


@pytest.mark.parametrize("k", [0, 2, 6])
def test_07_record(rng, k):
    x = numbers(rng, 7)
    m, s, t = record_of(x, k)
    assert close(log(s * exp(m) + exp(t)), lse_of(x))
    record = nc.row_record(floats(x), k, class_offset=0, n_classes=7)
    np.testing.assert_allclose(record[:3], floats((m, s, t)), rtol=1e-14)


@pytest.mark.parametrize("k", [0, 3, 6])
@pytest.mark.parametrize("cut", [1, 3, 4])
def test_08_merge(rng, k, cut):
    x = numbers(rng, 7)
    a = record_of(x[:cut], k if k < cut else -1)
    b = record_of(x[cut:], k - cut if k >= cut else -1)
    m = max(a[0], b[0])
    s = mp.fsum(part[1] * exp(part[0] - m) for part in (a, b) if part[1] != 0)
    for merged, whole in zip((m, s, max(a[2], b[2])), record_of(x, k), strict=True):
        assert close(merged, whole)
    parts = [
        nc.row_record(floats(part), k, class_offset=offset, n_classes=7)
        for part, offset in ((x[:cut], 0), (x[cut:], cut))
    ]
    merged = nc.merge_records(*parts)
    np.testing.assert_allclose(merged[:3], floats(record_of(x, k)), rtol=1e-14)


def test_08_identity(rng):
    identity = (-INF, mpf(0), -INF)
    assert record_of([-INF] * 3, -1) == identity
    record = nc.row_record(np.array([1.0, 2.0, 3.0]), 1, class_offset=0, n_classes=6)
    masked = nc.row_record(np.full(3, -np.inf), 1, class_offset=3, n_classes=6)
    assert tuple(masked[:3]) == (-np.inf, 0.0, -np.inf)
    np.testing.assert_array_equal(nc.merge_records(record, masked), record)


def finished(x):
    """What the two branches and both codes make of a row without its class 2."""
    m, s, t = record_of(x, 2)
    m_, s_, t_ = floats((m, s, t))
    d, lost = row.difference(t_, m_, 1.0)
    sum_exp, small, top, others = row.at_origin(s_, d, lost)
    end = FORMULAS.finish(sum_exp, small, d, lost, others)
    compiled = dict(zip(("surprise", "above", "rest", "p_k"), end[:4], strict=True))
    compiled["factor"] = top / end[5]
    return m, s, t, compiled, reference.finish(np.array(m_), np.array(s_), np.array(t_), 1.0)


def check_code(compiled, row, **expected):
    for name, value in expected.items():
        np.testing.assert_allclose(compiled[name], float(value), rtol=4e-15)
        if hasattr(row, name):
            np.testing.assert_allclose(getattr(row, name), float(value), rtol=4e-15)


def test_09_target_ahead(rng):
    for x in both_branches(rng)[::2]:
        m, s, t, compiled, row = finished(x)
        d = t - m
        assert d >= 0
        tail = mp.log1p(s * exp(-d))
        assert close(tail, lse_of(x) - t)
        assert close(d + tail, lse_of(x) - m)
        check_code(compiled, row, surprise=tail, above=d + tail)


def test_10_target_behind(rng):
    x = both_branches(rng)[1]
    m, s, t, compiled, row = finished(x)
    d = t - m
    assert d < 0
    z = s + exp(d)
    assert close(-d + log(z), lse_of(x) - t)
    assert close(log(z), lse_of(x) - m)
    check_code(compiled, row, surprise=-d + log(z), above=log(z))


@pytest.mark.parametrize("temperature", [1.0, 0.3, 7.0])
def test_11_difference_in_two_parts(rng, temperature):
    for a, b in rng.uniform(-700, 700, (200, 2)):
        exact = (mpf(a) - mpf(b)) / mpf(temperature)
        for code in (row.difference, reference.difference):
            d, delta = (float(v) for v in code(np.float64(a), np.float64(b), temperature))
            if temperature == 1.0:
                assert mpf(d) + mpf(delta) == exact
            assert abs(mpf(d) + mpf(delta) - exact) <= mpf(2) ** -100 * abs(exact)
            assert abs(exp(exact) / (exp(mpf(d)) * (1 + mpf(delta))) - 1) <= mpf(delta) ** 2 + 1e-25


def test_12_probabilities_of_a_record(rng):
    for x in both_branches(rng):
        m, s, t, compiled, row = finished(x)
        d, p = t - m, softmax_of(x)
        u, z = s * exp(-d), s + exp(d)
        ahead = d >= 0
        p_k = 1 / (1 + u) if ahead else exp(d) / z
        rest = u / (1 + u) if ahead else s / z
        factor = exp(-d) / (1 + u) if ahead else 1 / z
        assert close(p_k, p[2])
        assert close(rest, mp.fsum(v for c, v in enumerate(p) if c != 2))
        for j in (0, 1, 3, 6):
            assert close(exp(x[j] - m) * factor, p[j])
        check_code(compiled, row, p_k=p_k, rest=rest, factor=factor)


# ---------------------------------------------------------------- the options


def q_index(y, e, w):
    return [(1 - e) * w[y] * (c == y) + e / len(w) * w[c] for c in range(len(w))]


def q_probabilities(t, e, w):
    return [wc * ((1 - e) * tc + e / len(w)) for tc, wc in zip(t, w, strict=True)]


def test_13_effective_target_of_an_index(rng):
    x, w, e = numbers(rng, 6), numbers(rng, 6), mpf(0.125)
    q = q_index(2, e, w)
    # The mixture that smoothing means: (1 - e) of the target, e of all classes alike, each weighted
    mixture = (1 - e) * w[2] * (lse_of(x) - x[2])
    mixture += e / 6 * mp.fsum(wc * (lse_of(x) - v) for wc, v in zip(w, x, strict=True))
    assert close(loss_of(x, q), mixture)
    options = {"class_weight": floats(w), "label_smoothing": float(e), "reduction": "sum"}
    loss = nc.cross_entropy(floats(x), 2, **options)
    np.testing.assert_allclose(loss, float(loss_of(x, q)), rtol=1e-13)


def test_14_effective_target_of_probabilities(rng):
    x, w, t, e = numbers(rng, 6), numbers(rng, 6), numbers(rng, 6), mpf(0.125)
    options = {"class_weight": floats(w), "label_smoothing": float(e), "reduction": "sum"}
    loss = nc.cross_entropy(floats(x), floats(t), **options)
    np.testing.assert_allclose(loss, float(loss_of(x, q_probabilities(t, e, w))), rtol=1e-12)
    one_hot = [mpf(c == 2) for c in range(6)]
    for a, b in zip(q_probabilities(one_hot, e, w), q_index(2, e, w), strict=True):
        assert close(a, b)


def test_15_loss_from_the_sums_of_a_record(rng):
    for x in both_branches(rng):
        q, v, z_loss = numbers(rng, 7), mpf(0.7), mpf(0.3)
        m, s, t = record_of(x, 2)
        w_rest, a_rest = rests_of(x, q, 2, m)
        lse = lse_of(x)
        loss = q[2] * (lse - t) + a_rest + w_rest * (lse - m) + v * z_loss * lse**2
        assert close(loss, loss_of(x, q, v, z_loss))
        sums = floats((q[2], w_rest, a_rest, v * z_loss))
        end = reference.finish(*floats((m, s, t)), 1.0)
        code = reference.row_loss(sums[0], end, *sums[1:])
        np.testing.assert_allclose(code, float(loss), rtol=1e-12)
        q_k, w_, a_, z_ = sums
        code = FORMULAS.row_loss(q_k, float(lse - t), w_, a_, float(lse - m), z_, float(lse))
        np.testing.assert_allclose(code, float(loss), rtol=1e-12)


def test_15_plain_smoothing(rng):
    x, e, y = numbers(rng, 7), mpf(0.1), 2
    m, _, t = record_of(x, y)
    lse, below = lse_of(x), mp.fsum(m - v for c, v in enumerate(x) if c != y)
    loss = ((1 - e) + e / 7) * (lse - t) + e / 7 * (below + 6 * (lse - m))
    assert close(loss, loss_of(x, q_index(y, e, [mpf(1)] * 7)))


def test_16_merge_of_the_sums(rng):
    x, q, k, cut = numbers(rng, 7), numbers(rng, 7), 2, 4
    m_a, m_b = record_of(x[:cut], k)[0], record_of(x[cut:], -1)[0]
    m = max(m_a, m_b)
    w_a, a_a = rests_of(x[:cut], q[:cut], k, m_a)
    w_b, a_b = rests_of(x[cut:], q[cut:], -1, m_b)
    w_whole, a_whole = rests_of(x, q, k, m)
    assert close(w_a + w_b, w_whole)
    assert close(a_a + w_a * (m - m_a) + a_b + w_b * (m - m_b), a_whole)


def test_17_the_smaller_peak_joins(rng):
    x, q, cut = numbers(rng, 7), numbers(rng, 7), 3
    parts = [
        nc.row_record(floats(x[here]), floats(q[here]), class_offset=here.start, n_classes=7)
        for here in (slice(0, cut), slice(cut, 7))
    ]
    merged = nc.merge_records(*parts)
    k = max(range(7), key=lambda c: x[c])
    m, s, t = record_of(x, k)
    w_rest, a_rest = rests_of(x, q, k, m)
    expected = floats((m, s, t, q[k], w_rest, a_rest))
    np.testing.assert_allclose(merged[:6], expected, rtol=1e-13)
    joining = (t_small := min(parts[0][2], parts[1][2]), 1.0, -np.inf)
    assert joining[:2] == (t_small, float(exp(0)))
    one = record_of([mpf(t_small)], -1)
    assert tuple(floats(one)) == joining
    assert rests_of([mpf(t_small)], [q[0]], -1, one[0]) == (q[0], 0)


@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_18_slope_of_the_soft_cap(rng, cap):
    cap = mpf(cap)
    for z in [*numbers(rng, 5, 3 * float(cap)), mpf(0), 25 * cap]:
        a = exp(-2 * abs(z) / cap)
        slope = derivative(lambda u, cap=cap: cap * mp.tanh(u[0] / cap), [z], 0)
        assert same_derivative(slope, 4 * a / (1 + a) ** 2)
    # Where 1 - tanh^2 is 0 in float64
    assert 1 - np.tanh(20.0) ** 2 == 0
    z = np.array([20.0 * float(cap), 0.0])
    _, grad = nc.cross_entropy_and_grad(z, 1, softcap=float(cap))
    a = exp(mpf(-40))
    expected = softmax_of([cap * mp.tanh(20), mpf(0)])[0] * 4 * a / (1 + a) ** 2
    np.testing.assert_allclose(grad[0], float(expected), rtol=1e-13)


def test_19_temperature(rng):
    z, temperature = numbers(rng, 5), mpf(0.3)
    one_hot = [mpf(c == 1) for c in range(5)]
    p = softmax_of([v / temperature for v in z])
    _, grad = nc.cross_entropy_and_grad(floats(z), 1, temperature=0.3)
    for j in range(5):
        g = (p[j] - one_hot[j]) / temperature
        slope = derivative(lambda u: loss_of([v / temperature for v in u], one_hot), z, j)
        assert same_derivative(slope, g)
        np.testing.assert_allclose(grad[j], float(g), rtol=1e-13)


def test_20_mean(rng):
    z, y = rng.standard_normal((4, 3)), np.array([0, 2, -100, 1])
    w, s, t = np.array([0.5, 2.0, 1.5]), np.array([1.0, 3.0, 9.0, 0.5]), rng.random((4, 3))
    kept = y >= 0
    each = nc.cross_entropy(z, y, class_weight=w, sample_weight=s, reduction="none")
    mean, grad = nc.cross_entropy_and_grad(z, y, class_weight=w, sample_weight=s)
    divisor = (s[kept] * w[y[kept]]).sum()
    np.testing.assert_allclose(mean, each.sum() / divisor, rtol=1e-14)
    _, total = nc.cross_entropy_and_grad(z, y, class_weight=w, sample_weight=s, reduction="sum")
    np.testing.assert_allclose(grad, total / divisor, rtol=1e-14)
    each = nc.cross_entropy(z, t, class_weight=w, sample_weight=s, reduction="none")
    mean = nc.cross_entropy(z, t, class_weight=w, sample_weight=s)
    np.testing.assert_allclose(mean, each.sum() / s.sum(), rtol=1e-14)


# ---------------------------------------------------------------- the other functions


def test_21_hessian(rng):
    x, q = numbers(rng, 5), numbers(rng, 5)
    total, p = mp.fsum(q), softmax_of(x)
    results = {
        kind: nc.cross_entropy_grad_and_hess(floats(x), floats(q), hess=kind)[1]
        for kind in ("diagonal", "xgboost", "lightgbm")
    }
    for j in range(5):
        h = total * p[j] * (1 - p[j])
        slope = derivative(lambda u, j=j: total * softmax_of(u)[j] - q[j], x, j)
        assert same_derivative(slope, h)
        np.testing.assert_allclose(results["diagonal"][j], float(h), rtol=1e-12)
        np.testing.assert_allclose(results["xgboost"][j], max(2 * float(h), 1e-16), rtol=1e-12)
        np.testing.assert_allclose(results["lightgbm"][j], float(h) * 5 / 4, rtol=1e-12)


def test_22_entropy_and_log_softmax(rng):
    x = numbers(rng, 5)
    x[3] += 20
    p, lse, t = softmax_of(x), lse_of(x), max(x)
    entropy = mp.fsum(pj * ((t - v) + (lse - t)) for pj, v in zip(p, x, strict=True))
    assert close(entropy, -mp.fsum(pj * log(pj) for pj in p))
    np.testing.assert_allclose(nc.row_stats(floats(x)).entropy, float(entropy), rtol=1e-14)
    log_p = nc.log_softmax(floats(x))
    for j in range(5):
        assert close(-((t - x[j]) + (lse - t)), log(p[j]))
        np.testing.assert_allclose(log_p[j], float(log(p[j])), rtol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_23_what_remains_of_rounding(rng, dtype):
    m = dtype(90.0)
    eps = mpf(float(np.finfo(dtype).eps))
    largest = mpf(0)
    for x in rng.uniform(-60.0, 90.0, 400).astype(dtype):
        exact, rounded = mpf(float(x)) - mpf(float(m)), mpf(float(x - m))
        error = abs(exp(rounded - exact) - 1)
        assert error <= abs(exact) * eps / 2 * (1 + eps * 100)
        largest = max(largest, error / eps)
    assert largest > 4  # it is no idle bound
    # A term's own error beside the largest term of S
    assert max(v * float(exp(-v)) for v in np.linspace(0, 80, 4001)) <= 0.37


def test_24_hessian_times_a_vector(rng):
    x, q, u = numbers(rng, 5), numbers(rng, 5), numbers(rng, 5)
    v, z_loss, step = mpf(0.7), mpf(0.3), mpf(10) ** -16
    total, lse, p = mp.fsum(q), lse_of(x), softmax_of(x)

    def gradient(x, j):  # (4)
        return (total + 2 * v * z_loss * lse_of(x)) * softmax_of(x)[j] - q[j]

    along = mp.fsum(pc * uc for pc, uc in zip(p, u, strict=True))
    for j in range(5):
        h = (total + 2 * v * z_loss * lse) * p[j] * (u[j] - along) + 2 * v * z_loss * p[j] * along
        up, down = ([a + s * b for a, b in zip(x, u, strict=True)] for s in (step, -step))
        assert same_derivative((gradient(up, j) - gradient(down, j)) / (2 * step), h)
    # Without the number that all of u have in common
    k = max(range(5), key=lambda c: x[c])
    others = [uc - u[k] for uc in u]
    rest = mp.fsum(p[c] * others[c] for c in range(5) if c != k)
    assert close(u[k] - along, -rest)
    torch = pytest.importorskip("torch", reason="needs torch")
    from numba_ce.integrations.torch import cross_entropy

    z, t = torch.tensor(floats(x), requires_grad=True), torch.tensor(floats(q))
    (grad,) = torch.autograd.grad(cross_entropy(z, t), z, create_graph=True)
    (hessian,) = torch.autograd.grad(grad, z, torch.tensor(floats(u)))
    expected = floats([total * p[j] * (others[j] - rest) for j in range(5)])
    np.testing.assert_allclose(hessian.numpy(), expected, rtol=1e-13)
