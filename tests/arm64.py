"""`python -m tests.arm64 FOLDER`: the numerical tests of the kernels on an emulated ARM64.

A kernel compiles in 10 to 20 s there, so `--few` takes one kernel of each kind of code: both
schedules, each type of numbers, and each operation once. FOLDER is that of `tools.pythons`.
"""

from __future__ import annotations

import subprocess
import sys

ALL = ("tests/kernels/test_narrow.py", "tests/numerics/test_accuracy.py", "tests/api/test_hess.py")
FEW = (
    "tests/numerics/test_accuracy.py::test_every_number_of_classes[cpu-3-float32]",
    "tests/numerics/test_accuracy.py::test_every_number_of_classes[cpu-40-float64]",
    "tests/numerics/test_accuracy.py::test_every_number_of_classes[cpu-1025-float32]",
)


def main() -> None:
    """Run the tests; the exit status is pytest's."""
    folder, *arguments = sys.argv[1:] or ("arm64",)
    chosen = FEW if "--few" in arguments else ALL
    arguments = [argument for argument in arguments if argument != "--few"]
    python = (sys.executable, "-m", "tools.pythons", "arm64", folder)
    command = (*python, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *arguments, *chosen)
    sys.exit(subprocess.run([*command, "-k", "not [numpy and not [cuda"]).returncode)


if __name__ == "__main__":
    main()
