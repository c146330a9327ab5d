"""Every device intrinsic of the package; another compiler would need this file rewritten, no other.

Each is a few lines of LLVM or PTX. Memory is addressed by int64 byte addresses, as in the CPU
kernels: no kernel knows an array type, so strides and dtypes of weights and targets never compile
another kernel, and a launch packs plain numbers.
"""

from functools import cache
from inspect import Parameter, Signature

from llvmlite import ir
from numba import cuda
from numba.core import types
from numba.cuda import cgutils
from numba.cuda.extending import intrinsic

I8, I16, I32, I64 = (ir.IntType(n) for n in (8, 16, 32, 64))
F32, F64 = ir.FloatType(), ir.DoubleType()
GLOBAL, SHARED = 1, 3  # LLVM address spaces

# kind of the logits -> bytes of an element, elements in 128 bits, type it is computed in
KINDS = {
    "float16": (2, 8, types.float32),
    "bfloat16": (2, 8, types.float32),
    "float32": (4, 4, types.float32),
    "float64": (8, 2, types.float64),
}


def inner(function):
    """A device function that is always inlined: local arrays of its callers stay in registers."""
    return cuda.jit(device=True, forceinline=True)(function)


def _global(builder, address, ty, size=0):
    return builder.inttoptr(address, ty.as_pointer(GLOBAL))


def _asm(builder, result, text, constraints, args):
    signature = ir.FunctionType(result, [a.type for a in args])
    code = ir.InlineAsm(signature, text, constraints, side_effect="memory" in constraints)
    return builder.call(code, args)


CONSTRAINTS = {types.uint32: "r", types.float32: "f", types.float64: "d"}


def instruction(text, result, *arguments, memory=False):
    """The device function of some PTX: $0 is the result, if any, and what follows the arguments.

    memory : whether memory accesses stay on their side of it
    """
    letters = [CONSTRAINTS[argument] for argument in arguments] + ["~{memory}"] * memory
    if result != types.void:
        letters.insert(0, "=" + CONSTRAINTS[result])

    def operation(typingctx, *values):
        def codegen(context, builder, sig, args):
            of_result = ir.VoidType() if result == types.void else context.get_value_type(result)
            value = _asm(builder, of_result, text, ",".join(letters), args)
            return context.get_dummy_value() if result == types.void else value

        return result(*arguments), codegen

    names = ["typingctx", *(f"argument_{i}" for i in range(len(arguments)))]
    operation.__signature__ = Signature([Parameter(n, Parameter.POSITIONAL_ONLY) for n in names])
    return intrinsic(operation)


# ---------------------------------------------------------------- single elements


def _decode(builder, raw, kind):
    if kind == "float16":  # LLVM's half has no loads in this Numba: convert the integer
        return _asm(builder, F32, "cvt.f32.f16 $0, $1;", "=f,h", [raw])
    if kind == "bfloat16":  # the upper half of a float32
        return builder.bitcast(builder.shl(builder.zext(raw, I32), I32(16)), F32)
    return raw


def _encode(builder, value, kind):
    if kind == "float16":
        return _asm(builder, I16, "cvt.rn.f16.f32 $0, $1;", "=h,f", [value])
    if kind == "bfloat16":  # by integers, because cvt.rn.bf16.f32 needs sm_80
        raw = builder.bitcast(value, I32)
        odd = builder.and_(builder.lshr(raw, I32(16)), I32(1))
        rounded = builder.lshr(builder.add(raw, builder.add(odd, I32(0x7FFF))), I32(16))
        # rounding up could turn a NaN into an infinity
        quiet = builder.or_(builder.lshr(raw, I32(16)), I32(0x40))
        is_nan = builder.fcmp_unordered("uno", value, value)
        return builder.trunc(builder.select(is_nan, quiet, rounded), I16)
    return value


@cache
def make_loader(kind, staged=False):
    """The function that reads the element at an address, in the type it is computed in.

    staged : at a byte of the stage instead
    """
    size, _, real = KINDS[kind]
    stored = {"float16": I16, "bfloat16": I16, "float32": F32, "float64": F64}[kind]

    @intrinsic
    def load_one(typingctx, place):
        def codegen(context, builder, sig, args):
            at = (_staged if staged else _global)(builder, args[0], stored, size)
            return _decode(builder, builder.load(at, align=size), kind)

        return real(types.int64), codegen

    return load_one


@cache
def make_storer(kind, staged=False):
    """The function that rounds a value to the kind and writes it, as `make_loader` reads it."""
    size, _, real = KINDS[kind]

    @intrinsic
    def store_one(typingctx, place, value):
        def codegen(context, builder, sig, args):
            raw = _encode(builder, args[1], kind)
            at = (_staged if staged else _global)(builder, args[0], raw.type, size)
            builder.store(raw, at, align=size)
            return context.get_dummy_value()

        return types.void(types.int64, real), codegen

    return store_one


