"""Programs with real processes, threads, forks and signals; the page on reliability quotes them.

    python tests/stress.py                 # all of them, long, under each threading layer: a table
    python tests/stress.py threads --few   # one of them, as the tests run it

They run in a process of their own, under the layer that NUMBA_THREADING_LAYER names. A program
prints its figures as a line of JSON, and fails with an exception if a promise is broken.
"""

from __future__ import annotations

import argparse
import asyncio
import concurrent.futures
import contextlib
import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
from bits import bits_of

LAYERS = ("tbb", "omp", "workqueue")


def run_programs(*names, layer="default", timeout=170, threads=None, **options):
    """Run programs in one process; their figures, or an AssertionError with its output."""
    command = [sys.executable, "-W", "error", __file__, *names]
    for option, value in options.items():
        flag = "--" + option.replace("_", "-")
        command += [flag] if value is True else [flag, str(value)]
    environment = os.environ | {"NUMBA_THREADING_LAYER": layer}
    if threads is not None:
        environment["NUMBA_NUM_THREADS"] = str(threads)
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False
    )
    assert result.returncode == 0, (
        f"{names} under {layer}: exit code {result.returncode}\n{result.stdout[-2000:]}"
        f"\n{result.stderr[-6000:]}"
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    return [json.loads(line) for line in lines]


# ---------------------------------------------------------------- what they call


def make_jobs(rng, shapes, dtypes, few=False):
    """Independent calls: small ones, which one thread does, and large ones."""
    import numba_ce as nc

    jobs = []
    for shape in shapes:
        for dtype in dtypes:
            z = (2 * rng.standard_normal(shape)).astype(dtype)
            y = rng.integers(0, shape[1], shape[0])
            jobs += [
                lambda z=z, y=y: nc.cross_entropy_and_grad(z, y),
                lambda z=z, y=y: nc.cross_entropy_and_grad(z, y, out=z.copy()),
                lambda z=z: nc.softmax(z),
                lambda z=z, y=y: bad_target(z, y),
            ]
            if few:
                continue
            jobs += [
                lambda z=z, y=y: nc.cross_entropy(z, y, reduction="none"),
                lambda z=z, y=y: nc.cross_entropy_and_grad(z.T, y, axis=0),
                lambda z=z, y=y: nc.row_stats(z, y),
                lambda z=z, y=y: nc.cross_entropy_grad_and_hess(z, y),
                lambda z=z: (nc.log_softmax(z), nc.logsumexp(z)),
                lambda z=z, y=y: nc.row_record(z, y, class_offset=0, n_classes=z.shape[1]),
            ]
    return jobs


def bad_target(logits, targets):
    """The message about a bad target, as an array of its bytes."""
    import numba_ce as nc

    targets = targets.copy()
    targets[-1] = logits.shape[1]
    try:
        nc.cross_entropy(logits, targets)
    except ValueError as error:
        return np.frombuffer(str(error).encode(), np.uint8)
    raise AssertionError("no error for a bad target")


def usual_jobs(few):
    shapes = ((7, 10), (20000, 10), (1000, 257), (40, 5000))  # one thread, then several
    dtypes = (np.float32, np.float64)
    rng = np.random.default_rng(0)
    return make_jobs(rng, shapes[1:3] if few else shapes, dtypes[:1] if few else dtypes, few)


class Checked:
    """Jobs and the bytes of their results, computed by one thread."""

    def __init__(self, jobs):
        import numba_ce as nc

        self.jobs = jobs
        with nc.serial():
            self.expected = [bits_of(job()) for job in jobs]

    def check(self, index):
        assert bits_of(self.jobs[index]()) == self.expected[index], f"job {index}: other bits"

    def check_all(self):
        for index in range(len(self.jobs)):
            self.check(index)


def resident():
    """Megabytes of this process in memory."""
    import psutil

    return psutil.Process().memory_info().rss / 2**20


def layer_name():
    import numba

    return numba.threading_layer()


@contextlib.contextmanager
def in_threads(functions):
    """Call each function again and again, each in a thread of its own, until the block ends."""
    stop, errors = threading.Event(), []

    def again(function):
        try:
            while not stop.is_set():
                function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=again, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


# ---------------------------------------------------------------- threads


def threads(arguments):
    """Python threads that call mixed functions, dtypes and shapes."""
    checked = Checked(usual_jobs(arguments.few))
    checked.check_all()
    counts = [0] * arguments.callers

    def caller(k):
        rng = np.random.default_rng(k)

        def call():
            checked.check(int(rng.integers(len(checked.jobs))))
            counts[k] += 1

        return call

    callers = [caller(k) for k in range(arguments.callers)]
    with in_threads(callers):
        time.sleep(min(1.0, arguments.seconds / 2))
    warm = resident()
    with in_threads(callers):
        time.sleep(arguments.seconds)
    grown = resident() - warm
    assert grown < 64, f"resident memory grew by {grown:.0f} MB"
    return {"layer": layer_name(), "calls": sum(counts), "grown_mb": round(grown, 1)}


def executors(arguments):
    """ThreadPoolExecutor, asyncio with an executor, joblib; joblib only if it is installed."""
    checked = Checked(usual_jobs(True))
    everything = list(range(len(checked.jobs))) * 4
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(checked.check, everything))

        async def gather():
            run = asyncio.get_running_loop().run_in_executor
            await asyncio.gather(*(run(pool, checked.check, i) for i in everything))

        asyncio.run(gather())
    done = ["executor", "asyncio"]
    with contextlib.suppress(ImportError):
        import joblib

        joblib.Parallel(4, backend="threading")(map(joblib.delayed(checked.check), everything))
        done.append("joblib threading")
        if not arguments.few:
            joblib.Parallel(2, backend="loky")(joblib.delayed(in_a_process)() for _ in range(4))
            done.append("joblib loky")
    return {"layer": layer_name(), "done": done}


