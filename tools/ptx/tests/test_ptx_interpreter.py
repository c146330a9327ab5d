"""The PTX interpreter: memory, launches, and what numba-cuda compiles."""

from __future__ import annotations

import math

import numpy as np
import pytest
from programs import STORE, elementwise, execute, kernel

from tools.ptx import Device

# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("width", ["v2.f32", "v4.f32", "v2.f64", "v4.u16", "v2.u8"])
@pytest.mark.parametrize("flags", ["", ".nc.L1::no_allocate.L2::256B", ".volatile"])
def test_vector_access(width, flags, rng):
    kind = width[3:]
    count, nbytes = int(width[1]), int(kind[1:]) // 8
    register = {"u8": "u16"}.get(kind, kind)
    names = ", ".join(f"%v{i}" for i in range(count))
    body = f"""
        .reg .{register} {names};
        mul.wide.u32 %rd1, %r0, {count * nbytes};
        add.u64 %rd2, %rd1, %x1; add.u64 %rd3, %rd1, %x0;
        ld.global{flags}.{width} {{{names}}}, [%rd2];
        st.global{".cs" if "nc" in flags else ""}.{width} [%rd3], {{{names}}};"""
    x = np.frombuffer(rng.bytes(33 * count * nbytes), np.uint8)
    assert (execute(body, x, x, block=33) == x).all()


def test_bytes_extend_by_their_sign():
    x = np.array([0, 1, 127, 128, 255] + [7] * 27, np.uint8)
    body = "add.u64 %rd1, %rd0, %x1; ld.global.s8 %r1, [%rd1];" + STORE
    assert (execute(body, np.empty(32, np.int32), x) == x.view(np.int8)).all()
    assert (execute(body.replace("s8", "u8"), np.empty(32, np.int32), x) == x).all()


def test_generic_shared_local_and_constant_memory():
    """A value travels through all of them by generic addresses."""
    body = (
        """
        .local .align 8 .b8 depot[16];
        .reg .b64 %SPL, %SP;
        mov.u64 %SPL, depot;
        cvta.local.u64 %SP, %SPL;
        mov.u64 %rd2, table;
        and.b64 %rd3, %rd0, 3;
        shl.b64 %rd3, %rd3, 2;
        add.u64 %rd2, %rd2, %rd3;
        ld.const.u32 %r1, [%rd2];
        st.u32 [%SP+4], %r1;
        ld.local.u32 %r2, [%SPL+4];
        mov.u32 %r3, words;
        mad.lo.u32 %r3, %r0, 4, %r3;
        st.shared.u32 [%r3], %r2;
        cvt.u64.u32 %rd4, %r3;
        cvta.shared.u64 %rd4, %rd4;
        ld.u32 %r1, [%rd4];
        ld.global.u32 %r4, [more+4];
        add.u32 %r1, %r1, %r4;"""
        + STORE
    )
    before = """.const .align 4 .u32 table[4] = {10, 0x14, 30, 40};
        .global .align 4 .u32 more[2] = {1, 2};
        .shared .align 4 .b8 words[128];"""
    result = execute(body, np.empty(32, np.uint32), before=before)
    assert result.tolist() == [12, 22, 32, 42] * 8


def test_dynamic_shared_memory():
    body = (
        """mov.u32 %r2, dynamic; mad.lo.u32 %r2, %r0, 4, %r2;
        st.shared.u32 [%r2], %r0; ld.shared.u32 %r1, [%r2];
        mov.u32 %r3, %dynamic_smem_size; add.u32 %r1, %r1, %r3;"""
        + STORE
    )
    before = ".extern .shared .align 16 .b8 dynamic[];"
    result = execute(body, np.empty(32, np.uint32), before=before, shared=128)
    assert (result == np.arange(32) + 128).all()


def test_put_and_get(rng):
    device = Device()
    x = rng.normal(size=(3, 5)).astype(np.float16)
    address = device.put(x, misalign=6)
    assert address % 256 == 6
    assert (device.get(address, x) == x).all()
    assert (device.get(device.empty(6), np.empty(3, np.int16), fill=-1) == -1).all()
    assert device.get(device.put(np.empty(0)), np.empty(0)).size == 0


