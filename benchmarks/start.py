"""asv: what it costs to start, each in a fresh process."""

from __future__ import annotations

FIRST_CALL = "{call}(logits, targets)"
PREPARE = """
import os
os.environ["NUMBA_CE_CACHE_DIR"] = {cache!r}
import numpy as np
{imports}
rng = np.random.default_rng(0)
logits = rng.standard_normal((4096, 1000), dtype=np.float32)
targets = rng.integers(0, 1000, 4096)
"""


class Start:
    # One statement per process: a second one would find everything loaded
    number = 1
    repeat = (3, 10, 30.0)
    warmup_time = 0.0
    timeout = 300


class Import(Start):
    def timeraw_numba_ce(self) -> str:
        return "import numba_ce"

    def timeraw_numba_ce_after_numba(self) -> tuple[str, str]:
        return "import numba_ce", "import numba"

    def timeraw_numba(self) -> str:
        return "import numba"

    def timeraw_numpy(self) -> str:
        return "import numpy"


def fused(cache: str) -> tuple[str, str]:
    call = FIRST_CALL.format(call="numba_ce.cross_entropy_and_grad")
    return call, PREPARE.format(imports="import numba, numba_ce", cache=cache)


class FirstProcess(Start):
    """Imports, compilation and the first call: what a user waits for who starts afresh."""

    def timeraw_loss_and_grad(self) -> tuple[str, str]:
        return "import numba_ce\n" + fused("0")[0], PREPARE.format(imports="", cache="0")

    def timeraw_plain_numba(self) -> tuple[str, str]:
        from importlib.util import find_spec
        from pathlib import Path

        package = find_spec("numba_ce")
        assert package is not None
        assert package.origin is not None
        source = Path(package.origin).parent / "bench" / "plain_kernel.py"
        call = "plain_kernel(logits, targets, np.empty_like(logits))"
        return source.read_text() + "\n" + call, PREPARE.format(imports="", cache="0")


class FirstCall(Start):
    def timeraw_loss_and_grad(self) -> tuple[str, str]:
        return fused(cache="0")

    def timeraw_loss_and_grad_compiled_before(self) -> tuple[str, str]:
        # The first of the processes that are timed compiles
        return fused(cache="~/.cache/numba_ce_benchmarks")

    def timeraw_plain_numpy(self) -> tuple[str, str]:
        # spelt out, so that the process does not import numba_ce
        import inspect

        from numba_ce import demo

        source = "from typing import Any\nArray = np.ndarray\n"
        source += inspect.getsource(demo.numpy_loss_and_grad)
        call = FIRST_CALL.format(call="numpy_loss_and_grad")
        return call, PREPARE.format(imports=source, cache="0")


for group in (Import, FirstProcess, FirstCall):
    for name, function in vars(group).items():
        if name.startswith("timeraw_"):
            what = name.removeprefix("timeraw_").replace("_", " ")
            function.pretty_name = f"{group.__name__}: {what}"
