"""asv: peak memory of the process, and what a call needs beyond its arguments and its result."""

from __future__ import annotations

from numba_ce.bench.measure import temporary_bytes

from . import speed  # not its classes: asv would time those a second time here

BY = ["cpu", "cuda", "NumPy"]


class Peak(speed.Base):
    """The arguments (256 MB logits, as much for the gradient) count everywhere."""

    pretty_name = "Peak memory of the process"
    params = [speed.OPERATIONS, BY, ["65536x1000"]]
    param_names = ["operation", "by", "shape"]

    def peakmem_operation(self, operation: str, by: str, shape: str) -> None:
        self.call()


class Temporary(speed.Base):
    """Should be some threads * C + N / 1024, so far from the size of the logits."""

    pretty_name = "Temporary memory of a call"
    params = [["grad"], BY, speed.SHAPES]
    param_names = ["operation", "by", "shape"]
    unit = "bytes"

    def track_temporary_bytes(self, operation: str, by: str, shape: str) -> int:
        return temporary_bytes(self.call)