@cache
def make_integer_loader(size, signed):
    """The function that widens an integer of so many bytes to int64; large uint64 turn negative."""
    stored = ir.IntType(8 * size)

    @intrinsic
    def load(typingctx, address):
        def codegen(context, builder, sig, args):
            raw = builder.load(_global(builder, args[0], stored), align=size)
            if size == 8:
                return raw
            return builder.sext(raw, I64) if signed else builder.zext(raw, I64)

        return types.int64(types.int64), codegen

    return load


load_i64, load_f64 = make_integer_loader(8, True), make_loader("float64")


@intrinsic
def store(typingctx, address, value):
    """Write an int64, float64 or float32 scalar to global memory."""
    if value not in (types.int64, types.float64, types.float32):
        return None

    def codegen(context, builder, sig, args):
        pointer = _global(builder, args[0], args[1].type)
        builder.store(args[1], pointer, align=value.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(types.int64, value), codegen


# ---------------------------------------------------------------- staged rows in shared memory

# Shared memory whose size the launch gives (see stage.py). One symbol, reached by name: an array of
# size 0 of Numba's would be another symbol at every use, and LLVM takes different symbols for
# different memory. Places are counted in 32 bits: half the instructions.


def stage_gap(size):
    """Bytes left out after every 128, for elements of so many."""
    return max(4, size)


def _staged(builder, byte, ty, size):
    module, name = builder.module, "numba_ce_stage"
    stage = module.globals.get(name)
    if stage is None:
        stage = ir.GlobalVariable(module, ir.ArrayType(I8, 0), name, addrspace=SHARED)
        stage.linkage, stage.align = "external", 16
    byte = builder.trunc(byte, I32)
    gaps = builder.mul(builder.lshr(byte, I32(7)), I32(stage_gap(size)))
    place = builder.gep(stage, [I32(0), builder.add(byte, gaps)], inbounds=True)
    return builder.bitcast(place, ty.as_pointer(SHARED))


# ---------------------------------------------------------------- 128 bits

# Nothing in Numba's arrays gives LDG.E.128, a load of an LLVM vector does


@cache
def make_quads(kind, staged=False):
    """The functions that read and write 16 aligned bytes: four float32, or four uint32 of words.

    staged : at a byte of the stage, whose gaps leave them aligned to 4 bytes only
    """
    stored, word = (F32, types.float32) if kind == "float32" and not staged else (I32, types.uint32)
    vector, align = ir.VectorType(stored, 4), 4 if staged else 16

    def place(builder, at):
        return (_staged if staged else _global)(builder, at, vector, KINDS[kind][0])

    @intrinsic
    def load_quad(typingctx, at):
        result = types.UniTuple(word, 4)

        def codegen(context, builder, sig, args):
            loaded = builder.load(place(builder, args[0]), align=align)
            words = [builder.extract_element(loaded, I32(i)) for i in range(4)]
            return context.make_tuple(builder, result, words)

        return result(types.int64), codegen

    @intrinsic
    def store_quad(typingctx, at, a, b, c, d):
        def codegen(context, builder, sig, args):
            value = ir.Constant(vector, ir.Undefined)
            for i, element in enumerate(args[1:]):
                value = builder.insert_element(value, element, I32(i))
            builder.store(value, place(builder, args[0]), align=align)
            return context.get_dummy_value()

        return types.void(types.int64, word, word, word, word), codegen

    return load_quad, store_quad


# ---------------------------------------------------------------- two 16-bit floats in a word


@cache
def make_unpacker(kind):
    """The function from a word to its two floats.

    `zero` is 0 at run time, which no compiler can know: without it the values unpacked for the
    first use are kept for the second, twice the registers of the packed ones, and spill.
    """
    if kind == "bfloat16":  # prmt: byte 4 is the lowest of `zero`
        text = (
            "{ .reg .b32 a, b; prmt.b32 a, $2, $3, 0x1044; prmt.b32 b, $2, $3, 0x3244; "
            "mov.b32 $0, a; mov.b32 $1, b; }"
        )
    else:
        text = (
            "{ .reg .b32 a; .reg .b16 l, h; xor.b32 a, $2, $3; mov.b32 {l, h}, a; "
            "cvt.f32.f16 $0, l; cvt.f32.f16 $1, h; }"
        )

    @intrinsic
    def unpack(typingctx, word, zero):
        result = types.UniTuple(types.float32, 2)

        def codegen(context, builder, sig, args):
            pair = _asm(builder, ir.LiteralStructType([F32, F32]), text, "=f,=f,r,r", args)
            values = [builder.extract_value(pair, i) for i in (0, 1)]
            return context.make_tuple(builder, result, values)

        return result(types.uint32, types.uint32), codegen

    return unpack


# Half as many instructions as on unpacked values, and the row stays packed (sm_80)
_WORD = types.uint32
packed_maximum = {
    "bfloat16": instruction("max.bf16x2 $0, $1, $2;", _WORD, _WORD, _WORD),
    "float16": instruction("max.f16x2 $0, $1, $2;", _WORD, _WORD, _WORD),
}
# One instruction rounds two floats, the second one being the lower (sm_80)
packer = {
    "bfloat16": instruction("cvt.rn.bf16x2.f32 $0, $2, $1;", _WORD, types.float32, types.float32),
    "float16": instruction("cvt.rn.f16x2.f32 $0, $2, $1;", _WORD, types.float32, types.float32),
}

# ---------------------------------------------------------------- arithmetic

_REAL = types.float32
# 2**x, off by 2 units in the last place at most; not .ftz: gradients may be subnormal
ex2 = instruction("ex2.approx.f32 $0, $1;", _REAL, _REAL)
# what a product loses: x * y - (x * y) written as such may be folded to 0
fma = instruction("fma.rn.f32 $0, $1, $2, $3;", _REAL, _REAL, _REAL, _REAL)
# the nearest integer, as a float32
nearest = instruction("cvt.rni.f32.f32 $0, $1;", _REAL, _REAL)
# one instruction; ignores NaN (Python's max compiles to a comparison that may keep either)
maximum_f32 = instruction("max.f32 $0, $1, $2;", _REAL, _REAL, _REAL)
minimum_f32 = instruction("min.f32 $0, $1, $2;", _REAL, _REAL, _REAL)

# ---------------------------------------------------------------- blocks and clusters

# The barrier of the mbarrier's initialisation is visible to the cluster before anybody arrives; the
# relaxed form, because .release would wait for all the loads that it is meant to overlap
cluster_arrive = instruction(
    "fence.mbarrier_init.release.cluster; barrier.cluster.arrive.relaxed.aligned;",
    types.void,
    memory=True,
)
cluster_wait = instruction("barrier.cluster.wait.acquire.aligned;", types.void, memory=True)


@cache
def make_cluster_setter(size):
    """The function that makes the kernel it stands in start in clusters of so many blocks.

    A note on the kernel (.reqnctapercluster): an ordinary launch then starts clusters.
    """

    @intrinsic
    def set_cluster(typingctx):
        def codegen(context, builder, sig, args):
            kernel, module = builder.function, builder.module
            notes = cgutils.get_or_insert_named_metadata(module, "nvvm.annotations")
            for axis, length in (("x", size), ("y", 1), ("z", 1)):
                name = ir.MetaDataString(module, f"cluster_dim_{axis}")
                notes.add(module.add_metadata([kernel, name, I32(length)]))
            return context.get_dummy_value()

        return types.void(), codegen

    return set_cluster


@intrinsic
def shared_address(typingctx, array, index):
    """The 32-bit address of an element of a shared array."""

    def codegen(context, builder, sig, args):
        data = context.make_array(sig.args[0])(context, builder, args[0]).data
        generic = builder.ptrtoint(builder.gep(data, [args[1]]), I64)
        text = "{ .reg .u64 t; cvta.to.shared.u64 t, $1; cvt.u32.u64 $0, t; }"
        return _asm(builder, I32, text, "=r,l", [generic])

    return types.uint32(array, types.int64), codegen


# The blocks of a cluster exchange sums by stores that count their bytes at the receiver's mbarrier:
# it waits for the data itself; a barrier of the whole cluster would be waited for twice.
# Each takes the address of an mbarrier, and a number
mbarrier_init = instruction(
    "mbarrier.init.shared::cta.b64 [$0], $1;", types.void, _WORD, _WORD, memory=True
)
mbarrier_expect = instruction(
    "mbarrier.arrive.expect_tx.shared::cta.b64 _, [$0], $1;", types.void, _WORD, _WORD, memory=True
)
mbarrier_wait = instruction(
    "{ .reg .pred p; W_${:uid}: mbarrier.try_wait.parity.shared::cta.b64 p, [$0], $1; "
    "@p bra D_${:uid}; bra W_${:uid}; D_${:uid}: }",
    types.void,
    _WORD,
    _WORD,
    memory=True,
)
# (address, mbarrier, block, a, b): two float64 to an address of another block of the cluster
send_pair = instruction(
    "{ .reg .u32 ra, rm; .reg .b64 a, b; mov.b64 a, $3; mov.b64 b, $4; "
    "mapa.shared::cluster.u32 ra, $0, $2; mapa.shared::cluster.u32 rm, $1, $2; "
    "st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b64 [ra], {a, b}, [rm]; }",
    types.void,
    _WORD,
    _WORD,
    _WORD,
    types.float64,
    types.float64,
    memory=True,
)
