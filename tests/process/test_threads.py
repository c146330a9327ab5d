"""Any number of Python threads may call any function at once, with any number of Numba threads."""

from __future__ import annotations

import concurrent.futures
import ctypes
import queue
import subprocess
import sys
import textwrap
import threading
import time

import numba
import numpy as np
import pytest
from bits import bits_of
from cases import make_logits
from exact import assert_same
from stress import Checked, usual_jobs

import numba_ce as nc
from numba_ce.cpu.run import launch, pool, threads

N_CALLERS = 8


@pytest.mark.parametrize("numba_threads", [1, 2])
def test_many_callers(backend, numba_threads):
    jobs = usual_jobs(few=False)
    expected = [bits_of(job()) for job in jobs]
    start = threading.Barrier(N_CALLERS)

    def caller(k):
        # The masks of Numba and the chosen backend belong to the thread.
        numba.set_num_threads(numba_threads)
        with nc.use_backend(backend):
            start.wait()
            order = np.random.default_rng(k).permutation(len(jobs))
            return {i: bits_of(jobs[i]()) for i in order.tolist()}

    with concurrent.futures.ThreadPoolExecutor(N_CALLERS) as pool:
        answers = list(pool.map(caller, range(N_CALLERS)))
    for answer in answers:
        assert [answer[i] for i in range(len(jobs))] == expected


def test_callers_share_read_only_inputs(backend, rng):
    z, y = make_logits(rng, (2000, 50), np.float32), rng.integers(0, 50, 2000)
    z.flags.writeable = y.flags.writeable = False
    loss, grad = nc.cross_entropy_and_grad(z, y)

    def caller(_):
        with nc.use_backend(backend):
            return nc.cross_entropy_and_grad(z, y)

    with concurrent.futures.ThreadPoolExecutor(N_CALLERS) as pool:
        for loss2, grad2 in pool.map(caller, range(4 * N_CALLERS)):
            assert loss2 == loss
            assert_same(grad2, grad)


def test_an_error_in_one_caller_stays_there(backend, rng):
    z, y = make_logits(rng, (2000, 50), np.float32), rng.integers(0, 50, 2000)
    bad = y.copy()
    bad[1500] = 50
    loss = nc.cross_entropy(z, y)

    def caller(k):
        with nc.use_backend(backend):
            if k % 2:
                with pytest.raises(ValueError, match=r"targets\[1500\] = 50 "):
                    nc.cross_entropy(z, bad)
                return loss
            return nc.cross_entropy(z, y)

    with concurrent.futures.ThreadPoolExecutor(N_CALLERS) as pool:
        assert set(pool.map(caller, range(4 * N_CALLERS))) == {loss}


def test_the_number_of_threads_is_left_alone(cpu, rng):
    before = numba.get_num_threads()
    z, y = make_logits(rng, (2000, 500), np.float32), rng.integers(0, 500, 2000)
    for n_threads in (1, 2):
        numba.set_num_threads(n_threads)
        nc.cross_entropy_and_grad(z, y)
        assert numba.get_num_threads() == n_threads
    numba.set_num_threads(before)


def test_first_calls_at_once():
    """Nothing is compiled yet: every thread compiles or waits, none deadlocks."""
    code = """
        import concurrent.futures, threading
        import numpy as np
        import numba_ce as nc

        rng = np.random.default_rng(0)
        z = rng.standard_normal((600, 300)).astype(np.float32)
        y = rng.integers(0, 300, 600)
        start = threading.Barrier(6)

        def caller(k):
            with nc.use_backend("cpu"):
                start.wait()
                if k % 2:
                    return float(nc.cross_entropy(z, y))
                return float(nc.cross_entropy_and_grad(z, y)[0])

        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            losses = set(pool.map(caller, range(6)))
        assert len(losses) == 1, losses
        with nc.use_backend("numpy"):
            reference = nc.cross_entropy(z, y)
        assert abs(losses.pop() - reference) < 1e-6
        print("done")
    """
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "done\n"


def test_serial_is_of_one_thread_and_changes_no_bit(cpu, rng, monkeypatch):
    z, y = make_logits(rng, (3000, 50)), rng.integers(0, 50, 3000)
    expected = nc.cross_entropy_and_grad(z, y)
    started = []
    count = launch.n_threads

    def noted():
        started.append(threading.get_ident())
        return count()

    monkeypatch.setattr(launch, "n_threads", noted)
    with nc.serial():
        with nc.serial():
            pass
        got = nc.cross_entropy_and_grad(z, y)
        assert not started
        other = threading.Thread(target=nc.cross_entropy, args=(z, y))
        other.start()
        other.join()
        assert set(started) == {other.ident}
    assert_same(got[0], expected[0])
    assert_same(got[1], expected[1])
    nc.cross_entropy(z, y)
    assert set(started) == {other.ident, threading.get_ident()}


# ---------------------------------------------------------------- pool and slices


