"""Rows kept in registers: one read and one write of device memory, for the plain loss.

Class indices, class and sample weights, any reduction; float32, float16, bfloat16. The threads of a
row each keep SLOTS x 16 bytes of it:

    rows of up to a warp     8, 16 or 32 lanes share a row, a block takes several rows
    rows of a block          64 to 512 threads
    rows of a cluster        2, 4 or 8 blocks on neighbouring processors (sm_90 and later)

Class j of a row lies in chunk (j - head) // LANES, and chunk c belongs to thread c mod (all threads
of the row): neighbours read neighbouring 16 bytes. What lies before the first and after the last
full 16 bytes, fewer than 2 LANES classes, is read and written one by one.

The target is taken out of the registers before the maximum; the thread that held it writes its
gradient last, over what the others' formula gave.
"""

import math
from functools import cache
from typing import NamedTuple

import numpy as np
from numba import cuda
from numba.core import types

from numba_ce.cuda.exp import MINUS_INF, make_exp_below
from numba_ce.cuda.finish import finish_row, put_result, row_loss
from numba_ce.cuda.intrinsics import (
    KINDS,
    cluster_arrive,
    inner,
    make_cluster_setter,
    make_loader,
    make_quads,
    make_storer,
    make_unpacker,
    maximum_f32,
    mbarrier_expect,
    mbarrier_init,
    packed_maximum,
    packer,
    shared_address,
)
from numba_ce.cuda.kernel import grad_scale_of
from numba_ce.cuda.quads import add, join, made, over
from numba_ce.cuda.reduce import (
    make_blocks_merger,
    make_lanes_reducer,
    make_warps_merger,
    row_factor,
)
from numba_ce.cuda.targets import IGNORED, KEPT, index_target

# Two masked classes in a word
LOWER, UPPER = np.uint32(0xFFFF), np.uint32(0xFFFF0000)
MASKED = {"bfloat16": 0xFF80FF80, "float16": 0xFC00FC00, "float32": 0}


class Resident(NamedTuple):
    """What one compiled kernel is for."""

    kind: str
    grad: bool  # writes the gradient, in the kind of the logits
    threads: int  # of a block
    sharing: int  # threads of a block that share a row
    slots: int  # 16 bytes each, per thread
    cluster: int = 1  # blocks that share a row

    @property
    def capacity(self):
        """The most classes of a row."""
        return self.sharing * self.slots * self.cluster * KINDS[self.kind][1]

    @property
    def rows_per_block(self):
        """Rows that a block does."""
        return self.threads // self.sharing


class Place(NamedTuple):
    """Where a thread stands."""

    row: int
    active: bool  # False: beyond the last row
    first: int  # chunk of the thread; the others follow at equal distances
    source: int  # addresses of the row
    grad: int
    targets_at: int  # bytes from the first row; an address would spill
    weight_at: int
    head: int  # classes before the first full chunk
    n_chunks: int
    edge: int  # the class before or after the full chunks that the thread takes, or -1


class Operations(NamedTuple):
    """What is done with the quads of a thread; the second argument is 0, the first slot's number.

    load(0, address, left) -> quads
    mask(quads, 0, first, k_chunk, k_element) -> quads without the target
    largest(quads, 0) -> float32
    raised(quads, 0, m) -> exp(z - m), for float32; 16-bit rows stay packed
    total(quads, 0, m, zero) -> sum of exp(z - m)
    store(quads, 0, address, left, m, factor)
    """

    load: object
    mask: object
    largest: object
    raised: object
    total: object
    store: object