def in_a_process():
    """What a worker process computes: right results, by one thread and by several."""
    Checked(usual_jobs(True)).check_all()


def prange(arguments):
    """Another thread runs a parallel function of the user's own."""
    import numba

    checked = Checked(usual_jobs(arguments.few))
    checked.check_all()
    counts = [0, 0]

    @numba.njit(parallel=True, nogil=True)
    def squares(x):
        total = 0.0
        for i in numba.prange(x.size):
            total += x[i] * x[i]
        return total

    x = np.ones(300_000)
    assert squares(x) == x.size

    def user():
        assert squares(x) == x.size
        counts[0] += 1

    def caller():
        checked.check(counts[1] % len(checked.jobs))
        counts[1] += 1

    with in_threads([user, caller]):
        for _ in range(max(1, round(arguments.seconds * 10))):
            checked.check_all()
    assert all(counts)
    return {"layer": layer_name(), "prange": counts[0], "calls": counts[1]}


def limits(arguments):
    """`numba.set_num_threads`, and an affinity that changed after the import."""
    import numba

    import numba_ce as nc
    from numba_ce.cpu.run.threads import n_threads

    z = np.broadcast_to(np.linspace(0, 1, 1000, dtype=np.float32), (400_000, 1000))

    def busy_cores():
        time.sleep(0.1)  # OpenMP's idle threads ask for work for 8 ms after a call: 12% of the next
        wall, cpu = time.perf_counter(), time.process_time()
        nc.logsumexp(z)
        return (time.process_time() - cpu) / (time.perf_counter() - wall)

    busy_cores()
    seen = {}
    everything = os.sched_getaffinity(0)
    n_all = n_threads()
    assert n_all == numba.get_num_threads() > 1
    seen["all"] = busy_cores()
    numba.set_num_threads(1)
    assert n_threads() == 1
    seen["set_num_threads(1)"] = busy_cores()
    assert numba.get_num_threads() == 1
    numba.set_num_threads(n_all)
    os.sched_setaffinity(0, {min(everything)})
    assert n_threads() == 1
    seen["one processor"] = busy_cores()
    os.sched_setaffinity(0, everything)
    assert n_threads() == n_all
    assert seen["set_num_threads(1)"] < 1.1, seen
    assert seen["one processor"] < 1.1, seen
    return {name: round(value, 2) for name, value in seen.items()}


# ---------------------------------------------------------------- forks


