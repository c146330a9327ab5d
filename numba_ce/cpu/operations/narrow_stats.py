"""Statistics of rows of few classes: sixteen rows at a time, one in each lane, as in `narrow`."""

from functools import lru_cache

import numpy as np

from numba_ce.cpu.compile.jit import inner
from numba_ce.cpu.rows.finish_rows import finishing, times0
from numba_ce.cpu.rows.tile import add_to, real_type
from numba_ce.cpu.schedules.across import (
    BAD_F32,
    IGNORED_F32,
    asker,
    class_counter,
    cutter,
    place_of,
    read_targets,
    tile_reader,
)
from numba_ce.cpu.schedules.across_loops import (
    F32_0,
    F32_1,
    no_sums_of_sixteen,
    peak_of_sixteen,
    scale_finder,
)
from numba_ce.cpu.schedules.gather import block_doer
from numba_ce.cpu.simd.exp import exp_scaled
from numba_ce.cpu.simd.memory import (
    load,
    load_sixteen,
    prefetch_to_write,
    store_lanes,
    store_whole_numbers,
)
from numba_ce.cpu.simd.transpose import ROWS
from numba_ce.cpu.simd.vector import (
    VECTOR_BYTES,
    absolute,
    first_lanes,
    high_as_float64,
    joined,
    low_as_float64,
    select,
    splat,
    splat_sixteen,
    sum_of_lanes,
)

# Rows by which prefetches of the results run ahead. Seven arrays are written, 36 bytes a row: with
# C = 10, 0.75 of the time in one thread, 0.9 in two. 32 or 128 rows do the same
WRITE_AHEAD = 64


@lru_cache
def narrow_stats_operation(kernel):
    """The statistics of the rows of a block; with targets also what they say."""
    kind = kernel.kind
    real = real_type(kind)
    size, zero, nan = real().itemsize, real(0), real(np.nan)
    pitch, minus_inf, infinity = ROWS * size, real(-np.inf), real(np.inf)
    read_logits, cut_up = tile_reader(kind, kernel.block, kernel.many), cutter(kind)
    find_scale, find_peaks = scale_finder(real, False), peak_of_sixteen(real)
    no_sums, finish = no_sums_of_sixteen(real), finishing(real)
    finish_sixteen, times_amount = finish.sixteen, finish.amount
    value_of, halves = finish.value, finish.halves
    begin_ahead, ask = asker(kernel)
    count_classes = class_counter(kernel.block)

    @inner
    def pick(tile, end, y):
        """The logits of the classes y; -inf without one."""
        t, c = splat_sixteen(minus_inf), F32_0
        for at in range(tile, end, pitch):
            t = select(y == c, load_sixteen(at, zero), t)
            c += F32_1
        return t

    @inner
    def first_nans(tile, end, k):
        """The first class that is NaN; k where there is none."""
        c = np.float32((end - tile) // pitch)
        for at in range(end - pitch, tile - pitch, -pitch):
            c -= F32_1
            x = load_sixteen(at, zero)
            k = select(x == x, k, c)
        return k

    @inner
    def measure(tile, end, k, row_max, t, scale, ahead):
        """Sums over the classes but k: of the exponentials, of these times (m - z_c); and the
        number of classes above t.
        """
        reference, _, exponent, lowest = scale
        pivot = select(row_max == minus_inf, zero, row_max)
        sums, e_sums, above, c = no_sums(), no_sums(), splat(F32_0), F32_0
        for n in range((end - tile) // pitch):
            ask(ahead, n)
            at = tile + n * pitch
            x = load_sixteen(at, zero)
            above = select(x > t, above + F32_1, above)
            x = select(k == c, minus_inf, x)
            e = exp_scaled(x, reference, exponent, lowest, None)
            sums = add_to(sums, e)
            e_sums = add_to(e_sums, select(e == zero, zero, e * (pivot - x)))
            c += F32_1
        return sums, e_sums, above

    @inner
    def entropy_of(row, d, e_total):
        """`_row.row_entropy` of eight rows; e_total : sum of stored exponentials times (m - z_c)"""
        largest = row.p_k * row.surprise
        others = times0(row.rest, d + row.surprise) + value_of(times_amount(row.factor, e_total))
        return largest + others

    @inner
    def put_results(address, first, here, values):
        at = address + first * size
        for line in range(0, ROWS * size, VECTOR_BYTES):
            prefetch_to_write(at + WRITE_AHEAD * size + line)
        store_lanes(at, here, values)

    @inner
    def put_integers(address, first, here, values):
        at = address + first * 8
        prefetch_to_write(at + WRITE_AHEAD * 8)
        prefetch_to_write(at + WRITE_AHEAD * 8 + VECTOR_BYTES)
        store_whole_numbers(at, here, values)

    @inner
    def put_targets(plan, first, here, y, t, loss, rank):
        """What the targets say of sixteen rows; t, loss, rank : as if all of them counted"""
        t = select(y < F32_0, nan, t)
        loss = select(y == BAD_F32, nan, select(y < F32_0, zero, loss))
        rank = select(y < F32_0, np.float32(count_classes(plan)), rank)
        put_results(plan.target_logit, first, here, t)
        put_results(plan.loss, first, here, loss)
        put_integers(plan.rank, first, here, rank)

    @inner
    def do_rows(plan, first, count, work):
        lanes = cut_up(work, count_classes(plan))
        end = lanes.tile + count_classes(plan) * pitch
        place = place_of(plan, first, count)
        read_logits(plan, place, 0, plan.logits, plan.logits_step, plan.logits_swapped, lanes.tile)
        y, t = splat(IGNORED_F32), splat_sixteen(minus_inf)
        if plan.targets != 0:
            read_targets(plan, place, lanes)
            y = load(lanes.targets, F32_0)
            t = pick(lanes.tile, end, y)
        peak, k, poison, row_max = find_peaks(lanes.tile, end)
        scale = find_scale(plan, row_max)
        sums, e_sums, above = measure(
            lanes.tile, end, k, row_max, t, scale, begin_ahead(plan, place)
        )
        low, high = finish_sixteen(sums, row_max, peak, scale, 1.0, 1.0)
        e_low, e_high = halves(e_sums)
        peak_low, peak_high = low_as_float64(peak), high_as_float64(peak)
        entropy_low = entropy_of(low, peak_low - low_as_float64(row_max), e_low)
        entropy_high = entropy_of(high, peak_high - high_as_float64(row_max), e_high)
        lse = joined(low.lse, high.lse, zero)
        lse = select(absolute(peak) == infinity, peak + poison, lse)
        here = first_lanes(count, F32_0)
        put_results(plan.row_max, first, here, select(poison == poison, peak, nan))
        put_results(plan.lse, first, here, lse)
        put_results(plan.entropy, first, here, joined(entropy_low, entropy_high, zero))
        if plan.targets != 0:
            loss_low = (peak_low - low_as_float64(t)) + low.surprise
            loss_high = (peak_high - high_as_float64(t)) + high.surprise
            surprise = joined(low.surprise, high.surprise, zero)
            rank = select(surprise == surprise, above, np.float32(count_classes(plan)))
            put_targets(plan, first, here, y, t, joined(loss_low, loss_high, zero), rank)
        if sum_of_lanes(poison) != zero:  # NaN
            k = first_nans(lanes.tile, end, k)
        put_integers(plan.argmax, first, here, k)
        return 0.0

    return block_doer(ROWS, do_rows)
