"""The PTX interpreter: divergence, and exchange between lanes, warps, blocks and clusters."""

from __future__ import annotations

import math

import numpy as np
import pytest
from programs import EXCHANGE, REDUCTION, STORE, execute, kernel

from tools.ptx import Device

SEEDS = [None, 1, 2, 3]

# ---------------------------------------------------------------- divergence


@pytest.mark.parametrize("seed", SEEDS)
def test_divergent_loops(seed):
    """Each thread takes its own number of steps (Collatz), with a branch in the loop."""

    def collatz(n):
        steps = 0
        while n != 1:
            n, steps = (n // 2 if n % 2 == 0 else 3 * n + 1), steps + 1
        return steps

    body = """
        add.u32 %r2, %r0, 1;
        mov.u32 %r1, 0;
    LOOP:
        setp.eq.u32 %p1, %r2, 1;
        @%p1 bra DONE;
        add.u32 %r1, %r1, 1;
        and.b32 %r3, %r2, 1;
        setp.ne.u32 %p2, %r3, 0;
        @%p2 bra ODD;
        shr.u32 %r2, %r2, 1;
        bra.uni LOOP;
    ODD:
        mad.lo.u32 %r2, %r2, 3, 1;
        bra LOOP;
    DONE:
    """
    result = execute(body + STORE, np.empty(100, np.uint32), block=100, seed=seed)
    assert result.tolist() == [collatz(n + 1) for n in range(100)]


def test_guarded_instructions_and_early_exit():
    body = (
        """
        and.b32 %r2, %r0, 1; setp.eq.u32 %p1, %r2, 0;
        setp.gt.u32 %p2, %r0, 9; @%p2 exit;
        mov.u32 %r1, 5; @%p1 add.u32 %r1, %r1, %r0; @!%p1 mov.u32 %r1, 7;
    """
        + STORE
    )
    device = Device()
    y = device.empty(128)
    device.launch(kernel(body, ["x0"]), 1, 32, [y])
    result = device.get(y, np.empty(32, np.int32), fill=-1)
    assert result.tolist() == [5 + i if i % 2 == 0 else 7 for i in range(10)] + [-1] * 22


@pytest.mark.parametrize("seed", SEEDS)
def test_predicates_set_on_different_ways(seed):
    """Uniform values (one per gang) that differ between the gangs, in each order of writing."""
    body = """
        setp.gt.u32 %p1, %r0, 40;
        @%p1 bra HIGH;
        mov.pred %p2, 0; mov.pred %p3, -1; mov.u32 %r2, 5;
        bra.uni JOIN;
    HIGH:
        mov.pred %p2, -1; mov.pred %p3, 0; mov.u32 %r2, 6;
    JOIN:
        selp.u32 %r1, 1, 0, %p2; @%p3 add.u32 %r1, %r1, 10; mad.lo.u32 %r1, %r2, 100, %r1;
    """
    for text in (body, body.replace("gt", "le")):
        result = execute(text + STORE, np.empty(64, np.uint32), block=64, seed=seed)
        low, high = (510, 601) if text is body else (601, 510)
        assert result.tolist() == [low] * 41 + [high] * 23


def test_jump_table():
    body = """
        and.b32 %r2, %r0, 3;
        T: .branchtargets A, B, A, C;
        brx.idx %r2, T;
    A:  mov.u32 %r1, 1; bra END;
    B:  mov.u32 %r1, 2; bra END;
    C:  mov.u32 %r1, 3;
    END:
    """
    result = execute(body + STORE, np.empty(32, np.uint32))
    assert result.tolist() == [1, 2, 1, 3] * 8


@pytest.mark.parametrize("seed", SEEDS)
def test_device_functions(seed):
    """Two calls of a function with a branch of its own, from diverged places."""
    before = """
.func (.param .b32 out) twice_or_half (.param .b32 number, .param .b64 flags)
{
	.reg .pred %p<2>; .reg .b32 %r<3>; .reg .b64 %rd<2>;
	ld.param.u32 %r1, [number];
	ld.param.u64 %rd1, [flags];
	setp.ne.u64 %p1, %rd1, 0;
	@%p1 bra HALF;
	{ .reg .b64 both; cvt.u64.u32 both, %r1; add.u64 both, both, both; cvt.u32.u64 %r2, both; }
	st.param.b32 [out+0], %r2;
	ret;
HALF:
	shr.u32 %r2, %r1, 1;
	st.param.b32 [out+0], %r2;
	ret;
}"""

    def call(number, flags):
        return f"""{{
            .param .b32 param0; st.param.b32 [param0+0], {number};
            .param .b64 param1; st.param.b64 [param1+0], {flags};
            .param .b32 retval0;
            call.uni (retval0), twice_or_half, (param0, param1);
            ld.param.b32 %r1, [retval0+0];
        }}"""

    body = f"""
        and.b64 %rd3, %rd0, 1; setp.gt.u32 %p1, %r0, 20; @%p1 bra OTHER;
        {call("%r0", "%rd3")}
        {{ .reg .b32 both; mov.b32 both, %r1; mov.b32 %r1, both; }}
        bra.uni END;
    OTHER:
        {call("%r0", 0)}
        add.u32 %r1, %r1, 1;
    END:
    """
    result = execute(body + STORE, np.empty(64, np.uint32), block=64, seed=seed, before=before)
    expected = [(i // 2 if i % 2 else 2 * i) if i <= 20 else 2 * i + 1 for i in range(64)]
    assert result.tolist() == expected


def test_three_dimensional_launch():
    body = """
        mov.u32 %r1, %tid.y; mov.u32 %r2, %tid.z; mad.lo.u32 %r1, %r2, 3, %r1;
        mad.lo.u32 %r1, %r1, 4, %r0;
        mov.u32 %r3, %ctaid.y; mov.u32 %r4, %nctaid.x; mov.u32 %r5, %ctaid.x;
        mad.lo.u32 %r3, %r3, %r4, %r5;
        mad.lo.u32 %r1, %r3, 24, %r1;
        mad.wide.u32 %rd1, %r1, 4, %x0;
        st.global.u32 [%rd1], %r1;"""
    result = execute(body, np.empty(24 * 6, np.uint32), grid=(2, 3), block=(4, 3, 2))
    assert (result == np.arange(144)).all()


# ---------------------------------------------------------------- exchange within a warp


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("mode", "operand", "control", "source"),
    [
        ("bfly", 5, 31, lambda i: i ^ 5),
        ("down", 3, 31, lambda i: i + 3 if i % 32 < 29 else i),
        ("up", 4, 0, lambda i: i - 4 if i % 32 >= 4 else i),
        ("idx", 7, 31, lambda i: i // 32 * 32 + 7),
        ("down", 2, 31 | 24 << 8, lambda i: i + 2 if i % 8 < 6 else i),  # groups of eight
        ("idx", 1, 31 | 28 << 8, lambda i: i // 4 * 4 + 1),
    ],
)
def test_shuffle(mode, operand, control, source, seed):
    body = f"""
        mul.lo.u32 %r2, %r0, 3;
        shfl.sync.{mode}.b32 %r1|%p1, %r2, {operand}, {control}, 0xffffffff;
        @!%p1 add.u32 %r1, %r1, 1000;
    """
    result = execute(body + STORE, np.empty(96, np.uint32), block=96, seed=seed)
    expected = [3 * source(i) + 1000 * (source(i) == i and mode in ("up", "down"))
                for i in range(96)]  # fmt: skip
    assert result.tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffle_between_half_a_warp(seed):
    """Lanes outside the mask do something else meanwhile; diverged lanes meet at the shuffle."""
    body = """
        mov.u32 %r1, %r0;
        setp.gt.u32 %p1, %r0, 15;
        @%p1 bra END;
        and.b32 %r3, %r0, 1; setp.ne.u32 %p2, %r3, 0;
        @%p2 bra MEET;
        add.u32 %r1, %r1, 100;
    MEET:
        shfl.sync.bfly.b32 %r1, %r1, 1, 31, 0xffff;
    END:
    """
    result = execute(body + STORE, np.empty(32, np.uint32), seed=seed)
    expected = [i - 1 + 100 if i % 2 else i + 1 for i in range(16)] + list(range(16, 32))
    assert result.tolist() == expected


def test_votes():
    body = """
        and.b32 %r2, %r0, 3; setp.eq.u32 %p1, %r2, 0;
        vote.sync.ballot.b32 %r3, %p1, 0xffffffff;
        vote.sync.all.pred %p2, %p1, 0xffffffff;
        vote.sync.any.pred %p3, !%p1, 0xffffffff;
        activemask.b32 %r6;
        popc.b32 %r3, %r3; popc.b32 %r6, %r6; add.u32 %r1, %r3, %r6;
        @%p2 add.u32 %r1, %r1, 10000; @%p3 add.u32 %r1, %r1, 20000;
    """
    result = execute(body + STORE, np.empty(64, np.uint32), block=64)
    assert (result == 8 + 32 + 20000).all()


# ---------------------------------------------------------------- blocks and clusters


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("block", "n"), [(32, 50), (256, 1000), (1024, 5000), (96, 96)])
def test_block_reduction(seed, block, n, rng):
    x = rng.integers(-50, 50, n).astype(np.float32)
    grid = math.ceil(n / block)
    device = Device(seed)
    a, y = device.put(x, readonly=True), device.empty(4 * grid)
    device.launch(REDUCTION, grid, block, [a, y, n])
    expected = [x[i * block : (i + 1) * block].sum() for i in range(grid)]
    assert device.get(y, np.empty(grid, np.float32)).tolist() == expected
    assert device.counts.bytes_read[a] == 4 * n


@pytest.mark.parametrize("seed", [None, *range(8)])
@pytest.mark.parametrize("block", [32, 64])
def test_cluster_exchange(seed, block):
    device = Device(seed)
    y = device.empty(4 * 12)
    device.launch(EXCHANGE, 12, block, [y])
    assert (device.get(y, np.empty(12, np.uint32)) == 64).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_atomics(seed, rng):
    x = rng.integers(0, 5, 512).astype(np.uint32)
    body = """
        mov.u32 %r1, %ctaid.x; mad.lo.u32 %r1, %r1, 128, %r0;
        mad.wide.u32 %rd1, %r1, 4, %x1; ld.global.u32 %r2, [%rd1];
        mad.wide.u32 %rd2, %r2, 4, %x0; red.global.add.u32 [%rd2], 1;
        atom.global.max.u32 %r3, [%x0+20], %r1;
        atom.global.inc.u32 %r4, [%x0+24], 1000;
        atom.global.cas.b32 %r5, [%x0+28], 0, 9;
    """
    device = Device(seed)
    y, a = device.put(np.zeros(8, np.uint32)), device.put(x)
    device.launch(kernel(body), 4, 128, [y, a])
    expected = [*np.bincount(x, minlength=5), 511, 512, 9]
    assert device.get(y, np.empty(8, np.uint32)).tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_lock_by_compare_and_swap(seed):
    """A spinning thread must not keep the holder of the lock from running."""
    body = """
        setp.eq.u32 %p3, %r0, 0; @!%p3 bra END;
    SPIN:
        atom.acquire.gpu.global.cas.b32 %r1, [%x0], 0, 1;
        setp.ne.u32 %p1, %r1, 0;
        @%p1 bra SPIN;
        ld.volatile.global.u32 %r2, [%x0+4]; add.u32 %r2, %r2, 1;
        st.volatile.global.u32 [%x0+4], %r2;
        atom.release.gpu.global.exch.b32 %r3, [%x0], 0;
    END:
    """
    device = Device(seed)
    y = device.put(np.zeros(2, np.uint32))
    device.launch(kernel(body, ["x0"]), 5, 32, [y])
    assert device.get(y, np.empty(2, np.uint32)).tolist() == [0, 5]


@pytest.mark.parametrize("seed", SEEDS)
def test_named_barriers_and_reductions(seed):
    body = """
        setp.gt.u32 %p1, %r0, 63; mov.u32 %r3, words;
        mov.u32 %r1, 0;
        @%p1 bra END;
        setp.eq.u32 %p2, %r0, 0; @%p2 st.shared.u32 [%r3], 77;
        bar.sync 1, 64;
        ld.shared.u32 %r1, [%r3];
    END:
        setp.lt.u32 %p3, %r0, 50;
        barrier.sync 0;
        bar.red.popc.u32 %r2, 2, %p3;
        add.u32 %r1, %r1, %r2;
    """
    result = execute(body + STORE, np.empty(96, np.uint32), block=96, seed=seed,
                     before=".shared .align 4 .b8 words[4];")  # fmt: skip
    assert result.tolist() == [127] * 64 + [50] * 32


def test_random_order_differs_and_repeats():
    """Who comes last to write, without any order between the warps, depends on the seed only."""
    body = "shr.u32 %r1, %r0, 5; st.volatile.global.u32 [%x0], %r1;"

    def last(seed):
        return int(execute(body, np.empty(1, np.uint32), block=256, seed=seed)[0])

    found = [last(seed) for seed in range(20)]
    assert len(set(found)) > 3
    assert found == [last(seed) for seed in range(20)]