def forked(function, seconds=60):
    """Exit code of a forked child that calls the function; -14 if that took too long."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(seconds)
        code = 1
        try:
            function()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def fork(arguments):
    """Kernel in the parent, then children; forks while other threads compile and compute."""
    warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of such forks
    import numba

    checked = Checked(usual_jobs(True))
    checked.check_all()
    check_fork_while_collector_is_paused()
    assert forked(lambda: check_child(checked)) == 0, "child"
    assert forked(lambda: check_grandchild(checked)) == 0, "grandchild"
    methods = ("fork",) if arguments.few else ("fork", "forkserver", "spawn")
    for method in methods:
        process = multiprocessing.get_context(method).Process(target=in_a_process)
        process.start()
        process.join(90)
        assert process.exitcode == 0, f"multiprocessing {method}: {process.exitcode}"

    def compile_something():
        lines = "".join(f"  x = np.sin(x * {i})\n" for i in range(8))
        names = {"np": np}
        exec(f"def f(x):\n{lines}  return x", names)
        numba.njit(names["f"])(np.ones(3))

    def child():
        numba.njit(lambda x: x + 1)(1)  # waits for ever if the compiler's lock is held
        checked.check_all()

    codes = []
    with in_threads([compile_something, checked.check_all, checked.check_all]):
        for _ in range(arguments.forks):
            codes.append(forked(child, 30))
        from_a_thread = threading.Thread(
            target=lambda: codes.extend(forked(child, 30) for _ in range(arguments.forks))
        )
        from_a_thread.start()
        from_a_thread.join()
    assert codes == [0] * 2 * arguments.forks, f"exit codes of the children: {codes}"
    return {"layer": layer_name(), "forks": len(codes), "methods": methods}


def check_child(checked):
    """Right results, and helpers of its own: the parent had started the layer."""
    from numba_ce.cpu.run import pool

    checked.check_all()
    assert pool.pool.n_threads > 0


def check_grandchild(checked):
    assert forked(lambda: check_child(checked)) == 0


def check_fork_while_collector_is_paused():
    """As by a thread that compiles: the fork waits, so that the child collects garbage."""
    from numba_ce.cpu.compile.jit import collector_paused

    paused = threading.Event()

    def pause():
        with collector_paused():
            paused.set()
            time.sleep(0.3)

    def check():
        assert gc.isenabled()

    thread = threading.Thread(target=pause)
    thread.start()
    paused.wait()
    assert forked(check) == 0, "no garbage collection in the child"
    thread.join()


class Pause:
    """A finder that finds nothing: the import of one module takes a little longer."""

    def __init__(self, name):
        self.name, self.reached = name, threading.Event()

    def find_spec(self, name, path=None, target=None):
        if name == self.name:
            self.reached.set()
            time.sleep(0.2)


def imports(arguments):
    """Fork while another thread imports: in the first call of this package, or of Numba's.

    Each in a child of this process, which has imported nothing yet.
    """
    warnings.simplefilter("ignore", DeprecationWarning)
    import numba_ce as nc

    assert "numba" not in sys.modules

    def call():
        loss = nc.cross_entropy(np.zeros((2, 10)), np.zeros(2, int))
        assert abs(loss - np.log(10)) < 1e-12, loss

    def call_numba():
        import numba

        assert numba.njit(lambda x: x + 1)(np.ones(3))[0] == 2

    def fork_during(import_of, before, in_thread, in_child):
        before()
        pause, thread = Pause(import_of), threading.Thread(target=in_thread)
        sys.meta_path.insert(0, pause)
        thread.start()
        while thread.is_alive() and not pause.reached.wait(0.01):
            pass
        if not import_of.startswith("numba.np"):  # which Numba may import earlier
            # What Numba imports without its lock is imported with this package
            assert pause.reached.is_set() == (import_of != "numpy.ma"), import_of
        assert forked(in_child, 20) == 0, f"child forked during the import of {import_of}"
        thread.join()

    cases = {
        "numba": (lambda: None, call, call),
        "numba_ce.cpu.run.threads": (lambda: None, call, call),
        "numpy.ma": (call, call_numba, call),
        "numba.np.arraymath": (call, call_numba, call_numba),
    }
    for name, case in cases.items():
        assert forked(lambda name=name, case=case: fork_during(name, *case)) == 0, name
    return {"layer": os.environ["NUMBA_THREADING_LAYER"], "imports": list(cases)}


def workers(arguments):
    """Four processes of two threads each, as a web server has them, on all cores.

    The master has not computed before it forks, and then it has. Throughput as a ratio to the same
    processes in `serial`, in turns of a quarter of a second.
    """
    warnings.simplefilter("ignore", DeprecationWarning)
    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((1000, 100), dtype=np.float32), rng.integers(0, 100, 1000)
    ratios = {}
    for master in ("idle", "computed"):
        serial, parallel = serve(arguments.seconds, z, y)
        ratios[master] = round(parallel / serial, 2)
    assert min(ratios.values()) >= arguments.at_least, ratios
    return {"layer": layer_name(), **ratios}


def serve(seconds, z, y):
    """Calls per turn in `serial` and without it; the master has computed when this returns."""
    import numba_ce as nc

    context = multiprocessing.get_context("fork")
    begin, ready = context.Value("d", 0.0), context.Barrier(5)
    turns, totals = max(2, round(seconds / 0.25)), context.Array("q", 2)

    def work():
        nc.cross_entropy_and_grad(z, y)
        ready.wait()
        counts = [0, 0], [0, 0]

        def answer(k):
            while (now := time.monotonic() - begin.value) < turns * 0.25:
                if now < 0.0:
                    continue
                parallel = int(now / 0.25) % 2
                with contextlib.nullcontext() if parallel else nc.serial():
                    nc.cross_entropy_and_grad(z, y)
                counts[k][parallel] += 1

        both = [threading.Thread(target=answer, args=(k,)) for k in range(2)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
        with totals.get_lock():
            for serial, parallel in counts:
                totals[0] += serial
                totals[1] += parallel

    processes = [context.Process(target=work) for _ in range(4)]
    for process in processes:
        process.start()
    begin.value = time.monotonic() + 3600  # not yet: the first to be ready would count alone
    ready.wait(120)
    begin.value = time.monotonic()
    for process in processes:
        process.join()
        assert process.exitcode == 0, process.exitcode
    nc.cross_entropy_and_grad(z, y)
    return list(totals)


# ---------------------------------------------------------------- signals


def interrupt(arguments):
    """SIGINT while a call runs that would take more than ten seconds; then another call."""
    import numba_ce as nc

    # A process started in the background by a shell ignores the signal, and its children do
    signal.signal(signal.SIGINT, signal.default_int_handler)
    row = np.linspace(-1, 1, 32000)
    targets = np.broadcast_to(np.int64(7), (4_000_000,))
    wide = np.broadcast_to(row.astype(np.float32), (4_000_000, 32000))
    many = 4_000_000_000
    narrow = np.broadcast_to(row[:10].astype(np.float32), (many, 10))
    calls = {
        "loss": lambda n: nc.cross_entropy(wide[:n], targets[:n]),
        "narrow": lambda n: nc.cross_entropy(
            narrow[: n * 1000], np.broadcast_to(np.int64(7), (many,))[: n * 1000]
        ),
        "options": lambda n: nc.cross_entropy(
            np.broadcast_to(row, (4_000_000, 32000))[:n],
            np.broadcast_to(np.abs(row) / 16000, (4_000_000, 32000))[:n],
            softcap=3.0,
            temperature=0.7,
            label_smoothing=0.1,
        ),
        "stats": lambda n: nc.row_stats(wide[:n], targets[:n]),
    }
    late, took = {}, {}
    for name, call in calls.items():
        if arguments.few and name != "loss":
            continue
        before = bits_of(call(100))
        for repetition in range(1 if arguments.few else 5):
            sent = []

            def interrupt_soon(delay=0.4 + 0.13 * repetition, sent=sent):
                time.sleep(delay)
                sent.append(time.perf_counter())
                os.kill(os.getpid(), signal.SIGINT)

            sender = threading.Thread(target=interrupt_soon)
            sender.start()
            notes = None
            try:
                call(len(targets))
            except KeyboardInterrupt as error:
                late[name] = max(time.perf_counter() - sent[0], late.get(name, 0.0))
                notes = getattr(error, "__notes__", [""])
            sender.join()
            assert notes is not None, f"{name} was not interrupted"
            assert "partly written" in notes[0]
            assert bits_of(call(100)) == before
        took[name] = round(late[name], 3)
    assert max(late.values()) < arguments.within, late
    return {"layer": layer_name(), **took}


class Alarm(BaseException):
    """What the handler of the alarms below raises; like KeyboardInterrupt, no `Exception`."""


class RuntimeAlarmError(RuntimeError):
    """The same for a handler that raises what libraries catch."""


def alarms(arguments):
    """Signals at random moments of short calls, some hundreds in a second.

    The handler, which calls functions of this package too, raises an exception, which is not lost.
    When it has left a call nothing is written any more, and the next call has the right bits.
    """
    import numba_ce as nc

    rng = np.random.default_rng(0)
    z, y = rng.standard_normal((600, 257), dtype=np.float32), rng.integers(0, 257, 600)
    out = np.empty_like(z)
    calls = [
        lambda: nc.cross_entropy_and_grad(z, y, out=out),
        lambda: nc.softmax(z, out=out),
        lambda: nc.stream(iter((z, z)), iter((y, y))).loss,
        lambda: nc.linear_cross_entropy(z[:, :8], z[:33, :8], y % 33),
    ]
    checked = Checked(calls)
    checked.check_all()

    rung, caught = [], 0

    def ring(*_):
        if len(rung) % 8 == 0:
            nc.softmax(z)
        rung.append(1)
        raise Alarm if len(rung) % 2 else RuntimeAlarmError

    signal.signal(signal.SIGALRM, ring)
    end = time.monotonic() + arguments.seconds
    while time.monotonic() < end:
        index = int(rng.integers(len(calls)))
        try:
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, 1e-3))
                calls[index]()
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except (Alarm, RuntimeAlarmError):
            caught += 1
            left = out.copy()
            time.sleep(0.001)
            assert left.tobytes() == out.tobytes(), f"call {index} goes on"
        checked.check(index)
    # Python itself loses one that comes in the callback of a weak reference
    lost = len(rung) - caught
    assert 0 <= lost <= 1 + caught // 1000 and caught > 0, (lost, caught)
    return {"layer": layer_name(), "alarms": caught, "lost": lost}


# ---------------------------------------------------------------- bits and memory


def bits(arguments):
    """The same bits with 1, 2, 3 and 7 threads, again and again. Set NUMBA_NUM_THREADS to 7."""
    import numba

    checked = Checked(usual_jobs(arguments.few))
    checked.check_all()  # makes Numba find TBB, before `set_num_threads` looks for a layer
    for _ in range(arguments.repetitions):
        for n_threads in (1, 2, 3, 7):
            numba.set_num_threads(n_threads)
            checked.check_all()
    return {"layer": layer_name(), "jobs": len(checked.jobs), "repetitions": arguments.repetitions}


def memory(arguments):
    """Resident memory over many small calls, some large ones, and many exceptions."""
    import numba_ce as nc

    rng = np.random.default_rng(0)
    small, y = rng.standard_normal((1, 10), dtype=np.float32), np.zeros(1, np.int64)
    large = rng.standard_normal((2000, 10000), dtype=np.float32)
    y_large = rng.integers(0, 10000, 2000)
    read_only = small.copy()
    read_only.flags.writeable = False

    def fail():
        for call in (
            lambda: nc.cross_entropy(small, y + 10),
            lambda: nc.cross_entropy_and_grad(small, y, out=read_only),
            lambda: nc.softmax(small.astype("c8")),
        ):
            try:
                call()
                raise AssertionError("no exception")
            except (TypeError, ValueError):
                pass

    grown, few = {}, arguments.few
    for name, call, times in (
        ("small", lambda: nc.cross_entropy_and_grad(small, y), 5_000 if few else 100_000),
        ("large", lambda: nc.cross_entropy_and_grad(large, y_large), 10 if few else 200),
        ("failing", fail, 1_000 if few else 30_000),
    ):
        for _ in range(max(times // 20, 3)):
            call()
        gc.collect()
        before, blocks = resident(), sys.getallocatedblocks()
        for _ in range(times):
            call()
        gc.collect()
        blocks = sys.getallocatedblocks() - blocks  # of Python's objects
        grown[name] = round(resident() - before, 2)
        assert grown[name] < 4, f"{times} {name} calls: resident memory grew by {grown[name]} MB"
        assert blocks < max(times // 2, 50), f"{times} {name} calls: {blocks} more blocks of memory"
    return {"layer": layer_name(), **grown}


PROGRAMS = {
    program.__name__: program
    for program in (
        *(threads, executors, prange, limits, fork, imports),
        *(workers, interrupt, alarms, bits, memory),
    )
}


def everything():
    """The long runs under each layer, one line each."""
    runs = [
        ("threads", {"callers": 8, "seconds": 20}),
        ("threads", {"callers": 32, "seconds": 20}),
        ("executors", {}),
        ("prange", {"seconds": 2}),
        ("limits", {}),
        ("fork", {"forks": 50}),
        ("imports", {}),
        ("workers", {"seconds": 8}),
        ("interrupt", {}),
        ("alarms", {"seconds": 20}),
        ("bits", {"repetitions": 100, "threads": 7}),
        ("memory", {}),
    ]
    failed = 0
    for name, options in runs:
        for layer in LAYERS:
            began = time.perf_counter()
            try:
                (figures,) = run_programs(name, layer=layer, timeout=900, **options)
            except AssertionError as error:
                figures, failed = str(error), failed + 1
            print(f"{name} {options} {layer}: {time.perf_counter() - began:.0f} s: {figures}")
            sys.stdout.flush()
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("programs", nargs="*", metavar="program", help=", ".join(PROGRAMS))
    parser.add_argument("--few", action="store_true", help="few kernels, so that it is quick")
    parser.add_argument("--callers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--forks", type=int, default=5)
    parser.add_argument("--at-least", type=float, default=0.7)
    parser.add_argument("--within", type=float, default=0.3)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    if not arguments.programs:
        sys.exit(everything())
    for name in arguments.programs:
        print(json.dumps({"program": name, **PROGRAMS[name](arguments)}), flush=True)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    main()
