"""`python -m tests.processors`: the tests of the kernels, compiled for other processors than this.

Numba compiles for the processor that NUMBA_CPU_NAME names, but keeps the instructions of this one
unless NUMBA_CPU_FEATURES says otherwise: it is empty here, so that those of the name are left.
float16 is refused without its conversions, and tests that use it are skipped then. More arguments
are for pytest; `--only nehalem` takes one processor.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

#: name -> how it differs
PROCESSORS = {
    "haswell": "AVX2 and fused multiply-add, no AVX-512",
    "nehalem": "SSE 4.2 alone: no fused multiply-add, no float16",
}
#: Tests of what kernels compute: both schedules, every operation, the promised accuracy, the bits
TESTS = (
    "kernels/test_narrow.py",
    "api/test_hess.py",
    "api/test_row_stats.py",
    "api/test_normalize.py",
    "numerics/test_digests.py",
    *(
        f"numerics/test_accuracy.py::test_{name}"
        for name in (
            "families",
            "families_with_the_class_axis_first",
            "every_number_of_classes",
            "a_masked_tile_of_a_row_far_from_zero",
            "16_bit_gradients_are_rounded_once",
            "roundings_of_float64_at_a_temperature",
            "options_over_many_classes",
        )
    ),
)

#: The other backends, which know nothing of the processor
NOT_OTHERS = "not [numpy and not [cuda and not numpy- and not cuda-"


def run(name, arguments):
    """Run the tests for a processor; returns pytest's exit status."""
    environment = os.environ | {"NUMBA_CPU_NAME": name, "NUMBA_CPU_FEATURES": ""}
    command = [sys.executable, "-m", "pytest", "-q", "-k", NOT_OTHERS, *arguments]
    command += [f"tests/{test}" for test in TESTS]
    print(f"{name}: {PROCESSORS[name]}", flush=True)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    folder = Path(__file__).resolve().parent.parent
    status = subprocess.run(command, env=environment, cwd=folder).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{name}: {time.monotonic() - start:.0f} s, {used:.0f} s of processor time", flush=True)
    return status


def main():
    parser = argparse.ArgumentParser(prog="python -m tests.processors", description=__doc__)
    parser.add_argument("--only", choices=PROCESSORS)
    chosen, arguments = parser.parse_known_args()
    names = [chosen.only] if chosen.only else PROCESSORS
    sys.exit(max([run(name, arguments) for name in names]))


if __name__ == "__main__":
    main()