@cache
def make_operations(kind, slots, stride):
    """The `Operations` on quads that are `stride` chunks apart."""
    size = KINDS[kind][0]
    sixteen_bits = size == 2
    nothing = np.uint32(MASKED[kind]) if sixteen_bits else MINUS_INF
    load_quad, store_quad = make_quads(kind)
    unpack, pack = (make_unpacker(kind), packer[kind]) if sixteen_bits else (None, None)
    larger = packed_maximum[kind] if sixteen_bits else maximum_f32
    exp_below = make_exp_below(kind)

    @inner
    def load(slot, address, left):
        if slot * stride < left:
            return load_quad(address + slot * stride * 16)
        return nothing, nothing, nothing, nothing

    @inner
    def masked(word, number, k_word, k_element):
        if number != k_word:
            return word
        if not sixteen_bits:
            return nothing
        if k_element % 2 == 1:
            return (word & LOWER) | (nothing & UPPER)
        return (word & UPPER) | (nothing & LOWER)

    @inner
    def mask(quad, slot, first, k_chunk, k_element):
        k_word = k_element * size // 4 if first + slot * stride == k_chunk else -1
        a = masked(quad[0], 0, k_word, k_element)
        b = masked(quad[1], 1, k_word, k_element)
        c = masked(quad[2], 2, k_word, k_element)
        d = masked(quad[3], 3, k_word, k_element)
        return ((a, b, c, d),)

    @inner
    def largest(quad, slot):
        return larger(larger(quad[0], quad[1]), larger(quad[2], quad[3]))

    @inner
    def raised(quad, slot, m):
        if sixteen_bits:
            return (quad,)
        a, b = exp_below(quad[0], m), exp_below(quad[1], m)
        c, d = exp_below(quad[2], m), exp_below(quad[3], m)
        return ((a, b, c, d),)

    @inner
    def pair_sum(word, m, zero):
        low, high = unpack(word, zero)
        return exp_below(low, m) + exp_below(high, m)

    @inner
    def total(quad, slot, m, zero):
        if sixteen_bits:
            left = pair_sum(quad[0], m, zero) + pair_sum(quad[1], m, zero)
            return left + (pair_sum(quad[2], m, zero) + pair_sum(quad[3], m, zero))
        return (quad[0] + quad[1]) + (quad[2] + quad[3])

    @inner
    def scaled(word, m, factor):
        if not sixteen_bits:
            return word * factor
        low, high = unpack(word, np.uint32(0))  # not what `total` unpacked; see `make_unpacker`
        return pack(exp_below(low, m) * factor, exp_below(high, m) * factor)

    @inner
    def store(quad, slot, address, left, m, factor):
        if slot * stride < left:
            store_quad(
                address + slot * stride * 16,
                scaled(quad[0], m, factor),
                scaled(quad[1], m, factor),
                scaled(quad[2], m, factor),
                scaled(quad[3], m, factor),
            )
        return 0

    packed_largest = over(slots, largest, larger)

    @inner
    def largest_logit(quads, slot):
        word = packed_largest(quads, slot)
        if not sixteen_bits:
            return word
        low, high = unpack(word, np.uint32(0))
        return maximum_f32(low, high)

    return Operations(
        made(slots, load),
        over(slots, mask, join),
        largest_logit,
        over(slots, raised, join),
        over(slots, total, add),
        over(slots, store, add),
    )


