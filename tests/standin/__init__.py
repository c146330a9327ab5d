"""A CUDA driver for NVIDIA's own bindings where there is no GPU: a stand-in libcuda.so.1.

`libcuda.c` is compiled when the tests run and finds every function in `driver.py`, which keeps
what a driver keeps: contexts, memory, streams, modules. The interpreter in `tools/ptx` executes
what is launched. A process that starts with `environment(folder)` meets it as its CUDA driver.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
COMPILER = shutil.which(os.environ.get("CC", "cc")) if sys.platform == "linux" else None
SETTINGS = "NUMBA_CE_STANDIN"  # its presence also says that a process has the stand-in


def build(folder):
    """Compile the library into a folder."""
    command = [COMPILER, "-shared", "-fPIC", "-O1", "-Wall", "-Werror"]
    command += ["-Wl,-soname,libcuda.so.1", "-o", folder / "libcuda.so.1", HERE / "libcuda.c"]
    subprocess.run(command, check=True)


def environment(folder, **settings):
    """The variables of a process whose CUDA driver is the library in this folder.

    settings : of `driver.Settings`, as text
    """
    paths = [str(HERE.parent), str(HERE.parent.parent), os.environ.get("PYTHONPATH", "")]
    return os.environ | {
        "LD_LIBRARY_PATH": f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}",
        "PYTHONPATH": ":".join(filter(None, paths)),
        SETTINGS: ",".join(f"{name}={value}" for name, value in settings.items()),
    }
