"""What the PTX interpreter must refuse, and broken kernels it must catch."""

from __future__ import annotations

import re

import numpy as np
import pytest
from programs import EXCHANGE, REDUCTION, kernel

from tools.ptx import Device, Fault

SEEDS = [None, *range(6)]
WORDS = ".shared .align 16 .b8 words[256];"


def run(body, *sizes, block=32, grid=1, seed=None, misalign=0, fill=True, **options):
    """Runs a body on memory of these sizes, filled with zeros (or with nothing)."""
    program = {k: options.pop(k) for k in ("before", "cluster") if k in options}
    device = Device(seed, **options)
    addresses = [
        device.put(np.zeros(n, np.uint8), misalign) if fill else device.empty(n, misalign)
        for n in sizes
    ]
    names = [f"x{i}" for i in range(len(sizes))]
    device.launch(kernel(body, names, **program), grid, block, addresses)
    return device


# ---------------------------------------------------------------- memory

LOAD = "mad.wide.u32 %rd1, %r0, 4, %x0; ld.global.u32 %r1, [%rd1];"
STORE = "mad.wide.u32 %rd1, %r0, 4, %x0; st.global.u32 [%rd1], %r0;"


@pytest.mark.parametrize("seed", [None, 1])
def test_message_names_place_and_address(seed):
    device = Device(seed)
    x = device.put(np.zeros((3, 40), np.uint8))
    body = """
        mov.u32 %r1, %ctaid.y; mul.lo.u32 %r1, %r1, 10; add.u32 %r1, %r1, %r0;
        mad.wide.u32 %rd1, %r1, 4, %x0;
        st.global.u32 [%rd1], %r1;"""
    text = kernel(body, ["x0"])
    line = 1 + text.splitlines().index("        st.global.u32 [%rd1], %r1;")
    pattern = (
        rf"out-of-bounds access of 4 bytes.*120 bytes at {x:#x}.*'st.global.u32 \[%rd1\], %r1' "
        rf"\(PTX line {line}\), block \(0, 3, 0\) thread \(0, 0, 0\), address {x + 120:#x}"
    )
    with pytest.raises(Fault, match=pattern):
        device.launch(text, (1, 4), 10, [x])


@pytest.mark.parametrize("body", [LOAD, STORE, LOAD.replace("ld.global", "ld")])
def test_out_of_bounds(body):
    run(body, 128)
    with pytest.raises(Fault, match=r"out-of-bounds.*thread \(31, 0, 0\)"):
        run(body, 127 - 3)
    with pytest.raises(Fault, match=r"out-of-bounds"):
        run(body.replace("%x0;", "%x0; sub.u64 %rd1, %rd1, 4;"), 128)


def test_misaligned():
    run(LOAD, 128, misalign=4)
    with pytest.raises(Fault, match=r"misaligned access of 4 bytes"):
        run(LOAD, 128, misalign=2)
    vector = "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%x0];"
    run(vector, 128, misalign=16)
    with pytest.raises(Fault, match=r"misaligned access of 16 bytes"):
        run(vector, 128, misalign=8)
    with pytest.raises(Fault, match=r"misaligned access of 8 bytes"):
        run("mov.u32 %r1, words; ld.shared.u64 %rd1, [%r1+4];", before=WORDS)


def test_uninitialised_memory():
    with pytest.raises(Fault, match=r"nobody has written.*ld.global.*thread \(0, 0, 0\)"):
        run(LOAD, 128, fill=False)
    run(STORE + LOAD, 128, fill=False)
    half = "setp.lt.u32 %p1, %r0, 16; @%p1 bra A; bra B; A: " + STORE + "B: " + LOAD
    with pytest.raises(Fault, match=r"nobody has written.*thread \(16, 0, 0\)"):
        run(half, 128, fill=False)
    shared = "mov.u32 %r2, words; mad.lo.u32 %r2, %r0, 4, %r2; ld.shared.u32 %r1, [%r2];"
    with pytest.raises(Fault, match=r"nobody has written \(shared memory"):
        run(shared, before=WORDS)
    local = ".local .align 4 .b8 mine[8]; mov.u64 %rd1, mine;"
    with pytest.raises(Fault, match=r"nobody has written \(local memory"):
        run(local + "ld.local.u32 %r1, [%rd1+4];")
    run(local + "st.local.u32 [%rd1+4], 1; ld.local.u32 %r1, [%rd1+4];")
    with pytest.raises(Fault, match=r"out-of-bounds"):
        run(local + "st.local.u32 [%rd1+8], 1;")


