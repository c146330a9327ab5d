"""asv: peak memory of the process, and what a call needs beyond its arguments and its result."""

from __future__ import annotations

import tracemalloc

from . import speed  # not its classes: asv would time those a second time here


class Peak(speed.Base):
    """The arguments (256 MB logits, as much for the gradient) count everywhere."""

    params = [speed.BY, ["65536x1000"]]

    def setup(self, by: str, shape: str) -> None:
        self.call = lambda by: None  # type: ignore[method-assign]
        super().setup(by, shape)

    def peakmem_arguments_only(self, by: str, shape: str) -> None:
        pass

    def peakmem_loss(self, by: str, shape: str) -> None:
        speed.Loss.call(self, by)  # type: ignore[arg-type]

    def peakmem_loss_and_grad(self, by: str, shape: str) -> None:
        speed.LossAndGrad.call(self, by)  # type: ignore[arg-type]

    def peakmem_in_place(self, by: str, shape: str) -> None:
        speed.InPlace.call(self, by)  # type: ignore[arg-type]


class Temporary(speed.LossAndGrad):
    """Should be some threads * C + N / 1024, so far from the size of the logits."""

    unit = "bytes"

    def track_temporary_bytes(self, by: str, shape: str) -> int:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            self.call(by)
            return tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()

    # asv takes inherited benchmarks for its own
    time_loss_and_grad = None  # type: ignore[assignment]
