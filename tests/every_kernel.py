"""`python -m tests.every_kernel`: a second process loads every kernel that calls can ask for.

Two processes ask for the kernels, one after the other, and the second must compile nothing. Without
`--all` they ask for some: every operation with each of its options, and every value of every field
of `Kernel`. `--part 2/8` takes the second eighth.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from numba_ce import _cache
from numba_ce.cpu.choose import choose_schedule
from numba_ce.cpu.compile import cache
from numba_ce.cpu.operations import OPERATIONS, OTHERS, SCHEDULES
from numba_ce.cpu.plan import Kernel
from numba_ce.cpu.run import launch, threads
from numba_ce.cpu.schedules.gather import copier_of
from numba_ce.cpu.simd.element import KINDS

#: One of each number of classes for which there are kernels of their own.
CLASSES = (1, 2, 3, 4, 5, 8, 16, 40, 700, 3000)
OPTIONS = ("smoothing", "tempered", "softcap")
#: operation -> what it has: probabilities as targets, an output, a second one, options.
CALLED = {
    "loss": ("targets", "options"),
    "loss+grad": ("targets", "options", "grad"),
    "hess": ("targets", "grad", "hess"),
    "stats": (),
    "record": ("targets", "options"),
    "from_record": ("targets", "options", "grad"),
    "softmax": ("grad",),
    "log_softmax": ("grad",),
    "logsumexp": (),
}


def outputs_of(kind):
    """The dtypes of an output: that of the logits, and float32 for 16 bits."""
    return (kind, "float32") if kind in ("float16", "bfloat16") else (kind,)


def every_kernel():
    """All kernels, in an order of their own."""
    found = {launch.SCAN: None}
    for (name, has), kind, n_classes in itertools.product(CALLED.items(), KINDS, CLASSES):
        outputs = outputs_of(kind)
        choices = (
            (None, *KINDS) if "targets" in has else (None,),
            outputs if "grad" in has else (None,),
            outputs if "hess" in has else (None,),
            *((False, True) if "options" in has else (False,) for _ in OPTIONS),
        )
        for fields in itertools.product(*choices):
            kernel = Kernel(name.partition("+")[0], "along", kind, *fields)
            kernel = choose_schedule(kernel, n_classes)
            found[kernel] = found[copier_of(kernel, packed=False)] = None
            if kernel.grad_kind and kernel.prefetch_by_class and not kernel.hess_kind:
                found[copier_of(kernel, packed=True)] = None
    made = {kernel[:2] for kernel in found if isinstance(kernel, Kernel)}
    assert {operation for operation, _ in made} == {*OPERATIONS, *OTHERS}
    assert {schedule for _, schedule in made} == {*SCHEDULES}
    return list(found)


def traits(kernel):
    """What a kernel covers."""
    fields = {"type": type(kernel).__name__, **kernel._asdict()}
    yield from fields.items()
    if isinstance(kernel, Kernel):
        yield kernel.operation, kernel.schedule
        yield from ((kernel.operation, option) for option in OPTIONS if fields[option])


def covering(kernels):
    """Some kernels with the traits of all."""
    missing = {trait for kernel in kernels for trait in traits(kernel)}
    chosen = []
    while missing:
        best = max(kernels, key=lambda kernel: len(missing.intersection(traits(kernel))))
        missing.difference_update(traits(best))
        chosen.append(best)
    return chosen


def ask(kernels):
    """Ask for kernels; returns the names of those that were compiled."""
    compiled, given = [], cache.cached

    def noted(name, signature, compile_now):
        def compile_noted():
            compiled.append(name)
            return compile_now()

        return given(name, signature, compile_noted)

    launch.cached = threads.cached = noted
    _cache.LIMIT_BYTES = sys.maxsize  # all of them have more than may be kept
    threads.parallel_loop()
    launch.scan_first()
    for kernel in kernels:
        launch.compiled(kernel)
    return compiled


def in_a_process(*arguments, folder):
    """What a new process compiles for the same kernels."""
    environment = os.environ | {"NUMBA_CE_CACHE_DIR": str(folder)}
    command = [sys.executable, __file__, "--ask", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.every_kernel", description=__doc__)
    parser.add_argument("--all", action="store_true", help="hours")
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--ask", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    part, n_parts = map(int, arguments.part.split("/"))
    if arguments.ask:
        kernels = every_kernel()
        kernels = kernels if arguments.all else covering(kernels)
        print(json.dumps(ask(kernels[part - 1 :: n_parts])))
        return
    which = [*(["--all"] if arguments.all else []), "--part", arguments.part]
    with tempfile.TemporaryDirectory() as folder:
        first = in_a_process(*which, folder=folder)
        again = in_a_process(*which, folder=folder)
    print(f"{len(first)} kernels compiled, then {len(again)}:", *again, sep="\n  ")
    sys.exit(bool(again))


if __name__ == "__main__":
    main()