def test_arguments():
    kinds = ["u64", "s32", "f32", "f64", "b32"]
    names = ["x0", "i", "f", "d", "raw"]
    body = """ld.param.s32 %r1, [i]; ld.param.f32 %f1, [f]; ld.param.f64 %fd1, [d];
        ld.param.f32 %f2, [raw];
        cvt.rn.f64.s32 %fd2, %r1; add.f64 %fd1, %fd1, %fd2; cvt.f64.f32 %fd2, %f1;
        add.f64 %fd1, %fd1, %fd2; cvt.f64.f32 %fd2, %f2; add.f64 %fd1, %fd1, %fd2;
        st.global.f64 [%x0], %fd1;"""
    device = Device()
    y = device.empty(8)
    text = kernel(body, names, kinds=kinds)
    device.launch(text, 1, 1, [y, -3, np.float32(0.5), 0.25, np.float32(0.125)])
    assert device.get(y, np.empty(1)) == -3 + 0.5 + 0.25 + 0.125
    with pytest.raises(ValueError, match="4 arguments for 5"):
        device.launch(text, 1, 1, [y, 1, 1, 1])


def test_counts(rng):
    x = rng.normal(size=1000).astype(np.float32)
    device = Device()
    a, b = device.put(x), device.empty(4000)
    text = elementwise("add.f32 %d, %a, %a;", ["f32"], "f32")
    device.launch(text, 1, 1000, [a, b])
    counts = device.counts
    assert counts.loads == {4: 1000}
    assert counts.stores == {4: 1000}
    assert counts.bytes_read == {a: 4000, b: 0}
    assert counts.bytes_written == {a: 0, b: 4000}
    # 2 for the parameters, 2 for the thread, address, load, sum, address, store, return
    assert counts.instructions == 1000 * 10


# ---------------------------------------------------------------- what numba-cuda compiles


@pytest.fixture
def cuda():
    """NVIDIA's numba-cuda; the older copy inside numba is not meant."""
    pytest.importorskip("numba_cuda", reason="needs NVIDIA's numba-cuda")
    return pytest.importorskip("numba.cuda")


def compiled(cuda, function, *types):
    return cuda.compile_ptx(function, types, cc=(9, 0))[0]


def flat(address, array):
    """The parameters of a one-dimensional array."""
    return [0, 0, array.size, array.itemsize, address, array.size, array.itemsize]


@pytest.mark.parametrize("seed", [None, 4])
def test_numba_reduction(seed, rng, cuda):
    float32 = cuda.types.float32

    def reduce(x, y):
        shared = cuda.shared.array(32, float32)
        i, t = cuda.grid(1), cuda.threadIdx.x
        value = x[i] if i < x.size else float32(0)
        for d in (16, 8, 4, 2, 1):
            value += cuda.shfl_down_sync(0xFFFFFFFF, value, d)
        if t % 32 == 0:
            shared[t // 32] = value
        cuda.syncthreads()
        if t < 32:
            value = shared[t] if t < cuda.blockDim.x // 32 else float32(0)
            for d in (16, 8, 4, 2, 1):
                value += cuda.shfl_down_sync(0xFFFFFFFF, value, d)
            if t == 0:
                cuda.atomic.add(y, 0, value)

    text = compiled(cuda, reduce, float32[::1], float32[::1])
    x = rng.integers(-9, 9, 1000).astype(np.float32)
    y = np.zeros(1, np.float32)
    device = Device(seed)
    a, b = device.put(x), device.put(y)
    device.launch(text, 8, 128, flat(a, x) + flat(b, y))
    assert device.get(b, y)[0] == x.sum()


def test_numba_float64_functions(rng, cuda):
    float64 = cuda.types.float64

    def softplus(x, y):
        i = cuda.grid(1)
        if i < x.size:
            y[i] = math.log1p(math.exp(x[i])) + math.expm1(x[i]) / 3.0 + abs(x[i]) ** 2.5

    text = compiled(cuda, softplus, float64[::1], float64[::1])
    x = np.concatenate([rng.normal(size=300) * 20, [0.0, -800.0, 1e-320]])
    device = Device()
    a, b = device.put(x), device.empty(x.nbytes)
    device.launch(text, 3, 128, flat(a, x) + flat(b, x))
    expected = np.log1p(np.exp(x)) + np.expm1(x) / 3 + np.abs(x) ** 2.5
    np.testing.assert_allclose(device.get(b, x), expected, rtol=1e-15)


def test_numba_float16(rng, cuda):
    def scale(x, y):
        i = cuda.grid(1)
        if i < x.size:
            y[i] = np.float16(np.float32(x[i]) * np.float32(2.5))

    half = cuda.types.float16[::1]
    text = compiled(cuda, scale, half, half)
    x = rng.normal(size=100).astype(np.float16)
    device = Device()
    a, b = device.put(x), device.empty(x.nbytes)
    device.launch(text, 1, 128, flat(a, x) + flat(b, x))
    assert (device.get(b, x) == (x.astype(np.float32) * np.float32(2.5)).astype(np.float16)).all()
