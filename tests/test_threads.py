"""Any number of Python threads may call any function at once, with any number of Numba threads."""

from __future__ import annotations

import concurrent.futures
import subprocess
import sys
import textwrap
import threading

import numba
import numpy as np
import pytest
from cases import make_logits
from exact import assert_same
from stress import as_bytes, usual_jobs

import numba_ce as nc

N_CALLERS = 8


@pytest.mark.parametrize("numba_threads", [1, 2])
def test_many_callers(backend, numba_threads):
    jobs = usual_jobs(few=False)
    expected = [as_bytes(job()) for job in jobs]
    start = threading.Barrier(N_CALLERS)

    def caller(k):
        # The masks of Numba and the chosen backend belong to the thread.
        numba.set_num_threads(numba_threads)
        with nc.use_backend(backend):
            start.wait()
            order = np.random.default_rng(k).permutation(len(jobs))
            return {i: as_bytes(jobs[i]()) for i in order.tolist()}

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
    for threads in (1, 2):
        numba.set_num_threads(threads)
        nc.cross_entropy_and_grad(z, y)
        assert numba.get_num_threads() == threads
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
    count = nc.cpu.launch.n_threads

    def noted():
        started.append(threading.get_ident())
        return count()

    monkeypatch.setattr(nc.cpu.launch, "n_threads", noted)
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