@pytest.fixture
def pooled(cpu, monkeypatch):
    """As under the workqueue layer: with a pool, a new one."""
    monkeypatch.setattr(threads, "_layer_is_unsafe", True)
    monkeypatch.setattr(pool, "pool", pool.Pool())
    return pool


def test_pool(pooled):
    checked = Checked(usual_jobs(few=True))
    assert pooled.pool.n_threads == 0
    checked.check_all()
    assert pooled.pool.n_threads == max(numba.config.NUMBA_NUM_THREADS - 1, 1)
    with concurrent.futures.ThreadPoolExecutor(N_CALLERS) as callers:
        list(callers.map(checked.check, list(range(len(checked.jobs))) * 20))
    assert len(pooled._locks) <= N_CALLERS + 1


def test_no_thread_can_be_started(pooled, monkeypatch):
    def start(function, arguments):
        raise RuntimeError("can't start new thread")

    checked = Checked(usual_jobs(few=True))
    with monkeypatch.context() as patch:
        patch.setattr(pooled, "start_new_thread", start)
        checked.check_all()
    assert pooled.pool.offers.empty(), "nobody would take it"
    checked.check_all()
    assert pooled.pool.n_threads


class Worker:
    """A kernel that tells who works; the plan is a number of its own."""

    def __init__(self, caller, helper):
        self.ended, self.do = [], (caller, helper)
        self.kernel = launch.KERNEL(self._work)
        self.address = ctypes.cast(self.kernel, ctypes.c_void_p).value

    def _work(self, plan, worker):
        self.do[worker > 0]()
        self.ended.append((plan, worker))


def test_shares_of_the_pool(pooled):
    """The caller waits for helpers that came in time; those that come late do nothing."""
    entered, others = threading.Event(), threading.Barrier(3)
    enough = max(numba.config.NUMBA_NUM_THREADS - 1, 1)
    slow = Worker(lambda: entered.wait(10), lambda: (entered.set(), time.sleep(0.2)))
    pooled.run_with_pool(slow.address, 7, 2)
    assert slow.ended == [(7, 0), (7, 1)]

    pooled.pool = pooled.Pool()
    pooled.pool.n_threads = enough  # nobody takes an offer
    alone = Worker(lambda: None, lambda: None)
    pooled.run_with_pool(alone.address, 8, 4)
    assert alone.ended == [(8, 0)]
    for _ in range(3):
        gate, kernel, plan, worker = pooled.pool.offers.get_nowait()
        pooled.share_function()(pooled.address_of(gate), kernel, plan, worker)
    assert alone.ended == [(8, 0)]

    pooled.pool = pooled.Pool()
    for _ in range(2):  # two helpers at once, whatever the machine has
        threading.Thread(target=pooled._help, args=(pooled.pool.offers,), daemon=True).start()
    pooled.pool.n_threads = enough
    three = Worker(others.wait, lambda: (others.wait(), time.sleep(0.1)))
    pooled.run_with_pool(three.address, 9, 3)
    assert sorted(three.ended) == [(9, 0), (9, 1), (9, 2)]


def test_helpers_end_before_an_exception_leaves(pooled):
    """An exception of a signal handler in the caller: then nobody may write any more."""
    entered = threading.Event()
    pooled.run_with_pool(Worker(lambda: None, lambda: None).address, 6, 2)
    locks, pooled.pool = len(pooled._locks), pooled.Pool()

    class Interrupted(queue.SimpleQueue):
        def put(self, offer):
            super().put(offer)
            assert entered.wait(10)
            raise KeyboardInterrupt

    pooled.pool.offers = Interrupted()
    work = Worker(lambda: None, lambda: (entered.set(), time.sleep(0.3)))
    with pytest.raises(KeyboardInterrupt):
        pooled.run_with_pool(work.address, 7, 2)
    assert work.ended == [(7, 0), (7, 1)]
    assert len(pooled._locks) == locks, "to be used again"


@pytest.mark.parametrize("layer", ["own", "pool"])
@pytest.mark.parametrize("seconds", [0.0, 1.0])
def test_slices_change_no_bit(cpu, monkeypatch, layer, seconds):
    """Slices as short and as long as they come."""
    checked = Checked(usual_jobs(few=True))
    monkeypatch.setattr(threads, "_layer_is_unsafe", layer == "pool")
    monkeypatch.setattr(threads, "FIRST_SLICE_CLASSES", 5000)
    monkeypatch.setattr(threads, "SLICE_SECONDS", seconds)
    run_slice, slices = threads._run_slice, []

    def noted(job, kernel, fields, memory, n_workers):
        first = ctypes.c_int64.from_address(fields["tickets"]).value
        slices.append((first, fields["n_blocks"]))
        run_slice(job, kernel, fields, memory, n_workers)

    monkeypatch.setattr(threads, "_run_slice", noted)
    checked.check_all()
    assert any(first > 0 for first, _ in slices)
    assert all(first < last for first, last in slices)
