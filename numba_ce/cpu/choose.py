"""Every threshold: which schedule, how much at a time, when to write around the caches or alone."""

from functools import lru_cache

from numba_ce.cpu.plan import Kernel
from numba_ce.cpu.rows.tile import real_type
from numba_ce.cpu.simd.transpose import BLOCK_CLASSES, EXACT_CLASSES, LARGEST_BLOCK
from numba_ce.cpu.simd.width import ROWS_ACROSS

# Rows of so many classes run across the lanes. With 256 that takes what `along` takes, with 128
# half of it
ACROSS_CLASSES = 256
# Up to so many, all of the next sixteen rows is asked for at once, and gradients go through the
# caches; beyond, see `across_tile.make_ask` and `gather`: with 40 classes 11.8 ns a row, not 14.9
FEW_CLASSES = 24
# Rows of up to so many classes that are far apart are used where they are; with more, copied first:
# float32 softmax of 2 takes 2.9 ms instead of 4.3 on one core for 1.5 million rows, of 3 3.7 not
# 5.1; float64 of 24 would take 6.6 instead of 4.0
IN_PLACE_CLASSES = EXACT_CLASSES
# Rows along the lanes whose exponentials have so many bytes are finished eight at a time: more do
# not fit the first cache together
BATCHED_BYTES = 4096
# Outputs larger than this do not fit the caches anyway: write around them
STREAMING_BYTES = 4 << 20
# How much a block has, see `rows_per_block`, and how many a worker draws, see `blocks_drawn`
BLOCK_ELEMENTS, BLOCKS_DRAWN = 65536, 16
# Below this many logits waking the threads (5 to 50 us) costs more than they save
SERIAL_ELEMENTS = 32768
# Operations that have no schedule across rows
ALONG_ONLY = ("record", "from_record")


@lru_cache(maxsize=256)
def choose_schedule(kernel: Kernel, n_classes: int) -> Kernel:
    """The kernel for so many classes."""
    real = real_type(kernel.kind)
    same = kernel.targets_kind is None or real_type(kernel.targets_kind) is real
    if not same or n_classes > ACROSS_CLASSES or kernel.operation in ALONG_ONLY:
        return kernel._replace(schedule="along")
    return kernel._replace(
        schedule="across",
        block=min(size for size in BLOCK_CLASSES if size >= min(n_classes, LARGEST_BLOCK)),
        prefetch_by_class=n_classes > FEW_CLASSES,
    )


def rows_gathered(n_classes: int) -> int:
    """Rows that are copied at a time: as many as leave the copies in the cache.

    Pieces of less than a line would break `deliver`. 64 to 128 for few classes: images of 150
    move at 22.3 GB/s instead of 19.8.
    """
    if n_classes <= 256:
        return 128
    return 64 if n_classes <= 1024 else 32


def rows_packed(n_classes: int) -> int:
    """Rows written together where all lie side by side: 16 KB of float32, whole lines."""
    n_rows = 4096 // n_classes // 16 * 16
    return n_rows if n_rows > 0 else 16


def rows_per_block(n_classes: int, far: bool = False) -> int:
    """Rows of a block, for reproducible sums a function of the number of classes and the layout.

    far : the classes are, and the longer the pieces of one class, the better: 1000 classes move at
    16.3 GB/s with 256 rows, 12.5 with 64
    """
    n_rows = min(max(BLOCK_ELEMENTS // n_classes, 1), 1024)
    if far:
        n_rows = max(n_rows, 4 * rows_gathered(n_classes))
    return n_rows // ROWS_ACROSS * ROWS_ACROSS or n_rows


def blocks_drawn(n_blocks: int, n_workers: int) -> int:
    """Neighbouring blocks that a worker draws at a time: at most a sixteenth of its share.

    Two workers that alternate from block to block tear the sequences of addresses that the
    processor reads ahead: with up to 10 classes, runs of 16 blocks take 0.8 to 0.95 of the time.
    """
    return max(1, min(BLOCKS_DRAWN, n_blocks // (16 * n_workers)))