@cache
def make_resident_kernel(kernel):
    """The function that numba-cuda compiles for a `Resident`."""
    kind, wants_grad = kernel.kind, kernel.grad
    size, lanes, _ = KINDS[kind]
    sixteen_bits = size == 2
    sharing, slots, cluster = kernel.sharing, kernel.slots, kernel.cluster
    per_block = kernel.rows_per_block
    one_warp, clustered = sharing <= 32, cluster > 1
    warps, inbox_size, stride = sharing // 32, 2 * cluster, cluster * sharing
    inbox_bytes = types.uint32(16 * cluster)
    load, store = make_loader(kind), make_storer(kind)
    load_quads, mask, largest, raised, total, store_quads = make_operations(kind, slots, stride)
    lanes_max = make_lanes_reducer(sharing, maximum_f32)
    lanes_add = make_lanes_reducer(sharing, add)
    merge_warps, merge_blocks = make_warps_merger(warps), make_blocks_merger(cluster)
    set_cluster, exp_below = make_cluster_setter(cluster), make_exp_below(kind)

    @inner
    def target_of(plan, at):
        return index_target(plan, plan.targets + at.targets_at, plan.sample_weight + at.weight_at)

    @inner
    def find_place(plan, thread, block):
        """Where a thread stands, and which classes are its own."""
        rank, place, row = np.int64(0), thread, block
        if clustered:
            rank, row = block % cluster, block // cluster
        if one_warp:
            place, row = thread % sharing, block * per_block + thread // sharing
        active = True
        if one_warp and row >= plan.n_rows:  # takes part in the shuffles of its warp
            active, row = False, plan.n_rows - 1
        source, n_classes = plan.logits + row * plan.logits_3, plan.n_classes
        head = min((-source % 16) // size, n_classes)
        n_chunks = (n_classes - head) // lanes
        edge = np.int64(-1)
        if rank == 0 and place < n_classes - n_chunks * lanes:
            edge = place if place < head else place + n_chunks * lanes
        first = rank * sharing + place
        return Place(
            row, active, first, source, plan.grad + row * plan.grad_3,
            row * plan.targets_3, row * plan.sample_weight_3, head, n_chunks, edge,
        )  # fmt: skip

    def resident(plan):
        thread, block = types.int64(cuda.threadIdx.x), types.int64(cuda.blockIdx.x)
        unknown = cuda.gridDim.y - 1
        zero = types.uint32(unknown)
        # What the second half needs to know of the first, for each row of the block
        row_t = cuda.shared.array(per_block, np.float32)
        row_scale = cuda.shared.array(per_block, np.float32)
        if clustered:
            set_cluster()
            inbox = cuda.shared.array(inbox_size, np.float64)
            barrier = cuda.shared.array(1, np.uint64)
            if thread == 0:
                at_barrier = shared_address(barrier, 0)
                mbarrier_init(at_barrier, types.uint32(1))
                mbarrier_expect(at_barrier, inbox_bytes)
            cluster_arrive()  # waited for after the loads

        # The read. Nothing of an ignored or bad row: all masked, it gives 0 x factor
        at = find_place(plan, thread, block)
        target = target_of(plan, at)
        grad_scale = grad_scale_of(plan)
        kept, k = at.active and target.status == KEPT and grad_scale != 0.0, target.k
        left = at.n_chunks - at.first if kept else 0
        quads = load_quads(0, at.source + at.head * size + at.first * 16, left)
        z_edge, owner = MINUS_INF, False
        if kept:
            owner = at.edge == k
            if at.edge >= 0 and not owner:
                z_edge = load(at.source + at.edge * size)
        if thread % sharing == 0:
            factor = 0.0 if target.status == IGNORED or grad_scale == 0.0 else math.nan
            row_t[thread // sharing] = MINUS_INF
            if kept:
                row_t[thread // sharing] = load(at.source + k * size)
                factor = target.weight * grad_scale * target.q
            row_scale[thread // sharing] = np.float32(factor)
        if kept and at.head <= k < at.head + at.n_chunks * lanes:
            k_chunk, k_element = (k - at.head) // lanes, (k - at.head) % lanes
            behind = k_chunk - at.first
            owner = owner or (behind >= 0 and behind % stride == 0)
            quads = mask(quads, 0, at.first, k_chunk, k_element)

        m = lanes_max(maximum_f32(largest(quads, 0), z_edge))
        quads = raised(quads, 0, m)
        own_sum = total(quads, 0, m, zero) + exp_below(z_edge, m)
        row_max, sum_exp = m, lanes_add(np.float64(own_sum))
        if one_warp:
            cuda.syncwarp()  # row_t and row_scale are there
        else:
            maxima = cuda.shared.array(32, np.float32)
            sums = cuda.shared.array(32, np.float64)
            row_max, sum_exp = merge_warps(m, sum_exp, maxima, sums)
        if clustered:
            rank = block % cluster
            row_max, sum_exp = merge_blocks(row_max, sum_exp, rank, inbox, barrier)

        # From here on everything but the words is found again (`unknown` is 0): kept meanwhile, it
        # would take registers that there are not. The factor of the others needs the precision of
        # their exponentials only; the float64 of the loss and of the target is left to the thread
        # that owned it, at the end, when nobody waits for it.
        total_exp = sum_exp
        if sixteen_bits:  # one register less, and half a unit in the last place of the loss
            total_exp = np.float32(sum_exp)
        t, scale = row_t[thread // sharing], row_scale[thread // sharing]
        thread += unknown
        block += unknown
        at = find_place(plan, thread, block)
        if wants_grad and at.active:
            factor = edge_factor = scale
            if kept:
                factor = edge_factor = row_factor(row_max, np.float32(total_exp), t, scale)
                if not sixteen_bits:  # the exponentials are relative to the warp's maximum
                    factor *= exp_below(m, row_max)
            store_quads(
                quads, 0, at.grad + at.head * size + at.first * 16, at.n_chunks - at.first,
                row_max, factor,
            )  # fmt: skip
            if at.edge >= 0:
                z_edge = MINUS_INF
                if kept:  # of the target any value will do: it is written over
                    z_edge = load(at.source + at.edge * size)
                store(at.grad + at.edge * size, exp_below(z_edge, row_max) * edge_factor)

        if not at.active:
            return
        if owner:
            target = target_of(plan, at)
            end = finish_row(np.float64(row_max), np.float64(total_exp), np.float64(t), 1.0)
            if wants_grad:  # after the store above: the same thread, so in this order
                g_k = -target.weight * grad_scale_of(plan) * target.q * end.rest
                store(at.grad + target.k * size, np.float32(g_k))
            loss = target.weight * row_loss(
                target.q, end.surprise, None, None, end.above, None, end.lse
            )
            put_result(plan.loss, at.row, plan.loss_bytes, loss)
            put_result(plan.row_loss, at.row, 8, loss)
        if at.first == 0 and not kept:
            put_result(plan.loss, at.row, plan.loss_bytes, scale)  # 0 or NaN
            put_result(plan.row_loss, at.row, 8, scale)

    return resident