def test_shared_memory_between_variables():
    before = ".shared .align 4 .b8 one[8]; .shared .align 4 .b8 two[8];"
    with pytest.raises(Fault, match=r"out-of-bounds access \(shared"):
        run("mov.u32 %r1, one; st.shared.u32 [%r1+8], 1;", before=before)
    with pytest.raises(Fault, match=r"out-of-bounds"):
        run("mov.u32 %r1, 0; st.shared.u32 [%r1], 1;", before=before)


def test_freed_memory():
    device = Device()
    x, y = device.put(np.zeros(32, np.uint32)), device.put(np.zeros(32, np.uint32))
    device.free(x)
    device.launch(kernel(LOAD, ["x0"]), 1, 32, [y])
    with pytest.raises(Fault, match=r"out-of-bounds"):
        device.launch(kernel(LOAD, ["x0"]), 1, 32, [x])
    with pytest.raises(Fault, match=r"not the start of an allocation"):
        device.free(x)


def test_read_only_memory():
    device = Device()
    x = device.put(np.zeros(32, np.uint32), readonly=True)
    device.launch(kernel(LOAD, ["x0"]), 1, 32, [x])
    with pytest.raises(Fault, match=r"read-only"):
        device.launch(kernel(STORE, ["x0"]), 1, 32, [x])
    with pytest.raises(Fault, match=r"read-only"):
        run("st.global.u32 [table], 1;", before=".const .align 4 .u32 table[1] = {1};")


def test_unwritten_output():
    device = Device()
    y = device.empty(400)
    device.launch(kernel(STORE, ["x0"]), 1, 32, [y])
    with pytest.raises(Fault, match=r"272 of 400 bytes .* the first in element 32"):
        device.get(y, np.empty(100, np.uint32))
    with pytest.raises(Fault, match=r"not within one allocation"):
        device.get(y, np.empty(101, np.uint32))


def test_uninitialised_register():
    with pytest.raises(Fault, match=r"register %r1, which nobody has written.*add.u32"):
        run("add.u32 %r2, %r1, 1;")
    partly = """setp.gt.u32 %p1, %r0, 9; @%p1 bra END; mov.u32 %r1, 1;
        END: add.u32 %r2, %r1, 1;"""
    with pytest.raises(Fault, match=r"register %r1.*thread \(10, 0, 0\)"):
        run(partly)
    run(partly, block=10)
    with pytest.raises(Fault, match=r"register %r1.*thread \(1, 0, 0\)"):
        run("setp.eq.u32 %p1, %r0, 0; @%p1 mov.u32 %r1, 1; add.u32 %r2, %r1, 1;", seed=1)


# ---------------------------------------------------------------- partners that do not come


