"""Small PTX programs for the tests of the interpreter."""

from __future__ import annotations

from tools.ptx import Device

REGISTERS = {
    "u8": "u16", "s8": "s16", "b8": "b16", "f16": "b16", "bf16": "b16", "f16x2": "b32",
    "bf16x2": "b32",
}  # fmt: skip
LOADS = {"f16": "b16", "bf16": "b16", "f16x2": "b32", "bf16x2": "b32"}
BYTES = {"pred": 4}


def size(kind):
    return BYTES.get(kind) or (4 if kind.endswith("x2") else int(kind.lstrip("usbf")) // 8)


def kernel(body, params=("x0", "x1"), before="", cluster="", kinds=None):
    """An entry `k` with 64-bit parameters, some registers, and this body."""
    kinds = kinds or ["u64"] * len(params)
    declared = ",\n".join(f"\t.param .{k} {p}" for k, p in zip(kinds, params, strict=True))
    loads = "\n".join(
        f"\tld.param.u64 %{p}, [{p}];\n\t.reg .b64 %{p}x;"
        for k, p in zip(kinds, params, strict=True)
        if k == "u64"
    )
    registers = " ".join(f".reg .b64 %{p};" for p in params)
    return f""".version 8.5
.target sm_90
.address_size 64
{before}
.visible .entry k(
{declared}
)
{cluster}
{{
	.reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<30>; .reg .b64 %rd<30>;
	.reg .f32 %f<30>; .reg .f64 %fd<9>;
	{registers}
{loads}
	mov.u32 %r0, %tid.x;
	cvt.u64.u32 %rd0, %r0;
{body}
	ret;
}}
"""


def elementwise(code, inputs, output):
    """One thread per element: loads %a, %b ..., runs code, stores %d. Names are PTX types."""
    names = "abcd"[: len(inputs)]
    lines = []
    for i, (name, kind) in enumerate(zip(names, inputs, strict=True)):
        register = {"pred": "u32"}.get(kind, REGISTERS.get(kind, kind))
        load = {"pred": "u32"}.get(kind, LOADS.get(kind, kind))
        lines += [
            f".reg .{register} %{name};",
            f"mad.lo.u64 %rd1, %rd0, {size(kind)}, %x{i};",
            f"ld.global.{load} %{name}, [%rd1];",
        ]
        if kind == "pred":
            lines += [f".reg .pred %q{name};", f"setp.ne.u32 %q{name}, %{name}, 0;"]
    out = len(inputs)
    register = "pred" if output == "pred" else REGISTERS.get(output, output)
    lines += [f".reg .{register} %d;", code]
    if output == "pred":
        lines += ["selp.u32 %r1, 1, 0, %d;"]
        value, store = "%r1", "u32"
    else:
        value, store = "%d", LOADS.get(output, output)
    lines += [
        f"mad.lo.u64 %rd1, %rd0, {size(output)}, %x{out};",
        f"st.global.{store} [%rd1], {value};",
    ]
    return kernel("\n".join(lines), [f"x{i}" for i in range(out + 1)])


def execute(body, output, *arrays, block=32, grid=1, seed=None, **options):
    """Runs a body with the addresses %x0 (result, of the shape and type of output), %x1 ..."""
    program = {k: options.pop(k) for k in ("before", "cluster") if k in options}
    names = [f"x{i}" for i in range(len(arrays) + 1)]
    device = Device(seed)
    address = device.empty(output.nbytes)
    args = [address, *(device.put(a) for a in arrays)]
    device.launch(kernel(body, names, **program), grid, block, args, **options)
    return device.get(address, output)


# The end of a body: %r1 of each thread to x0[thread]
STORE = "mad.wide.u32 %rd1, %r0, 4, %x0; st.global.u32 [%rd1], %r1;"

# Sum of n numbers at x0 by the threads of one block, to x1[block]; the tail guard, the barrier
# and the part of every step are there to be deleted.
REDUCTION = kernel(
    """
	ld.param.u32 %r9, [n];
	mov.u32 %r1, %ctaid.x;
	mov.u32 %r2, %ntid.x;
	mad.lo.u32 %r3, %r1, %r2, %r0;
	mov.f32 %f0, 0f00000000;
	setp.ge.u32 %p1, %r3, %r9;
	@%p1 bra SUM;
	mad.wide.u32 %rd1, %r3, 4, %x0;
	ld.global.f32 %f0, [%rd1];
SUM:
	mov.u32 %r4, 16;
STEP:
	mov.b32 %r5, %f0;
	shfl.sync.bfly.b32 %r6, %r5, %r4, 31, -1;
	mov.b32 %f1, %r6;
	add.f32 %f0, %f0, %f1;
	shr.u32 %r4, %r4, 1;
	setp.ne.u32 %p2, %r4, 0;
	@%p2 bra STEP;
	and.b32 %r7, %r0, 31;
	shr.u32 %r8, %r0, 5;
	mov.u32 %r10, sums;
	setp.ne.u32 %p3, %r7, 0;
	@%p3 bra WAIT;
	mad.lo.u32 %r11, %r8, 4, %r10;
	st.shared.f32 [%r11], %f0;
WAIT:
	bar.sync 0;
	setp.ne.u32 %p4, %r0, 0;
	@%p4 bra END;
	mov.f32 %f2, 0f00000000;
	shr.u32 %r12, %r2, 5;
	mov.u32 %r13, %r10;
ADD:
	ld.shared.f32 %f3, [%r13];
	add.f32 %f2, %f2, %f3;
	add.u32 %r13, %r13, 4;
	sub.u32 %r12, %r12, 1;
	setp.ne.u32 %p5, %r12, 0;
	@%p5 bra ADD;
	mad.wide.u32 %rd2, %r1, 4, %x1;
	st.global.f32 [%rd2], %f2;
END:
""",
    params=("x0", "x1", "n"),
    kinds=("u64", "u64", "u32"),
    before=".visible .shared .align 4 .b8 sums[128];",
)

# Every block of a cluster of four sends 10 * its rank + 1 to all blocks; each stores the sum of
# what it got to x0[block].
EXCHANGE = kernel(
    """
	mov.u32 %r1, box;
	mov.u32 %r2, signal;
	mov.u32 %r3, %cluster_ctarank;
	setp.ne.u32 %p1, %r0, 0;
	@%p1 bra READY;
	mbarrier.init.shared::cta.b64 [%r2], 1;
	mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 16;
	fence.mbarrier_init.release.cluster;
READY:
	barrier.cluster.arrive.relaxed.aligned;
	barrier.cluster.wait.acquire.aligned;
	setp.gt.u32 %p2, %r0, 3;
	@%p2 bra RECEIVE;
	mad.lo.u32 %r4, %r3, 10, 1;
	mad.lo.u32 %r5, %r3, 4, %r1;
	mapa.shared::cluster.u32 %r6, %r5, %r0;
	mapa.shared::cluster.u32 %r7, %r2, %r0;
	st.async.shared::cluster.mbarrier::complete_tx::bytes.u32 [%r6], %r4, [%r7];
RECEIVE:
WAIT:
	mbarrier.try_wait.parity.shared::cta.b64 %p3, [%r2], 0;
	@!%p3 bra WAIT;
	ld.shared.v4.u32 {%r10, %r11, %r12, %r13}, [%r1];
	add.u32 %r10, %r10, %r11;
	add.u32 %r12, %r12, %r13;
	add.u32 %r10, %r10, %r12;
	mov.u32 %r14, %ctaid.x;
	mad.wide.u32 %rd1, %r14, 4, %x0;
	@%p1 bra END;
	st.global.u32 [%rd1], %r10;
END:
""",
    params=("x0",),
    before=".shared .align 16 .b8 box[16]; .shared .align 8 .b8 signal[8];",
    cluster=".explicitcluster .reqnctapercluster 4, 1, 1",
)
