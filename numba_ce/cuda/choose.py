"""Which kernel does it: the launch table.

Threads, registers and blocks were chosen by compiling: every configuration here keeps all it needs
in registers (0 bytes spilled) for sm_80, sm_90, sm_100 and sm_120, as
`python -m benchmarks.cuda_offline` shows.
"""

from functools import cache, lru_cache

from numba_ce.cuda.intrinsics import KINDS
from numba_ce.cuda.resident import Resident
from numba_ce.cuda.thread_layout import THREADS

# Plain rows of up to so many bytes go to the staged kernel: whole neighbouring rows by 128 bits,
# where lanes of their own would read much of each row one by one, and a lane for each 16 classes to
# finish rows in float64, where the smallest group here has eight
FEW_BYTES = 256
CLUSTERS_FROM = (9, 0)  # compute capability
PACKED_FROM = (8, 0)  # arithmetic on two 16-bit floats

# (threads of a block, of them to a row, slots of 16 bytes, blocks of a cluster); by capacity.
# Up to a warp a block takes several rows. 16-bit rows need 14 threads for the classes outside the
# full 16 bytes, so theirs start at 16.
_LAYOUTS = (
    (128, 8, 4, 1),
    (128, 16, 2, 1),
    (128, 16, 4, 1),
    (128, 32, 4, 1),
    (128, 32, 8, 1),
    (64, 64, 8, 1),
    (128, 128, 8, 1),
    (256, 256, 8, 1),
    (512, 512, 8, 1),  # instead of clusters
    (256, 256, 8, 2),
    (256, 256, 8, 4),
    (256, 256, 8, 8),
    (512, 512, 8, 8),
    (1024, 1024, 8, 8),
)


@cache
def layouts(kind, grad, capability):
    """The `Resident` kernels for a kind on a device, by capacity; none if it has none."""
    if kind == "float64" or (KINDS[kind][0] == 2 and capability < PACKED_FROM):
        return ()
    found = []
    for threads, sharing, slots, cluster in _LAYOUTS:
        outside = 2 * (KINDS[kind][1] - 1)
        # The loss alone need not keep the row: beyond a block the general kernel reads it once
        allowed = threads <= 256 and cluster == 1
        if not allowed:
            allowed = grad and (cluster > 1) == (capability >= CLUSTERS_FROM)
        if sharing >= outside and allowed:
            kernel = Resident(kind, grad, threads, sharing, slots, cluster)
            if not found or kernel.capacity > found[-1].capacity:
                found.append(kernel)
    return tuple(found)


@lru_cache(maxsize=4096)
def resident_for(kind, grad, n_classes, capability):
    """The smallest layout that holds such a row, or None."""
    for kernel in layouts(kind, grad, capability):
        if n_classes <= kernel.capacity:
            return kernel
    return None


def blocks_per_processor(kernel, capability):
    """Blocks that must fit a processor at once: what registers a thread may have.

    Of 65536 registers: 128 for a thread before sm_90 and in the kernels that are not `Resident`;
    else 80 in blocks of up to 256, more where several rows share one, and 64 in larger blocks.
    """
    if not isinstance(kernel, Resident):
        return 512 // THREADS
    if capability < CLUSTERS_FROM:
        return 512 // kernel.threads
    threads = 1024
    if kernel.threads <= 256:
        threads = 640 if kernel.sharing <= 32 else 768
    return threads // kernel.threads