@pytest.mark.parametrize("seed", SEEDS)
def test_shuffle_with_missing_lanes(seed):
    shuffle = "shfl.sync.bfly.b32 %r1, %r0, 1, 31, 0xffffffff;"
    with pytest.raises(Fault, match=r"missing lanes.*shfl"):
        run(shuffle, block=16, seed=seed)
    exited = "setp.gt.u32 %p1, %r0, 30; @%p1 exit;" + shuffle
    with pytest.raises(Fault, match=r"missing lanes|deadlock.*other lanes of its warp.*shfl"):
        run(exited, seed=seed)
    other = "setp.gt.u32 %p1, %r0, 15; @%p1 bra B; " + shuffle + " bra END; B: " + shuffle + "END:"
    with pytest.raises(Fault, match=r"deadlock.*other lanes of its warp.*shfl"):
        run(other, seed=seed)
    with pytest.raises(Fault, match=r"not in the mask"):
        run(shuffle.replace("0xffffffff", "0xffff"), seed=seed)
    source = "setp.gt.u32 %p1, %r0, 7; @%p1 exit; shfl.sync.idx.b32 %r1, %r0, 9, 31, 0xff;"
    with pytest.raises(Fault, match=r"shuffle from a lane that does not take part"):
        run(source, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_barrier_that_not_all_reach(seed):
    """Within a warp; between warps; with another barrier."""
    part = "setp.gt.u32 %p1, %r0, {}; @%p1 bra {}; bar.sync 0; {}"
    with pytest.raises(Fault, match=r"deadlock.*other lanes of its warp.*bar.sync"):
        run(part.format(15, "B", "bra END; B: bar.sync 0; END:"), seed=seed)
    with pytest.raises(Fault, match=r"deadlock.*bar.sync"):
        run(part.format(31, "B", "bra END; B: bar.sync 1; END:"), block=64, seed=seed)
    with pytest.raises(Fault, match=r"deadlock.*wait for others at 'bar.sync 0, 64'"):
        run("bar.sync 0, 64;", block=32, seed=seed)
    run(part.format(31, "END", "END:"), block=64, seed=seed)  # exited threads do not count


@pytest.mark.parametrize("seed", SEEDS)
def test_endless_waits(seed):
    signal = ".shared .align 8 .b8 signal[8];"
    wait = """mov.u32 %r1, signal; setp.ne.u32 %p2, %r0, 0;
        @!%p2 mbarrier.init.shared.b64 [%r1], 2;
        bar.warp.sync 0xffffffff;
        @!%p2 mbarrier.arrive.shared.b64 _, [%r1];
        L: mbarrier.try_wait.parity.shared.b64 %p1, [%r1], 0; @!%p1 bra L;"""
    with pytest.raises(Fault, match=r"deadlock.*for a phase.*try_wait|no end after"):
        run(wait, before=signal, seed=seed, limit=100_000)
    run(wait.replace("[%r1], 2", "[%r1], 1"), before=signal, seed=seed)
    with pytest.raises(Fault, match=r"not been initialised"):
        run("mov.u32 %r1, signal; mbarrier.arrive.shared.b64 _, [%r1];", before=signal, seed=seed)
    with pytest.raises(Fault, match=r"3 arrivals at an mbarrier that expects 2"):
        run(wait.replace("_, [%r1];", "_, [%r1], 3;"), before=signal, seed=seed)
    with pytest.raises(Fault, match=r"no end after 1001 steps"):
        run("L: ld.volatile.global.u32 %r1, [%x0]; setp.eq.u32 %p1, %r1, 0; @%p1 bra L;", 4,
            seed=seed, limit=1000)  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_cluster_barrier(seed):
    both = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"
    cluster = ".reqnctapercluster 2, 1, 1"
    run(both, grid=4, cluster=cluster, seed=seed)
    body = "mov.u32 %r1, %cluster_ctarank; setp.eq.u32 %p1, %r1, 0; @%p1 bra B;"
    with pytest.raises(Fault, match=r"deadlock.*barrier.cluster.wait"):
        run(body + both + "bra END; B: bar.sync 0, 64; END:", grid=2, cluster=cluster, seed=seed)
    with pytest.raises(Fault, match=r"wait without an arrival"):
        run("barrier.cluster.wait.aligned;", grid=2, cluster=cluster, seed=seed)
    with pytest.raises(Fault, match=r"second arrival"):
        run("barrier.cluster.arrive.aligned;" * 2, grid=2, cluster=cluster, seed=seed)
    with pytest.raises(ValueError, match=r"multiple of the cluster"):
        run(both, grid=3, cluster=cluster, seed=seed)


# ---------------------------------------------------------------- races

ADDRESS = "mov.u32 %r2, words; shr.u32 %r3, %r0, 5; mad.lo.u32 %r2, %r3, {}, %r2;"


@pytest.mark.parametrize("seed", SEEDS)
def test_races_in_shared_memory(seed):
    options = {"block": 64, "before": WORDS, "seed": seed}
    with pytest.raises(Fault, match=r"data race: write after a write"):
        run(ADDRESS.format(0) + "st.shared.u32 [%r2], %r0;", **options)
    run(ADDRESS.format(4) + "st.shared.u32 [%r2], %r0;", **options)
    run(ADDRESS.format(2) + "cvt.u16.u32 %h1, %r0; st.shared.u16 [%r2], %h1;", **options)
    write = ADDRESS.format(4) + "st.shared.u32 [%r2], %r0; {} mov.u32 %r2, words;"
    read = write + "ld.shared.u32 %r4, [%r2]; ld.shared.u32 %r5, [%r2+4];"
    with pytest.raises(Fault, match=r"data race|nobody has written"):
        run(read.format(""), **options)
    run(read.format("bar.sync 0;"), **options)
    again = read.format("bar.sync 0;") + "{} setp.eq.u32 %p1, %r0, 40; @%p1 st.shared.u32 [%r2], 1;"
    with pytest.raises(Fault, match=r"data race: (write after a read|read after a write)"):
        run(again.format(""), **options)
    run(again.format("bar.sync 0;"), **options)
    run(ADDRESS.format(4) + "st.shared.u32 [%r2], 0; bar.sync 0; mov.u32 %r2, words;"
        "atom.shared.add.u32 %r4, [%r2], 1; bar.sync 0; ld.shared.u32 %r4, [%r2];",
        **options)  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_races_in_global_memory(seed):
    """In place: a warp reads what another one has replaced, or will replace."""
    body = """mad.wide.u32 %rd1, %r0, 4, %x0; ld.global.u32 %r1, [%rd1]; {0}
        setp.ne.u32 %p1, %r0, 0; @%p1 bra SAVE; ld.global.u32 %r2, [%x0+160]; {0}
        SAVE: {1} st.global.u32 [%rd1], %r1;"""
    with pytest.raises(Fault, match=r"data race: (write after a read|read after a write)"):
        run(body.format("", ""), 256, block=64, seed=seed)
    run(body.format("", "bar.sync 0;"), 256, block=64, seed=seed)
    run(body.format("", ""), 256, block=64, races=False, seed=seed)
    blocks = """mov.u32 %r1, %ctaid.x; mad.wide.u32 %rd1, %r1, 4, %x0; st.global.u32 [%rd1], 1;
        ld.global.u32 %r2, [%x0];"""
    with pytest.raises(Fault, match=r"data race"):
        run(blocks, 64, grid=5, seed=seed)
    run(blocks.replace("ld.global.u32 %r2, [%x0]", "ld.global.u32 %r2, [%rd1]"), 64, grid=5,
        seed=seed)  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
def test_races_between_accesses_of_different_widths(seed):
    body = """mul.wide.u32 %rd1, %r0, 16; add.u64 %rd1, %rd1, %x0;
        st.global.v4.u32 [%rd1], {%r0, %r0, %r0, %r0}; """
    read = "setp.eq.u32 %p1, %r0, 0; @%p1 ld.global.u8 %h1, [%x0+BYTE];"
    run(body + read.replace("BYTE", "511"), 1024, block=64, seed=seed)
    with pytest.raises(Fault, match=r"data race"):
        run(body + read.replace("BYTE", "512"), 1024, block=64, seed=seed)
    run(body + "bar.sync 0;" + read.replace("BYTE", "512"), 1024, block=64, seed=seed)


# ---------------------------------------------------------------- broken kernels


def reduce(text, seed):
    x = np.arange(1000, dtype=np.float32)
    device = Device(seed)
    a, y = device.put(x), device.empty(16)
    device.launch(text, 4, 256, [a, y, 1000])
    return device.get(y, np.empty(4, np.float32)), x


def without(text, *parts):
    for part in parts:
        assert text.count(part) == 1, part
        text = text.replace(part, "")
    return text


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (["bar.sync 0;"], "data race|nobody has written"),
        (["@%p1 bra SUM;"], "out-of-bounds"),
        (["@%p3 bra WAIT;"], None),  # every lane writes the same: right, and no race of warps
        (["@%p4 bra END;"], "data race: write after a write"),
        (["st.shared.f32 [%r11], %f0;"], "nobody has written"),
        (["shr.u32 %r12, %r2, 5;", "mov.u32 %r12, 9;"], "nobody has written"),
        (["st.global.f32 [%rd2], %f2;"], "have not been written"),
    ],
)
def test_broken_reduction(parts, message, seed):
    text = REDUCTION
    if len(parts) == 2:
        text = text.replace(*parts)
    else:
        text = without(text, *parts)
    assert text != REDUCTION
    if message is None:
        result, x = reduce(text, seed)
        assert result.tolist() == [x[i : i + 256].sum() for i in range(0, 1000, 256)]
        return
    with pytest.raises(Fault, match=message):
        reduce(text, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("@!%p3 bra WAIT;", "data race|nobody has written|exited"),
        (
            "mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r2], 0;\n\t@!%p3 bra WAIT;",
            "data race|nobody has written|exited",
        ),
        ("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 16;", "deadlock|no end"),
        ("mbarrier.init.shared::cta.b64 [%r2], 1;", "not been initialised"),
        ("barrier.cluster.wait.acquire.aligned;", "not been initialised"),
    ],
)
def test_broken_exchange(part, message, seed):
    text = without(EXCHANGE, part)
    found = []
    for order in [seed] if seed is None else range(10 * seed, 10 * seed + 10):
        device = Device(order, limit=20_000)
        y = device.empty(48)
        try:
            device.launch(text, 12, 64, [y])
        except Fault as error:
            found.append(str(error))
    if part.startswith(("@!%p3", "barrier.cluster.wait")):  # right in some orders
        assert found or seed is None
    else:
        assert len(found) == (1 if seed is None else 10)
    for text in found[:1]:
        assert re.search(message, text)


def test_exchange_with_the_wrong_number_of_bytes():
    for seed in SEEDS:
        text = EXCHANGE.replace("_, [%r2], 16", "_, [%r2], 12")
        device = Device(seed, limit=20_000)
        with pytest.raises(Fault, match=r"deadlock|no end|data race|nobody has written|exited"):
            device.launch(text, 4, 32, [device.empty(16)])
